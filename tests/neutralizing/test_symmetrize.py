"""Any network made mirror-symmetric: at its output, its encoder, a module, or the activation of its stem."""

import copy
import pickle
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from formulas import audit_formula, noise
from hypothesis import given, settings, strategies as st
from planted import IMAGENET, unequal
from torch import nn
from torch.utils.checkpoint import checkpoint

import evenslice
from evenslice import ModelError, load_network, neutralize, record_of, save_network, symmetrize
from evenslice._core.errors import ConfigError
from evenslice.inference import ReadyNetwork
from evenslice.networks.outputs import logits
from evenslice.neutralizing.averages import without_mirror
from evenslice.neutralizing.strategies import spread

smp = pytest.importorskip("segmentation_models_pytorch")
timm = pytest.importorskip("timm")

SMALL = "smp:Unet/resnet18?encoder_depth=3&decoder_channels=[16,8,8]"
LITE = "smp:Unet/tu-tf_efficientnet_lite0"


def unet(slices=3):
    return load_network(SMALL, "none", slices=slices).model


class Difference(nn.Module):
    """The network that attention alone calls fair: x(z+1) - x(z-1)."""

    def forward(self, windows):
        return (windows[:, 2:] - windows[:, :1]) * self.weight

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


class Outer(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images)


def symmetrize_encoder(model):
    return symmetrize(model, "encoder")


def neutralize_twin(model):
    neutralize(model, 3, strategy="twin")
    return model


def windows(slices=3, batch=2, size=32, seed=5):
    return torch.rand(batch, slices, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(model, images):
    return logits(model(images))


def run_backward(model, images):
    model(images).square().sum().backward()


def assert_symmetric(model, images):
    first, second = run(model, images), run(model, images.flip(1))
    assert (first - second).abs().max() <= 1e-5 * first.abs().max()


@pytest.mark.parametrize("slices", [1, 3, 5, 9])
@pytest.mark.parametrize("at", ["output", "encoder", "encoder.relu"])
def test_a_network_is_symmetric_at_any_cut(at, slices):
    model = unet(slices)
    images = windows(slices)
    before = run(model, images)
    fair = symmetrize(model, at)
    assert fair is model
    assert_symmetric(fair, images)
    gray = images[:, :1].expand(-1, slices, -1, -1)
    torch.testing.assert_close(run(fair, gray), run(unet(slices), gray), rtol=1e-4, atol=1e-5)
    assert slices == 1 or (run(fair, images) - before).abs().max() > 1e-4  # it did something


def test_the_output_is_the_mean_of_both_answers():
    model, images = unet(), windows()
    expected = (run(model, images) + run(model, images.flip(1))) / 2
    torch.testing.assert_close(run(symmetrize(model), images), expected, rtol=1e-5, atol=1e-6)


def test_the_encoder_is_cut_where_its_features_leave_it():
    model, images = unet(), windows()
    with torch.no_grad():
        pairs = zip(model.encoder(images), model.encoder(images.flip(1)), strict=True)
        expected = model.segmentation_head(model.decoder([(one + other) / 2 for one, other in pairs]))
    torch.testing.assert_close(run(symmetrize(model, "encoder"), images), expected, rtol=1e-5, atol=1e-6)


def test_a_difference_of_the_neighbours_becomes_nothing():
    assert run(symmetrize(Difference()), windows()).abs().max() == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 3), st.sampled_from([3, 5, 7]), st.integers(1, 3))
def test_any_learned_weights_are_symmetric(seed, slices, batch):
    model = unequal(
        nn.Sequential(nn.Conv2d(slices, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 3)).eval(), seed
    )
    for cut in ("output", "0", "2", "3"):
        assert_symmetric(symmetrize(copy.deepcopy(model), cut), windows(slices, batch, seed=seed))


def test_training_keeps_it_symmetric():
    model = symmetrize(unet(), "encoder").train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        model(windows(seed=step)).square().mean().backward()
        optimizer.step()
    assert_symmetric(model.eval(), windows(seed=9))


def test_copies_pickles_and_wrappers_are_symmetric():
    model = symmetrize(unet(), "encoder")
    pickled = pickle.loads(pickle.dumps(model))  # noqa: S301  # as workers of a cluster receive it
    for other in (copy.deepcopy(model), pickled, nn.Sequential(model)):
        assert torch.equal(run(other, windows()), run(model, windows()))
        assert record_of(other) == record_of(model)


