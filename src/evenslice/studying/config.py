"""The configuration of a study: arms, architectures, data sets and seeds, and how each run trains and is audited."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from evenslice._core import Section, did_you_mean, needs_extra
from evenslice.training import AugmentationConfig, DataConfig, LabelledFiles, TrainingConfig, WeightsOption

with needs_extra("train", "a study"):
    from pydantic import (
        AfterValidator,
        Field,
        TypeAdapter,
        ValidationError,
        ValidationInfo,
        field_serializer,
        field_validator,
        model_validator,
    )


class Arm(Section):
    """One way of initializing and training networks, to be compared with others."""

    name: str = Field(min_length=1)
    """Name of the arm in results."""
    strategy: str | tuple[float, ...] = "uniform"
    """How colour kernels become slice kernels: one of the strategies of train. Unlike there, the default is uniform
    whatever the other options are; a network saved by neutralize is left unchanged."""
    tie: str | None = None
    """Symmetry to enforce during training: mirror or uniform."""
    z_flip: bool | None = None
    """Randomly reverse the order of slices; by default as in augmentation."""
    weights: WeightsOption | None = None
    """Replaces the architecture's weights."""
    symmetrize: str | None = None
    """Where to average the results for a window and its mirror, as in train: output, encoder, or the name of a
    module; null for nowhere."""
    missing_slices: float | None = Field(default=None, ge=0, le=1)
    """Probability that a neighbouring slice is replaced by the middle slice; by default as in augmentation."""
    slices: int | None = Field(default=None, ge=1)
    """Odd number of slices in a window, at most that of the study, the default; 1 shows what neighbours are worth."""
    steps: float = Field(default=1, gt=0)
    """Steps of training, as a multiple of those of the data set."""
    network_of: str | None = Field(default=None, min_length=1)
    """Reuse this arm's trained network, symmetrized as given by symmetrize, instead of training one; all other
    options come from that arm."""
    seeds: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Which of the study's seeds this arm is run with, at least one of the baseline's; by default all."""

    @model_validator(mode="after")
    def _derived(self) -> Self:
        """Check that an arm that trains nothing only says what it does with the network it takes."""
        if self.network_of is None:
            return self
        if self.symmetrize is None:
            raise ValueError("network_of needs symmetrize, which says where that network is symmetrized")
        if idle := self.model_fields_set - {"name", "network_of", "symmetrize"}:
            raise ValueError(f"network_of: trains no network, so {min(idle)} has no effect; leave it out")
        return self


class Architecture(Section):
    """A network to compare the arms with."""

    name: str = Field(min_length=1)
    """Name of the network in results."""
    spec: str = Field(min_length=1)
    """Network, as in train."""
    weights: WeightsOption = "imagenet"
    """Weights: imagenet, none, or a file."""


def _known_method(method: str) -> str:
    from evenslice.auditing import METHODS

    if method not in METHODS:
        raise ValueError(did_you_mean(method, METHODS))
    return method


Method = Annotated[str, AfterValidator(_known_method)]


class AuditOptions(Section):
    """How trained networks are audited, on the test volumes."""

    method: Method = "gradient"
    """Attribution method."""
    precision: float = Field(default=0.01, gt=0)
    """Stop when every judged bias and answer change is known to ± this (half the 95 % interval)."""
    max_windows: int | None = Field(default=400, ge=1)
    """Largest number of windows; null for no limit."""
    batch: int = Field(default=4, ge=1)
    """Windows per forward pass."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Precision; rounding in bfloat16 alone causes biases of 0.001."""


class PrimaryComparison(Section):
    """The comparison with the baseline that a study is made for; name it before the runs."""

    arm: str = Field(min_length=1)
    """Arm that is compared with the baseline."""
    margin: float = Field(default=0.005, gt=0, lt=1)
    """Loss of the main score, averaged over the data sets, that would matter."""
    architecture: str | None = Field(default=None, min_length=1)
    """Network of the comparison; by default the first."""


def _one_device(training: TrainingConfig) -> TrainingConfig:
    if training.devices > 1:
        raise ValueError("a run of a study uses one device; use several workers to run several at once")
    return training


OneDevice = Annotated[TrainingConfig, AfterValidator(_one_device)]


