"""Writing beside the final name: what outputs.staged_file does for a file, for a folder; and errors as one line."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core.errors import OutputError, option

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["staged_tree", "writing"]


@contextmanager
def staged_tree(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a folder to make and fill; it takes the final name when the block ends without an error.

    Args:
        path: the final name.
        force: replace as a whole what stands under that name; it stays as it is if anything fails.

    Raises:
        OutputError: something stands there when the block ends, and ``force`` is not given.
        OSError: it cannot be written.

    Example:
        >>> final = Path(tempfile.mkdtemp()) / "volume.zarr"
        >>> with staged_tree(final) as beside:
        ...     beside.mkdir()
        ...     _ = (beside / "zarr.json").write_text("{}")
        >>> [item.name for item in final.iterdir()], len(list(final.parent.iterdir()))
        (['zarr.json'], 1)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new, old = folder / path.name, folder / "replaced"
    try:
        yield new
        if path.exists():
            if not force:
                raise OutputError(
                    f"{path}: exists; choose another name, or replace it with {option('force')}"
                )
            path.replace(old)
        new.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(label: str) -> Iterator[None]:
    """Turn what the operating system says against writing into one line.

    Args:
        label: what is written, as the user named it.

    Raises:
        OutputError: the block raised an OSError; reading a volume raises none, but a VolumeError.
    """
    try:
        yield
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise OutputError(
            f"{label}: cannot be written ({reason}); make room, or choose a place where you may write"
        ) from error