@pytest.mark.parametrize("ran", [False, True])
@pytest.mark.parametrize(
    ("change", "cut"),
    [
        (symmetrize, ("",)),
        (lambda model: symmetrize(model, "0"), ("0",)),
        (lambda model: symmetrize(model, "_orig_mod.0"), ("0",)),
        (lambda model: neutralize(model, strategy="twin"), ("1",)),
        (lambda model: neutralize(model, strategy="mixer"), ()),
    ],
)
def test_copies_of_a_compiled_network_are_symmetric(change, cut, ran):
    """Audits, segmentations and files begin with a copy. What had been compiled before is compiled again."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = torch.compile(unequal(network), backend="eager")
    if ran:
        run(model, windows())
    change(model)
    for other in (model, copy.deepcopy(model), ReadyNetwork(model, slices=3, device="cpu", dtype="float32")):
        assert_symmetric(other, windows())
    record = record_of(model)
    assert record.symmetrized == cut
    assert not any("_orig_mod" in stem for stem in record.stems)


class WithLoss(nn.Module):
    """Computes a loss from labels, as networks of transformers do, and the scores without."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, pixel_values, labels=None):
        scores = self.head(self.encoder(pixel_values).mean((2, 3)))
        return scores if labels is None else nn.functional.cross_entropy(scores, labels)


@pytest.mark.parametrize("change", [symmetrize_encoder, neutralize_twin])
def test_labels_are_those_of_the_averaged_scores(change):
    torch.manual_seed(0)
    model, images, labels = change(WithLoss()), windows(), torch.tensor([0, 1])
    loss = model(pixel_values=images, labels=labels)
    assert loss == nn.functional.cross_entropy(model(images), labels)
    assert model(pixel_values=images, labels=None).shape == (2, 2)


def test_a_loss_of_windows_and_mirrors_is_refused():
    model = symmetrize(WithLoss())
    with pytest.raises(ModelError, match="leave labels out and compute the loss from its scores"):
        model(pixel_values=windows(), labels=torch.tensor([0, 1]))
    assert_symmetric(model, windows())


def test_what_wraps_a_network_with_a_record_may_be_taken_off(tmp_path):
    network, _, _ = load_network("timm:test_resnet", "none")
    neutralize(network, 3, strategy="pretrained", mean=0.5, std=0.2)
    wrapper = symmetrize(nn.Sequential(network))
    for model in (wrapper, network):
        assert_symmetric(model.eval(), windows())
    assert record_of(network).symmetrized == ("",)
    save_network(network, tmp_path / "network.safetensors")
    again = load_network("timm:test_resnet", str(tmp_path / "network.safetensors")).model
    assert torch.equal(run(again.eval(), windows()), run(network, windows()))
    outer = nn.Sequential(unet(), nn.Softmax(1))
    neutralize(outer[0], 3, strategy="pretrained", mean=0.5, std=0.2)
    with pytest.raises(ModelError, match=r"1 \(Softmax\) only wraps the network Unet; choose 'output' or"):
        symmetrize(outer, "1")


