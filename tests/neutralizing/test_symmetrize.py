"""Any network made mirror-symmetric: at its output, its encoder, a module, or the activation of its stem."""

import copy
import threading
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from formulas import audit_formula, noise
from planted import IMAGENET, Wired, assert_symmetric, run, unchanged, unequal, windows
from torch import nn
from torch.utils.checkpoint import checkpoint

import evenslice
from evenslice import (
    Compute,
    ConfigError,
    ModelError,
    load_network,
    neutralize,
    record_of,
    save_network,
    symmetrize,
)
from evenslice.inference import ReadyNetwork

SMALL = "smp:Unet/resnet18?encoder_depth=3&decoder_channels=[16,8,8]"
LITE = "smp:Unet/tu-tf_efficientnet_lite0"


def unet(slices=3):
    return load_network(SMALL, "none", slices=slices).model


def chain(slices=3):
    """Parts 0 to 2, each of which is a cut."""
    return unequal(nn.Sequential(nn.Conv2d(slices, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))


def encoded(encoder=None):
    model = nn.Sequential()
    model.encoder = encoder or nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    model.head = nn.Conv2d(4, 2, 1)
    return model


def symmetrize_encoder(model):
    return symmetrize(model, "encoder")


def neutralize_twin(model):
    neutralize(model, 3, strategy="twin")
    return model


CHANGES = [symmetrize_encoder, neutralize_twin]


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 5])
@pytest.mark.parametrize("at", ["output", "encoder", "encoder.relu"])
def test_a_network_is_symmetric_at_any_cut(at, slices):
    model, images = unet(slices), windows(slices)
    gray = images[:, :1].expand(-1, slices, -1, -1)
    before, before_gray = (run(model, images) + run(model, images.flip(1))) / 2, run(model, gray)
    with torch.no_grad():
        pairs = zip(model.encoder(images), model.encoder(images.flip(1)), strict=True)
        encoded = model.segmentation_head(model.decoder([(one + other) / 2 for one, other in pairs]))
    fair = symmetrize(model, at)
    assert fair is model
    assert_symmetric(fair, images)
    torch.testing.assert_close(run(fair, gray), before_gray, rtol=1e-4, atol=1e-5)
    if at != "encoder.relu":
        expected = before if at == "output" else encoded
        torch.testing.assert_close(run(fair, images), expected, rtol=1e-5, atol=1e-6)


