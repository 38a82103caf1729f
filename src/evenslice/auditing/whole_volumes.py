"""Any method on whole volumes: whether its answer depends on which way round the stack is, and the repair.

    found = audit_volume(segment_everything, "brain.nii.gz", axes=("z", "y"))
    fair = symmetrize_volume(segment_everything)

A method is a function from an array (z, y, x) to an answer of the same shape: class numbers, object ids, or the
probability of a foreground; or to the probabilities or scores (classes, z, y, x) of several classes. A 3-D network, a
propagation through z, a plug-in or a program are such functions. It is asked about the volume and about the flipped
volume, and the second answer is flipped back.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from evenslice._core import ConfigError, ModelError, check_known, option, reporting_errors, staged_folder
from evenslice.inference import surface_scores
from evenslice.networks import function_name
from evenslice.report import html_of, write_report_files
from evenslice.results import AxisChange, ClassChange, VolumeAuditResult
from evenslice.volumes import Volume, open_volume

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from evenslice.volumes import VolumeLike

    Classes: TypeAlias = NDArray[np.integer[Any]]

Method: TypeAlias = Callable[[Any], Any]

SHOWN = 3  # slices of each axis
APART = 20  # slices that are shown lie farther apart than this part of the axis


class VolumeAudit(VolumeAuditResult):
    """The result of ``evenslice.audit_volume``. See ``evenslice.results.VolumeAuditResult`` for the attributes.

    Example:
        >>> import evenslice
        >>> rising = lambda stack: np.cumsum(stack, axis=0) > 2  # as a propagation upwards
        >>> found = evenslice.audit_volume(rising, np.ones((6, 20, 20)), axes=("z", "x"))
        >>> found.verdict, [axis.verdict for axis in found.axes], round(found.axes[0].largest.change, 3)
        ('biased', ['biased', 'symmetric'], 1.0)
    """

    FILES = ("flip.json", "report.html", "figures/profile.svg")
    """Names of the files that ``save`` writes."""

    _repr_html_ = html_of  # in a notebook

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write ``flip.json``, ``report.html`` and its chart into a folder, which is created if missing.

        Raises:
            OutputError: the folder holds such files and ``force`` is not set, or it cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        with staged_folder(folder, self.FILES, documents=("flip.json",), force=force) as beside:
            self.write(beside)

    def write(self, folder: Path) -> None:
        """Write the files of ``save`` into an existing folder."""
        (folder / "flip.json").write_text(self.to_json(), encoding="utf-8")
        write_report_files(self, folder)


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeAnswers:
    """The answers to one volume, all class numbers or object ids (z, y, x).

    Attributes:
        volume: the volume.
        intact: the answer to it.
        again: the answer of a second run; None if there was none.
        flipped: the answer to the flipped volume, flipped back, for each axis.
        labels: the true classes or objects; None if unknown.
        swap: classes that change places in a mirror, each way round.
    """

    volume: Volume
    intact: Classes
    again: Classes | None
    flipped: Mapping[str, Classes]
    labels: Classes | None = None
    swap: Mapping[int, int] = field(default_factory=dict)

    @staticmethod
    def check(axes: Sequence[str], swap: Mapping[int, int] | None) -> dict[int, int]:
        """Return which classes change places, each way round, after a check of the options.

        Raises:
            ConfigError: an axis is unknown, or there is none; a class changes places with two, or with itself.
        """
        if not axes or isinstance(axes, str) or len(set(axes)) < len(axes):
            raise ConfigError(f"{option('axis', axes)}: give one or more of z, y and x, each once")
        for axis in axes:
            check_known("axis", axis, ["z", "y", "x"])
        both = dict(swap or {})
        for one, other in list(both.items()):
            if one == other or both.setdefault(other, one) != one:
                raise ConfigError(
                    f"{option('swap', dict(swap or {}))}: give each class one other, as left and right"
                )
        return both

    @classmethod
    def of_files(
        cls,
        volume: Volume,
        intact: str,
        flipped: Mapping[str, str],
        *,
        again: str | None = None,
        swap: Mapping[int, int],
        labels: str | None = None,
    ) -> VolumeAnswers:
        """Read answers from files, those to a volume flipped along each axis as the file holds them.

        Raises:
            ModelError: one has another shape than the volume.
            VolumeError: one cannot be read.
        """

        def read(path: str) -> Classes:
            return as_classes(open_volume(path), volume.shape, path)

        return cls(
            volume=volume,
            intact=read(intact),
            again=None if again is None else read(again),
            flipped={axis: flip_back(read(path), axis, swap) for axis, path in flipped.items()},
            labels=None if labels is None else read(labels),
            swap=swap,
        )

    def audit(self, *, method: str, instances: bool, command: str | None = None) -> VolumeAudit:
        """Compare the answers to this volume and to the flipped one, along each axis."""
        return _compare([self], method=method, instances=instances, command=command)

    def vote(self) -> Classes:
        """Return the class of each voxel that most of the answers give; see ``vote``."""
        voted = vote([self.intact, *self.flipped.values()], self.swap)
        ends = (np.min_scalar_type(int(end)) for end in (voted.min(), voted.max()))
        return voted.astype(np.result_type(*ends))


def audit_volume(
    function: Method,
    volumes: VolumeLike | Sequence[VolumeLike],
    *,
    axes: Sequence[str] = ("z",),
    labels: VolumeLike | Sequence[VolumeLike] | None = None,
    swap: Mapping[int, int] | None = None,
    instances: bool = False,
    repeat: bool = True,
) -> VolumeAudit:
    """Compare a method's answers to volumes with its answers to the flipped volumes, flipped back.

    Along each axis, the verdict is ``symmetric`` if no more than a millionth of the voxels differ, ``balanced`` if no class
    of at least 100 voxels has C = 1 - IoU above .05, and ``biased`` beyond: about these volumes, all voxels of which are
    compared.

    Args:
        function: maps an array (z, y, x) to an array or tensor of the same shape, of class numbers (whole numbers),
            object ids (with ``instances``) or the probability of a foreground (above .5 is class 1); or to one (classes, z,
            y, x) of probabilities or scores, whose largest counts.
        volumes: one volume or several, arrays (z, y, x) or paths; each is read into memory.
        axes: the axes to flip, of "z", "y" and "x", each by itself.
        labels: the true class, or object, of each voxel, for Dice and surface Dice of the intact and the flipped volume.
        swap: classes that change places in a mirror, such as ``{3: 4}`` for left and right.
        instances: answers number objects, which may come in another order; C is of the voxels whose objects are partners.
        repeat: run twice on each volume, and subtract the difference of two runs (C0); without, the function must be
            deterministic.

    Raises:
        ModelError: the function fails on a volume or a flipped one, or returns another shape; or labels have another shape.
        VolumeError: a volume cannot be read.
        ConfigError: an axis is unknown, or classes cannot be swapped.

    Example: a method that carries the first slice through the stack.
        >>> first = lambda stack: np.broadcast_to(stack[:1] > 0, stack.shape)
        >>> stack = np.zeros((4, 16, 16))
        >>> stack[0, :8] = stack[3, 4:12] = 1
        >>> audit_volume(first, stack)
        <VolumeAudit of 'evenslice.auditing.whole_volumes:<lambda>': z: biased>
    """
    swapped, several = VolumeAnswers.check(axes, swap), isinstance(volumes, list | tuple)
    opened = [open_volume(volume) for volume in cast("Any", volumes if several else [volumes])]
    truths = [None] * len(opened) if labels is None else list(cast("Any", labels if several else [labels]))
    if not opened or len(truths) != len(opened):
        raise ConfigError(
            f"{len(opened)} volumes and {len(truths)} labels; give labels for each volume, or none"
        )
    answers = []
    for volume, truth in zip(opened, truths, strict=True):
        stack = volume[...]

        def ask(axis: str = "", stack: NDArray[Any] = stack, path: str = volume.path) -> Classes:
            given, name = (_flip(stack, axis), f"{path} flipped along {axis}") if axis else (stack, path)
            return _to_classes(_ask(function, given, name))

        answers.append(
            VolumeAnswers(
                volume=volume,
                intact=ask(),
                again=ask() if repeat else None,
                flipped={axis: flip_back(ask(axis), axis, swapped) for axis in axes},
                labels=None if truth is None else as_classes(open_volume(truth), volume.shape, "the labels"),
                swap=swapped,
            )
        )
    return _compare(answers, method=function_name(function), instances=instances)


def _flip(array: NDArray[Any], axis: str) -> NDArray[Any]:
    """Return a flipped copy of an array whose last axes are z, y and x."""
    return np.ascontiguousarray(np.flip(array, "zyx".index(axis) - 3))


def flip_back(answer: NDArray[Any], axis: str, swap: Mapping[int, int]) -> NDArray[Any]:
    """Flip an answer to a flipped volume back, and let classes, or their scores, change places again."""
    turned = _flip(answer, axis)
    if turned.ndim == 4:
        return turned[[swap.get(label, label) for label in range(len(turned))]]
    back = turned.copy()
    for label, other in swap.items():
        back[turned == label] = other
    return back


def _ask(function: Method, stack: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the answer of a function to a copy of a stack, which it may change."""
    with reporting_errors(ModelError, f"{function_name(function)}: fails on {name}"):
        answer = as_array(function(stack.copy()))
    return _checked(answer, stack.shape, f"the answer to {name}")