def recorded(slices):
    model = nn.Sequential(nn.Conv2d(slices, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    neutralize(unequal(model), slices, strategy="pretrained", mean=0.5, std=0.2)
    return model


class CallsForward(Outer):
    def forward(self, images):
        return self.model.forward(images)


class AddsChannels(Outer):
    def forward(self, images):
        return self.model(torch.cat([images, images.mean(1, keepdim=True), images.amax(1, keepdim=True)], 1))


class AddsItsInput(Outer):
    def forward(self, images):
        return self.model(images) + images[:, :1, 1:-1, 1:-1]


class Scales(AddsChannels):
    def __init__(self, model):
        super().__init__(model)
        self.gain = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("at", ["output", "model.2"])
@pytest.mark.parametrize(
    ("wrap", "inner"), [(CallsForward, 3), (AddsChannels, 5), (Scales, 5), (AddsItsInput, 3)]
)
def test_what_does_more_with_the_window_than_wrap_a_network_is_averaged_as_a_whole(wrap, inner, at):
    network = recorded(inner)
    model, images = wrap(copy.deepcopy(network)), windows()
    expected = (run(model, images) + run(model, images.flip(1))) / 2
    if wrap is AddsItsInput and at != "output":
        with pytest.raises(
            ModelError, match=r"model\.2 \(ReLU\) is not a valid cut: a connection bypasses it"
        ):
            symmetrize(model, at)
        assert torch.equal(run(model.model, images), run(network, images))
        return
    symmetrize(model, at)
    assert_symmetric(model, images)
    if at == "output":
        torch.testing.assert_close(run(model, images), expected)
    record = record_of(model)
    assert (record.symmetrized, record.slices) == (("",) if at == "output" else (at,), 3)
    assert (record.mean, record.std) == (0.5, 0.2)
    assert record_of(model.model) == record_of(network)
    assert_symmetric(pickle.loads(pickle.dumps(model)), images)  # noqa: S301  # as workers of a cluster receive it


def test_outputs_that_are_no_batch_are_not_cut_in_half():
    class Prototypes(nn.Module):
        def __init__(self, count):
            super().__init__()
            self.layer, self.prototypes = nn.Conv2d(3, 2, 1), nn.Parameter(torch.rand(count, 8))

        def forward(self, images):
            return self.layer(images), self.prototypes / self.prototypes.norm()

    with pytest.raises(ModelError, match="output 2 of the network is no batch .* would be cut in half"):
        symmetrize(Prototypes(10), outputs=lambda found: found[0])
    model = symmetrize(Prototypes(9), outputs=lambda found: found[0])
    assert model(windows())[1].shape == (9, 8)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by the compiler
@pytest.mark.parametrize(
    "change", [neutralize_twin, neutralize, lambda model: symmetrize(model, "model._orig_mod.1")]
)
def test_a_part_that_was_compiled_and_ran_may_be_changed(change):
    """What is compiled does not look for new hooks."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = Outer(torch.compile(unequal(network), backend="eager"))
    for batch in (2, 1, 6):
        run(model, windows(batch=batch, size=64))
    change(model)
    for other in (model, copy.deepcopy(model)):
        assert_symmetric(other, windows(size=64))


@pytest.mark.parametrize("change", [symmetrize_encoder, neutralize_twin])
def test_a_part_that_averages_is_not_called_by_itself(change):
    """It would average different images: halves of its batch."""
    model, images = change(unet()), windows(batch=4)
    for _ in range(2):
        with pytest.raises(ModelError, match="only a call of the whole network provides"):
            model.encoder(images)
        with pytest.raises(ModelError, match="only a call of the whole network provides"):
            model.forward(images)
        with pytest.raises(RuntimeError), torch.no_grad():
            model(images[:, :2])  # the call has ended all the same
    assert_symmetric(model, images)
    with without_mirror(model):
        assert len(model.encoder(images)[-1]) == 4


def test_a_part_that_averages_is_called_by_networks_around_it():
    inside = Outer(symmetrize_encoder(unet()))
    assert_symmetric(inside, windows())
    around = neutralize_twin(Outer(unet()))
    assert_symmetric(around, windows())
    with pytest.raises(ModelError, match="neutralize or symmetrize the part that is called"):
        around.model(windows())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_repeat_the_averaging_in_the_backward_pass(reentrant):
    model, images = neutralize_twin(unet()).eval(), windows().requires_grad_()
    run_backward(model, images)
    expected, images.grad = images.grad, None
    encode = type(model.encoder).forward
    model.encoder.forward = lambda x: list(
        checkpoint(lambda x: tuple(encode(model.encoder, x)), x, use_reentrant=reentrant)
    )
    run_backward(model, images)
    torch.testing.assert_close(images.grad, expected)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_forward_hook"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_call_that_ends_by_an_error_or_an_interrupt_changes_nothing(kind, register, first):
    model, images = symmetrize_encoder(unet()), windows()

    def end(*_):
        raise kind

    handle = getattr(model, register)(end, prepend=first)
    for _ in range(2):
        with pytest.raises(kind):
            model(images)
    handle.remove()
    for again in range(2):
        if kind is not KeyboardInterrupt or again:  # which PyTorch tells no hook
            with pytest.raises(ModelError, match="only a call of the whole network provides"):
                model.encoder(images)
        assert_symmetric(model, images)


def test_a_network_with_a_cut_is_one_graph():
    model, images = neutralize_twin(unet()).eval(), windows()
    expected = run(model, images)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(run(compiled, images), expected)
    with torch.no_grad():
        exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(run(exported, images), expected)


@pytest.mark.parametrize("at", ["output", "encoder", "encoder.model.bn1"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_ready_to_run_is_symmetric(at, dtype):
    """Batch norms are folded, also one whose result is averaged, and still every window equals its mirror."""
    model = symmetrize(load_network(LITE, "none").model, at)
    network = ReadyNetwork(model, slices=3, device="cpu", dtype=dtype)
    network.prepare(3, (64, 64))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert torch.equal(run(network, windows(size=64)), run(network, windows(size=64).flip(1)))


def test_a_symmetrized_network_is_saved_and_loaded(tmp_path):
    model, record, source = load_network(SMALL, "none", slices=5, symmetrize="encoder")
    assert record.symmetrized == ("encoder",)
    save_network(model, tmp_path / "fair.safetensors", source=source)
    again = load_network(SMALL, str(tmp_path / "fair.safetensors"))
    assert again.record == record
    assert torch.equal(run(again.model, windows(5)), run(model, windows(5)))


def test_a_network_that_nobody_neutralized_is_saved_and_loaded(tmp_path):
    model = symmetrize(
        smp.Unet("resnet18", encoder_weights=None, classes=2, encoder_depth=3, decoder_channels=(16, 8, 8))
    )
    record = record_of(model)
    assert (record.stems, record.symmetrized, record.slices) == ((), ("",), 3)
    assert record.mean == pytest.approx(0.449)  # one scale for all slices
    save_network(model, tmp_path / "fair.safetensors")
    again = load_network(SMALL, str(tmp_path / "fair.safetensors"))
    assert torch.equal(run(again.model, windows()), run(model.eval(), windows()))


def test_an_even_number_of_inputs_is_no_window():
    model = timm.create_model("test_resnet", in_chans=4)
    with pytest.raises(ModelError, match="takes 4 slices, and a window has an odd number"):
        symmetrize(model)
    assert record_of(model) is None
    with pytest.raises(ConfigError, match="size: is 64; must be two numbers"):
        symmetrize(timm.create_model("test_resnet"), size=64)


def test_a_file_that_names_a_module_that_is_not_there(tmp_path):
    import json

    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    model, _, source = load_network(SMALL, "none", symmetrize="encoder")
    path = tmp_path / "fair.safetensors"
    save_network(model, path, source=source)
    with safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["evenslice"])
    document["record"]["symmetrized"] = ["no.such.module"]
    save_file(load_file(path), path, {"evenslice": json.dumps(document)})
    with pytest.raises(ModelError, match=r"symmetrized after 'no\.such\.module', which the network lacks"):
        load_network(SMALL, str(path))


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (
            "encoder.layer1",
            r"encoder\.layer1 \(Sequential\) is not a valid cut: a connection bypasses it.*decoder",
        ),
        ("encoder.fc", r"the network has no module 'encoder\.fc'"),
        ("segmentation_head.2", r"ok"),
    ],
)
def test_what_is_no_cut_is_named(at, message):
    model = unet()
    before = list(model.state_dict())
    if message == "ok":
        symmetrize(model, at)
        return
    with pytest.raises(ModelError, match=message):
        symmetrize(model, at)
    assert list(model.state_dict()) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert record_of(model).symmetrized == ()


def test_a_sum_that_goes_round_the_cut_is_found():
    """Shapes fit here: only the values tell."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 1, 1)

        def forward(self, images):
            half = len(images) // 2 or 1
            return self.first(images) + self.second(images)[:half].mean()

    torch.manual_seed(0)  # other weights might happen to tell the two orders hardly apart
    with pytest.raises(ModelError, match="beside another window, .*; dependent on the batch: Around;"):
        symmetrize(Around(), "first")


def test_classes_cannot_be_averaged():
    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 2, 1)

        def forward(self, images):
            return self.layer(images).argmax(1)

    with pytest.raises(ModelError, match="integers"):
        symmetrize(Classes())
    assert_symmetric_classes = symmetrize(Classes(), "layer")
    assert torch.equal(assert_symmetric_classes(windows()), assert_symmetric_classes(windows().flip(1)))


# Detectors of torchvision, which take the number of images from a list of their sizes


def detector(name="fasterrcnn_mobilenet_v3_large_320_fpn"):
    pytest.importorskip("torchvision")
    threshold = "box_score_thresh=0" if "rcnn" in name else "score_thresh=0"
    arguments = threshold if name.startswith("ssd") else f"min_size=64&max_size=64&{threshold}"
    return load_network(f"torchvision:{name}?{arguments}", "none").model


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large"])
def test_a_detector_is_symmetric_behind_its_encoder(name):
    model = symmetrize(detector(name), "encoder")
    assert record_of(model).symmetrized == ("backbone",)
    with torch.no_grad():
        first, second = model(list(windows(size=64))), model(list(windows(size=64).flip(1)))
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn"])
def test_a_detector_averages_what_it_finds(name):
    model = detector(name)
    window, reversed_window = list(windows(size=64)), list(windows(size=64).flip(1))
    with torch.no_grad():
        sums = [logits(model(images)) for images in (window, reversed_window)]
        symmetric = copy.deepcopy(symmetrize(model))
        first, second = symmetric(window), symmetric(reversed_window)
    assert record_of(symmetric).symmetrized == ("",)
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        assert len(one["scores"]) > 0
        for key, values in one.items():
            assert torch.equal(values, other[key]), key
    torch.testing.assert_close(logits(first), (sums[0] + sums[1]) / 2)


@pytest.mark.parametrize("at", ["encoder", "output"])
def test_a_detector_that_is_symmetric_can_be_trained(at):
    model = symmetrize(detector(), at).train()
    targets = [
        {"boxes": torch.tensor([[4.0, 4.0, 20.0, 30.0 + number]]), "labels": torch.tensor([1])}
        for number in range(2)
    ]
    losses = model(list(windows(size=64)), targets)
    sum(losses.values()).backward()
    assert len(targets) == 2
    assert model.backbone.body["0"][0].weight.grad.abs().max() > 0


def test_a_detector_of_other_things_than_boxes_is_refused():
    class Points(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Conv2d(3, 1, 1)

        def forward(self, images):
            return [{"points": torch.zeros(1, 2), "scores": score} for score in self.score(images).flatten(1)]

    with pytest.raises(ModelError, match=r"\(points, scores\) cannot be averaged; .* at 'encoder'"):
        symmetrize(Points())


def test_twice_is_refused():
    model = symmetrize(unet())
    with pytest.raises(ModelError, match="symmetrized already"):
        symmetrize(model)
    with pytest.raises(ModelError, match="averages over a window and its mirror already"):
        neutralize(model)
    twin = load_network(SMALL, "none", strategy="twin").model
    with pytest.raises(ModelError, match="averages over a window and its mirror already"):
        neutralize(twin, strategy="twin")


def test_a_mixer_in_front_is_run_on_window_and_mirror():
    model = unet()
    neutralize(model, 5, strategy="mixer")
    nn.init.normal_(model.slice_mixer.weight)
    symmetrize(model, "encoder")
    assert_symmetric(model, windows(5))


# Functions


def test_a_function_is_called_on_both():
    def first_slice(images):
        return {"out": images[:, 0] * 2.0, "name": "kept"}

    first_slice.slices = 3
    fair = symmetrize(first_slice)
    images = windows().numpy()
    expected = images[:, 0] + images[:, 2]
    np.testing.assert_allclose(fair(images)["out"], expected, rtol=1e-6)
    assert (fair.slices, fair(images)["name"]) == (3, "kept")
    assert not hasattr(fair, "tile")
    with pytest.raises(ModelError, match="can only be symmetrized at 'output'"):
        symmetrize(first_slice, "encoder")
    with pytest.raises(ModelError, match="returns integers"):
        symmetrize(lambda images: images[:, 0].astype(int))(images)


def test_every_number_that_a_function_returns_is_averaged():
    def first_slice(images):
        score = float(images[:, 0].mean())
        more = [{"scores": images[:, 0], "classes": 2, "certain": True}, np.float32(score)]
        return {"score": score, "more": more}

    images = windows().numpy()
    found, mirrored = (symmetrize(first_slice)(part) for part in (images, images[:, ::-1]))
    assert found["score"] == mirrored["score"] == pytest.approx(images[:, [0, 2]].mean())
    assert found["more"][1] == mirrored["more"][1]
    assert (found["more"][0]["classes"], found["more"][0]["certain"]) == (2, True)
    np.testing.assert_array_equal(found["more"][0]["scores"], mirrored["more"][0]["scores"])


@pytest.mark.parametrize("parts", [([1.0], [1.0, 2.0]), ({"a": 1.0}, {"b": 1.0}), ([1.0], (1.0,))])
def test_a_function_that_returns_other_parts_for_the_mirror(parts):
    calls = iter(parts)
    function = symmetrize(lambda _images: next(calls))
    with pytest.raises(ModelError, match="returns other parts for a window than for its mirror"):
        function(windows().numpy())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (SimpleNamespace(logits=np.ones(2)), "returns SimpleNamespace, which cannot be averaged"),
        ({"name": "words", "aux": None}, "returns dict without a score"),
        ((), "returns tuple without a score"),
        ({"scores": np.ones(2), "object": object()}, "returns object, which cannot be averaged"),
        (3, "returns int without a score"),
    ],
)
def test_an_answer_of_a_function_that_cannot_be_averaged(returned, message):
    with pytest.raises(ModelError, match=message):
        symmetrize(lambda _images: returned)(windows().numpy())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_function_that_returns_tensors_as_networks_do(kind):
    layer = nn.Conv2d(3, 2, 1).to(kind)
    images = windows().numpy()
    found = symmetrize(lambda images: layer(torch.from_numpy(images).to(kind)))(images)
    assert (found.dtype, found.requires_grad) == (kind, False)
    expected = (layer(windows().to(kind)) + layer(windows().flip(1).to(kind))) / 2
    torch.testing.assert_close(found, expected.detach())
    with pytest.raises(ModelError, match="returns integers"):
        symmetrize(lambda images: torch.from_numpy(images[:, 0]).long())(images)


