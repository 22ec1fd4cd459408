"""Tables as files: Markdown with aligned columns, CSV."""

import csv
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtkd_lightning.files import write_text


def aligned(head: list[str], cells: list[list[str]], left: int) -> list[str]:
    """Lines of a Markdown table, the first ``left`` columns to the left and the others to the right."""
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    rule = "|".join("-" * (w + 1) + (":" if i >= left else "-") for i, w in enumerate(widths))

    def line(texts: list[str]) -> str:
        padded = [x.rjust(w) if i >= left else x.ljust(w) for i, (x, w) in enumerate(zip(texts, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    return [line(head), f"|{rule}|", *map(line, cells)]


def escaped(text: str) -> str:
    """Text as Markdown shows it, on one line: nothing in it is a cell's border, HTML, a link or emphasis."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"[\\`*|~[\]]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def protocols(metrics: Mapping[str, Any]) -> str:
    """One sentence on how each benchmark was scored."""
    by_protocol: dict[str, list[str]] = {}
    for benchmark, protocol in metrics["protocols"].items():
        by_protocol.setdefault(protocol, []).append(benchmark)
    named = [f"{protocol} ({', '.join(names)})" for protocol, names in by_protocol.items()]
    return f"Protocol: {'; '.join(named)}."


def write_csv(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(path, text.getvalue())
