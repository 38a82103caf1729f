"""The widgets, driven in a real viewer."""

import html
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from values import by_name

import evenslice
from evenslice._core import ProgressReport
from evenslice.napari_plugin.network_choice import FromFile, FromLibrary, FromRun, random_parts
from evenslice.neutralizing import save_network
from evenslice.training import load_segmenter
from evenslice.volumes import Reading

SHAPE, SCALE = (12, 40, 48), (3.0, 0.5, 0.5)


def before_alone():
    """A network that only reads the slice before the middle; its classes are dark and bright."""
    import torch

    network = torch.nn.Conv2d(3, 2, 1)
    weight = torch.zeros(2, 3, 1, 1)
    weight[1, 0], weight[0, 0] = 1.0, -1.0
    network.weight.requires_grad_(False).copy_(weight)
    network.bias.requires_grad_(False).copy_(torch.tensor([0.5, -0.5]))
    return network


@pytest.fixture
def widget(viewer):
    """Open a widget of the plugin by its name in napari's menu."""
    return lambda name: viewer.window.add_plugin_dock_widget("evenslice", name)[1]


@pytest.fixture
def volume():
    return np.random.default_rng(0).random(SHAPE).astype(np.float32)


def plain(text):
    return html.unescape(re.sub("<[^>]*>", " ", text))


def choose_tiny(widget):
    """Name a small network of this module, which `package.module:function` finds as the command line would."""
    widget.network.spec.value = f"{__name__}:before_alone"
    widget.network.weights.value = "none"


def train_once(folder, volume, spec="smp:Unet/tu-test_resnet", **training):
    """Train for one step on slices along y, with labels of 0 and 255."""
    np.save(folder / "image.npy", volume * 255)
    np.save(folder / "labels.npy", np.where(volume > 0.5, 255, 0).astype(np.uint8))
    files = [{"image": "image.npy", "labels": "labels.npy"}]
    reading = {"label_values": [0, 255], "intensity": [0, 300], "plane": "y"}
    common = {"steps": 1, "batch": 2, "stress": False, "dtype": "float32", "accelerator": "cpu", **training}
    config = {
        "data": {"name": "stack", "root": str(folder), "train": files, **reading},
        "model": {"spec": spec, "weights": "none", "strategy": "pretrained"},
        "training": common,
    }
    evenslice.train(config, out=folder / "run", progress=False)
    return folder / "run"


def maps_of(viewer):
    return {layer.name: layer for layer in viewer.layers if layer.name != "stack"}


def test_an_audit_shows_the_verdict_and_layers_of_the_slice_in_view(viewer, widget, wait_for, volume):
    layer = viewer.add_image(volume, scale=SCALE, translate=(5, 6, 7), name="stack")
    audit = widget("Audit a network")
    choose_tiny(audit)
    viewer.dims.set_point(0, 5 + 3.0 * 4)
    audit.start.changed.emit(True)
    wait_for(lambda: not audit.busy)
    found = evenslice.audit(before_alone(), volume, slices=3)
    shown = plain(audit.verdict.value)
    assert audit.audit.verdict == found.verdict == "biased"
    assert audit.audit.shares == found.shares
    assert re.search("biased +Biased in its gradient maps", shown)
    assert re.search(r"saliency \*.*beyond", shown)
    maps = maps_of(viewer)
    assert [*maps] == ["shade", "-1 adds", "-1 takes", "changed by reversing"]
    assert not maps["shade"].data.any()  # darkens bright tissue, which would leave no colour to be seen
    assert (maps["shade"].blending, maps["shade"].opacity) == ("translucent_no_depth", 0.75)
    for item in maps.values():
        assert item.data.shape == (1, 40, 48)
        assert np.allclose(item.scale, SCALE)
        assert np.allclose(item.translate, (5 + 3.0 * 4, 6, 7))
    answered = evenslice.explain(before_alone(), volume, 4, slices=3)
    assert np.allclose(maps["-1 adds"].data[0], np.maximum(answered.maps[0], 0), atol=1e-5)
    assert maps["-1 takes"].data.any()
    assert (
        "Slice 4: red adds to the answer, blue takes from it. By integrated gradients" in audit.legend.value
    )
    assert 0 < maps["changed by reversing"].data.mean() < 1
    assert list(audit.layer.choices) == [layer]  # not the layers that were added

    viewer.dims.set_point(0, 5 + 3.0 * 7)
    audit.explain.changed.emit(True)
    wait_for(lambda: not audit.busy)
    assert np.allclose(maps_of(viewer)["-1 adds"].translate, (5 + 3.0 * 7, 6, 7))
    assert len(viewer.layers) == 5