# The strategy "twin"


def test_twin_keeps_every_kernel():
    colours = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert torch.equal(spread(colours, 3, "twin"), colours.double())
    five = spread(colours, 5, "twin")
    assert torch.equal(five[:, [0, 1]].sum(1), colours[:, 0].double())
    assert torch.equal(five[:, 0], five[:, 1])
    assert torch.equal(five[:, 2], colours[:, 1].double())
    assert torch.equal(five[:, [3, 4]].sum(1), colours[:, 2].double())
    for slices in (1, 3, 5, 7):
        torch.testing.assert_close(spread(colours, slices, "twin").sum(1), colours.double().sum(1))


@pytest.mark.parametrize("slices", [3, 5])
@pytest.mark.parametrize(
    ("spec", "cut"),
    [
        (SMALL, "encoder.relu"),
        (LITE, "encoder.model.bn1.act"),
        ("smp:FPN/efficientnet-b0", "encoder._swish"),  # an activation that smp writes itself
        (
            "torchvision:googlenet?init_weights=False",
            "conv1",
        ),  # a function: the part that holds convolution and norm
        ("timm:fastvit_t8", "stem.0.act"),  # two stems, one activation
        ("timm:test_resnet", "conv1.2"),
        ("timm:test_efficientnet_ln", "bn1.act"),  # changes a view in place
    ],
)
def test_twin_averages_behind_the_activation(spec, cut, slices):
    model, record, _ = load_network(spec, "none", strategy="twin", slices=slices)
    assert record.symmetrized == (cut,)
    assert max(record.mirror_error, record.gray_error) <= 1e-4
    assert_symmetric(model, windows(slices, size=256 if "fastvit" in spec else 64))
    model.train()
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape)
    assert_symmetric(model.eval(), windows(slices, size=256 if "fastvit" in spec else 64))


