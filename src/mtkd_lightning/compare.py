"""Compare the students of several runs, like with like: ``python -m mtkd_lightning.compare only=[a,b]``."""

import logging
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, ListConfig

from mtkd_lightning.comparison import grouped, markdown, refuse_unmatched, rows, selected, title, unmatched
from mtkd_lightning.config import CONF, check_keys
from mtkd_lightning.errors import MTKDError, reported
from mtkd_lightning.files import write_text
from mtkd_lightning.runs import Problems, read_runs
from mtkd_lightning.tables import write_csv

log = logging.getLogger(__name__)


@hydra.main(config_path=str(CONF), config_name="compare", version_base="1.3")
def main(config: DictConfig) -> None:
    """Check the configuration, then compare; bad input ends with its message and status 1."""
    with reported():
        check_keys(config, "compare")
        run(config)


def run(config: DictConfig) -> None:
    """Read what ``runs`` names; write and show the tables.

    Raises:
        MTKDError: nothing to compare, an unknown variant, or two asked for that were not trained alike.
    """
    if config.unmatched not in ("refuse", "mark"):
        raise MTKDError(f"unmatched={config.unmatched}: allowed are refuse, mark")
    for key in ("figure", "students", "records"):
        if not isinstance(config[key], bool):
            raise MTKDError(f"{key}={config[key]}: allowed are true, false")
    if config.figure:
        try:
            from mtkd_lightning.figures import draw
        except ImportError as error:
            raise MTKDError(f"figure=true needs matplotlib ({error}): pip install 'mtkd_lightning[figures]'") from error
    only, baselines = texts(config.only), texts(config.baseline)
    left_out = Problems()
    runs = read_runs([Path(text).expanduser() for text in texts(config.runs)], left_out)
    runs = selected(runs, only, baselines)
    groups = grouped(runs, baselines)
    pairs = unmatched(groups, only)
    if config.unmatched == "refuse":
        refuse_unmatched(pairs)
    output = Path(config.output).expanduser()
    table = markdown(groups, pairs, left_out)
    write_csv(output / "results.csv", rows(groups))
    write_text(output / "comparison.md", table)
    if config.students:
        from mtkd_lightning.students import write_students

        write_students(groups, output / "students")
    if config.records:
        from mtkd_lightning.records import write_records

        write_records(groups, output / "runs")
    if config.figure:
        draw(groups, [title(group, pairs) for group in groups], output / "comparison.svg")
    figure = f"; figure: {output / 'comparison.svg'}" if config.figure else ""
    log.info("\n%s\nTables: %s and results.csv%s", table, output / "comparison.md", figure)


def texts(value: Any) -> list[str]:
    """A value that is a text, a list of them or null, as a list."""
    if value is None:
        return []
    return list(map(str, value)) if isinstance(value, ListConfig) else [str(value)]


if __name__ == "__main__":
    main()