def as_classes(answer: Any, shape: tuple[int, ...], name: str) -> Classes:
    """Return an answer as class numbers (z, y, x).

    Args:
        answer: whole numbers or probabilities (z, y, x), or scores (classes, z, y, x); an array, a tensor or a volume.
        shape: of the volume.
        name: what the answer is, for messages.

    Raises:
        ModelError: it has another shape, or is not of finite numbers.

    Example:
        >>> as_classes([[[0.2, 0.7]]], (1, 1, 2), "it").tolist(), as_classes([[[0.0, 7.0]]], (1, 1, 2), "it").tolist()
        ([[[0, 1]]], [[[0, 7]]])
    """
    return _to_classes(_checked(answer, shape, name))


def _to_classes(array: NDArray[Any]) -> Classes:
    array = array.argmax(axis=0) if array.ndim == 4 else array
    return (array if _is_whole(array) else array > 0.5).astype(np.int64)


def _checked(answer: Any, shape: tuple[int, ...], name: str) -> NDArray[Any]:
    """Return an answer as an array (z, y, x), or (classes, z, y, x) of two or more, as ``as_classes`` expects it."""
    array = as_array(answer)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    fits = array.ndim in (3, 4) and array.shape[-3:] == shape and array.size > 0
    if not fits or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ModelError(
            f"{name}: is {array.dtype} of shape {array.shape}, or not finite; a volume of shape {tuple(shape)} needs class "
            "numbers, object ids or probabilities of that shape, or scores (classes, z, y, x)"
        )
    return array


