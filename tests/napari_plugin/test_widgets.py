"""The widgets, driven in a real viewer."""

import html
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from values import by_name

import evenslice
from evenslice import Reading
from evenslice.napari_plugin.network_form import NetworkChoice

pytestmark = pytest.mark.slow

SHAPE, SCALE = (12, 40, 48), (3.0, 0.5, 0.5)
TINY = "smp:Unet/tu-test_resnet"


def before_alone():
    """A network that only reads the slice before the middle; its classes are dark and bright."""
    import torch

    network = torch.nn.Conv2d(3, 2, 1)
    weight = torch.zeros(2, 3, 1, 1)
    weight[1, 0], weight[0, 0] = 1.0, -1.0
    network.weight.requires_grad_(False).copy_(weight)
    network.bias.requires_grad_(False).copy_(torch.tensor([0.5, -0.5]))
    return network


MINE = {"spec": f"{__name__}:before_alone", "weights": "none"}
"""That network, as the command line would find it."""


@pytest.fixture
def widget(viewer):
    """Open a widget of the plugin by its name in napari's menu, with fields of its network."""

    def opened(name, **fields):
        found = viewer.window.add_plugin_dock_widget("evenslice", name)[1]
        fill_in(found, fields)
        return found

    return opened


@pytest.fixture
def press(wait_for):
    """Enter fields, press the button, and return what the line of status says in the end."""

    def pressed(widget, **fields):
        fill_in(widget, fields)
        widget.start.changed.emit(True)
        wait_for(lambda: not widget.busy)
        return plain(widget.status.value)

    return pressed


@pytest.fixture
def volume():
    return np.random.default_rng(0).random(SHAPE).astype(np.float32)


def fill_in(widget, fields):
    for name, value in fields.items():
        getattr(widget.network, name).value = value


def plain(text):
    return html.unescape(re.sub("<[^>]*>", " ", text))


def train_once(folder, volume, spec=TINY, **training):
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


def test_an_audit_shows_the_verdict_and_layers_of_the_slice_in_view(viewer, widget, press, wait_for, volume):
    layer = viewer.add_image(volume, scale=SCALE, translate=(5, 6, 7), name="stack")
    audit = widget("Audit a network", **MINE)
    viewer.dims.set_point(0, 5 + 3.0 * 4)
    press(audit)
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
    audit = widget("Audit a network", **MINE)
    reached, go_on = threading.Event(), threading.Event()

    def slow(*given, **options):
        reached.set()
        go_on.wait(60)
        return evenslice.audit(*given, **by_name(evenslice.audit, **options))

    monkeypatch.setattr("evenslice.napari_plugin.widgets.audit", slow)
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
def test_a_layer_that_is_no_volume_is_refused_in_one_line(viewer, widget, press, options, message):
    viewer.add_image(name="stack", **options)
    line = press(widget("Audit a network", **MINE))
    assert re.search(rf"error: .*({message})", line)
    assert "\n" not in line
    assert len(viewer.layers) == 1


REFUSED = [
    ({"spec": "smp:Unet/no_such_encoder"}, "no_such_encoder"),
    ({"weights": "file"}, "no weights chosen"),
    ({"source": "training run"}, "no network chosen"),
    ({"source": "training run", "run": "nowhere"}, "holds no run"),
    ({"source": "saved network"}, "no network chosen"),
    ({"source": "saved network", "file": "no.safetensors"}, "no.safetensors"),
    (MINE | {"intensity": "low"}, "intensity: low: numbers are needed"),
    (MINE | {"intensity": "3 3"}, "intensity="),
    (MINE | {"fill": "0,1"}, "fill: 0,1: one number is needed"),
    (MINE | {"fill": "inf"}, "fill"),
    (MINE | {"mean": "a"}, "mean: a: numbers are needed"),
    (MINE | {"mean": "1,2"}, "mean has"),
    (MINE | {"std": "0"}, "std has to be positive"),
]