def test_twin_by_hand():
    """The mean of relu(norm(conv(x))) for the window and its mirror, and nothing else changed."""
    model = unequal(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    )
    stem, images = copy.deepcopy(model[:3]), windows()
    with torch.no_grad():
        expected = model[3]((stem(images) + stem(images.flip(1))) / 2)
    neutralize(model, strategy="twin")
    torch.testing.assert_close(run(model, images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", ["timm:convnext_atto", "timm:vit_tiny_patch16_224"])
def test_without_an_activation_twin_names_the_way_out(spec):
    with pytest.raises(
        ModelError,
        match=r"no activation follows the layer .*choose another strategy, .* \(symmetrize='output'\)",
    ):
        load_network(spec, "none", strategy="twin")


@pytest.mark.parametrize(
    "activation",
    [nn.CELU(), nn.RReLU(), nn.Softsign(), nn.Hardshrink(), nn.Softshrink(), nn.GLU(dim=1), nn.Tanhshrink()],
)
def test_twin_knows_the_activations_of_torch(activation):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.LazyConv2d(2, 1)).eval()
    model(windows())
    assert neutralize(model, strategy="twin").symmetrized == ("1",)
    assert_symmetric(model, windows())


class Reusing(nn.Module):
    """Uses one activation after every layer."""

    def __init__(self, pool=None):
        super().__init__()
        self.stem, self.second, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)
        self.pool = pool

    def forward(self, images):
        features = self.relu(self.stem(images))
        return self.relu(self.second(features if self.pool is None else self.pool(features)))


