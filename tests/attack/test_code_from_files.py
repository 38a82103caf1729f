"""Neither a specification in a file nor one that somebody was talked into typing runs code that is no network's."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import evenslice
from evenslice import ModelError

pytestmark = pytest.mark.attack

MODULE = """
import os, subprocess
from pathlib import Path
import numpy as np
import torch

Path("imported").touch()

def net():
    Path("called").touch()
    return torch.nn.Conv2d(3, 2, 1)

def identity(x):
    return x

class Net(torch.nn.Conv2d):
    def __init__(self):
        super().__init__(3, 2, 1)

    @classmethod
    def make(cls):
        return net()
"""


class Payload:
    """Leaves the file "ran" where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's module, of a name that no other test imports, and files that run code when unpickled."""
    name = f"module_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    np.save(tmp_path / "evil.npy", np.array([Payload()]), allow_pickle=True)
    torch.save({"state_dict": Payload()}, tmp_path / "evil.pt")
    (tmp_path / "hubconf.py").write_text("from pathlib import Path\ndef net(): Path('ran').touch()\n")
    rng = np.random.default_rng(0)
    for name_, most in (("image", 255), ("other", 255), ("labels", 2), ("other_labels", 2)):
        np.save(tmp_path / f"{name_}.npy", rng.integers(0, most, (8, 32, 32), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


PYTHON, READS = "is a module of Python", "is not allowed here: it reads files or runs code"
REFUSED = [
    ("os:system?command='touch ran'", PYTHON),
    ("pathlib:Path.touch?self=ran", PYTHON),
    ("{mine}:subprocess.call?args=['touch','ran']", PYTHON),
    ("{mine}:Net.make", "neither a function of a module nor a class of networks"),
    ("evenslice.neutralizing:load_network?spec=a&weights=b", "is a module of evenslice"),
    ("smp:Unet/tu-resnet18?checkpoint_path=evil.pt", READS),
    ("smp:Unet/tu-resnet18?pretrained_cfg_overlay={{'file':'evil.pt'}}", READS),
    ("timm:resnet18?pretrained_cfg={{'file':'evil.pt'}}", READS),
    ("monai:HoVerNet?pretrained_url='http://localhost/evil.pt'", READS),
    ("transformers:timm_backbone?backbone='local-dir:.'", READS),
    ("transformers:segformer?attn_implementation=evil/kernel", READS),
    ("transformers:detr?backbone_kwargs={{'checkpoint_path':'evil.pt'}}", READS),
]


@pytest.mark.parametrize(("spec", "message"), REFUSED)
def test_what_is_typed_calls_no_function_of_python_and_reads_no_file(folder, spec, message):
    with pytest.raises(ModelError, match=message):
        evenslice.load_network(spec.format(mine=folder), "none")
    assert not Path("ran").exists()
    assert not Path("called").exists()


@pytest.mark.parametrize("name", ["os:system", "builtins:exec", "{mine}:os.system", "{mine}:Net.make"])
def test_outputs_are_reduced_by_plain_functions_of_other_modules_alone(folder, command, name):
    network = ("--model", "timm:test_resnet", "--weights", "none", "--volume", "image.npy")
    status, error = command("audit", *network, "--outputs", name.format(mine=folder))
    assert (status, "is a module of Python" in error or "not a function" in error) == (2, True)


STATED = [
    "numpy:load?file=evil.npy&allow_pickle=true",
    "torch:load?f=evil.pt&weights_only=false",
    "{mine}:torch.hub.load?repo_or_dir='.'&source=local&model=net",
]


@pytest.mark.parametrize("study", [False, True])
@pytest.mark.parametrize("spec", STATED)
def test_a_configuration_has_no_function_of_an_installed_package_called(folder, spec, study):
    data = {
        "train": [{"image": "image.npy", "labels": "labels.npy"}],
        "test": [{"image": "other.npy", "labels": "other_labels.npy"}],
    }
    model = {"spec": spec.format(mine=folder), "weights": "none"}
    with pytest.raises(ModelError, match="is not a module of your own"):
        if study:
            names = {"arms": [{"name": "pretrained"}], "architectures": [{"name": "b", **model}]}
            evenslice.study({"seeds": [0], **names, "datasets": [{"name": "c", **data}]}, "out")
        else:
            evenslice.train({"data": data, "model": model}, "run")
    assert not Path("ran").exists()


def test_a_run_folder_calls_a_function_only_if_the_user_names_it_too(folder, command):
    spec = f"{folder}:net"
    network, record, source = evenslice.load_network(spec, "none")
    Path("run").mkdir()
    evenslice.save_network(network, "run/network.safetensors", record=record, source=source)
    pair = {"image": "image.npy", "labels": "labels.npy"}
    Path("run/config.yaml").write_text(yaml.safe_dump({"data": {"train": [pair]}, "model": {"spec": spec}}))
    segment = ["segment", "--run", "run", "--volume", "image.npy", "--out", "out.npy", "--tile", 32, 32]
    sys.modules.pop(folder)
    for made in ("imported", "called"):
        Path(made).unlink()
    for options in ([], ["--model", f"{folder}:Net"]):
        status, error = command(*segment, *options)
        assert status == 2
        assert f"if you trust its module, give --model {spec} as well" in error
        assert not Path("imported").exists()
    assert command(*segment, "--model", spec)[0] == 0
    assert np.load("out.npy").shape == (8, 32, 32)


CONFIGURATIONS = [
    {"model_type": "segformer", "_attn_implementation_internal": "evil/kernel"},
    {"model_type": "lightglue", "trust_remote_code": True},
    {"model_type": "timm_backbone", "backbone": "local-dir:/tmp"},
    {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "evil.pt"}},
    {"model_type": "detr", "backbone_kwargs": {"pretrained_cfg": {"file": "evil.pt"}}},
]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_configuration_of_transformers_does_not_bring_code(folder, configuration):
    pytest.importorskip("transformers")
    Path("network").mkdir()
    Path("network/config.json").write_text(json.dumps(configuration))
    with pytest.raises(ModelError, match=r"so as to read other files or to run code; remove it there"):
        evenslice.load_network("transformers:network", "none")


def test_what_a_library_downloads_is_not_unpickled(folder, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr("timm.create_model", lambda *_, **__: torch.load("evil.pt", weights_only=False))
    with pytest.raises(ModelError, match="cannot be built"):
        evenslice.load_network("timm:resnet18", "none")
    assert not Path("ran").exists()
