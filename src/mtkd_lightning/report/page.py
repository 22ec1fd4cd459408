"""Write the page: one HTML file with everything in it, and its tables as CSV and Markdown."""

import base64
import gzip
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mtkd_lightning.comparison import LEGEND, Group, grouped, markdown, rows
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import write_text
from mtkd_lightning.report.boards import best_seed, board
from mtkd_lightning.report.curves import read_curves
from mtkd_lightning.report.windows import read_windows
from mtkd_lightning.runs import Problems, Run, read_runs
from mtkd_lightning.tables import write_csv

SCRIPTS = ("base.js", "charts.js", "viewer.js")


def write_report(folders: Sequence[Path], output: Path, baselines: Sequence[str] = ()) -> Path:
    """Write ``index.html``, ``results.csv`` and ``results.md``; give the path of the page.

    What cannot be read of a run is left out, and named in the log and on the page.

    Args:
        folders: of runs.
        output: folder to write to; each file is replaced whole.
        baselines: variants that differences are taken to, as for a comparison.

    Raises:
        MTKDError: there is no run, or the folder cannot be written to.
    """
    problems = Problems()
    for folder in folders:
        for path in _empty(folder):
            problems(f"{path} is left out: it is empty")
    runs = _read(folders, problems)
    # The table with the most variants first: the others say in what they differ from it.
    groups = sorted(grouped(runs, baselines, problems), key=lambda group: -len(group.variants)) if runs else []
    shown = {
        f"{index}/{name}": best_seed(seeds)
        for index, group in enumerate(groups)
        for name, seeds in group.variants.items()
    }
    pictures, without = read_windows(shown, problems)
    data = {
        "groups": [board(group, groups) for group in groups],
        "curves": _curves(groups, problems),
        "pictures": pictures,
    }
    template = _environment().get_template("page.html")
    page = template.render(
        data=_finite(data),
        made=datetime.now(UTC).strftime("%-d %B %Y, %H:%M UTC"),
        count=len({run.path for run in runs}),
        problems=problems,
        without=[shown[label].path.parent.name for label in without],
        legend=LEGEND,
        style=_source("style.css"),
        scripts=Markup("\n").join(map(_source, SCRIPTS)),
        plotly=_plotly() if groups else "",
    )
    if groups:
        write_csv(output / "results.csv", rows(groups))
        write_text(output / "results.md", markdown(groups, {}, problems))
    write_text(output / "index.html", page)
    return output / "index.html"


def _read(folders: Sequence[Path], complain: Callable[[str], None]) -> list[Run]:
    there = [folder for folder in folders if any(folder.glob("*/metrics.json"))]
    if not there:
        read_runs(folders)  # which says what is missing
    try:
        return read_runs(there, complain)
    except MTKDError:  # all are left out, with the reasons on the page
        return []


def _empty(folder: Path) -> list[Path]:
    """Folders of runs in which nothing is."""
    return [path for path in sorted(folder.glob("[!.]*/")) if not any(path.iterdir())]


def _curves(groups: Sequence[Group], complain: Callable[[str], None]) -> list[dict[str, Any]]:
    return [
        {"group": index, "variant": place, "seed": seed, "series": read_curves(run.path.parent, complain)}
        for index, group in enumerate(groups)
        for place, seeds in enumerate(group.variants.values())
        for seed, run in sorted(seeds.items())
    ]


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mtkd_lightning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["number"] = _number
    return environment


def _number(value: float | None, form: str = ".3f") -> str:
    return "\N{EN DASH}" if value is None else format(value, form).replace("-", "\N{MINUS SIGN}")


def _source(name: str) -> Markup:
    """A file of ours, into the page as it is."""
    return Markup(files("mtkd_lightning.report").joinpath("templates", name).read_text(encoding="utf-8"))


def _plotly() -> str:
    """plotly.js, packed: a third of its size."""
    source = files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, mtime=0)).decode()


def _finite(value: Any) -> Any:
    """Without numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
