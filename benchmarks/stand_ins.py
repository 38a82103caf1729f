"""Stand-ins for small packages, for a machine on which nothing can be installed: as much of each as ``gpu.py`` needs.

A package that is there is used. The stand-ins do the same work on the device: Captum's ``Saliency`` takes the gradient,
MONAI's ``DiceLoss`` is a few sums. Packages that only show progress do nothing.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["add_missing"]


def add_missing() -> list[str]:
    """Put a stand-in in the place of each package that is missing; return their names."""
    missing = [name for name in STAND_INS if importlib.util.find_spec(name) is None]
    for name in missing:
        STAND_INS[name]()
    return missing


def _add(name: str, **content: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


def _lazy_loader() -> None:
    def attach_stub(package: str, file: str) -> tuple[Any, Any, list[str]]:
        """Load what a stub beside a package names on first use."""
        tree = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
        places = {
            alias.asname or alias.name: (f"{package}.{node.module}", alias.name)
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.level
            for alias in node.names
        }

        def get(name: str) -> Any:
            if name not in places:
                raise AttributeError(f"{package} has no {name}")
            module, original = places[name]
            return getattr(importlib.import_module(module), original)

        return get, lambda: sorted(places), sorted(places)

    _add("lazy_loader", attach_stub=attach_stub)


def _captum() -> None:
    import torch

    class Saliency:
        def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
            self._forward = forward

        def attribute(self, windows: Tensor, **_: Any) -> Tensor:
            with torch.enable_grad():
                return torch.autograd.grad(self._forward(windows).sum(), windows)[0]

    class IntegratedGradients:
        def __init__(self, forward: Callable[..., Tensor]) -> None:
            self._forward = forward

        def attribute(
            self,
            windows: Tensor,
            *,
            baselines: Tensor,
            n_steps: int,
            additional_forward_args: tuple[Any, ...],
            **_: Any,
        ) -> Tensor:
            change, total = windows - baselines, torch.zeros_like(windows)
            for step in range(n_steps):
                place = (baselines + (step + 0.5) / n_steps * change).detach().requires_grad_()
                with torch.enable_grad():
                    score = self._forward(place, *additional_forward_args).sum()
                total += torch.autograd.grad(score, place)[0] / n_steps
            return total * change.detach()

    _add("captum")
    _add("captum.attr", Saliency=Saliency, IntegratedGradients=IntegratedGradients)


def _monai() -> None:
    import torch
    from torch import nn

    class DiceLoss(nn.Module):
        """The loss over all pixels of a batch at once, as ``batch=True`` asks for."""

        def __init__(self, *, include_background: bool, softmax: bool, **_: Any) -> None:
            super().__init__()
            self.first = 0 if include_background else 1
            self.activation = (lambda scores: scores.softmax(1)) if softmax else torch.sigmoid

        def forward(self, scores: Tensor, target: Tensor) -> Tensor:
            found, right = self.activation(scores)[:, self.first :], target[:, self.first :]
            axes = (0, *range(2, found.ndim))
            both = (found * right).sum(axes)
            loss: Tensor = 1 - (2 * both + 1e-5) / (found.sum(axes) + right.sum(axes) + 1e-5)
            return loss.mean()

    _add("monai")
    _add("monai.losses", DiceLoss=DiceLoss)


def _rich() -> None:
    class Nothing:
        is_terminal = False

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __getattr__(self, _: str) -> Callable[..., None]:
            return lambda *_, **__: None

    columns = ("BarColumn", "MofNCompleteColumn", "TextColumn", "TimeElapsedColumn", "TimeRemainingColumn")
    _add("rich")
    _add("rich.console", Console=Nothing)
    _add("rich.progress", Progress=Nothing, **dict.fromkeys(columns, Nothing))


STAND_INS: dict[str, Callable[[], None]] = {
    "captum": _captum,
    "lazy_loader": _lazy_loader,
    "monai": _monai,
    "rich": _rich,
}
