"""What measured rates say for data sets that were not measured: DF2K, and 10 million pictures."""

from collections.abc import Callable
from typing import Any

SETS = {"DF2K (3450)": 3450, "10 million": 10_000_000}
WIDTH, HEIGHT = 2040, 1404  # of most pictures of DF2K
SCALE = 4
STEPS, BATCH, PATCH = 500_000, 16, 32  # of distillation by preset=paper
MISSING = "not measured yet"


def table(growth: Any, memory: Any) -> str:
    """Markdown of what ``growth.json`` and ``memory.json`` say; None is one that is not there."""
    area = WIDTH * HEIGHT
    looked_at = STEPS * BATCH * (SCALE * PATCH) ** 2

    def hours(seconds: float) -> str:
        return f"{_plain(seconds * growth['cores'] / 3600)} {growth['unit']}-hours"

    def work(teacher: str, pixels: float) -> str:
        if growth is None:
            return MISSING
        return hours(pixels / 1e6 * sum(growth["seconds_per_megapixel"][teacher].values()))

    def student() -> str:
        if growth is None:
            return MISSING
        line = growth["lines"]["step, batch"]["lines"]["seconds"]
        return hours(STEPS * (line["at_zero"] + BATCH * line["per_unit"]))

    rows: list[tuple[str, str, Callable[[int], str]]] = [
        ("HR, decoded", "3 A", lambda n: _size(3 * area * n)),
        ("LR, decoded", "3 A / s²", lambda n: _size(3 * area * n / SCALE**2)),
        ("kept pictures of a member, or the merged ones, 16 bits", "6 A", lambda n: _size(6 * area * n)),
        ("the same, 8 bits", "3 A", lambda n: _size(3 * area * n)),
        ("those of three members and the merged ones, 16 bits", "4 · 6 A", lambda n: _size(24 * area * n)),
        ("making these, `teacher=compact_trio`", "A r", lambda n: work("compact_trio", area * n)),
        ("making these, `teacher=paper`", "A r", lambda n: work("paper", area * n)),
        ("HR pixels of all pictures", "A", lambda n: _pixels(area * n)),
        ("HR pixels that a training looks at", "T b (s p)²", lambda n: _pixels(looked_at)),
        ("trainings after which keeping has paid", "A / (T b (s p)²)", lambda n: _plain(area * n / looked_at)),
        ("online for a training, `teacher=compact_trio`", "T b (s p)² r", lambda n: work("compact_trio", looked_at)),
        ("online for a training, `teacher=paper`", "T b (s p)² r", lambda n: work("paper", looked_at)),
        ("the student's own part of a training", "T t", lambda n: student()),
        ("read for a step with nothing in memory, at most", "3 b s p W (1 + 2 + 1/s²)", lambda n: _size(_read())),
        ("a start that finds everything made", "N u", lambda n: _start(memory, n)),
    ]
    lines = [("what", "formula", *SETS), ("---",) * (2 + len(SETS))]
    lines += [(what, how, *map(of, SETS.values())) for what, how, of in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _read() -> float:
    """Whole rows of HR in 8 bits, of the merged picture in 16 and of LR."""
    return 3 * BATCH * SCALE * PATCH * WIDTH * (1 + 2 + 1 / SCALE**2)


def _start(memory: Any, count: int) -> str:
    if memory is None:
        return MISSING
    largest = max((name for name in memory["megabytes"] if name.endswith(" pictures")), key=_number)
    seconds = memory["megabytes"][largest]["batches"]["start_seconds"] * count / _number(largest)
    return f"{_plain(seconds)} s"


def _number(name: str) -> int:
    return int(name.split()[0])


def _size(count: float) -> str:
    unit, name = (1e12, "TB") if count >= 1e12 else (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:,.1f} {name}"


def _pixels(count: float) -> str:
    return f"{count / 1e9:,.1f} billion"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
