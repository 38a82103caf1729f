"""Exported networks, run by the libraries of their formats, give what the network gives; what is wrong is not written."""

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from commands import run_command
from onnx_graphs import save
from synthetic import make_audit
from tiny_training import same, start, training_options, write_inputs
from torch import nn
from values import READING

from evenslice import (
    Compute,
    ConfigError,
    ModelCard,
    ModelError,
    OutputError,
    Reading,
    Sampling,
    Scaling,
    Segmenter,
    audit,
    export,
    load_audits,
    load_network,
    load_onnx,
    neutralize,
    open_segmenter,
    record_of,
    save_network,
    segment,
    symmetrize,
)

OLD_AUDITS = Path(__file__).parents[1] / "data" / "written-by-0.2.0" / "audits"
TINY = "smp:Unet/tu-test_resnet?encoder_depth=1&decoder_channels=[4]"


def small(at=None, *, slices=3, classes=2):
    """Return a network that shrinks the image and restores it, on a common scale."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(slices, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, classes, 1),
    ).eval()
    neutralize(network, slices, strategy="pretrained", mean=0.4, std=0.2)
    return network if at is None else symmetrize(network, at)


def wanted(network, windows):
    """Return what a network makes of windows in 0..1."""
    with torch.no_grad():
        return network((torch.from_numpy(windows) - 0.4) / 0.2).numpy()


def noise(*shape):
    return np.random.default_rng(1).random(shape, dtype=np.float32)


# Every way out and back


@pytest.fixture(scope="module", params=["twin", "encoder", "output"])
def averaging(request):
    """A network that averages windows and their mirrors, whose kernels differ from side to side as after a training."""
    strategy = "twin" if request.param == "twin" else "pretrained"
    at = None if request.param == "twin" else request.param
    loaded = load_network(TINY, "none", slices=5, strategy=strategy, symmetrize=at)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return loaded


def answer(network, windows, record=None):
    scaled = windows if record is None else (windows - record.mean) / record.std
    with torch.no_grad():
        return network.eval()(torch.from_numpy(scaled)).numpy()


@pytest.mark.slow
def test_an_average_over_mirrors_comes_back_from_every_file(averaging, tmp_path):
    network, record, source = averaging
    windows = noise(2, 5, 64, 64)
    before = answer(network, windows)
    torch.save(network.state_dict(), tmp_path / "state.pt")
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in network.state_dict().items()}},
        tmp_path / "x.ckpt",
    )
    safetensors.torch.save_file(network.state_dict(), tmp_path / "state.safetensors")
    save_network(network, tmp_path / "saved.safetensors", source=source)
    export(network, tmp_path / "folder", to="huggingface", source=source)
    for name in ("state.pt", "x.ckpt", "state.safetensors", "saved.safetensors", "folder"):
        back = load_network(TINY, str(tmp_path / name))
        np.testing.assert_array_equal(answer(back.model, windows), before, err_msg=name)
        assert (back.record.symmetrized, back.record.mean) == (record.symmetrized, record.mean)
        assert back.record.mirror_error <= 1e-5
    for back in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):  # noqa: S301  # our own
        np.testing.assert_array_equal(answer(back, windows), before)
        assert back.state_dict().keys() == network.state_dict().keys()
    card = ModelCard(name="Small", license="MIT", authors=("A. Author",))
    export(network, tmp_path / "zoo", to="bioimageio", card=card, tile=(64, 64))
    export(network, tmp_path / "onnx", to="onnx")
    for file in ("zoo/weights.onnx", "onnx/network.onnx"):
        np.testing.assert_allclose(
            load_onnx(tmp_path / file)(windows), answer(network, windows, record), atol=1e-4
        )
        assert not any("evenslice" in item.name for item in onnx.load(tmp_path / file).graph.initializer)


@pytest.mark.slow
def test_an_average_over_mirrors_is_never_lost_silently(averaging, tmp_path):
    network = averaging.model
    torch.save(network.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt")
    plain, mirror = (
        load_network(TINY, "none", slices=5, strategy=strategy).model for strategy in ("pretrained", "mirror")
    )
    elsewhere = symmetrize(copy.deepcopy(plain), "decoder")
    for other in (plain, mirror, elsewhere):
        with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*evenslice_mirror_average"):
            other.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*evenslice_mirror_average"):
        copy.deepcopy(network).load_state_dict(plain.state_dict())
    for options in ({"strategy": "uniform"}, {"slices": 3}, {"strategy": "reinit"}):
        with pytest.raises(ModelError, match="averages over a window and its mirror after"):
            load_network(TINY, str(tmp_path / "state.pt"), **options)


# ONNX


@pytest.mark.slow
@pytest.mark.parametrize("at", [None, "1"])
def test_an_onnx_file_takes_windows_of_any_number_and_size_in_0_to_1(tmp_path, at):
    network = small(at)
    reading = Reading(step=2, intensity=(10, 200))
    written = export(network, tmp_path / "out", to="onnx", reading=reading)
    assert (written.tile, written.multiple, written.difference < 1e-4) == (None, 32, True)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "network.onnx")
    for shape in ((1, 3, 64, 96), (5, 3, 96, 64)):
        windows = noise(*shape)
        (given,) = session.run(None, {"windows": windows})
        np.testing.assert_allclose(given, wanted(network, windows), atol=1e-5)
        if at is not None:  # the hooks came along
            np.testing.assert_array_equal(given, session.run(None, {"windows": windows[:, ::-1].copy()})[0])
    file = load_onnx(tmp_path / "out" / "network.onnx")  # which nobody needs to tell the scaling
    assert (file.mean, file.std, file.slices) == ((0.4,), (0.2,), 3)
    np.testing.assert_allclose(file(windows), wanted(network, windows), atol=1e-5)
    written = onnx.load(file.path)
    for value in (*written.graph.input, *written.graph.output):
        batch, _, *plane = (dimension.dim_param for dimension in value.type.tensor_type.shape.dim)
        assert batch == "batch"
        assert [re.sub(r"[^a-z]", "", length) for length in plane] == ["y", "x"]  # or what follows from them
    properties = {item.key: item.value for item in written.metadata_props}
    stated = json.loads(properties["evenslice"])
    assert (stated["step"], stated["intensity"], stated["record"]["strategy"]) == (2, [10, 200], "pretrained")
    assert b".py" not in file.path.read_bytes()  # no stack trace names files of this machine
    with pytest.raises(ModelError, match="states its own mean and std; leave out mean and std"):
        load_onnx(file.path, mean=0.5)


@pytest.mark.parametrize(
    "text",
    ["no json", "[]", '{"mean": [0], "std": [0], "scaled_in_graph": true}', '{"mean": [0], "std": ["x"]}'],
)
def test_an_onnx_file_with_damaged_metadata_is_refused(tmp_path, text):
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    model = onnx.load(save(tmp_path / "n.onnx", [node], shape=(1, 3, 8, 8)))
    onnx.helper.set_model_props(model, {"evenslice": text})
    onnx.save(model, tmp_path / "n.onnx")
    with pytest.raises(
        ModelError, match=r"n.onnx: the metadata of evenslice in it cannot be read .*; export the"
    ):
        load_onnx(tmp_path / "n.onnx")


@pytest.mark.slow
def test_padding_that_depends_on_the_size_is_exported_for_every_size(tmp_path):
    timm_layers = pytest.importorskip("timm.layers")
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), timm_layers.Conv2dSame(4, 4, 3, stride=2), nn.Upsample(scale_factor=2)
    ).eval()
    neutralize(network, 3, strategy="pretrained", mean=0.4, std=0.2)
    assert export(network, tmp_path / "fixed", to="onnx", tile=(32, 64)).tile == (32, 64)
    assert load_onnx(tmp_path / "fixed" / "network.onnx").tile == (32, 64)
    assert export(network, tmp_path, to="onnx").tile is None
    windows = noise(2, 3, 96, 128)
    given = load_onnx(tmp_path / "network.onnx")(windows)
    np.testing.assert_allclose(given, wanted(network, windows), atol=1e-5)


class Deciding(nn.Module):
    """Looks at its input before it computes, which no graph can."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, windows):
        return self.layer(windows) if float(windows.sum()) > 0 else self.layer(-windows)