def test_twin_has_no_place_after_an_activation_that_is_used_again():
    model = Reusing()
    with pytest.raises(
        ModelError,
        match=r"activation relu after the layer stem \(Conv2d\) elsewhere too.* no single place .*'mirror'",
    ):
        neutralize(model, 5, strategy="twin")
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("check", ["network", "stems"])
def test_twin_averages_after_a_pooling_layer_if_the_activation_is_used_again(check):
    model = Reusing(nn.MaxPool2d(2))
    assert neutralize(model, 5, strategy="twin", check=check).symmetrized == ("pool",)
    assert_symmetric(model, windows(5))


def test_twin_averages_after_each_call_of_one_activation_behind_two_stems():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.relu = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.ReLU()

        def forward(self, images):
            return self.relu(self.first(images)) + self.relu(self.second(images))

    model = Branches()
    assert neutralize(model, 5, strategy="twin").symmetrized == ("relu",)
    assert_symmetric(model, windows(5))


class Forked(nn.Module):
    """Two activations follow the stem, as in NASNet."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.SiLU()

    def forward(self, images):
        features = self.stem(images)
        return self.first(features) + self.second(features)


def test_twin_has_no_place_where_a_connection_goes_round_the_activation():
    model = Forked()
    before = model.stem.weight
    with pytest.raises(
        ModelError,
        match=r"cannot be averaged at a single place, .*choose another strategy, .* \(symmetrize='output'\)",
    ):
        neutralize(model, 5, strategy="twin")
    assert model.stem.weight is before
    assert not model._forward_pre_hooks


def test_twin_on_the_meta_device():
    model = unequal(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()))
    model.append(nn.Conv2d(6, 2, 1, device="meta"))
    record = neutralize(model, 5, strategy="twin", check="stems", size=(64, 64))
    assert record.symmetrized == ("1",)
    assert max(record.mirror_error, record.gray_error) <= 1e-5


def test_a_survey_sees_the_kernels_of_a_saved_network(tmp_path):
    volume = np.random.default_rng(0).random((12, 64, 64)).astype(np.float32)
    model, _, source = load_network(SMALL, "none", slices=5, symmetrize="encoder")
    path = tmp_path / "fair.safetensors"
    save_network(model, path, source=source)
    found = evenslice.survey(
        SMALL, weights=str(path), volume=volume, windows=4, compute=evenslice.Compute(progress=False)
    )
    assert found.networks[0].error == ""
    assert len(found.networks[0].energy) == 5


def scaling_in_place(windows):
    windows -= 0.5
    return (windows * np.array([1.0, 2.0, 4.0]).reshape(3, 1, 1)).sum(axis=1)


def test_a_function_may_change_its_input():
    fair = symmetrize(scaling_in_place)
    window = np.random.default_rng(0).random((1, 3, 4, 4))
    expected = 2.5 * (window[:, 0] + window[:, 2] - 1) + 2 * (window[:, 1] - 0.5)
    assert np.allclose(fair(window.copy()), expected)


class WithPrototypes(nn.Module):
    """Returns a parameter beside its answer, and names the image first among its inputs."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 2, 1)
        self.prototypes = nn.Parameter(torch.rand(4, 8))

    def forward(self, image, mask=None):
        answer = self.head(image)
        return {"out": answer if mask is None else answer * mask, "prototypes": self.prototypes}


