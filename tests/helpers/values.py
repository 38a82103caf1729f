"""Options by their names, for tests that vary them one by one."""

import inspect
from dataclasses import fields, replace

from evenslice import Compute, Reading, Sampling, Tolerances

READING = {
    "step": 2,
    "plane": "y",
    "intensity": (0.0, 200.0),
    "fill": 7.0,
    "label_values": (0, 255),
    "other_labels": "background",
    "ignore_label": 9,
}
"""Options of reading, none of them the default."""

VALUES = {"reading": Reading, "sampling": Sampling, "tolerances": Tolerances, "compute": Compute}


def by_name(function, **options):
    """Return the arguments of a function for options, those of values among them: step becomes Reading(step=...).

    Example:
        >>> by_name(lambda model, *, seed, reading: ..., step=2, seed=1)
        {'seed': 1, 'reading': Reading(step=2, ...)}
    """
    taken = inspect.signature(function).parameters
    found = {name: value for name, value in options.items() if name in taken}
    for name, kind in VALUES.items():
        named = {entry.name for entry in fields(kind)} & options.keys() - found.keys()
        if named and name in taken:
            found[name] = replace(found.get(name, kind()), **{entry: options[entry] for entry in named})
    return found | {name: value for name, value in options.items() if not _is_taken(name, taken)}


def _is_taken(name, taken):
    return name in taken or any(
        name in {entry.name for entry in fields(kind)} for value, kind in VALUES.items() if value in taken
    )
