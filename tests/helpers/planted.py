"""Small networks with planted properties, and windows to run them on."""

import pickle
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.nn import functional

from evenslice.networks import logits

STRATEGIES = (
    "pretrained",
    "uniform",
    "center",
    "profile",
    "mirror",
    "twin",
    "shuffle",
    "equalize",
    "mixer",
    "reinit",
    "random",
)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def unequal(model, seed=0):
    """Make a network's weights and statistics as unequal as training does, and return it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(getattr(module, "running_mean", None), torch.Tensor):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
            if isinstance(module, nn.Conv2d) and module.weight.shape[1] == 3:
                module.weight.mul_(torch.tensor([0.5, 2.0, 0.2])[:, None, None])
    return model.eval()


class Weighted(nn.Module):
    """Two classes whose logits are +-sum_k w_k x_k: the shares are |w| / sum |w|, whatever the data."""

    def __init__(self, *weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights).view(1, -1, 1, 1))

    def forward(self, windows):
        logit = (self.weights * windows).sum(1, keepdim=True)
        return torch.cat([-logit, logit], dim=1)


class Wired(nn.Module):
    """A network of parts whose forward pass is a function of the network and its input."""

    def __init__(self, path, **parts):
        super().__init__()
        self.path = path
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.path(self, x)


@torch.no_grad()
def run(model, images):
    return logits(model(images))


def windows(slices=3, batch=2, size=32, seed=5):
    return torch.rand(batch, slices, size, size, generator=torch.Generator().manual_seed(seed))


def difference(first, second):
    """Return the largest difference of two outputs, relative to the largest value of both."""
    return ((first - second).abs().max() / torch.maximum(first.abs().max(), second.abs().max())).item()


def assert_symmetric(model, images, *orders):
    """Assert that a network answers the same for windows in reverse order, or in others."""
    for order in orders or (range(images.shape[1] - 1, -1, -1),):
        assert difference(run(model, images), run(model, images[:, list(order)])) <= 1e-5


def _everything(model):
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    return (
        [(id(module), repr(vars(module))) for module in model.modules()],
        {name: (id(tensor), tensor.detach().numpy().tobytes()) for name, tensor in tensors.items()},
        torch.get_rng_state().tolist(),
    )


@contextmanager
def unchanged(model):
    """Assert that a network is as before: modules, modes, values, which objects they are, hooks; and torch's random numbers."""
    before = _everything(model)
    yield
    assert _everything(model) == before


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))  # noqa: S301  # as workers of a cluster receive it


def conv_bias(padding=1):
    return unequal(nn.Sequential(nn.Conv2d(3, 8, 3, padding=padding), nn.ReLU(), nn.Conv2d(8, 2, 1)))


def conv_norm(padding=1):
    return unequal(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=padding, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
        )
    )


def conv_alone(padding=1):
    """A stem with neither a bias nor a batch norm."""
    return unequal(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=padding, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 1))
    )


def focus(padding=1):
    """Space to depth, then a stem of 12 features."""
    return unequal(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, padding=padding), nn.ReLU()))


class Interleaved(nn.Module):
    """Space to depth whose channels stand together, position by position, into a linear layer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(48, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        batch, channels, y, x_size = x.shape
        patches = x.reshape(batch, channels, y // 4, 4, x_size // 4, 4).permute(0, 2, 4, 3, 5, 1)
        return self.head(self.embed(patches.reshape(batch, -1, 16 * channels)).relu())


class TwoStems(nn.Module):
    """Two branches, the second of which sees the image at half its size."""

    def __init__(self):
        super().__init__()
        self.coarse = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fine = nn.Conv2d(3, 4, 5)
        unequal(self)

    def forward(self, x):
        fine = self.fine(x)
        half = functional.interpolate(x, scale_factor=0.5, mode="bilinear")
        return fine.mean((2, 3)) + self.norm(self.coarse(half)).relu().mean((2, 3))


class SecondRead(nn.Module):
    """Reads the image a second time with a weight that no layer owns."""

    def __init__(self):
        super().__init__()
        self.body = conv_bias()
        self.hidden = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1))

    def forward(self, x):
        return self.body(x) + functional.conv2d(x, self.hidden[:, : x.shape[1]])


class Normalizing(nn.Module):
    """Scales its three channels by constants of its own before the stem."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(IMAGENET["mean"])[:, None, None])
        self.register_buffer("std", torch.tensor(IMAGENET["std"])[:, None, None])

    def forward(self, x):
        return self.model((x - self.mean) / self.std)


class HardCoded(nn.Module):
    """Takes three channels by name."""

    def __init__(self):
        super().__init__()
        self.model = conv_bias()

    def forward(self, x):
        return self.model(torch.stack([x[:, 0], x[:, 1], x[:, 2]], dim=1))


class Added(nn.Module):
    """Adds the image to what its stem writes, as often as it fits in."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.head(self.stem(x) + x.repeat(1, 6 // x.shape[1], 1, 1))
