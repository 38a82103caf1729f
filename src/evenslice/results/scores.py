"""The scores of trained networks: which there are for each task, and the one by which a study compares networks."""

from __future__ import annotations

from typing import Final

__all__ = ["MAIN_SCORES", "TASK_SCORES", "score_title"]

TASK_SCORES: Final = {
    "segmentation": (
        "dice",
        "iou",
        "hd95",
        "surface_dice",
        "adapted_rand_error",
        "variation_of_information",
    ),
    "classification": ("balanced_accuracy", "accuracy", "macro_f1"),
}
"""Names of the scores of each task, the main one first."""

MAIN_SCORES: Final = {task: names[0] for task, names in TASK_SCORES.items()}
"""The score of each task by which networks are compared: in validation, and by a study."""

_TITLES: Final = {"dice": "Dice", "balanced_accuracy": "balanced accuracy"}


def score_title(name: str, *, first: bool = False) -> str:
    """Return a main score as text calls it.

    Args:
        name: one of ``MAIN_SCORES``.
        first: whether it is the first word.

    Example:
        >>> score_title("dice"), score_title("balanced_accuracy"), score_title("balanced_accuracy", first=True)
        ('Dice', 'balanced accuracy', 'Balanced accuracy')
    """
    title = _TITLES[name]
    return title[0].upper() + title[1:] if first else title
