"""A batch of windows, explained together with their mirrors, as rows of numbers: all that an audit asks of a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from evenslice.auditing.attribution import MOST_CLASSES, Explained, Score, as_float64, attribute, reproducible
from evenslice.inference import ReadyNetwork
from evenslice.networks import full_precision
from evenslice.results import Measurements, Tolerances, ratio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.inference import BlackBox

    Floats = NDArray[np.float64]

# The Wasserstein distance is computed from so many pixels of a map, the same for all maps of a size.
SALIENCY_SAMPLE = 4096
MOST_FEATURES = 256
"""Of an output with more numbers than this and no pixels, as many are taken, at equal distances."""


def class_sums(values: Tensor, classes: Tensor | None, count: int) -> Floats:
    """Add values over all pixels, and over those of each class.

    Args:
        values: (batch, ...) what is explained, as ``Score.map`` returns it.
        classes: as ``Score.classes`` returns them.
        count: C.

    Returns:
        (batch, 1 + C); of classes that overlap, the first column is 0.

    Example:
        >>> class_sums(torch.tensor([[[1.0, 2.0, 4.0]]]), torch.tensor([[[1, 0, 1]]]), 2).tolist()
        [[7.0, 2.0, 5.0]]
    """
    batch = len(values)
    exact = as_float64(values)
    if classes is None:
        whole, parts = exact.reshape(batch, -1).sum(1), exact.new_zeros(batch, count)
    elif classes.dtype == torch.bool:
        whole, parts = exact.new_zeros(batch), exact.reshape(batch, classes.shape[1], -1).sum(2)[:, :count]
    else:
        flat, numbers = exact.reshape(batch, -1), classes.reshape(batch, -1).clamp(0, max(count - 1, 0))
        whole, parts = (
            flat.sum(1),
            exact.new_zeros(batch, count).scatter_add(1, numbers.to(exact.device), flat),
        )
    return as_numpy(torch.cat([whole[:, None], parts], dim=1))


def compare_answers(answers: Tensor, count: int) -> dict[str, Floats]:
    """Compare the answers to m windows and to their mirrors, which follow them.

    Returns:
        ``pixels``, ``changed``, ``union`` (m, C) and ``mirror_disagreement`` (m,) of ``Measurements``.

    Example: of four pixels, one is of class 1 in both answers, and one in the second alone.
        >>> found = compare_answers(torch.tensor([[[0, 0, 1, 0]], [[0, 0, 1, 1]]]), 2)
        >>> found["changed"].tolist(), found["union"].tolist(), found["mirror_disagreement"].tolist()
        ([[0.25, 0.25]], [[0.75, 0.5]], [0.25])
    """
    half = len(answers) // 2
    given, mirrored = answers.reshape(2, half, -1)
    if answers.dtype == torch.bool:
        given, mirrored = (part.reshape(half, answers.shape[1], -1)[:, :count] for part in (given, mirrored))
        one, other, both = (as_numpy(part.float().mean(2)) for part in (given, mirrored, given & mirrored))
        differ = as_numpy((given != mirrored).any(1).float().mean(1))
    else:
        same = given == mirrored
        ones = torch.ones_like(same, dtype=torch.float32)
        one, other, both = (
            class_sums(weight, numbers, count)[:, 1:] / given.shape[1]
            for numbers, weight in ((given, ones), (mirrored, ones), (given, same.float()))
        )
        differ = as_numpy((~same).float().mean(1))
    union = one + other - both
    return {
        "pixels": (one + other) / 2,
        "changed": union - both,
        "union": union,
        "mirror_disagreement": differ,
    }


def compare_outputs(
    values: Tensor, tile: Sequence[int], *, scores: bool, numbers: bool = False, outputs: Tensor | None = None
) -> dict[str, Floats]:
    """Compare what is explained of m windows with that of their mirrors, which follow them.

    Args:
        values: (2m, ...), those of the mirrors for the classes of the windows.
        tile: size (y, x) of the windows, which tells maps (batch, y, x) from tokens with features (batch, T, F).
        scores: whether the output has no classes.
        numbers: whether it has class numbers, which tell nothing but whether they are the same.
        outputs: (2m, ...) the outputs that the mirror error compares; by default the values.

    Returns:
        ``mirror_error``, ``change``, ``power`` and ``level`` of ``Measurements``.

    Example:
        >>> given = torch.tensor([[2.0, 0.0], [2.0, 1.0]])
        >>> compare_outputs(given, (8, 8), scores=True)["mirror_error"].tolist()
        [0.5]
    """
    half = len(values) // 2
    unknown = np.full(half, np.nan)
    if numbers:
        return {**dict.fromkeys(("mirror_error", "change", "power"), unknown), "level": unknown[:, None]}
    compared = values if outputs is None else outputs
    found = {"mirror_error": _mirror_error(*compared.reshape(2, half, -1))}
    axes = _position_axes(tuple(values.shape), tile if scores else None)
    given, mirrored = as_float64(values[:half]), as_float64(values[half:])
    if axes and any(values.shape[axis] > 1 for axis in axes):
        changed, varying = given - mirrored, given - given.mean(dim=axes, keepdim=True)
        change, power = (as_numpy(part.square().reshape(half, -1).mean(1)) for part in (changed, varying))
        return found | {"change": change, "power": power, "level": np.zeros((half, 1))}
    # A single place varies over windows, as outputs without any do.
    flat = given.reshape(half, -1)
    stride = max(1, -(-flat.shape[1] // MOST_FEATURES))
    one, other = (as_numpy(part.reshape(half, -1)[:, ::stride]) for part in (given, mirrored))
    change, power = np.mean((one - other) ** 2, axis=1), np.mean(one**2, axis=1)
    return found | {"change": change, "power": power, "level": one}


def _position_axes(shape: tuple[int, ...], tile: Sequence[int] | None) -> tuple[int, ...]:
    """Return the axes of an output (B, ...) along which its numbers belong to places: none, tokens, or rows and columns.

    Example:
        >>> _position_axes((2, 1, 64, 64), (256, 256)), _position_axes((2, 197, 384), (256, 256))
        ((2, 3), (1,))
    """
    if len(shape) < 3:
        return ()
    rows, columns = shape[-2:]
    if len(shape) == 3 and tile is not None and abs(rows * tile[1] - columns * tile[0]) >= max(tile):
        return (1,)
    return (len(shape) - 2, len(shape) - 1)


def _mirror_error(output: Tensor, mirrored: Tensor) -> Floats:
    """Return max|f(x) - f(x')| / max|f(x)| (B,): 0 if nothing changes, NaN if only f(x) is 0."""
    change, size = (as_numpy(part.abs().amax(dim=1)) for part in (output - mirrored, output))
    error = np.divide(change, size, out=np.full_like(change, np.nan), where=size != 0)
    error[change == 0] = 0
    return error


def as_numpy(tensor: Any) -> Floats:
    """Return a tensor of any device as a float64 array."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


def wasserstein(size: Tensor, sums: Floats) -> Floats:
    """Return the Wasserstein-1 distances (m, K) between the saliency of offsets k and -k, in units of the mean saliency.

    Each side pools the pixels of the window and of its mirror, so both sides are equal for a symmetric network. Between
    samples of equal size the distance is the mean absolute difference of their sorted values.

    Args:
        size: (2m, N, y, x) absolute attribution of windows and mirrors, in the order of the network's input.
        sums: (m, 2, N) its sums.
    """
    half, slices = sums.shape[0], sums.shape[2]
    if len(size) != 2 * half:
        return np.full((half, slices // 2), np.nan)
    pixels = size[0, 0].numel()
    # At random, as a regular grid misses patterns of its own period.
    some = np.random.default_rng(0).choice(pixels, min(pixels, SALIENCY_SAMPLE), replace=False)
    chosen = torch.from_numpy(np.sort(some)).to(size.device)
    given, mirrored = (as_numpy(part.flatten(2)[:, :, chosen]) for part in (size[:half], size[half:]))
    both = np.sort(np.concatenate([given, mirrored], axis=2), axis=2)
    left, right = both[:, : slices // 2][:, ::-1], both[:, slices // 2 + 1 :]
    mean = sums.sum(axis=(1, 2))[:, None] / (2 * slices * pixels)
    return np.minimum(ratio(np.abs(right - left).mean(axis=2), mean), slices)


SMALLEST_PART = 0.001
"""Part of the pixels of a window below which a class of it is not explained by itself."""

MOST_EXPLAINED = 8
"""Classes of a window, the largest ones, that are explained by themselves."""

# Attribution below this part of the output is rounding: float32 rounds to 1e-7, and a network adds up many roundings.
NEGLIGIBLE = 1e-6


class NotFiniteError(ArithmeticError):
    """A network returned NaN or infinity for a window.

    Attributes:
        row: the window, by its number in the batch.
    """

    def __init__(self, values: Tensor, what: str, where: str = "") -> None:
        finite = values.isfinite().reshape(len(values), -1).all(dim=1)
        row = int(finite.logical_not().nonzero()[0])
        self.row = row % max(len(values) // 2, 1)
        super().__init__(f"{what} {'NaN' if bool(values[row].isnan().any()) else 'infinity'}{where}")


@dataclass(frozen=True)
class Explainer:
    """What is asked of a network.

    Attributes:
        network: ready to run.
        explained: what of its output.
        maps: the method and the baseline of the maps of examples.
        method: of attribution; empty if saliency is not asked for.
        baseline: of the method, if it has one.
        seed: random seed of the methods.
    """

    network: ReadyNetwork | BlackBox
    explained: Explained
    maps: tuple[str, str | None]
    method: str
    baseline: str | None = None
    seed: int = 0

    @property
    def gradient(self) -> bool:
        """Whether the use of slices is told by the gradient, else by replacement."""
        return self.explained.gradient and self.method != "occlusion"

    def rows(self, windows: Tensor, labels: Tensor | None) -> dict[str, NDArray[Any]]:
        """Explain windows.

        Args:
            windows: (m, N, y, x) in 0..1.
            labels: (m, y, x) class numbers for the target "labels".

        Returns:
            The fields of ``Measurements`` but for the places.

        Raises:
            NotFiniteError: the output or its gradient is NaN or infinite.
        """
        pass_ = _Pass(self, windows, labels)
        rows = pass_.rows()
        own = (windows == windows.flip(1)).flatten(1).all(dim=1).cpu().numpy()
        rows["own_mirror"] = own.astype(np.float64)
        rows["reliance"], mismatch, outer = pass_.replaced()
        saliency = torch.zeros_like(windows)
        rows["saliency"] = np.zeros_like(rows["reliance"])
        if self.gradient:
            sums, mismatch, outer, size = pass_.gradients()
            mismatch[own] = outer[own] = 0
            if self.method == "gradient":
                rows["saliency"], saliency = sums, size
            self._remove_rounding(windows, labels, rows["mirror_error"], mismatch, outer)
        if self.method not in ("", "gradient"):
            rows["saliency"], saliency = pass_.attributed()
        rows |= {"mismatch": mismatch, "outer": outer}
        for name in ("changed", "union", "mismatch", "outer"):
            rows[name][own] = 0
        rows["wasserstein"] = wasserstein(saliency, rows["saliency"][:, :, 0])
        return rows

    def _remove_rounding(
        self, windows: Tensor, labels: Tensor | None, error: Floats, mismatch: Floats, outer: Floats
    ) -> None:
        """Replace the mirror mismatch of windows whose output is that of their mirrors by the one in float64, in place.

        Where an activation hits the corner of a ReLU, as on a constant background, rounding decides which side it is on, and
        with it a whole path of the gradient: a network that is the same function of both neighbours then seems to use them a
        little differently. Where the output differs by more than rounding, so does the use of the slices, and nothing is
        computed again; nor where the mismatch is within the tolerance anyway, as float64 takes ten times as long; nor for
        networks that do not compute in float64.
        """
        used = ratio(mismatch.sum(axis=2), outer.sum(axis=2))
        with np.errstate(invalid="ignore"):
            beyond = (used > Tolerances.mismatch_tolerance).any(axis=1)
            some = np.flatnonzero(beyond & (error <= Measurements.SAME))
        network = self.network
        if not len(some) or not isinstance(network, ReadyNetwork) or network.dtype != torch.float32:
            return
        try:
            precise = replace(self, network=network.in_precision(torch.float64))
            chosen = None if labels is None else labels[some]
            _, unlike, whole, _ = _Pass(precise, windows[some], chosen).gradients()
        except Exception:  # noqa: BLE001  # a network may refuse float64 by any exception
            return
        count = min(unlike.shape[1], mismatch.shape[1])
        mismatch[some, :count], outer[some, :count] = unlike[:, :count], whole[:, :count]


class _Pass:
    """A forward pass of m windows and, behind them, of their mirrors.

    Attributes:
        explainer: what is asked.
        half: m.
        both: (2m, N, y, x).
        score: what is explained; the mirrors by the classes of the windows.
        output: of the network, with its graph if there is to be a gradient.
        answers: to windows and mirrors.
        classes: that are explained.
        overlap: whether these overlap.
        count: C, one more than the largest class; 0 for scores. Class numbers from 256 on are one class.
        values: what is explained, without its graph.
        clamped: part of the probabilities that were clamped (2m,).
    """

    def __init__(self, explainer: Explainer, windows: Tensor, labels: Tensor | None) -> None:
        self.explainer, self.half = explainer, len(windows)
        self.both = torch.cat([windows, windows.flip(1)]).detach().requires_grad_(explainer.gradient)
        score = Score(
            explainer.network, explainer.explained, None if labels is None else torch.cat([labels, labels])
        )
        with torch.set_grad_enabled(explainer.gradient), reproducible(self.both.device, explainer.seed):
            self.output, self.clamped = score.run(self.both)
        output, count = self.output.detach(), 0
        if not bool(output.isfinite().all()):
            raise NotFiniteError(output, "returns")
        self.answers = answers = score.answers(output)
        if answers is not None:
            score = replace(score, predicted=torch.cat([answers[: self.half]] * 2))
            count = max(output.shape[1], 2) if output.is_floating_point() else int(answers.max()) + 1
        self.score, self.count = score, min(count, MOST_CLASSES + 1)
        self.classes = score.classes(output)
        self.overlap = self.classes is not None and self.classes.dtype == torch.bool
        self.values = score.map(output, self.classes)

    def rows(self) -> dict[str, NDArray[Any]]:
        """Compare the answers and the outputs for windows and mirrors."""
        half, outputs = self.half, None
        if self.answers is not None and not self.overlap and self.output.is_floating_point():
            # A term that all classes share moves no probability; a single channel has no other to share it with.
            output = self.output.detach()
            outputs = output - output.mean(dim=1, keepdim=True) if output.shape[1] > 1 else None
        rows = compare_outputs(
            self.values,
            self.both.shape[2:],
            scores=self.answers is None,
            numbers=self.answers is not None and not self.output.is_floating_point(),
            outputs=outputs,
        )
        if self.answers is None:
            nothing = np.zeros((half, 0))
            rows |= {"pixels": nothing, "changed": nothing, "union": nothing}
            rows["mirror_disagreement"] = np.full(half, np.nan)
        else:
            rows |= compare_answers(self.answers, self.count)
        sums = class_sums(self.values.abs(), self.classes, self.count)
        rows["explained"] = (sums[:half] + sums[half:]) / 2
        rows["clamped"] = as_numpy((self.clamped[:half] + self.clamped[half:]) / 2)
        return rows

    @torch.no_grad()
    def replaced(self) -> tuple[Floats, Floats, Floats]:
        """Replace each outer slice by the middle one.

        Returns:
            The absolute changes (m, 2, 1 + C, N), the sum (m, 1 + C, K) of the differences between the changes of a window
            and of its mirror by the same slice, and what these compare.
        """
        half, slices = self.half, self.both.shape[1]
        middle = slices // 2
        reliance = np.zeros((half, 2, self.count + 1, slices))
        unlike, whole = np.zeros((2, half, self.count + 1, middle))
        windows = self.both[:half].detach()
        for k in (*range(middle), *range(middle + 1, slices)):
            changed = windows.clone()
            changed[:, k] = windows[:, middle]
            output = self.score.output(torch.cat([changed, changed.flip(1)]))
            if not bool(output.isfinite().all()):
                raise NotFiniteError(output, "returns", " with a slice replaced by the middle one")
            change = self.score.map(output, self.classes) - self.values
            sums = self._rounded(class_sums(change.abs(), self.classes, self.count))
            reliance[:, 0, :, k], reliance[:, 1, :, slices - 1 - k] = sums[:half], sums[half:]
            classes = None if self.classes is None else self.classes[:half]
            pair = abs(k - middle) - 1
            unlike[..., pair] += class_sums((change[:half] - change[half:]).abs(), classes, self.count)
            whole[..., pair] += sums[:half] + sums[half:]
        return reliance, np.minimum(unlike, whole), whole

    def gradients(self) -> tuple[Floats, Floats, Floats, Tensor]:
        """Differentiate what is explained: one backward pass for each class of the windows.

        Returns:
            Sums (m, 2, 1 + C, N), mismatch and outer (m, 1 + C, K), and absolute maps (2m, N, y, x).
        """
        half, count = self.half, self.count + 1
        total = torch.zeros_like(self.both).detach()
        sums = np.zeros((half, 2, count, self.both.shape[1]))
        mismatch, outer = np.zeros((2, half, count, self.both.shape[1] // 2))
        groups = [*self._groups()]
        for number, (group, explained) in enumerate(groups):
            with full_precision():
                (found,) = torch.autograd.grad(explained, self.both, retain_graph=number + 1 < len(groups))
            if not bool(found.isfinite().all()):
                raise NotFiniteError(found, "has a gradient of")
            total += found
            if group:
                sums[:, :, group], mismatch[:, group], outer[:, group] = self._reduce(found)
        if not self.overlap:
            sums[:, :, 0], mismatch[:, 0], outer[:, 0] = self._reduce(total)
        return sums, mismatch, outer, total.abs().float()

    def attributed(self) -> tuple[Floats, Tensor]:
        """Attribute windows and mirrors by the method, also for each of their classes by itself."""
        half, explainer = self.half, self.explainer
        windows, slices = self.both[:half].detach(), self.both.shape[1]
        sums, total = np.zeros((half, 2, self.count + 1, slices)), torch.zeros_like(self.both)

        def explain(only: Tensor | None) -> Tensor:
            parts = []
            for mirrored in (False, True):
                score = replace(
                    self.score.at(slice(half, None) if mirrored else slice(half)),
                    only=only,
                    mirrored=mirrored,
                )
                found = attribute(
                    score, windows, method=explainer.method, baseline=explainer.baseline, seed=explainer.seed
                )
                if not bool(found.isfinite().all()):
                    raise NotFiniteError(found, f"has an attribution by {explainer.method} of")
                parts.append(found.flip(1) if mirrored else found)
            return torch.cat(parts)

        for group, chosen in self._chosen():
            only = torch.where(chosen, group - 1, -1)
            found = explain(only)
            sums[:, :, group] = self._reduce(found)[0]
            total += found
        if not self.overlap:
            total = explain(None)
            sums[:, :, 0] = self._reduce(total)[0]
        return sums, total.abs().float()

    def _chosen(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the classes that are explained by themselves, from 1 on, and in which windows (m,).

        That depends on each window alone, not on the others of its batch.
        """
        if self.classes is None:
            return
        given = self.classes[: self.half]
        ones = given if self.overlap else torch.ones_like(given, dtype=torch.float32)
        parts = class_sums(ones, given, self.count)[:, 1:]
        parts /= max(given[0].numel() // (self.count if self.overlap else 1), 1)
        ranks = np.argsort(np.argsort(-parts, axis=1, kind="stable"), axis=1)
        chosen = (parts >= SMALLEST_PART) & (ranks < MOST_EXPLAINED)
        for number in np.flatnonzero(chosen.any(axis=0)).tolist():
            yield number + 1, torch.from_numpy(chosen[:, number]).to(self.both.device)

    def _groups(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each class and the sum of what is explained at its pixels; 0 is what is left."""
        values = self.score.map(self.output, self.classes)
        left = torch.ones_like(values.detach(), dtype=torch.bool)
        for group, chosen in self._chosen():
            only = torch.where(chosen, group - 1, -1)
            classes = cast("Tensor", replace(self.score, only=torch.cat([only, only])).classes(self.output))
            mask = (classes if self.overlap else classes >= 0).reshape(values.shape)
            left &= ~mask
            yield group, (values * mask).sum()
        if bool(left.any()) and not self.overlap:
            yield 0, (values * left).sum()

    def _reduce(self, attribution: Tensor) -> tuple[Floats, Floats, Floats]:
        """Return sums (m, 2, N), mismatch and outer (m, K) of attributions (2m, N, y, x) in the order of the input."""
        half = self.half
        sums = self._rounded(as_numpy(as_float64(attribution.abs()).sum(dim=(2, 3))))
        unlike = as_float64((attribution[:half] - attribution[half:].flip(1)).abs()).sum(dim=(2, 3))
        after = attribution.shape[1] // 2 + 1
        pairs = [
            (part + part[:, ::-1])[:, after:]
            for part in (as_numpy(unlike), sums[:half] + sums[half:][:, ::-1])
        ]
        return np.stack([sums[:half], sums[half:]], axis=1), np.minimum(*pairs), pairs[1]

    def _rounded(self, sums: Floats) -> Floats:
        """Set sums (2m, ...) to 0 where all of a window's do not exceed the rounding error of its output."""
        if self.output.is_floating_point():
            reach = as_numpy(self.output.abs().reshape(len(self.output), -1).sum(1))
            sums[sums.reshape(len(sums), -1).sum(axis=1) <= NEGLIGIBLE * reach] = 0
        return sums