def test_a_function_takes_tensors_as_well_as_arrays():
    fair, given = symmetrize(lambda found: 2 * found[:, 0]), windows()
    assert torch.equal(fair(given), given[:, 0] + given[:, -1])
    assert torch.equal(torch.from_numpy(fair(given.numpy())), given[:, 0] + given[:, -1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by the compiler
@pytest.mark.parametrize(
    ("change", "cut"),
    [
        (symmetrize, ("",)),
        (lambda model: symmetrize(model, "_orig_mod.0"), ("0",)),
        (neutralize_twin, ("1",)),
        (lambda model: neutralize(model, strategy="mixer"), ()),
    ],
)
def test_copies_of_a_compiled_network_are_symmetric(change, cut):
    """Audits, segmentations and files begin with a copy. What had been compiled before is compiled again, a part too."""
    part, model = (torch.compile(chain(), backend="eager") for _ in range(2))
    run(model, windows())
    change(model)
    for other in (model, copy.deepcopy(model), ReadyNetwork(model, slices=3, device="cpu", dtype="float32")):
        assert_symmetric(other, windows())
    record = record_of(model)
    assert record.symmetrized == cut
    assert not any("_orig_mod" in stem for stem in record.stems)
    around = outer(part)
    run(around, windows(size=64))
    neutralize_twin(around)
    assert_symmetric(around, windows(size=64))


class WithLoss(nn.Module):
    """Computes a loss from labels, as networks of transformers do, and the scores without."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, pixel_values, labels=None):
        scores = self.head(self.encoder(pixel_values).mean((2, 3)))
        return scores if labels is None else nn.functional.cross_entropy(scores, labels)


@pytest.mark.parametrize("change", [*CHANGES, symmetrize])
def test_labels_are_those_of_the_averaged_scores(change):
    model, images, labels = change(WithLoss()), windows(), torch.tensor([0, 1])
    assert model(pixel_values=images, labels=None).shape == (2, 2)
    if change is symmetrize:  # a loss of windows and mirrors would be another one
        with pytest.raises(ModelError, match="leave labels out"):
            model(pixel_values=images, labels=labels)
        assert_symmetric(model, images)
    else:
        loss = model(pixel_values=images, labels=labels)
        assert loss == nn.functional.cross_entropy(model(images), labels)


# What wraps a network with a record


def outer(model):
    return Wired(lambda m, x: m.model(x), model=model)


def calls_forward(model):
    return Wired(lambda m, x: m.model.forward(x), model=model)


def adds_channels(model):
    def path(m, x):
        return m.model(torch.cat([x, x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))

    return Wired(path, model=model)


def adds_its_input(model):
    return Wired(lambda m, x: m.model(x) + x[:, :1, 1:-1, 1:-1], model=model)


def recorded(slices):
    model = chain(slices)
    neutralize(model, slices, strategy="pretrained", mean=0.5, std=0.2)
    return model


@pytest.mark.parametrize("at", ["output", "model.1"])
@pytest.mark.parametrize(("wrap", "inner"), [(calls_forward, 3), (adds_channels, 5), (adds_its_input, 3)])
def test_what_does_more_with_the_window_than_wrap_a_network_is_averaged_as_a_whole(wrap, inner, at):
    network, images = recorded(inner), windows()
    model = wrap(copy.deepcopy(network))
    expected = (run(model, images) + run(model, images.flip(1))) / 2
    if wrap is adds_its_input and at != "output":
        with pytest.raises(ModelError, match=r"model\.1 \(ReLU\) is not a valid cut"):
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
    assert_symmetric(copy.deepcopy(model), images)


# Calls of parts


@pytest.mark.parametrize("change", CHANGES)
def test_a_part_that_averages_is_not_called_by_itself(change):
    """It would average different images: halves of its batch."""
    model, images = change(encoded()), windows(batch=4)
    for _ in range(2):
        for part in (model.encoder, model.forward):
            with pytest.raises(ModelError, match="only a call of the whole network provides"):
                part(images)
        with pytest.raises(RuntimeError), torch.no_grad():
            model(images[:, :2])  # the call has ended all the same
    assert_symmetric(model, images)


def test_a_part_that_averages_is_called_by_networks_around_it():
    assert_symmetric(outer(symmetrize_encoder(encoded())), windows())
    around = neutralize_twin(outer(encoded()))
    assert_symmetric(around, windows())
    with pytest.raises(ModelError, match="neutralize or symmetrize the part that is called"):
        around.model(windows())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_repeat_the_averaging_in_the_backward_pass(reentrant):
    model, images = neutralize_twin(encoded()).eval(), windows().requires_grad_()
    model(images).square().sum().backward()
    expected, images.grad = images.grad, None
    encode = type(model.encoder).forward
    model.encoder.forward = lambda x: checkpoint(
        lambda x: encode(model.encoder, x), x, use_reentrant=reentrant
    )
    model(images).square().sum().backward()
    torch.testing.assert_close(images.grad, expected)


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_forward_hook"])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_call_that_ends_by_an_error_or_an_interrupt_changes_nothing(kind, register):
    model, images = symmetrize_encoder(encoded()), windows()

    def end(*_):
        raise kind

    handle = getattr(model, register)(end)
    with pytest.raises(kind):
        model(images)
    handle.remove()
    assert_symmetric(model, images)
    with pytest.raises(ModelError, match="only a call of the whole network provides"):
        model.encoder(images)


def test_calls_are_counted_in_each_thread():
    model, images = symmetrize_encoder(encoded()), windows()
    within, done = threading.Event(), threading.Event()
    model.head.register_forward_pre_hook(lambda *_: (within.set(), done.wait(20), None)[-1])
    caller = threading.Thread(target=run, args=(model, images))
    caller.start()
    assert within.wait(20)
    with pytest.raises(ModelError, match="only a call of the whole network provides"):
        model.encoder(images)
    done.set()
    caller.join(20)


@pytest.mark.slow
def test_a_network_with_a_cut_is_one_graph():
    model, images = neutralize_twin(encoded()).eval(), windows()
    expected = run(model, images)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(run(compiled, images), expected)
    with torch.no_grad():
        exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(run(exported, images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["output", "encoder", "encoder.model.bn1"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_ready_to_run_is_symmetric(at, dtype):
    model = symmetrize(load_network(LITE, "none").model, at)
    network = ReadyNetwork(model, slices=3, device="cpu", dtype=dtype)
    network.prepare(3, (64, 64))
    assert torch.equal(run(network, windows(size=64)), run(network, windows(size=64).flip(1)))


# Files


@pytest.mark.slow
def test_a_symmetrized_network_is_saved_surveyed_and_loaded(tmp_path):
    path = tmp_path / "fair.safetensors"
    model, _, source = load_network("timm:test_resnet", "none", slices=5, symmetrize="layer1")
    save_network(model, path, source=source)
    volume = np.random.default_rng(0).random((8, 64, 64)).astype(np.float32)
    compute = Compute(progress=False)
    found = evenslice.survey("timm:test_resnet", weights=str(path), volume=volume, windows=2, compute=compute)
    assert (found.networks[0].error, len(found.networks[0].energy)) == ("", 5)  # its kernels are seen
    library = timm.create_model("test_resnet").eval()  # which nobody neutralized
    record = record_of(symmetrize(library))
    assert (record.stems, record.symmetrized, record.slices) == ((), ("",), 3)
    assert record.mean == pytest.approx(sum(library.pretrained_cfg["mean"]) / 3)  # one scale for all slices
    save_network(library, path, force=True)
    again = load_network("timm:test_resnet", str(path))
    assert torch.equal(run(again.model, windows()), run(library, windows()))


# What cannot be symmetrized


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("encoder.layer1", r"encoder\.layer1 \(Sequential\) is not a valid cut"),
        ("encoder.fc", r"the network has no module 'encoder\.fc'"),
    ],
)
def test_what_is_no_cut_is_named(at, message):
    model = unet()
    with unchanged(model), pytest.raises(ModelError, match=message):
        symmetrize(model, at)


def points(m, x):
    return [{"points": torch.zeros(1, 2), "scores": score} for score in m.stem(x).flatten(1)]


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (lambda m, x: m.stem(x).argmax(1), {}, "integers"),
        (points, {}, r"\(points, scores\) cannot be averaged"),
        (
            lambda m, x: (m.stem(x), m.rows / 2),
            {"outputs": lambda found: found[0]},
            "output 2 of the network",
        ),
        (lambda m, x: m.stem(x), {"size": 64}, "size: is 64"),
        # Shapes fit here: only the values tell that a sum goes round the cut.
        (
            lambda m, x: m.stem(x) + m.other(x)[: len(x) // 2 or 1].mean(),
            {"at": "stem"},
            "beside another window",
        ),
    ],
)
def test_a_network_that_cannot_be_symmetrized(path, options, message):
    parts = {"stem": nn.Conv2d(3, 2, 1), "other": nn.Conv2d(3, 1, 1), "rows": nn.Parameter(torch.rand(10, 8))}
    with pytest.raises((ModelError, ConfigError), match=message):
        symmetrize(Wired(path, **parts), **options)


def test_what_is_not_averaged_at_the_output():
    classes = symmetrize(Wired(lambda m, x: m.stem(x).argmax(1), stem=nn.Conv2d(3, 2, 1)), "stem")
    assert torch.equal(classes(windows()), classes(windows().flip(1)))
    rows = nn.Parameter(torch.rand(9, 8))  # an odd length is no batch, and a parameter is none of any length
    model = Wired(lambda m, x: (m.stem(x), m.rows / 2, m.even), stem=nn.Conv2d(3, 2, 1), rows=rows)
    model.even = nn.Parameter(torch.rand(4, 8))
    found = symmetrize(model, outputs=lambda found: found[0])(windows())
    assert found[1].shape == (9, 8)
    assert torch.equal(found[2], model.even)


def test_an_even_number_of_inputs_and_twice_are_refused():
    with pytest.raises(ModelError, match="takes 4 slices"):
        symmetrize(nn.Conv2d(4, 2, 1))
    for changed in (symmetrize(chain()), neutralize_twin(chain())):
        for change in (symmetrize, neutralize):
            with pytest.raises(ModelError, match="already"):
                change(changed)


class FirstOfBatch(nn.Module):
    def forward(self, features):
        return features - features[:1] / 2


class Noise(nn.Module):
    def forward(self, features):
        return features + torch.rand_like(features)


BATCH_NORM = nn.BatchNorm2d(4, track_running_stats=False)


class SmallBatch(nn.Module):
    def forward(self, features):
        return features * 2 if len(features) < 6 and features.sum() > 0 else features + features.roll(1, 0)


@pytest.mark.parametrize(
    "change",
    [
        symmetrize,
        symmetrize_encoder,
        neutralize_twin,
        lambda model: neutralize(model, strategy="pretrained"),
        torch.random.fork_rng([])(lambda model: audit_formula(model, noise(depth=12))),
    ],
    ids=["output", "encoder", "twin", "pretrained", "audit"],
)
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        *((layer, "dependent on the batch: ") for layer in (FirstOfBatch(), SmallBatch(), BATCH_NORM)),
        (Noise(), "random: encoder.1 "),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_network_whose_answers_depend_on_the_batch_or_on_chance_is_refused(layer, message, change):
    model = encoded(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.ReLU()))
    with unchanged(model), pytest.raises(ModelError, match=message):
        change(model)


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


@pytest.mark.parametrize("change", [symmetrize, neutralize_twin, lambda model: symmetrize(model, "gone")])
def test_trials_leave_buffers_that_a_pass_updates_as_they_were(change):
    model = nn.Sequential(Counting(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Counting()))
    kept = list(model.named_buffers())
    with suppress(ModelError):
        change(model)
    found = dict(model.named_buffers())
    assert all(found[name] is buffer and buffer == 0 for name, buffer in kept)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, image, mask=None):
        return self.head(image) if mask is None else self.head(image) * mask


def test_the_image_is_the_first_input_that_the_network_names():
    network, image, mask = symmetrize(Masked()), torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    first = network(image=image, mask=mask)
    for other in (network(mask=mask, image=image), network(mask=mask, image=image.flip(1))):
        torch.testing.assert_close(first, other)


def test_a_mixer_in_front_is_run_on_window_and_mirror():
    model = encoded()
    neutralize(model, 5, strategy="mixer")
    nn.init.normal_(model.slice_mixer.weight)
    assert_symmetric(symmetrize_encoder(model), windows(5))


# Detectors of torchvision, which take the number of images from a list of their sizes


def detector(name="fasterrcnn_mobilenet_v3_large_320_fpn"):
    arguments = "score_thresh=0" if name.startswith("ssd") else "min_size=64&max_size=64&box_score_thresh=0"
    return load_network(f"torchvision:{name}?{arguments}", "none").model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", neutralize_twin),
        ("ssdlite320_mobilenet_v3_large", symmetrize_encoder),
    ],
)
def test_a_detector_is_symmetric_behind_its_encoder(name, change):
    model = change(detector(name))
    assert record_of(model).symmetrized[0].startswith("backbone")
    with torch.no_grad():
        first, second = model(list(windows(size=64))), model(list(windows(size=64).flip(1)))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_detector_averages_what_it_finds():
    model, images = detector(), windows(size=64)
    sums = [run(model, list(each)) for each in (images, images.flip(1))]
    symmetric = copy.deepcopy(symmetrize(model))
    with torch.no_grad():
        first, second = symmetric(list(images)), symmetric(list(images.flip(1)))
    assert record_of(symmetric).symmetrized == ("",)
    for one, other in zip(first, second, strict=True):
        assert len(one["scores"]) > 0
        assert all(torch.equal(values, other[key]) for key, values in one.items())
    torch.testing.assert_close(run(lambda found: found, first), (sums[0] + sums[1]) / 2)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["encoder", "output"])
def test_a_detector_that_is_symmetric_can_be_trained(at):
    model = symmetrize(detector(), at).train()
    boxes = [torch.tensor([[4.0, 4.0, 20.0, 30.0 + number]]) for number in range(2)]
    targets = [{"boxes": each, "labels": torch.tensor([1])} for each in boxes]
    sum(model(list(windows(size=64)), targets).values()).backward()
    assert len(targets) == 2
    assert model.backbone.body["0"][0].weight.grad.abs().max() > 0


# Functions


def test_a_function_is_called_on_both():
    def first_slice(images):
        score = float(images[:, 0].mean())
        parts = [{"scores": images[:, 0], "classes": 2, "certain": True}, np.float32(score)]
        return {"out": images[:, 0] * 2.0, "name": "kept", "score": score, "parts": parts}

    first_slice.slices = 3
    fair, images = symmetrize(first_slice), windows().numpy()
    found, mirrored = fair(images), fair(images[:, ::-1])
    np.testing.assert_allclose(found["out"], images[:, 0] + images[:, 2], rtol=1e-6)
    assert found["score"] == mirrored["score"] == pytest.approx(images[:, [0, 2]].mean())
    (part, score), (other, same) = found["parts"], mirrored["parts"]
    assert (fair.slices, found["name"], part["classes"], part["certain"]) == (3, "kept", 2, True)
    assert score == same
    np.testing.assert_array_equal(part["scores"], other["scores"])
    assert not hasattr(fair, "tile")


@pytest.mark.parametrize("options", [{"at": "encoder"}, {"size": (8, 8)}, {"outputs": dict}])
def test_options_that_have_no_effect_on_a_function(options):
    with pytest.raises(ModelError, match=f"{next(iter(options))}: has no effect on a function"):
        symmetrize(lambda images: images[:, 0], **options)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda _: SimpleNamespace(logits=np.ones(2)), "SimpleNamespace cannot be averaged"),
        (lambda _: {"name": "words", "aux": None}, "returns dict without a score"),
        (lambda _: 3, "returns int without a score"),
        (lambda images: images[:, 0].astype(int), "integers"),
        (lambda images: torch.from_numpy(images[:, 0]).long(), "integers"),
        (
            lambda images: [1.0] * (1 + (images[0, 0, 0, 0] > 0.5)),
            "returns other parts for a window than for its",
        ),
    ],
)
def test_an_answer_of_a_function_that_cannot_be_averaged(answer, message):
    images = windows(3, 1, 4).numpy()
    images[0, :, 0, 0] = 0, 0, 1
    with pytest.raises(ModelError, match=message):
        symmetrize(answer)(images)


def test_a_function_that_returns_tensors_as_networks_do():
    layer = nn.Conv2d(3, 2, 1).bfloat16()
    found = symmetrize(lambda images: layer(torch.from_numpy(images).bfloat16()))(windows().numpy())
    assert (found.dtype, found.requires_grad) == (torch.bfloat16, False)
    expected = (layer(windows().bfloat16()) + layer(windows().flip(1).bfloat16())) / 2
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("wrap", [lambda array: array, torch.from_numpy, lambda array: [array]])
def test_a_function_may_change_its_input_and_return_the_same_memory_again(wrap):
    memory = np.zeros((1, 4, 4))

    def first_slice(windows):
        np.copyto(memory, windows[:, 0])
        windows -= 0.5
        return wrap(memory)

    window = np.random.default_rng(0).random((1, 3, 4, 4))
    found = symmetrize(first_slice)(window.copy())
    np.testing.assert_allclose(np.asarray(found).reshape(1, 4, 4), (window[:, 0] + window[:, 2]) / 2)


# The strategy "twin"


@pytest.mark.parametrize(
    ("spec", "cut"),
    [
        (SMALL, "encoder.relu"),
        (LITE, "encoder.model.bn1.act"),
        ("smp:FPN/efficientnet-b0", "encoder._swish"),  # an activation that smp writes itself
        ("torchvision:googlenet?init_weights=False", "conv1"),  # a function: the part that holds both
        pytest.param("timm:fastvit_t8", "stem.0.act", marks=pytest.mark.slow),  # two stems, one activation
        ("timm:test_efficientnet_ln", "bn1.act"),  # changes a view in place
    ],
)
def test_twin_averages_behind_the_activation(spec, cut):
    slices = 5
    model, record, _ = load_network(spec, "none", strategy="twin", slices=slices)
    assert record.symmetrized == (cut,)
    assert max(record.mirror_error, record.gray_error) <= 1e-4
    for parameter in model.parameters():  # and whatever it learns
        parameter.data += 0.01 * torch.randn(parameter.shape)
    assert_symmetric(model, windows(slices, size=256 if "fastvit" in spec else 64))


@pytest.mark.parametrize("scaling", [{"mean": 0, "std": 1}, IMAGENET])
@pytest.mark.parametrize("check", ["network", "stems"])
def test_twin_by_hand(check, scaling):
    """The mean of relu(norm(conv(x))) for the window and its mirror, and nothing else changed."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1))
    stem, images = copy.deepcopy(unequal(model.eval())[:3]), windows()
    with torch.no_grad():
        expected = model[3]((stem(images) + stem(images.flip(1))) / 2)
    record = neutralize(model, strategy="twin", check=check, **scaling)
    assert max(record.mirror_error, record.gray_error) <= 1e-5
    assert_symmetric(model, images)
    if scaling is not IMAGENET:
        torch.testing.assert_close(run(model, images), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "activation", [nn.CELU(), nn.RReLU(), nn.Softsign(), nn.Hardshrink(), nn.GLU(dim=1), nn.Tanhshrink()]
)
def test_twin_knows_the_activations_of_torch(activation):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.LazyConv2d(2, 1)).eval()
    model(windows())
    assert neutralize(model, strategy="twin").symmetrized == ("1",)
    assert_symmetric(model, windows())


STEM = {"stem": nn.Conv2d(3, 4, 1), "second": nn.Conv2d(4, 4, 1), "relu": nn.ReLU(inplace=True)}


@pytest.mark.parametrize("check", ["network", "stems"])
@pytest.mark.parametrize(
    ("path", "more", "cut"),
    [
        # An activation that is used again, with a pooling layer in between.
        (lambda m, x: m.relu(m.second(m.pool(m.relu(m.stem(x))))), {"pool": nn.MaxPool2d(2)}, "pool"),
        # One activation behind two stems.
        (lambda m, x: m.relu(m.stem(x)) + m.relu(m.other(x)), {"other": nn.Conv2d(3, 4, 1)}, "relu"),
    ],
)
def test_twin_averages_where_the_activation_is_used_twice(path, more, cut, check):
    model = copy.deepcopy(Wired(path, **STEM, **more))
    assert neutralize(model, 5, strategy="twin", check=check).symmetrized == (cut,)
    assert_symmetric(model, windows(5))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (lambda m, x: m.second(m.stem(x)), r"no activation follows the layer stem \(Conv2d\)"),
        (
            lambda m, x: m.relu(m.second(m.relu(m.stem(x)))),
            "activation relu after the layer stem .* elsewhere",
        ),
        (lambda m, x: m.relu((y := m.stem(x)) * 1) + m.silu(y), "cannot be averaged at a single place"),
    ],
)
def test_twin_names_the_way_out_where_it_cannot_average(path, message):
    model = Wired(path, **copy.deepcopy(STEM), silu=nn.SiLU())
    with unchanged(model), pytest.raises(ModelError, match=rf"{message}.*'mirror'.*\(symmetrize='output'\)"):
        neutralize(model, 5, strategy="twin")