def test_what_cannot_be_loaded_or_read_is_told_in_one_line(viewer, widget, press, volume):
    audit = widget("Audit a network")
    assert "no image layer is open" in press(audit)
    viewer.add_image(volume, name="stack")
    empty = {"source": "library", "intensity": "", "fill": "", "mean": "", "std": ""}
    for fields, message in REFUSED:
        assert re.search(rf"error: .*{message}", press(audit, **empty | fields))
    assert audit.audit is None
    assert len(viewer.layers) == 1


def test_the_user_says_how_a_network_of_others_is_scaled(viewer, widget, press, volume):
    volume[3, 4, 5] = np.nan
    layer = viewer.add_image(volume * 255, name="stack")
    audit = widget("Audit a network", spec=TINY, weights="none")
    assert "fill" in press(audit)
    press(audit, mean="0", std=" 1 ", intensity="0, 300", fill="7")
    expected = evenslice.load_network(TINY, "none", slices=3, mean=0, std=1)
    reading = Reading(intensity=(0, 300), fill=7)
    assert audit.audit.shares == evenslice.audit(expected.model, layer.data, slices=3, reading=reading).shares
    read = audit.audit.run.volumes[0]
    assert (read.intensity, read.fill) == ((0, 300), 7)
    assert "-1 adds" in maps_of(viewer)
    form = audit.network
    for source, hidden in (("training run", True), ("saved network", True), ("library", False)):
        form.source.value = source  # what a run or a saved network determines is not asked for
        assert [form.mean.native.isHidden(), form.std.native.isHidden()] == [hidden, hidden]


def test_a_run_or_a_file_says_how_volumes_are_read_unless_the_user_does(volume, tmp_path):
    run, file = train_once(tmp_path, volume), tmp_path / "net.safetensors"
    loaded = evenslice.load_network("timm:test_resnet", "none")
    stated = {"step": 2, "plane": "y", "intensity": (0, 300), "label_values": (0, 255)}
    evenslice.save_network(loaded.model, file, source=loaded.source, reading=stated)
    given = {"fill": 3.0, "intensity": None}
    choices = [
        NetworkChoice(run=run, reading=given),
        NetworkChoice(spec=str(file), reading=given),
        NetworkChoice(spec="timm:test_resnet", weights=str(file), reading=given),
    ]
    for choice in choices:
        read = choice.load().reading
        assert (read.intensity, read.fill, read.plane, read.label_values) == ((0, 300), 3, "y", (0, 255))
    with pytest.raises(evenslice.ModelError, match="states its own mean and std"):
        NetworkChoice(spec="timm:test_resnet", weights=str(file), built={"mean": (0.5,)}).load()


def test_a_segmentation_is_that_of_segment_where_the_volume_lies(viewer, widget, press, volume, tmp_path):
    import dask.array as da

    segment = widget("Segment")  # before PyTorch is imported: see load_triton
    file = tmp_path / "fair.safetensors"
    loaded = evenslice.load_network(TINY, "none", slices=5, strategy="mirror")
    evenslice.save_network(loaded.model, file, source=loaded.source)
    layer = viewer.add_image(
        da.from_array(volume, chunks=(1, 40, 48)), scale=SCALE, translate=(1, 2, 3), name="stack"
    )
    assert press(segment, source="saved network", file=file) == "Done; largest label: 1."
    labels = viewer.layers["stack segmented"]
    expected = evenslice.segment(loaded.model, volume)
    assert np.array_equal(labels.data, np.asarray(expected))
    assert len(np.unique(labels.data)) == 2
    assert np.array_equal(labels.scale, layer.scale)
    assert np.array_equal(labels.translate, layer.translate)