def test_a_parameter_among_the_outputs_is_no_batch():
    network = symmetrize(WithPrototypes())
    assert torch.equal(network(torch.rand(2, 3, 4, 4))["prototypes"], network.prototypes)


class FirstOfBatch(nn.Module):
    def forward(self, features):
        return features - features[:1] / 2


class SmallBatch(nn.Module):
    def forward(self, features):
        return features * 2 if len(features) < 6 and features.sum() > 0 else features + features.roll(1, 0)


@pytest.mark.parametrize(
    "change",
    [
        symmetrize,
        symmetrize_encoder,
        neutralize_twin,
        lambda model: neutralize(model, strategy="mirror"),
        lambda model: neutralize(model, strategy="pretrained"),
        lambda model: audit_formula(model, noise(depth=12)),
    ],
    ids=["output", "encoder", "twin", "mirror", "pretrained", "audit"],
)
@pytest.mark.parametrize(
    "layer",
    [FirstOfBatch(), SmallBatch(), nn.BatchNorm2d(4, track_running_stats=False)],
    ids=lambda x: type(x).__name__,
)
def test_a_network_whose_answers_depend_on_the_batch_is_refused(layer, change):
    torch.manual_seed(0)
    model = nn.Sequential()
    model.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.ReLU())
    model.head = nn.Conv2d(4, 2, 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ModelError, match="beside another window, .*dependent on the batch: .*; make it independent"
    ):
        change(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class Counting(nn.Module):
    """Updates its buffers in each pass, in place and anew."""

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("latest", torch.zeros(()))

    def forward(self, features):
        self.passes.add_(features.detach().mean())
        self.latest = features.detach().mean()
        return features


@pytest.mark.parametrize(
    "change",
    [
        symmetrize,
        neutralize_twin,
        neutralize,
        lambda model: symmetrize(model, "1.0"),
        lambda model: neutralize(model, 3, size=(1, 1)),
    ],
    ids=["symmetrized", "twin", "uniform", "no cut", "too small"],
)
def test_trials_leave_buffers_that_a_pass_updates_as_they_were(change, request):
    class Around(nn.Sequential):
        def forward(self, images):
            return self[1](self[0](images)) + images[:, :1, 2:, 2:]

    fails = request.node.callspec.id in ("no cut", "too small")
    model = (Around if fails else nn.Sequential)(
        Counting(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Counting())
    )
    kept = [(name, buffer) for name, buffer in model.named_buffers()]
    if fails:
        with pytest.raises(ModelError):
            change(model)
    else:
        change(model)
    found = dict(model.named_buffers())
    assert all(found[name] is buffer and buffer == 0 for name, buffer in kept)


def test_calls_are_counted_in_each_thread():
    model, images = symmetrize_encoder(unet()), windows()
    within, done = threading.Event(), threading.Event()
    model.decoder.register_forward_pre_hook(lambda *_: (within.set(), done.wait(20), None)[-1])
    caller = threading.Thread(target=run, args=(model, images))
    caller.start()
    assert within.wait(20)
    with pytest.raises(ModelError, match="only a call of the whole network provides"):
        model.encoder(images)
    done.set()
    caller.join(20)


def test_a_detector_is_symmetric_by_twin():
    model = detector()
    record = neutralize(model, 5, strategy="twin")
    assert record.symmetrized == ("backbone.body.0.2",)
    assert record.mirror_error <= 1e-5


@pytest.mark.parametrize("check", ["network", "stems"])
def test_twin_folds_the_scaling_by_channel(check):
    model = unequal(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    )
    record = neutralize(model, 3, strategy="twin", check=check, **IMAGENET)
    assert max(record.mirror_error, record.gray_error) <= 1e-5
    assert_symmetric(model, windows())


@pytest.mark.parametrize("wrap", [lambda array: array, torch.from_numpy, lambda array: {"out": array}])
def test_a_function_may_return_the_same_memory_again(wrap):
    memory = np.zeros((1, 4, 4))

    def first_slice(windows):
        np.copyto(memory, windows[:, 0])
        return wrap(memory)

    window = np.random.default_rng(0).random((1, 3, 4, 4))
    found = symmetrize(first_slice)(window)
    found = found["out"] if isinstance(found, dict) else found
    assert np.allclose(np.asarray(found), (window[:, 0] + window[:, 2]) / 2)


def test_the_order_of_named_inputs_does_not_matter():
    network = symmetrize(WithPrototypes())
    image, mask = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    found = [
        network(image=image, mask=mask),
        network(mask=mask, image=image),
        network(mask=mask, image=image.flip(1)),
    ]
    for other in found[1:]:
        assert torch.allclose(found[0]["out"], other["out"], atol=1e-6)