def _need(values: dict[str, Any], *names: str) -> None:
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

    train: tuple[LabelledFiles, ...] = ()
    """Pairs of image and labels for training; or give pairs and folds."""
    test: tuple[LabelledFiles, ...] = Field(default=(), min_length=1)
    """Pairs for tests and audits; or give pairs and folds."""
    pairs: tuple[LabelledFiles, ...] = ()
    """Pairs of image and labels that are each tested in one of the folds and trained on in the others, instead of
    train and test."""
    folds: int | None = Field(default=None, ge=2)
    """Number of folds: fold f tests on parts f, f + folds, f + 2 folds ... of the pairs and trains on the others,
    except for slices near the test slices."""
    blocks: int = Field(default=1, ge=1)
    """Number of parts, contiguous blocks of slices, into which each pair is cut."""
    training: OneDevice = Field(default_factory=TrainingConfig)
    """Training options of this data set that replace the study's."""

    @field_serializer("training")
    def _in_full(self, training: TrainingConfig) -> dict[str, Any]:
        """Keep defaults, too: they may differ from the options of the study."""
        return training.model_dump(mode="json")

    @classmethod
    def _of_nnunet(cls, found: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Fold the cases that a folder of nnU-Net's has for training, if folds are given."""
        if given.get("folds") is not None:
            rest = {name: value for name, value in found.items() if name not in ("train", "test")}
            found = {"pairs": found["train"], **rest}
        return super()._of_nnunet(found, given)

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

    @model_validator(mode="after")
    def _enough_parts(self) -> Self:
        parts = len(self.pairs) * self.blocks
        if self.folds is not None and parts < self.folds:
            raise ValueError(
                f"folds: {self.folds}: more than there are parts, {parts} (pairs: {len(self.pairs)}, blocks of each: "
                f"{self.blocks}); give more pairs or blocks, or fewer folds"
            )
        return self

    @property
    def fold_count(self) -> int:
        """The number of folds; 1 without any."""
        return self.folds or 1


_TRAINING: TypeAdapter[TrainingConfig] = TypeAdapter(OneDevice)


def _given(training: Any) -> Any:
    """Return the training options that were set, or whatever stands in their place."""
    if isinstance(training, TrainingConfig):
        return training.model_dump(exclude_unset=True)
    return {} if training is None else training


def _completed(data: Any, common: dict[str, Any]) -> Any:
    """Return a data set with the common training options that it does not override."""
    options = dict(data) if isinstance(data, dict | StudyData) else {}
    own = _given(options.get("training"))
    return {**options, "training": common | own} if options and isinstance(own, dict) else data


def _seeds_of(arm: Arm, arms: tuple[Arm, ...], seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return which seeds of a study with these arms one of them is run with."""
    if arm.network_of is not None:
        return _seeds_of(next(base for base in arms if base.name == arm.network_of), arms, seeds)
    return seeds if arm.seeds is None else tuple(seed for seed in seeds if seed in arm.seeds)


class StudyConfig(Section):
    """The configuration of a study.

    Raises:
        pydantic.ValidationError: an option is unknown or out of range; of one in a file or a dict, ``load_config`` and
            ``study`` raise ConfigError.

    Example:
        >>> train = {"image": "train.tif", "labels": "train_labels.tif"}
        >>> test = {"image": "test.tif", "labels": "test_labels.tif"}
        >>> config = StudyConfig.model_validate({
        ...     "seeds": [0, 1],
        ...     "training": {"steps": 400, "batch": 4},
        ...     "arms": [{"name": "pretrained", "strategy": "pretrained"}, {"name": "uniform"}],
        ...     "architectures": [{"name": "Lite0", "spec": "smp:Unet/tu-tf_efficientnet_lite0"}],
        ...     "datasets": [{"name": "em", "train": [train], "test": [test], "training": {"steps": 300}}],
        ... })
        >>> len(config.arms), config.datasets[0].training.steps, config.datasets[0].training.batch
        (2, 300, 4)
    """

    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Random seeds; each arm is run with each of them."""
    slices: int = 3
    """Odd number of slices in a window."""
    step: int = Field(default=1, ge=1)
    """Distance between the slices of a window."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Augmentation of crops."""
    training: OneDevice = TrainingConfig()
    """Training."""
    audit: AuditOptions = AuditOptions()
    """Audit of the trained networks."""
    arms: tuple[Arm, ...] = Field(min_length=1)
    """Arms to compare."""
    baseline: str = Field(default="pretrained", validate_default=True)
    """Arm that the others are compared with."""
    margin: float = Field(default=0.01, gt=0, lt=1)
    """Loss of the main score (Dice; in classification, balanced accuracy) relative to the baseline that would
    matter."""
    architectures: tuple[Architecture, ...] = Field(min_length=1)
    """Networks."""
    datasets: tuple[StudyData, ...] = Field(min_length=1)
    """Data sets."""
    primary: PrimaryComparison | None = None
    """Comparison that the study is made for: tested for non-inferiority first, and then for superiority, without
    adjustment; all others get adjusted p values."""

    @model_validator(mode="before")
    @classmethod
    def _complete_training(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Complete each data set with the common training options, unless these are wrong, which is said of them alone."""
        common, datasets = _given(values.get("training")), values.get("datasets")
        if not isinstance(datasets, list | tuple):
            return values
        try:
            _TRAINING.validate_python(common)
        except ValidationError:
            return values
        return {**values, "datasets": [_completed(data, common) for data in datasets]}

    @field_validator("arms", "architectures", "datasets")
    @classmethod
    def _named_apart(cls, items: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name for item in items]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name!r} occurs twice; give different names")
        return items

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or not 0 <= min(seeds) <= max(seeds) < 2**32:
            raise ValueError("give different seeds, from 0 to 4294967295")
        return seeds

    @field_validator("arms")
    @classmethod
    def _can_be_run(cls, arms: tuple[Arm, ...], info: ValidationInfo) -> tuple[Arm, ...]:
        """Check that arms use seeds of the study, and take networks of arms that are trained as they are."""
        by_name = {arm.name: arm for arm in arms}
        for arm in arms:
            if unknown := sorted(set(arm.seeds or ()) - set(info.data.get("seeds", arm.seeds or ()))):
                raise ValueError(
                    f"{arm.name}: seeds: {unknown[0]} is not one of the study's seeds; add it there"
                )
            most: float = info.data.get("slices") or math.inf  # which is wrong itself
            if arm.slices is not None and arm.slices > most:
                raise ValueError(
                    f"{arm.name}: slices: {arm.slices}: more than the study's {most}; raise that"
                )
            if arm.network_of is None:
                continue
            base = by_name.get(arm.network_of)
            if base is None:
                raise ValueError(f"network_of: {did_you_mean(arm.network_of, by_name)}")
            if base.network_of is not None or base.symmetrize is not None or base.strategy == "twin":
                what = "trains no network itself" if base.network_of is not None else "is symmetrized already"
                raise ValueError(f"network_of: {base.name!r} {what}; name an arm that is trained as it is")
        return arms

    @field_validator("datasets")
    @classmethod
    def _of_one_task(cls, datasets: tuple[StudyData, ...]) -> tuple[StudyData, ...]:
        tasks = {data.name: data.training.task for data in datasets}
        first = next(iter(tasks.values()))
        for name, task in tasks.items():
            if task != first:
                raise ValueError(
                    f"{name}: training.task: {task}: that of {datasets[0].name} is {first}, and their scores cannot "
                    "be pooled; give all data sets one task"
                )
        return datasets

    @field_validator("baseline")
    @classmethod
    def _can_be_compared(cls, baseline: str, info: ValidationInfo) -> str:
        """Check that the baseline is an arm, and has a seed in common with each other arm."""
        if not {"seeds", "arms"} <= info.data.keys():
            return baseline
        arms, seeds = info.data["arms"], info.data["seeds"]
        known = {arm.name: _seeds_of(arm, arms, seeds) for arm in arms}
        if baseline not in known:
            raise ValueError(f"no arm has this name; the arms are {', '.join(known)}")
        for name, own in known.items():
            if set(own).isdisjoint(known[baseline]):
                raise ValueError(
                    f"{name} has none of its seeds ({', '.join(map(str, known[baseline]))}), so they cannot be compared; "
                    "give both a seed in common"
                )
        return baseline

    @field_validator("primary")
    @classmethod
    def _is_a_comparison(
        cls, primary: PrimaryComparison | None, info: ValidationInfo
    ) -> PrimaryComparison | None:
        arms, networks = (
            [item.name for item in info.data.get(kind, ())] for kind in ("arms", "architectures")
        )
        if primary is None or not arms or not networks:
            return primary
        if primary.arm not in arms:
            raise ValueError(f"arm: {did_you_mean(primary.arm, arms)}")
        if primary.arm == info.data.get("baseline"):
            raise ValueError(f"arm: {primary.arm!r} is the baseline; name the arm that is compared with it")
        if primary.architecture not in {*networks, None}:
            raise ValueError(f"architecture: {did_you_mean(str(primary.architecture), networks)}")
        return primary

    @staticmethod
    def template() -> str:
        """Return a configuration to start from, which shows every option, as YAML."""
        return Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")

    @property
    def task(self) -> str:
        """The task of all networks, the same for all data sets."""
        return self.datasets[0].training.task

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """Return the seeds of an arm, in the order of the study; a derived arm shares its base's."""
        return _seeds_of(arm, self.arms, self.seeds)
