"""The options of a data set of a study: pairs for training and for tests, or folds, and how networks train on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from evenslice._core import needs_extra
from evenslice.training import DataConfig, LabelledFiles, TrainingConfig, check_boundaries

with needs_extra("train", "a study"):
    from pydantic import (
        AfterValidator,
        Field,
        ValidationError,
        field_serializer,
        field_validator,
        model_validator,
    )

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OneDevice", "StudyData"]


def _one_device(training: TrainingConfig) -> TrainingConfig:
    if training.devices > 1:
        raise ValueError("a run of a study uses one device; use several workers to run several at once")
    return training


OneDevice = Annotated[TrainingConfig, AfterValidator(_one_device)]


def _need(values: Mapping[str, Any], *names: str) -> None:
    """Raise the error of pydantic for missing options, with the place of each."""
    missing = [name for name in names if name not in values]
    if missing:
        raise ValidationError.from_exception_data(
            "data", [{"type": "missing", "loc": (name,), "input": values} for name in missing]
        )


class StudyData(DataConfig):
    """A data set to compare the arms on: pairs for training and others for tests, or folds of pairs.

    Example: three quarters of a volume are trained on and one is tested, in turn.
        >>> pair = {"image": "image.tif", "labels": "labels.tif"}
        >>> data = StudyData.model_validate({"name": "em", "pairs": [pair], "blocks": 4, "folds": 4})
        >>> data.fold_count
        4
    """

    train: tuple[LabelledFiles, ...] = Field(
        default=(), description="Pairs of image and labels for training; or give pairs and folds."
    )
    test: tuple[LabelledFiles, ...] = Field(
        default=(), description="Pairs for tests and audits; or give pairs and folds."
    )
    pairs: tuple[LabelledFiles, ...] = Field(
        default=(),
        description=(
            "Pairs of image and labels that are each tested in one of the folds and trained on in the others, "
            "instead of train and test."
        ),
    )
    folds: int | None = Field(
        default=None,
        ge=2,
        description=(
            "Number of folds: fold f tests on parts f, f + folds, f + 2 folds ... of the pairs and trains on the "
            "others, except for slices near the test slices."
        ),
    )
    blocks: int = Field(
        default=1,
        ge=1,
        description="Number of parts, contiguous blocks of slices, into which each pair is cut.",
    )
    training: OneDevice = Field(
        default_factory=TrainingConfig,
        description="Training options for this data set that differ from those of the study.",
    )

    @field_serializer("training")
    def _in_full(self, training: TrainingConfig) -> dict[str, Any]:
        """Keep defaults, too: they may differ from the options of the study."""
        return training.model_dump(mode="json")

    @classmethod
    def _arrange(cls, found: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """Fold the cases that a folder of nnU-Net's has for training, if folds are given."""
        if given.get("folds") is None:
            return found
        rest = {name: value for name, value in found.items() if name not in ("train", "test")}
        return {"pairs": found["train"], **rest}

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_test(cls, values: Any) -> Any:
        """Check that there are either pairs to fold, or pairs for training and for tests."""
        if not isinstance(values, dict):
            return values
        if not (values.get("pairs") or values.get("folds") or values.get("blocks", 1) != 1):
            _need(values, "train", "test")
            return values
        _need(values, "pairs", "folds")
        for name in ("train", "validation", "test"):
            if values.get(name):
                raise ValueError(f"{name}: cannot stand beside pairs and folds; give one or the other")
        return values

    @field_validator("test")
    @classmethod
    def _can_test(cls, pairs: tuple[LabelledFiles, ...]) -> tuple[LabelledFiles, ...]:
        if not pairs:
            raise ValueError("give at least one pair of image and labels")
        return pairs

    @model_validator(mode="after")
    def _enough_parts(self) -> Self:
        parts = len(self.pairs) * self.blocks
        if self.folds is not None and parts < self.folds:
            raise ValueError(
                f"folds: {self.folds}: more than there are parts, {parts} (pairs: {len(self.pairs)}, blocks of each: "
                f"{self.blocks}); give more pairs or blocks, or fewer folds"
            )
        return self

    @model_validator(mode="after")
    def _fit_task(self) -> Self:
        check_boundaries(self, self.training)
        return self

    @property
    def fold_count(self) -> int:
        """The number of folds; 1 without any."""
        return self.folds or 1