def _is_whole(array: NDArray[Any]) -> bool:
    return array.dtype.kind != "f" or np.array_equal(array, np.round(array))


def as_array(answer: Any) -> NDArray[Any]:
    """Return what a function returned as an array; a tensor may be on any device."""
    return np.asarray(answer.detach().cpu() if hasattr(answer, "detach") else answer)


def _compare(
    answers: Sequence[VolumeAnswers], *, method: str, instances: bool, command: str | None = None
) -> VolumeAudit:
    """Compare answers to volumes and to the flipped ones, along each axis."""
    return VolumeAudit(
        method=method,
        axes=tuple(_compare_axis(answers, axis, instances=instances) for axis in answers[0].flipped),
        volumes=tuple({"path": item.volume.path, "shape": list(item.volume.shape)} for item in answers),
        swap=dict(answers[0].swap),
        command=command,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
    )


def _compare_axis(answers: Sequence[VolumeAnswers], axis: str, *, instances: bool) -> AxisChange:
    """Compare the answers to volumes that were flipped along one axis."""
    counts: list[int] = []  # of partners, and of objects alone in either answer
    flipped = [item.flipped[axis] for item in answers]
    again = [item.intact if item.again is None else item.again for item in answers]
    if instances:
        pairs = [match_objects(item.intact, other) for item, other in zip(answers, flipped, strict=True)]
        flipped = [other for other, _ in pairs]
        counts = np.sum([found for _, found in pairs], axis=0).tolist()
        again = [match_objects(item.intact, other)[0] for item, other in zip(answers, again, strict=True)]
    items = [
        replace(item, again=one, flipped={axis: other})
        for item, one, other in zip(answers, again, flipped, strict=True)
    ]
    repeated = all(item.again is not None for item in answers)
    labels = [None] if instances else _all_labels(items, axis)
    place, differing = "zyx".index(axis), [item.intact != item.flipped[axis] for item in items]
    return AxisChange(
        axis=axis,
        voxels=sum(item.intact.size for item in items),
        differing=sum(int(found.sum()) for found in differing),
        repeat_differing=sum(int((item.intact != item.again).sum()) for item in items),
        classes=tuple(_compare_class(items, axis, label, repeated=repeated) for label in labels),
        objects=AxisChange.Objects(partners=counts[0], alone=(counts[1], counts[2])) if counts else None,
        profiles=tuple(_profile(item, axis, place) for item in items),
        worst=tuple(_worst(items, differing, axis)),
    )


