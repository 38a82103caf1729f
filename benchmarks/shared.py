"""What the benchmarks share: their network, ratios of times, what long ones keep, and tables."""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import time
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import evenslice
from evenslice.report.tables import NOTHING
from evenslice.results import Interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("EVENSLICE_SHARED", ROOT.parent / "shared"))
SPEC = "smp:Unet/tu-tf_efficientnet_lite0"
FAMILIES = {
    "EfficientNet-Lite0": (SPEC, "imagenet"),
    # Without these two arguments the weights load, and the network computes something else.
    "MobileNetV1": ("smp:Unet/tu-mobilenetv1_100?pad_type=same&bn_eps=1e-3", "mobilenetv1_100.safetensors"),
    "VGG16": ("smp:Unet/vgg16", "vgg16_features.safetensors"),
}
"""Pretrained networks: specifications, and weights, which are files in a folder of ``SHARED`` for some."""

KEPT = {"MALLOC_MMAP_THRESHOLD_": 1073741824, "MALLOC_TRIM_THRESHOLD_": 1099511627776, "MALLOC_ARENA_MAX": 1}
"""The environment that keeps the memory which tensors leave; docs/speed.md."""


def make_parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a script."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def load_family(name: str, spec: str | None = None, weights: str | None = None, **options: Any) -> nn.Module:
    """Return a network of ``FAMILIES`` with its pretrained weights; or another one that takes them, or with others."""
    own, packaged = FAMILIES[name]
    file = packaged if packaged == "imagenet" else str(SHARED / "weights" / packaged)
    model: nn.Module = evenslice.load_network(spec or own, weights or file, **options).model
    return model.eval()


load = partial(load_family, "EfficientNet-Lite0")
"""Return the network of the demonstration for three slices."""


def clock() -> float:
    """Return the seconds of the processor on one thread, which others disturb least, else of the clock, once a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    start = clock()
    run()
    return clock() - start


def in_turn(ways: Mapping[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """Return the seconds that each way takes, in each of several rounds; the first passes of a process are slower."""
    return [{name: way() for name, way in ways.items()} for _ in range(rounds + 1)][1:]


def spread(ratios: Sequence[float]) -> str:
    """Return the median of ratios, the least and the largest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def mean(values: Iterable[float], bounds: tuple[float, float] = (-1, 1)) -> tuple[float, float, float]:
    """Return a mean with Student's 95 % interval; NaN values are left out."""
    return astuple(Interval.of_mean([*values], bounds))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON documents of a file, one a line; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_lines(path: Path, *rows: dict[str, Any]) -> None:
    """Add JSON documents to such a file, all or none, and print what names the first."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(f"{json.dumps(row)}\n" for row in rows))
    print(*(value for value in rows[0].values() if isinstance(value, str | int)), flush=True)


def remember(path: Path, key: str, measure: Callable[[], Any]) -> Any:
    """Return what such a file knows under a key, or measure it and add it."""
    known = {row["key"]: row["found"] for row in read_lines(path)}
    if key not in known:
        known[key] = measure()
        append_lines(path, {"key": key, "found": known[key]})
    return known[key]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; columns without any value are left out."""
    cells = [list(row) for row in rows]
    kept = [n for n in range(len(header)) if {row[n] for row in cells} - {NOTHING, ""}]
    lines = [[line[n] for n in kept] for line in (header, ["---"] * len(header), *cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_csvs(prefix: str, tables: dict[str, str], folder: Path = RESULTS) -> None:
    """Write each table in Markdown to a CSV file, ``PREFIX-NAME.csv``."""
    for name, text in tables.items():
        header, _, *rows = text.splitlines()
        path = folder / f"{prefix}-{name.replace(' ', '-')}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            for line in (header, *rows):
                writer.writerow([cell.strip() for cell in line.strip("|").split("|")])