def test_a_cancelled_audit_leaves_nothing(viewer, widget, wait_for, volume, monkeypatch):
    viewer.add_image(volume, name="stack")
    audit = widget("Audit a network")
    choose_tiny(audit)
    reached, go_on = threading.Event(), threading.Event()

    def slow(*given, **options):
        reached.set()
        go_on.wait(60)
        return evenslice.audit(*given, **by_name(evenslice.audit, **options))

    monkeypatch.setattr("evenslice.napari_plugin.audit_widget.audit", slow)
    audit.start.changed.emit(True)
    wait_for(reached.is_set)
    assert audit.busy
    audit.cancel.changed.emit(True)
    go_on.set()
    wait_for(lambda: not audit.busy)
    assert (audit.status.value, audit.verdict.value, audit.audit) == ("Cancelled.", "", None)
    assert len(viewer.layers) == 1
    assert audit.start.enabled
    assert not audit.cancel.enabled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": np.zeros((9, 9))}, "has 2 dimensions"),
        ({"data": np.zeros((2, 5, 9, 9))}, "has 4 dimensions"),
        ({"data": np.zeros((5, 9, 9, 3), np.uint8), "rgb": True}, "is in colour"),
        ({"data": np.zeros((5, 40, 40))}, "<array>: every voxel is 0|constant"),
    ],
)
def test_a_layer_that_is_no_volume_is_refused_in_one_line(viewer, widget, wait_for, options, message):
    viewer.add_image(options.pop("data"), name="stack", **options)
    audit = widget("Audit a network")
    choose_tiny(audit)
    audit.start.changed.emit(True)
    wait_for(lambda: not audit.busy)
    line = plain(audit.status.value)
    assert re.search(rf"error: .*({message})", line)
    assert "\n" not in line
    assert len(viewer.layers) == 1


def test_networks_that_cannot_be_loaded_are_told_in_one_line(viewer, widget, wait_for, volume, tmp_path):
    segment = widget("Segment")
    segment.start.changed.emit(True)
    assert "no image layer is open" in plain(segment.status.value)
    viewer.add_image(volume, name="stack")
    form = segment.network
    for fields, message in (
        ({"spec": "smp:Unet/no_such_encoder"}, "no_such_encoder"),
        ({"weights": "file"}, "no weights chosen"),
        ({"source": "training run"}, "no network chosen"),
        ({"source": "training run", "run": tmp_path}, "holds no run"),
        ({"source": "saved network"}, "no network chosen"),
        ({"source": "saved network", "file": tmp_path / "no.safetensors"}, "no.safetensors"),
    ):
        for name, value in {"source": "library", "weights": "imagenet", **fields}.items():
            getattr(form, name).value = value
        segment.start.changed.emit(True)
        wait_for(lambda: not segment.busy)
        assert re.search(rf"error: .*{message}", plain(segment.status.value))
    assert len(viewer.layers) == 1


@pytest.mark.parametrize("source", ["library", "training run", "saved network"])
def test_numbers_that_cannot_be_right_are_told_in_one_line(
    viewer, widget, wait_for, volume, tmp_path, source
):
    audit = widget("Audit a network")
    viewer.add_image(volume, name="stack")
    choose_tiny(audit)
    form = audit.network
    form.source.value = source
    if source == "training run":
        form.run.value = train_once(tmp_path, volume)
    elif source == "saved network":
        loaded = evenslice.load_network("timm:test_resnet", "none")
        save_network(loaded.model, tmp_path / "net.safetensors", source=loaded.source)
        form.file.value = tmp_path / "net.safetensors"
    wrong = [
        ("intensity", "low", r"intensity: low: numbers are needed, such as 0,255"),
        ("intensity", "3", r"intensity=\[3\.0\]: give two numbers, the voxel values that become 0 and 1"),
        ("intensity", "3 3", r"intensity=\[3\.0, 3\.0\]: the first must be below the second"),
        ("fill", "0,1", r"fill: 0,1: one number is needed, such as 0"),
        ("fill", "inf", r"fill"),
    ]
    if source == "library":
        wrong += [
            ("mean", "a", r"mean: a: numbers are needed, such as 0\.485,0\.456,0\.406"),
            ("mean", "1,2", "mean has to be a finite number, or one for each of the 3 inputs"),
            (
                "mean",
                "127",
                r"slices are scaled to 0\.\.1 first; divide the mean and std of 8-bit values by 255",
            ),
            ("std", "0", r"std has to be positive"),
        ]
    for name, text, message in wrong:
        getattr(form, name).value = text
        audit.start.changed.emit(True)
        wait_for(lambda: not audit.busy)
        assert re.search(rf"error: .*{message}", plain(audit.status.value))
        getattr(form, name).value = ""
    assert audit.audit is None