def _all_labels(items: Sequence[VolumeAnswers], axis: str) -> list[int]:
    found = [np.unique(part) for item in items for part in (item.intact, item.flipped[axis])]
    return [int(label) for label in np.unique(np.concatenate(found))]


def _compare_class(
    items: Sequence[VolumeAnswers], axis: str, label: int | None, *, repeated: bool
) -> ClassChange:
    """Compare one class, or all objects, in the answers to all volumes."""

    def change(others: Sequence[Any]) -> tuple[int, float]:
        either = same = 0
        for item, other in zip(items, others, strict=True):
            one, two = _where(item.intact, label), _where(other, label)
            both = one & two if label is not None else one & (item.intact == other)
            either, same = either + int((one | two).sum()), same + int(both.sum())
        return either, 1 - same / either if either else 0.0

    voxels, changed = change([item.flipped[axis] for item in items])
    found = ClassChange(label=label, voxels=voxels, change=changed)
    if repeated:
        found = replace(found, repeat=change([item.again for item in items])[1])
    if any(item.labels is None for item in items):
        return found
    sides = [[item.intact for item in items], [item.flipped[axis] for item in items]]
    scores = [_scores(items, side, label) for side in sides]
    dice, surface = zip(*scores, strict=True)
    return replace(found, dice=tuple(dice), surface_dice=tuple(surface))


def _where(answer: Any, label: int | None) -> NDArray[np.bool_]:
    """Return the voxels of a class, or those of any object."""
    return np.asarray(answer > 0 if label is None else answer == label)


def _scores(
    items: Sequence[VolumeAnswers], answers: Sequence[Classes], label: int | None
) -> tuple[float, float]:
    """Return Dice over all volumes together, and the mean surface Dice of those that have the class."""
    hits = sizes = 0
    surfaces = []
    for item, answer in zip(items, answers, strict=True):
        truth, found = _where(item.labels, label), _where(answer, label)
        hits, sizes = hits + int((truth & found).sum()), sizes + int(truth.sum()) + int(found.sum())
        if label != 0:
            surfaces.append(surface_scores(truth, found, item.volume.spacing or (1.0, 1.0, 1.0))[1])
    known = [value for value in surfaces if not math.isnan(value)]
    return 2 * hits / sizes if sizes else float("nan"), sum(known) / len(known) if known else float("nan")


