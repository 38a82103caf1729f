"""The checkpoint that a run resumes from: written beside its name and renamed, and checked before it is used.

A checkpoint may come from anyone. It is read without running any code in it, only if it is no larger than one of the
same network, and only if each of its parts has the form of the part that it replaces.
"""

from __future__ import annotations

import io
import math
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evenslice._core import ConfigError, needs_extra, open_regular, reason, staged_file
from evenslice.networks import is_mark
from evenslice.training.interruption import Stopped
from evenslice.training.run_folder import changed_options, fixed_options, refuse_changed

with needs_extra("train", "training"):
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.plugins.io import TorchCheckpointIO

if TYPE_CHECKING:
    import os
    from typing import BinaryIO

    from lightning.pytorch import LightningModule, Trainer

    from evenslice.training.config import TrainConfig
    from evenslice.training.interruption import Interruption
    from evenslice.training.lightning_module import TrainingModule

__all__ = ["CheckpointFiles", "SaveLast", "check_archive", "unusable"]

COPIES = 4  # the weights, two averages of AdamW, and one to spare
SMALL_PART = 2**25  # bytes of everything but tensors, beside what grows with the steps
PER_STEP = 512  # bytes; a row of the monitor at each step takes less
PICKLE = 2**23  # bytes of the part that is unpickled, likewise
MOST_VALUES, DEEPEST = 2_000_000, 30
OPTIONS = "evenslice_options"  # with which the run began


class SaveLast(Checkpoint):
    """A Lightning callback that writes a checkpoint to one file at the end of each epoch, after all other callbacks.

    Unlike ``ModelCheckpoint``, it keeps nothing in checkpoints: that callback removes the files that a checkpoint
    names.

    Args:
        path: the file.
        steps: the number of steps of the training.
        interruption: ends the training after the checkpoint if asked to.

    Raises:
        Stopped: it was asked to.
    """

    def __init__(self, path: Path, steps: int, interruption: Interruption) -> None:
        self.path = path
        self._steps, self._interruption = steps, interruption

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  # Lightning's
        """Note where a training begins."""
        self._interruption.reached = f"step {trainer.global_step} of {self._steps}"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  # Lightning's
        """Write the checkpoint."""
        trainer.save_checkpoint(self.path)
        self._interruption.reached = f"step {trainer.global_step} of {self._steps}"
        if self._interruption.stopping:
            raise Stopped


class CheckpointFiles(TorchCheckpointIO):
    """Writes and reads the checkpoints of a module; a killed process or a full disk leaves the previous one.

    Lightning's own way copies from the folder for temporary files, if that is on another file system.

    Args:
        module: what is trained.
        config: the configuration of the run.
    """

    def __init__(self, module: TrainingModule, config: TrainConfig) -> None:
        super().__init__()
        self.module, self.config = module, config

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write a checkpoint beside its name and rename it.

        Raises:
            OutputError: it cannot be written.
        """
        if storage_options is not None:
            raise TypeError("storage options are for remote stores; checkpoints are files")
        buffer = io.BytesIO()
        torch.save(checkpoint | {OPTIONS: fixed_options(self.config.model_dump(mode="json"))}, buffer)
        with staged_file(path, force=True) as beside:
            beside.write_bytes(buffer.getbuffer())

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint; only plain values and tensors are, whatever ``weights_only`` says.

        Raises:
            ConfigError: it is damaged, or is no checkpoint of the module, or one of a run with other options.
        """
        del weights_only
        path = Path(path)
        try:
            with open_regular(path) as file:
                check_archive(file, *self._limits())
                file.seek(0)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # torch warns of its guesses before it raises
                    found = torch.load(file, map_location=map_location, weights_only=True)
            _check_plain(found)
            changed = changed_options(found.get(OPTIONS, {}), self.config)
            if not changed:
                self._check(found)
            self._add_marks(found["state_dict"], path)
        except Exception as error:  # what is unpickled may raise anything
            raise unusable(path, error) from error
        refuse_changed(changed, path)
        checkpoint: dict[str, Any] = found
        return checkpoint

    def _add_marks(self, state: dict[str, Any], path: Path) -> None:
        """Complete a state dict of version 0.2, which did not say where the network averages or is tied."""
        marks = {key: mark for key, mark in self.module.state_dict().items() if is_mark(key)}
        lacking = marks.keys() - state.keys()
        state.update({key: marks[key] for key in lacking})
        if lacking and self.module.trainer.is_global_zero:
            warnings.warn(
                f"{path}: was written by version 0.2, which did not note in the weights where the network averages over a "
                "window and its mirror, or is tied; it goes on as the configuration says",
                stacklevel=2,
            )

    def _limits(self) -> tuple[int, int]:
        """Return the largest size in bytes of a checkpoint, and of its part that is unpickled."""
        tensors = sum(tensor.nbytes for tensor in self.module.state_dict().values())
        growing = PER_STEP * self.module.config.steps
        return COPIES * tensors + SMALL_PART + growing, PICKLE + growing

    def _check(self, found: Any) -> None:
        """Check that a checkpoint is one of the module."""
        module = self.module
        optimization: Any = module.configure_optimizers()
        optimizer, schedule = optimization["optimizer"], optimization["lr_scheduler"]["scheduler"]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states = [
            {"step": torch.zeros(()), "exp_avg": parameter, "exp_avg_sq": parameter}
            for parameter in parameters
        ]
        template: dict[str, Any] = {
            "state_dict": dict(module.state_dict()),
            "optimizer_states": [
                {
                    "state": dict(enumerate(states)),
                    "param_groups": optimizer.state_dict()["param_groups"],
                }
            ],
            "lr_schedulers": [schedule.state_dict()],
            "loops": {"fit_loop": module.trainer.fit_loop.state_dict()},
        }
        for name, part in template.items():
            _check_alike(found[name], part, name)
        for state in found["optimizer_states"][0]["state"].values():
            if state.keys() != states[0].keys():
                raise ValueError(f"optimizer_states: holds {', '.join(map(str, state))}")
        for schedule_state in found["lr_schedulers"]:  # PyTorch would make attributes of all of it
            for name in schedule_state.keys() - template["lr_schedulers"][0].keys():
                del schedule_state[name]