def test_the_user_says_how_a_network_of_others_is_scaled(viewer, widget, wait_for, volume):
    volume[3, 4, 5] = np.nan
    layer = viewer.add_image(volume * 255, name="stack")
    audit = widget("Audit a network")
    audit.network.spec.value, audit.network.weights.value = "smp:Unet/tu-test_resnet", "none"
    audit.start.changed.emit(True)
    wait_for(lambda: not audit.busy)
    assert "fill" in plain(audit.status.value)
    form = audit.network
    form.mean.value, form.std.value, form.intensity.value, form.fill.value = "0", " 1 ", "0, 300", "7"
    audit.start.changed.emit(True)
    wait_for(lambda: not audit.busy)
    expected = evenslice.load_network("smp:Unet/tu-test_resnet", "none", slices=3, mean=0, std=1)
    found = evenslice.audit(
        expected.model, layer.data, slices=3, reading=evenslice.Reading(intensity=(0, 300), fill=7)
    )
    assert audit.audit.shares == found.shares
    read = audit.audit.run.volumes[0]
    assert (read.intensity, read.fill) == ((0, 300), 7)
    assert evenslice.record_of(audit._audited.network.network).mean == 0
    assert "-1 adds" in maps_of(viewer)
    for source, hidden in (("training run", True), ("saved network", True), ("library", False)):
        form.source.value = source  # what a run or a saved network determines is not asked for
        assert [form.mean.native.isHidden(), form.std.native.isHidden()] == [hidden, hidden]


def test_the_user_may_read_volumes_otherwise_than_a_run_or_a_file_says(volume, tmp_path):
    run, file = train_once(tmp_path, volume), tmp_path / "net.safetensors"
    loaded = evenslice.load_network("timm:test_resnet", "none")
    save_network(loaded.model, file, source=loaded.source, reading={"step": 2, "intensity": (0, 300)})
    for choice in (
        FromRun(run, {"fill": 3.0, "intensity": None}),
        FromFile(file, {"fill": 3.0, "intensity": None}),
        FromLibrary("timm:test_resnet", str(file), 3, "pretrained", reading={"fill": 3.0}),
    ):
        assert (choice.load().reading.intensity, choice.load().reading.fill) == ((0, 300), 3)
    given = FromLibrary("timm:test_resnet", str(file), 3, "pretrained", mean=(0.5,))
    with pytest.raises(evenslice.ModelError, match="states its own mean and std; leave out mean and std"):
        given.load()


def test_a_segmentation_is_that_of_segment_where_the_volume_lies(viewer, widget, wait_for, volume, tmp_path):
    import dask.array as da

    segment = widget("Segment")  # before PyTorch is imported: see triton_first
    file = tmp_path / "fair.safetensors"
    loaded = evenslice.load_network("smp:Unet/tu-test_resnet", "none", slices=5, strategy="mirror")
    save_network(loaded.model, file, source=loaded.source)
    layer = viewer.add_image(
        da.from_array(volume, chunks=(1, 40, 48)), scale=SCALE, translate=(1, 2, 3), name="stack"
    )
    segment.network.source.value = "saved network"
    segment.network.file.value = file
    segment.start.changed.emit(True)
    wait_for(lambda: not segment.busy)
    labels = viewer.layers["stack segmented"]
    expected = evenslice.segment(loaded.model, volume, tmp_path / "expected.npy")
    assert np.array_equal(labels.data, np.asarray(expected))
    assert len(np.unique(labels.data)) == 2
    assert plain(segment.status.value) == "Done; largest label: 1."
    assert np.array_equal(labels.scale, layer.scale)
    assert np.array_equal(labels.translate, layer.translate)


def test_untrained_networks_are_said_to_be_random(viewer, widget, wait_for, volume):
    segment, audit = widget("Segment"), widget("Audit a network")
    viewer.add_image(volume, name="stack")
    for panel, shown, message in (
        (segment, "status", "The network is random; train it before you use these labels."),
        (audit, "verdict", "The network was random in this audit"),
    ):
        panel.network.spec.value, panel.network.weights.value = "smp:Unet/tu-test_resnet", "none"
        panel.start.changed.emit(True)
        wait_for(lambda panel=panel: not panel.busy)
        assert message in plain(getattr(panel, shown).value)
    choice = FromLibrary("smp:Unet/tu-tf_efficientnet_lite0", "imagenet", 3, "pretrained")
    assert random_parts(choice, choice.load()) == ("decoder", "segmentation_head")


