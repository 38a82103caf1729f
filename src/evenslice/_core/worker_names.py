"""Which of several worker processes this is, so that each can take a GPU of its own."""

from __future__ import annotations

import re
import sys

__all__ = ["worker_number"]


def worker_number() -> int | None:
    """Return the number of this worker of a Dask cluster, from the end of its name; None outside a task of a worker.

    Workers on this machine are called 0, 1, 2 ..., those of a job on a cluster have a name that ends in their number. One
    whose name ends otherwise counts as 0, and so does one without a name, which Dask calls by its address.

    Example:
        >>> worker_number() is None
        True
    """
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:
        return None
    digits = re.search(r"\d+$", str(name))
    port = "://" in str(name)
    return int(digits[0]) if digits and not port else 0