def match_objects(intact: Classes, other: Classes) -> tuple[Classes, tuple[int, int, int]]:
    """Give objects the ids of their partners, those whose IoU is above .5, of which each has at most one.

    Args:
        intact: object ids (z, y, x); 0 is no object.
        other: those of the second answer.

    Returns:
        The second answer with the ids of the first; objects without a partner get new ids. And the numbers of partners, and
        of objects alone in the first and in the second.

    Example:
        >>> again, counts = match_objects(np.array([[[1, 1, 2, 0, 3]]]), np.array([[[7, 7, 5, 5, 0]]]))
        >>> again.tolist(), counts
        ([[[1, 1, 5, 5, 0]]], (1, 2, 1))
    """
    ids, first = np.unique(intact, return_inverse=True)
    other_ids, second = np.unique(other, return_inverse=True)
    sizes, other_sizes = np.bincount(first.ravel()), np.bincount(second.ravel())
    pairs, shared = np.unique(first.ravel() * len(other_ids) + second.ravel(), return_counts=True)
    one, two = np.divmod(pairs, len(other_ids))
    close = 2 * shared > sizes[one] + other_sizes[two] - shared
    close &= (ids[one] != 0) & (other_ids[two] != 0)
    names = np.arange(len(other_ids)) + int(ids.max()) + 1
    names[other_ids == 0] = 0
    names[two[close]] = ids[one[close]]
    partners = int(close.sum())
    alone, other_alone = (int((found != 0).sum()) - partners for found in (ids, other_ids))
    return names[second].reshape(other.shape), (partners, alone, other_alone)


def _profile(item: VolumeAnswers, axis: str, place: int) -> tuple[float, ...]:
    """Return which part of the foreground differs in each slice across an axis."""
    across = tuple(number for number in range(3) if number != place)
    other = item.flipped[axis]
    foreground = ((item.intact != 0) | (other != 0)).sum(axis=across)
    differing = (item.intact != other).sum(axis=across)
    with np.errstate(invalid="ignore", divide="ignore"):
        return tuple(np.where(foreground > 0, differing / foreground, np.nan).tolist())


def _worst(
    items: Sequence[VolumeAnswers], differing: Sequence[NDArray[np.bool_]], axis: str
) -> Iterator[Any]:
    """Yield the slices across an axis where most voxels differ, none beside another."""
    place = "zyx".index(axis)
    across = tuple(number for number in range(3) if number != place)
    counts = [
        (int(n), v, z) for v, found in enumerate(differing) for z, n in enumerate(found.sum(axis=across)) if n
    ]
    chosen: list[tuple[int, int]] = []
    for count, volume, z in sorted(counts, key=lambda entry: (-entry[0], *entry[1:])):
        apart = items[volume].intact.shape[place] // APART
        if len(chosen) == SHOWN or any(v == volume and abs(z - at) <= apart for v, at in chosen):
            continue
        chosen.append((volume, z))
        item = items[volume]
        image = item.volume[tuple(z if number == place else slice(None) for number in range(3))].astype(
            np.float32
        )
        low, high = np.percentile(image, (0.5, 99.5))
        yield AxisChange.Slice(
            volume=volume,
            position=z,
            differing=count,
            image=(255 * np.clip((image - low) / max(high - low, 1e-12), 0, 1)).astype(np.uint8),
            intact=np.asarray(item.intact.take(z, place)),
            flipped=np.asarray(item.flipped[axis].take(z, place)),
        )


