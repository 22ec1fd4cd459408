"""What Lightning's CSV logger left of a training, however often that was resumed."""

import csv
import math
from collections.abc import Callable
from pathlib import Path

POINTS = 200  # of a curve at most

Curve = tuple[list[int], list[float]]


def read_curves(run: Path, complain: Callable[[str], None]) -> dict[str, Curve]:
    """Steps and values of each logged column, from ``curves/version_*/metrics.csv``.

    A resumed training goes on in a new version from its last checkpoint: from there on the newer values count. A file
    or line that cannot be read is complained of and left out.
    """
    by_column: dict[str, dict[int, float]] = {}
    for path in sorted((run / "curves").glob("version_*/metrics.csv"), key=_version):
        try:
            found = _read(path, complain)
        except (OSError, ValueError, csv.Error) as error:
            complain(f"{path} is left out: it cannot be read ({error})")
            continue
        for column, values in found.items():
            earlier = by_column.get(column, {})
            by_column[column] = {step: x for step, x in earlier.items() if step < min(values)} | values
    return {column: _thinned(values) for column, values in sorted(by_column.items())}


def _read(path: Path, complain: Callable[[str], None]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if "step" not in (lines.fieldnames or ()):
            raise ValueError("it has no column step")
        for number, line in enumerate(lines, 2):
            try:
                step = int(line.pop("step"))
                values = {key: float(text) for key, text in line.items() if text and key != "epoch"}
            except (ValueError, TypeError):
                complain(f"{path}: line {number} is left out, it is cut off or no numbers")
                continue
            for key, value in values.items():
                if math.isfinite(value):
                    found.setdefault(key, {})[step] = value
    return found


def _thinned(values: dict[int, float]) -> Curve:
    steps = sorted(values)
    kept = steps[:: -(-len(steps) // POINTS)]
    if kept[-1] != steps[-1]:
        kept.append(steps[-1])
    return kept, [float(f"{values[step]:.5g}") for step in kept]


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1