@pytest.mark.slow
def test_what_cannot_be_exported_or_differs_is_not_written(tmp_path, monkeypatch):
    with pytest.raises(
        ModelError, match="the network Deciding cannot be exported to ONNX for windows of 3 slices"
    ):
        export(Deciding().eval(), tmp_path / "a", to="onnx")
    monkeypatch.setattr("evenslice.inference.onnx_files._difference", lambda *_: 0.5)
    with pytest.raises(ModelError, match=r"its outputs differ by 5.0e-01 of the largest"):
        export(small(), tmp_path / "b", to="onnx", tile=(32, 32))
    assert list(tmp_path.iterdir()) == []


# bioimage.io


RUN = """
import json, socket, sys

def refuse(*_, **__):
    raise RuntimeError("asked the network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import bioimageio.core
import numpy as np

folder, voxels, out = sys.argv[1:]
model = bioimageio.core.load_model_description(folder + "/rdf.yaml")
summary = bioimageio.core.test_model(model)
if summary.status != "passed":
    sys.exit(str([error.msg for part in summary.details for error in part.errors]))
found = bioimageio.core.predict(model=model, inputs={"windows": np.load(voxels)})
np.save(out, np.asarray(found.members["logits"].data))
"""


def core_runs(folder, voxels, tmp_path):
    """Test a model by bioimageio.core, which leaves files open, in a process without a network; return its logits."""
    pytest.importorskip("bioimageio.core")
    np.save(tmp_path / "voxels.npy", voxels)
    done = subprocess.run(  # noqa: PLW1510  # the assert below shows why
        [sys.executable, "-c", RUN, str(folder), str(tmp_path / "voxels.npy"), str(tmp_path / "logits.npy")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return np.load(tmp_path / "logits.npy")


@pytest.mark.slow
@pytest.mark.parametrize("intensity", [None, (20, 220)])
def test_bioimageio_core_accepts_and_runs_a_model(tmp_path, intensity):
    card = ModelCard(name="Small network", license="MIT", authors=("A. Author",))
    network, folder = small("1"), tmp_path / "out"
    export(network, folder, to="bioimageio", reading=Reading(intensity=intensity, step=2), card=card)
    model = json.loads((folder / "rdf.yaml").read_text())
    (windows,), (logits,) = model["inputs"], model["outputs"]
    assert windows["axes"][1]["channel_names"] == ["z-2", "z", "z+2"]
    assert "not colours" in windows["axes"][1]["description"]
    steps = [step["id"] for step in windows["preprocessing"] if step["id"] != "ensure_dtype"]
    first = "scale_range" if intensity is None else "scale_linear"
    assert steps == [first, "clip", "fixed_zero_mean_unit_variance"]
    assert logits["axes"][1]["channel_names"] == ["class 0", "class 1"]
    assert (model["license"], model["authors"]) == ("MIT", [{"name": "A. Author"}])

    voxels = 255 * noise(2, 3, 64, 96)
    scaled = Scaling(*(intensity or np.percentile(voxels, (0.5, 99.5))))(voxels)
    given = core_runs(folder, voxels, tmp_path)
    np.testing.assert_allclose(given, wanted(network, scaled), atol=1e-4)
    file = load_onnx(folder / "weights.onnx")  # outside of bioimage.io, it states its scaling
    np.testing.assert_allclose(file(scaled), wanted(network, scaled), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "card", "where"),
    [
        ("bioimageio", {"license": "Apache 2.0"}, "license"),
        ("bioimageio", {"authors": "A/B"}, "authors"),
        ("bioimageio", {"cite": "A book"}, "cite='A book'"),
    ],
)
def test_what_a_format_does_not_take_is_said_by_its_name_and_nothing_is_written(tmp_path, to, card, where):
    with pytest.raises(ConfigError, match=where):
        export(nn.Conv2d(3, 2, 1), tmp_path / "out", to=to, card=ModelCard(**card))
    assert not (tmp_path / "out").exists()


# Hugging Face


@pytest.mark.slow
def test_a_folder_for_hugging_face_comes_back_bit_for_bit(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    network, record, source = load_network(
        "timm:test_resnet", "none", slices=5, strategy="uniform", tie="mirror", symmetrize="output"
    )
    assert record == record_of(network)
    card = ModelCard(name="Small", license="CC-BY-4.0", authors=("A: <b>",), description="For | tests")
    export(network, tmp_path, to="huggingface", source=source, reading=Reading(step=2), card=card)
    windows = torch.from_numpy(noise(1, 5, 64, 64))
    for back in (load_network(str(tmp_path)), load_network("timm:test_resnet", str(tmp_path))):
        assert back.record == record
        assert same(back.model.state_dict(), network.state_dict())
        assert torch.equal(back.model(windows), network(windows))
    stated = json.loads((tmp_path / "config.json").read_text())
    said = [stated[name] for name in ("spec", "slices", "strategy", "symmetrized", "step")]
    assert said == ["timm:test_resnet", 5, "uniform", [""], 2]
    loaded = hub.ModelCard.load(tmp_path / "README.md")
    assert (loaded.data.license, loaded.data.library_name) == ("cc-by-4.0", "evenslice")
    assert "For \\| tests" in loaded.text
    assert "offsets -4, -2, 0, +2, +4" in loaded.text


@pytest.mark.slow
@pytest.mark.parametrize("to", ["huggingface", "onnx"])
def test_where_the_weights_were_on_this_machine_stays_private(to, tmp_path):
    trained = tmp_path / "somebody" / "trained.pt"
    trained.parent.mkdir()
    torch.save(load_network("timm:test_resnet", "none").model.state_dict(), trained)
    network, _, source = load_network("timm:test_resnet", str(trained), strategy="uniform")
    export(network, tmp_path / "shared", to=to, source=source)
    contents = [file.read_bytes() for file in (tmp_path / "shared").iterdir()]
    assert not any(b"somebody" in content for content in contents)
    if to == "huggingface":
        assert any(b"trained.pt" in content for content in contents)
        assert load_network(str(tmp_path / "shared")).source.spec == "timm:test_resnet"


def test_the_card_shows_what_audits_found_and_by_which_definitions(tmp_path):
    volume = noise(24, 32, 32)
    network = small("output")
    found = audit(network, volume, sampling=Sampling(max_windows=8), compute=Compute(device="cpu"))
    (old, *_) = load_audits(OLD_AUDITS / "network")
    old = replace(old, run=replace(old.run, slices=3, strategy=None, model={}))
    export(network, tmp_path, to="huggingface", audits=[found, old])
    text = (tmp_path / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4
    assert f"| {found.verdict} |" in rows[2]
    assert f"±1: {found.saliency[0].estimate:.3f}" in rows[2]
    assert "gradient, definitions of version 0.2 | biased (answer)" in rows[3]
    said = json.loads((tmp_path / "config.json").read_text())["audits"][0]
    assert (said["verdict"], said["definitions"]) == (found.verdict, 2)


@pytest.mark.parametrize(
    ("of", "difference"),
    [
        ({"slices": 5}, r"slices: 5 instead of 3"),
        ({"strategy": "uniform"}, r"strategy: uniform instead of pretrained"),
        ({"tie": "mirror"}, r"tie: mirror instead of None"),
        ({"model": {"origin": "sha256:0"}}, r"weights: sha256:0 instead of sha256:1"),
        ({"model": {"origin": "sha256:1", "symmetrized": "output"}}, r"symmetrized: output instead of None"),
    ],
)
def test_no_card_shows_the_audit_of_another_network(tmp_path, of, difference):
    found = make_audit("audit", (0.2, 0.5, 0.3))
    run = replace(found.run, slices=3, strategy="pretrained", tie=None, model={"class": "Sequential"})
    source = replace(load_network("timm:test_resnet", "none").source, spec="my:small", origin="sha256:1")
    with pytest.raises(ConfigError, match=rf"the audit 'audit' is of another network .*\({difference}\)"):
        export(
            small(),
            tmp_path / "out",
            to="huggingface",
            source=source,
            audits=[replace(found, run=replace(run, **of))],
        )
    assert not (tmp_path / "out").exists()
    right = replace(found, run=replace(run, model={"origin": "sha256:1"}))
    export(small(), tmp_path / "out", to="huggingface", source=source, audits=[right])


def test_a_folder_that_names_a_function_does_not_call_it(tmp_path):
    source = load_network("timm:test_resnet", "none").source
    export(small(), tmp_path, to="huggingface", source=replace(source, spec="os:getcwd"))
    with pytest.raises(
        ModelError, match="comes from the function os:getcwd; if you trust its module, give its name"
    ):
        load_network(str(tmp_path))
    with pytest.raises(ModelError, match=r"nowhere: is not a folder with model.safetensors"):
        load_network("nowhere")
    export(small(), tmp_path / "b", to="huggingface")
    with pytest.raises(ModelError, match="does not say which network it is of; give its specification"):
        load_network(str(tmp_path / "b"))


# What all have in common


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onxx"}, "to='onxx': did you mean 'onnx'"),
        ({"to": "huggingface", "tile": (8, 8)}, "tile=.*weights have no fixed size of windows"),
        ({"tile": 64}, "tile=64: give two whole numbers"),
        ({"crop": (0, 64)}, "crop=0: must be at least 1"),
        ({"slices": 5}, "slices=5: the network takes 3; leave slices out"),
        ({"reading": Reading(label_values=(-1, 1))}, r"label_values=\[-1, 1\]: segment writes"),
        ({"reading": Reading(label_values=[0])}, r"label_values=\[0\]: .* each of the 2 classes"),
        ({"model": nn.Conv2d(4, 1, 1), "slices": 4}, "slices=4: a window has an odd number"),
        ({"model": lambda windows: windows}, "model: a function"),
    ],
)
def test_an_option_that_does_not_do_is_said_before_anything_is_written(tmp_path, options, message):
    given = {"model": small(), "to": "onnx"} | options
    with pytest.raises(ConfigError, match=message):
        export(given.pop("model"), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_files_of_others_and_earlier_exports_are_kept(tmp_path):
    network = small()
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(OutputError, match=r"README.md: has the name of a result, but evenslice did not"):
        export(network, tmp_path, to="huggingface", force=True)
    export(network, tmp_path / "a", to="huggingface")
    with pytest.raises(OutputError, match="holds another result"):
        export(network, tmp_path / "a", to="huggingface")
    with pytest.raises(OutputError, match="another kind"):  # whose README would be lost
        export(network, tmp_path / "a", to="bioimageio", tile=(32, 32), force=True)
    export(network, tmp_path / "a", to="huggingface", force=True)
    with pytest.raises(ModelError, match="has no record; call"):
        export(nn.Conv2d(3, 1, 1), tmp_path / "b", to="huggingface")


@pytest.mark.parametrize(
    ("classifies", "task", "use"),
    [(False, "segmentation", "segment("), (True, "classification", "= segmenter.network(w")],
)
def test_the_card_says_what_the_network_does(tmp_path, classifies, task, use):
    layers = [nn.Conv2d(3, 2, 3, padding=1), *([nn.AdaptiveAvgPool2d(1), nn.Flatten()] if classifies else [])]
    network = nn.Sequential(*layers).eval()
    neutralize(network, 3, mean=0.4, std=0.2)
    export(network, tmp_path, to="huggingface")
    card = (tmp_path / "README.md").read_text()
    assert f"pipeline_tag: image-{task}" in card
    assert (use in card, "evaluate --stress" in card) == (True, not classifies)
    assert json.loads((tmp_path / "config.json").read_text())["task"] == task


# A finished run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose network comes from a function."""
    folder = write_inputs(tmp_path_factory.mktemp("export"))
    options = training_options(folder, validate_every=60, monitor_every=60)
    options["data"] |= {"intensity": [0, 255], "label_values": [0, 1]}
    options["model"]["symmetrize"] = "output"
    process = start(folder, "train", options, folder / "run")
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder


def command(folder, *arguments):
    done = run_command(*arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_in_each_format_gives_the_labels_of_segment_by_its_own_library(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    volume = (noise(7, 64, 96) * 255).astype(np.uint8)
    run, spec = ["--run", "run", "--model", "tiny_networks:tiny"], "tiny_networks:tiny"
    network, reading = (load_network(spec, "run/network.safetensors").model, Reading(intensity=(0, 255)))
    labels = np.asarray(segment(network, volume, reading=reading))
    voxels = np.stack([volume[np.abs([z - 1, z, 6 - abs(5 - z)])] for z in range(7)]).astype(np.float32)

    found = json.loads(command(folder, "export", *run, "--to", "onnx", "--out", "as-onnx", "--json"))
    assert (found["to"], found["slices"], found["difference"] < 1e-4) == ("onnx", 3, True)
    session = onnxruntime.InferenceSession("as-onnx/network.onnx")
    (logits,) = session.run(None, {"windows": Scaling(0, 255)(voxels)})
    np.testing.assert_array_equal(logits.argmax(1), labels)

    more = ["--out", "as-bioimageio", "--name", "Blobs", "--author", "A"]
    command(folder, "export", *run, "--to", "bioimageio", *more)
    logits = core_runs(folder / "as-bioimageio", voxels, tmp_path)
    np.testing.assert_array_equal(logits.argmax(1), labels)

    command(folder, "export", *run, "--to", "huggingface", "--out", "as-huggingface")
    stated = json.loads((folder / "as-huggingface" / "config.json").read_text())
    assert (stated["intensity"], stated["label_values"], stated["symmetrized"]) == ([0, 255], [0, 1], [""])
    dice = json.loads((folder / "run" / "result.json").read_text())["dice"]["mean"]
    assert (
        f"On the test volumes of its training: Dice {dice:.3f}, IoU"
        in Path("as-huggingface/README.md").read_text()
    )
    for given in (("onnx", "as-onnx/network.onnx"), (spec, "as-huggingface")):  # each says what 0 and 1 are
        again = segment(open_segmenter(*given), volume)
        np.testing.assert_array_equal(np.asarray(again), labels)

    np.save("volume.npy", volume)
    audit = ["--volume", "volume.npy", "--max-windows", "8", "--out", "audited", "--json"]
    audited = json.loads(command(folder, "audit", "--model", spec, "--weights", "as-huggingface", *audit))
    assert audited["volumes"][0]["intensity"] == [0, 255]
    command(folder, "export", *run, "--to", "huggingface", "--out", "with-audit", "--audit", "audited")
    assert f"| {audited['verdict']}" in Path("with-audit/README.md").read_text()
    shutil.copytree("audited", "run", dirs_exist_ok=True)  # audits in the folder of a run are shown unasked
    command(folder, "export", *run, "--to", "huggingface", "--out", "with-its-own")
    assert f"| {audited['verdict']}" in Path("with-its-own/README.md").read_text()


def opened(*network, **reading):
    return open_segmenter(*map(str, network), reading=reading).reading


@pytest.mark.slow
def test_what_an_exported_network_says_of_volumes_is_read_back(tmp_path):
    reading = Reading(**READING)
    export(small(), tmp_path / "zoo", to="bioimageio", reading=reading)
    document = json.loads((tmp_path / "zoo" / "rdf.yaml").read_text())
    assert Reading.from_plain(document["config"]["evenslice"]) == reading
    network, _, source = load_network("timm:test_resnet", "none", classes=2)
    segmenter = Segmenter(network, 3, reading, source)
    export(segmenter, tmp_path / "hub", to="huggingface")
    export(small(), tmp_path / "onnx", to="onnx", reading=reading)
    export(small(), tmp_path / "plain", to="onnx")
    assert opened(tmp_path / "hub") == opened("timm:test_resnet", tmp_path / "hub" / "model.safetensors")
    assert opened(tmp_path / "hub") == opened("onnx", tmp_path / "onnx" / "network.onnx") == reading
    assert opened("onnx", tmp_path / "plain" / "network.onnx") == Reading()
    found = opened(tmp_path / "hub", step=1, intensity=(0, 1))
    assert found == Reading(**READING | {"step": 1, "intensity": (0.0, 1.0)})
    assert opened(tmp_path / "hub", instances="sparse").label_values is None
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "along the axis y" in card
    assert "Reading(step=2, plane='y'" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"step": 0}, {"plane": ["z"]}, {"intensity": ["a", "b"]}, {"label_values": 3}, {"crop": [0, 5]}],
)
def test_a_damaged_description_of_an_exported_network_is_refused(tmp_path, changes):
    network, _, source = load_network("timm:test_resnet", "none")
    export(network, tmp_path, to="huggingface", source=source)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | changes))
    with pytest.raises(ModelError, match="how it reads volumes is damaged .*; export the network again"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**stated, "library_name": "another"} | changes))
    assert opened("timm:test_resnet", tmp_path) == Reading()
