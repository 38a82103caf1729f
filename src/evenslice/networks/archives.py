"""Checks of files that ``torch.save`` wrote, before ``torch.load`` opens them: what they unpack to is bounded by their size.

``torch.load(weights_only=True)`` runs no code of a file, but it inflates compressed entries of the archive, makes
storages of any size that the pickle names, and calls a few functions whose results can grow without end.
"""

from __future__ import annotations

import codecs
import io
import pickletools
import zipfile
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

__all__ = ["SuspectFileError", "check_archive"]


class SuspectFileError(ValueError):
    """A file that ``torch.save`` would not have written of a state dict."""


MOST_PICKLE = 2**24
"""Largest size in bytes of the pickle of an archive, which names the tensors but does not hold them."""

MOST_VALUES = 2**20
"""Largest number of its instructions."""

PICKLES = 5  # in a file of the format before the archives, in front of the tensors
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")


def check_archive(path: Path) -> None:
    """Check a file for ``torch.load``.

    Raises:
        SuspectFileError: it would unpack to more than it holds, or calls functions that a state dict does not need.
        ValueError: it is damaged.
        OSError: it cannot be read.
        zipfile.BadZipFile: it is damaged.
    """
    with path.open("rb") as file:
        archived = file.read(4) == b"PK\3\4"  # as torch.load tells the two formats apart
        if not archived:
            file.seek(0)
            for _ in range(PICKLES):
                if not file.peek(1):
                    break
                _check_pickle(file)
            return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.partition("/")[2] for entry in entries]  # without that of the archive
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            raise SuspectFileError("it is TorchScript, whose state_dict() torch.jit.load gives")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise SuspectFileError("its entries are compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise SuspectFileError("its entries share their bytes, which those of torch.save never do")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > MOST_PICKLE:
                    raise SuspectFileError(f"{entry.filename} has {entry.file_size:,} bytes")
                _check_pickle(io.BytesIO(archive.read(entry)))


def _check_pickle(file: IO[bytes]) -> None:
    """Check the instructions of the next pickle in a file."""
    texts: set[str] = set()
    called: set[str] = set()
    for count, (code, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", _InPieces(file)))):
        if count > MOST_VALUES:
            raise SuspectFileError(f"it holds more than {MOST_VALUES:,} values")
        if code.name == "GLOBAL":
            called.add(str(argument))
        elif isinstance(argument, str):
            texts.add(argument)
    for function in sorted(called):
        if _makes_more(function) or (function == "_codecs encode" and any(map(_expands, texts))):
            raise SuspectFileError(f"it calls {function.replace(' ', '.')}, which a state dict does not need")


class _InPieces:
    """A file of which no more is asked for at once than ``MOST_PICKLE``, whatever length an instruction states."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, MOST_PICKLE))

    def readline(self) -> bytes:
        return self._file.readline(MOST_PICKLE)

    def tell(self) -> int:
        return self._file.tell()


def _makes_more(function: str) -> bool:
    """Return whether ``torch.load`` would call a function that can make much out of few bytes."""
    module, _, name = function.partition(" ")
    if module == "torch._utils":
        return name not in _REBUILD
    return module == "torch._tensor" or name.endswith("Tensor") or name == "bytearray"


def _expands(text: str) -> bool:
    """Return whether a text names an encoding other than Latin 1, the one that pickle uses for bytes."""
    try:
        return codecs.lookup(text).name != "iso8859-1"
    except (LookupError, ValueError):
        return False