def unusable(path: Path, error: BaseException) -> ConfigError:
    """Return the error that says why a checkpoint cannot be used, and what to do."""
    cause = (
        "it holds more than tensors and plain values"
        if isinstance(error, pickle.UnpicklingError)
        else reason(error)
    )
    return ConfigError(f"{path}: cannot be resumed from ({cause}); delete it to train from the start again")


def check_archive(file: BinaryIO, most: float = math.inf, most_pickled: float = math.inf) -> None:
    """Check that a file is a whole archive of ``torch.save`` that does not grow when it is read.

    PyTorch itself does not compare the checksums.

    Args:
        file: the file.
        most: its largest size in bytes.
        most_pickled: the largest size of its part that is unpickled.

    Raises:
        ValueError: it is larger, compressed or damaged.
        zipfile.BadZipFile: it is no archive, or is cut short.
    """
    size = file.seek(0, io.SEEK_END)
    if size > most:
        raise ValueError(f"it has {size:,} bytes, a checkpoint of this network has at most {most:,}")
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it is compressed")
        if sum(part.file_size for part in parts) > size:
            raise ValueError("its parts overlap")
        if any(part.file_size > most_pickled for part in parts if part.filename.endswith(".pkl")):
            raise ValueError("it holds too many values")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"its part {damaged} is damaged")


def _check_plain(value: Any) -> None:
    """Check that a value consists of numbers, text and tensors that have memory of their own, and that it is a tree."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST:
            raise ValueError("it holds too many values")
        if isinstance(item, dict):
            waiting += ((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list | tuple):
            waiting += ((part, depth + 1) for part in item)
        elif isinstance(item, Tensor):
            whole = item.layout == torch.strided and not item.is_quantized and item.device.type != "meta"
            if not whole or item.nbytes > item.untyped_storage().nbytes():
                raise ValueError("a tensor in it has no memory of its own")
        elif not isinstance(item, str | int | float | None):
            raise TypeError(f"a {type(item).__name__} in it has no place in a checkpoint")


def _check_alike(found: Any, template: Any, place: str) -> None:
    """Check that what a checkpoint holds has the form of what it replaces; numbers may differ, and parts may be missing."""
    if isinstance(template, dict):
        _check_kind(found, dict, place)
        for name in template.keys() & found.keys():
            _check_alike(found[name], template[name], f"{place}.{name}")
    elif isinstance(template, list | tuple):
        _check_kind(found, list | tuple, place)
        for index, (part, item) in enumerate(zip(found, template, strict=True)):
            _check_alike(part, item, f"{place}[{index}]")
    elif isinstance(template, Tensor):
        _check_kind(found, Tensor, place)
        if found.shape != template.shape or found.dtype != template.dtype:
            raise ValueError(f"{place}: {_described(found)} in place of {_described(template)}")
    elif isinstance(template, bool | str | None):
        _check_kind(found, type(template), place)
    else:
        _check_kind(found, int | float, place)
        if not 0 <= found < math.inf:
            raise ValueError(f"{place}: {found}")


def _check_kind(found: Any, kind: Any, place: str) -> None:
    if not isinstance(found, kind):
        raise TypeError(f"{place}: a {type(found).__name__} has no place there")


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
