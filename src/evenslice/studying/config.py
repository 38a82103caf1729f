"""The configuration of a study: arms, architectures, data sets and seeds, and how each run trains and is audited."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from evenslice._core import Section, nearest, needs_extra
from evenslice.training import (
    AugmentationConfig,
    DataConfig,
    Slices,
    Source,
    Strategy,
    Tie,
    TrainingConfig,
    Weights,
    check_strategy,
)

with needs_extra("train", "a study"):
    from pydantic import (
        AfterValidator,
        Field,
        ValidationInfo,
        field_serializer,
        field_validator,
        model_validator,
    )

__all__ = ["Architecture", "Arm", "AuditOptions", "StudyConfig", "StudyData"]


class Arm(Section):
    """One way to start and to train, which is compared with the others."""

    name: str = Field(min_length=1, description="What the arm is called in results.")
    strategy: Strategy = Field(
        default="uniform", description="How colour kernels become slice kernels, as train takes it."
    )
    tie: Tie = Field(default=None, description="Keep the symmetry while training: mirror or uniform.")
    z_flip: bool | None = Field(
        default=None, description="Reverse the slices of crops at random; by default as in augmentation."
    )
    weights: Weights | None = Field(default=None, description="Weights instead of the architecture's.")


class Architecture(Section):
    """A network to compare the arms with."""

    name: str = Field(min_length=1, description="What the network is called in results.")
    spec: str = Field(min_length=1, description="The network, as train takes it.")
    weights: Weights = Field(default="imagenet", description="Its weights: imagenet, none or a file.")


def _one_device(training: TrainingConfig) -> TrainingConfig:
    if training.devices > 1:
        raise ValueError("a run of a study has one device; run several at once with several workers")
    return training


OneDevice = Annotated[TrainingConfig, AfterValidator(_one_device)]


class StudyData(DataConfig):
    """A data set to compare the arms on."""

    test: tuple[Source, ...] = Field(min_length=1, description="Pairs to test and audit networks on.")
    training: OneDevice = Field(
        default_factory=TrainingConfig,
        description="Options of training that differ for this data set; the others are those of the study.",
    )

    @field_serializer("training")
    def _in_full(self, training: TrainingConfig) -> dict[str, Any]:
        """Keep what is a default, too: it may not be what the study has."""
        return training.model_dump(mode="json")

    def data(self) -> DataConfig:
        """Return the data set as ``train`` takes it."""
        return DataConfig.model_validate(self.model_dump(exclude={"training"}))


def _known_method(method: str) -> str:
    from evenslice.auditing import METHODS

    if method not in METHODS:
        raise ValueError(nearest(method, METHODS))
    return method


Method = Annotated[str, AfterValidator(_known_method)]


class AuditOptions(Section):
    """How trained networks are audited, on the test volumes."""

    method: Method = Field(default="gradient", description="Of attribution.")
    precision: float = Field(
        default=0.01, gt=0, description="Half-width of the 95 % intervals of the pair biases to stop at."
    )
    max_windows: int | None = Field(default=400, ge=1, description="Stop after so many windows in any case.")
    batch: int = Field(default=4, ge=1, description="Windows in one pass.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="float32", description="Precision; in bfloat16 rounding alone makes biases of 0.001."
    )


def _given(training: Any) -> dict[str, Any] | None:
    """Return the options of training that someone set; None where they are nothing of the kind, which shows later."""
    if isinstance(training, TrainingConfig):
        return training.model_dump(exclude_unset=True)
    return {} if training is None else training if isinstance(training, dict) else None


def _completed(data: Any, common: dict[str, Any]) -> Any:
    """Give a data set the options of training that it does not change."""
    if isinstance(data, StudyData):
        training = TrainingConfig.model_validate(common | (_given(data.training) or {}))
        return data.model_copy(update={"training": training})
    own = _given(data.get("training")) if isinstance(data, dict) else None
    return data if own is None else {**data, "training": common | own}


class StudyConfig(Section):
    """Everything that a study depends on.

    Example:
        >>> pair = {"image": "image.tif", "labels": "labels.tif"}
        >>> config = StudyConfig.model_validate({
        ...     "seeds": [0, 1],
        ...     "training": {"steps": 400, "batch": 4},
        ...     "arms": [{"name": "pretrained", "strategy": "pretrained"}, {"name": "uniform"}],
        ...     "architectures": [{"name": "Lite0", "spec": "smp:Unet/tu-tf_efficientnet_lite0"}],
        ...     "datasets": [{"name": "em", "train": [pair], "test": [pair], "training": {"steps": 300}}],
        ... })
        >>> len(config.arms), config.datasets[0].training.steps, config.datasets[0].training.batch
        (2, 300, 4)
    """

    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="Each arm is run with each of these seeds."
    )
    slices: Slices = Field(default=3, description="Slices in a window, odd.")
    step: int = Field(default=1, ge=1, description="Distance between the slices of a window.")
    augmentation: AugmentationConfig = Field(
        default=AugmentationConfig(), description="How crops are varied."
    )
    training: OneDevice = Field(default=TrainingConfig(), description="How networks are trained.")
    audit: AuditOptions = Field(default=AuditOptions(), description="How they are audited.")
    arms: tuple[Arm, ...] = Field(min_length=1, description="What is compared.")
    baseline: str = Field(
        default="pretrained", validate_default=True, description="The arm that the others are compared with."
    )
    margin: float = Field(
        default=0.01, gt=0, lt=1, description="The loss of Dice against the baseline that would matter."
    )
    architectures: tuple[Architecture, ...] = Field(min_length=1, description="The networks.")
    datasets: tuple[StudyData, ...] = Field(min_length=1, description="The data sets.")

    @model_validator(mode="before")
    @classmethod
    def _complete_training(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Give each data set the options of training that it does not change."""
        common, datasets = _given(values.get("training")), values.get("datasets")
        if common and isinstance(datasets, list | tuple):
            return {**values, "datasets": [_completed(data, common) for data in datasets]}
        return values

    @field_validator("arms", "architectures", "datasets")
    @classmethod
    def _named_apart(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name for item in items]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} stands twice; name each differently")
        return items

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**32:
            raise ValueError("give different seeds, from 0 to 4294967295")
        return seeds

    @field_validator("arms")
    @classmethod
    def _fit_slices(cls, arms: tuple[Arm, ...], info: ValidationInfo) -> tuple[Arm, ...]:
        for arm in arms if "slices" in info.data else ():
            check_strategy(arm.strategy, info.data["slices"])
        return arms

    @field_validator("baseline")
    @classmethod
    def _is_an_arm(cls, baseline: str, info: ValidationInfo) -> str:
        names = [arm.name for arm in info.data.get("arms", ())]
        if names and baseline not in names:
            raise ValueError(f"no arm has this name; the arms are {', '.join(names)}")
        return baseline