def test_a_file_of_weights_says_how_volumes_are_read(tmp_path):
    spec, file = "smp:Unet/tu-test_resnet", tmp_path / "fair.safetensors"
    reading = {"step": 2, "plane": "y", "intensity": (0.0, 300.0), "label_values": (0, 255)}
    loaded = evenslice.load_network(spec, "none")
    save_network(loaded.model, file, source=loaded.source, reading=reading)
    for choice in (FromLibrary(spec, str(file), 3, "pretrained"), FromFile(file)):
        assert choice.load().reading == Reading(**reading)


def test_a_network_whose_decoder_is_random_segments_nothing(viewer, widget, wait_for, volume, tmp_path):
    segment, audit = widget("Segment"), widget("Audit a network")
    import torch

    network = evenslice.load_network("smp:Unet/tu-test_resnet", "none").model
    torch.save(network.encoder.state_dict(), tmp_path / "encoder.pt")
    viewer.add_image(volume, name="stack")
    for form in (segment.network, audit.network):
        form.spec.value, form.weights.value = "smp:Unet/tu-test_resnet", "file"
        form.weights_file.value = tmp_path / "encoder.pt"
    segment.start.changed.emit(True)
    wait_for(lambda: not segment.busy)
    assert "lacks the network's decoder, segmentation_head" in plain(segment.status.value)
    assert len(viewer.layers) == 1
    audit.start.changed.emit(True)
    wait_for(lambda: not audit.busy)
    assert "lacks decoder, segmentation_head, which were random" in plain(audit.verdict.value)


def test_progress_in_more_steps_than_a_bar_can_count(widget):
    segment = widget("Segment")
    segment._progressed(ProgressReport("write", 3 * 2**31, 2**33, "voxels"))
    assert segment.progress.value / segment.progress.max == pytest.approx(0.75, rel=1e-6)
    assert "6442450944 of 8589934592 voxels" in plain(segment.status.value)


def test_the_sample_opens_with_its_voxel_size(viewer):
    pytest.importorskip("nilearn")
    (layer,) = viewer.open_sample("evenslice", "mni152")
    assert layer.data.shape == (189, 233, 197)
    assert layer.scale.tolist() == [1, 1, 1]
    assert str(layer.units[0]) == "millimeter"


def test_labels_too_many_for_the_memory_lie_in_a_file_that_goes_with_their_layer(
    viewer, widget, wait_for, volume, tmp_path, monkeypatch
):
    monkeypatch.setattr("evenslice.napari_plugin.segment_widget.IN_MEMORY", 0)
    viewer.add_image(volume, name="stack")
    segment = widget("Segment")
    choose_tiny(segment)
    segment.start.changed.emit(True)
    wait_for(lambda: not segment.busy)
    labels = viewer.layers["stack segmented"]
    assert isinstance(labels.data, np.memmap)
    assert np.array_equal(
        labels.data, evenslice.segment(before_alone(), volume, tmp_path / "labels.npy")[...]
    )
    file = Path(labels.data.filename)
    assert file.exists()
    labels.paint((0, 0, 0), 1)
    assert np.load(file)[0, 0, 0] == 1
    viewer.layers.remove(labels)
    assert not file.parent.exists()


def test_the_network_of_a_run_reads_volumes_and_writes_labels_as_the_run_does(
    viewer, widget, wait_for, volume, tmp_path
):
    volume = volume.swapaxes(0, 1)
    segment, audit = widget("Segment"), widget("Audit a network")
    run = train_once(tmp_path, volume, crop=[32, 32])
    viewer.add_image(volume * 255, name="stack")
    for part in (segment, audit):
        part.network.source.value, part.network.run.value = "training run", run
        part.start.changed.emit(True)
        wait_for(lambda part=part: not part.busy)
    network = load_segmenter(run)
    expected = evenslice.segment(network, volume * 255)
    labels = viewer.layers["stack segmented"].data
    assert np.array_equal(labels, np.asarray(expected))
    assert set(np.unique(labels)) <= {0, 255}
    assert labels.max() == 255
    assert audit.audit.run.volumes[0].intensity == (0, 300)
    assert maps_of(viewer)["-1 adds"].data.shape == (40, 1, 48)


def test_a_classifier_is_asked_about_windows_of_the_size_of_its_crops(
    viewer, widget, wait_for, volume, tmp_path
):
    volume = volume.swapaxes(0, 1)
    audit, segment = widget("Audit a network"), widget("Segment")
    run = train_once(tmp_path, volume, "timm:test_resnet", crop=[16, 16], task="classification")
    viewer.add_image(volume * 255, name="stack")
    for part in (segment, audit):
        part.network.source.value, part.network.run.value = "training run", run
        part.start.changed.emit(True)
        wait_for(lambda part=part: not part.busy)
    assert "trained a classifier" in plain(segment.status.value)
    assert audit.audit.run.tile == (16, 16)
    assert maps_of(viewer)["-1 adds"].data.shape == (16, 1, 16)