def test_labels_lie_in_a_file_that_goes_with_their_layer(viewer, widget, press, volume):
    viewer.add_image(volume, name="stack")
    press(widget("Segment", **MINE))
    labels = viewer.layers["stack segmented"]
    file = Path(labels.data.filename)
    labels.paint((0, 0, 0), 1)
    assert np.load(file)[0, 0, 0] == 1
    viewer.layers.remove(labels)
    assert not file.parent.exists()


def test_untrained_networks_are_said_to_be_random(viewer, widget, press, volume):
    segment, audit = widget("Segment"), widget("Audit a network")
    viewer.add_image(volume, name="stack")
    assert "The network is random; train it" in press(segment, spec=TINY, weights="none")
    press(audit, spec=TINY, weights="none")
    assert "The network is random; train it" in plain(audit.verdict.value)
    choice = NetworkChoice(spec="smp:Unet/tu-tf_efficientnet_lite0", weights="imagenet")
    assert "(decoder, segmentation_head) are random" in choice.note(choice.load())


def test_a_network_whose_decoder_is_random_segments_nothing(viewer, widget, press, volume, tmp_path):
    segment, audit = widget("Segment"), widget("Audit a network")
    import torch

    network = evenslice.load_network(TINY, "none").model
    torch.save(network.encoder.state_dict(), tmp_path / "encoder.pt")
    viewer.add_image(volume, name="stack")
    fields = {"spec": TINY, "weights": "file", "weights_file": tmp_path / "encoder.pt"}
    assert "lacks the network's decoder, segmentation_head" in press(segment, **fields)
    assert len(viewer.layers) == 1
    press(audit, **fields)
    assert "lacks decoder, segmentation_head, which are random" in plain(audit.verdict.value)


def test_progress_in_more_steps_than_a_bar_can_count(viewer, widget, wait_for, volume):
    segment, reached = widget("Segment"), threading.Event()
    segment.run(reached.wait, lambda _: None, "Waiting")
    segment._progressed(("write", 3 * 2**31, 2**33, "voxels"))
    assert segment.progress.value / segment.progress.max == pytest.approx(0.75, rel=1e-6)
    assert "6442450944 of 8589934592 voxels" in plain(segment.status.value)
    reached.set()
    wait_for(lambda: not segment.busy)


def test_the_sample_opens_with_its_voxel_size(viewer):
    pytest.importorskip("nilearn")
    (layer,) = viewer.open_sample("evenslice", "mni152")
    assert layer.data.shape == (189, 233, 197)
    assert layer.scale.tolist() == [1, 1, 1]
    assert str(layer.units[0]) == "millimeter"


def test_the_network_of_a_run_reads_volumes_and_writes_labels_as_the_run_does(
    viewer, widget, press, volume, tmp_path
):
    volume = volume.swapaxes(0, 1)
    segment, audit = widget("Segment"), widget("Audit a network")
    run = train_once(tmp_path, volume, crop=[32, 32])
    viewer.add_image(volume * 255, name="stack")
    for part in (segment, audit):
        press(part, source="training run", run=run)
    expected = evenslice.segment(NetworkChoice(run=run).load(), volume * 255)
    labels = viewer.layers["stack segmented"].data
    assert np.array_equal(labels, np.asarray(expected))
    assert labels.max() == 255
    assert audit.audit.run.volumes[0].intensity == (0, 300)
    assert maps_of(viewer)["-1 adds"].data.shape == (40, 1, 48)


def test_a_classifier_is_asked_about_windows_of_the_size_of_its_crops(
    viewer, widget, press, volume, tmp_path
):
    volume = volume.swapaxes(0, 1)
    audit, segment = widget("Audit a network"), widget("Segment")
    run = train_once(tmp_path, volume, "timm:test_resnet", crop=[16, 16], task="classification")
    viewer.add_image(volume * 255, name="stack")
    assert "trained a classifier" in press(segment, source="training run", run=run)
    press(audit, source="training run", run=run)
    assert audit.audit.run.tile == (16, 16)
    assert maps_of(viewer)["-1 adds"].data.shape == (16, 1, 16)