def symmetrize_volume(
    function: Method, axes: Sequence[str] = ("z",), swap: Mapping[int, int] | None = None
) -> Method:
    """Return a function whose answer does not depend on which way round a volume is.

    It runs the function on the volume and all its flips along the axes (2, 4 or 8 runs), flips the answers back, and
    returns the mean of probabilities or scores, or, where all answers are whole numbers (z, y, x), the class with most
    votes; see ``vote`` for ties. A deterministic function becomes exactly symmetric. Objects have no mean.

    Args:
        function: as for ``audit_volume``.
        axes: the axes to flip.
        swap: classes that change places in a mirror.

    Raises:
        ConfigError: see ``audit_volume``; or, from the function returned, classes without scores are to be swapped.
        ModelError: from the function returned, as for ``audit_volume``.

    Example:
        >>> rising = lambda stack: np.cumsum(stack, axis=0)
        >>> symmetrize_volume(rising)(np.array([[[1.0]], [[0.25]], [[0.5]]])).ravel().tolist()
        [1.375, 1.0, 1.125]
    """
    swapped = VolumeAnswers.check(axes, swap)

    def symmetrized(stack: ArrayLike) -> NDArray[Any]:
        found = _combine(function, np.asarray(stack), tuple(axes), swapped)
        return vote(found, swapped) if isinstance(found, list) else found

    return symmetrized


def _combine(
    function: Method, stack: NDArray[Any], axes: tuple[str, ...], swap: Mapping[int, int]
) -> NDArray[Any] | list[Classes]:
    """Return all answers to a volume and its flips, flipped back, if they are class numbers; else their mean."""
    if not axes:
        answer = _ask(function, stack, "the volume")
        if answer.ndim == 3 and _is_whole(answer):
            return [answer.astype(np.int64)]
        if swap and (answer.ndim == 3 or len(answer) <= max(swap)):
            raise ConfigError(
                f"{option('swap', dict(swap))}: needs class numbers, or scores (classes, z, y, x) of these classes"
            )
        return answer
    one, other = (_combine(function, part, axes[1:], swap) for part in (stack, _flip(stack, axes[0])))
    if isinstance(one, list) and isinstance(other, list):
        return [*one, *(flip_back(answer, axes[0], swap) for answer in other)]
    one, other = _mean(one), flip_back(_mean(other), axes[0], swap)
    if one.shape != other.shape:
        raise ModelError(
            f"{function_name(function)}: returns {one.shape} for a volume and {other.shape} for a flipped one"
        )
    return one / 2 + other / 2


def _mean(answers: NDArray[Any] | list[Classes]) -> NDArray[Any]:
    """Return the mean; mean within mean, for sums of two do not depend on their order: so rounding makes no difference."""
    if not isinstance(answers, list):
        return answers
    half = len(answers) // 2
    return _mean(answers[:half]) / 2 + _mean(answers[half:]) / 2 if half else answers[0]


def vote(answers: Sequence[Classes], swap: Mapping[int, int] | None = None) -> Classes:
    """Return the class of each voxel that most answers give.

    In a tie, the lowest class wins, so the background rather than anything else. Two classes that change places in a mirror
    count as one then, and a tie between just these two is background: otherwise the result would depend on the mirror.

    Args:
        answers: class numbers (z, y, x), flipped back.
        swap: classes that change places in a mirror, each way round.

    Example:
        >>> vote([np.array([[[1, 2, 3]]]), np.array([[[2, 2, 4]]])], {3: 4, 4: 3}).tolist()
        [[[1, 2, 0]]]
    """
    pairs = swap or {}
    labels = sorted({int(label) for answer in answers for label in np.unique(answer)})
    labels.sort(key=lambda label: (min(label, pairs.get(label, label)), label))
    votes = np.stack([sum((answer == label).astype(np.uint8) for answer in answers) for label in labels])
    first = votes.argmax(axis=0)  # the first of the largest
    result = np.asarray(labels)[first]
    for number, label in enumerate(labels[:-1]):
        if pairs.get(label) == labels[number + 1]:
            result[(first == number) & (votes[number] == votes[number + 1])] = 0
    return np.asarray(result)
