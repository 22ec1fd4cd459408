"""Sweeps, ``python -m mtkd_lightning -m ...``: jobs that fail alone, and a table of all of them at the end.

Hydra's launchers run the jobs; each leaves a record in the sweep's folder, whatever process or machine it ran on.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from mtkd_lightning import network_tables, ranks
from mtkd_lightning.errors import Interrupted, MTKDError, Pruned, reported
from mtkd_lightning.files import read_json, write_json, write_text
from mtkd_lightning.naming import label
from mtkd_lightning.sweep_plan import chooses, is_search, overrides_of, pin, planned, refuse_collisions, study_name
from mtkd_lightning.tables import aligned, escaped, write_csv

log = logging.getLogger(__name__)

# Plugin of Hydra's by choice, and by plugin the extra that brings it.
PLUGINS = {
    "launcher=joblib": "joblib_launcher",
    "launcher=submitit": "submitit_launcher",
    "launcher=submitit_local": "submitit_launcher",
    "launcher=ray": "ray_launcher",
    "launcher=ray_local": "ray_launcher",
    "hparams_search=loss_weights": "optuna_sweeper",
}


@dataclass(frozen=True)
class Plan:
    """A sweep that was started: its folder, and the overrides of its jobs as far as they are known beforehand."""

    folder: Path
    jobs: list[list[str]]


_PLAN: ContextVar[Plan | None] = ContextVar("plan", default=None)


def need_plugins(arguments: Sequence[str]) -> None:
    """Refuse a launcher or a search whose plugin is not installed.

    Raises:
        MTKDError: with the extra that brings it.
    """
    for argument in arguments:
        plugin = PLUGINS.get(argument.lstrip("+"))
        if plugin and not (find_spec("hydra_plugins") and find_spec(f"hydra_plugins.hydra_{plugin}")):
            extra = plugin.split("_")[0]
            raise MTKDError(f"{argument} needs a plugin that is not installed: pip install 'mtkd_lightning[{extra}]'")


class Sweep(Callback):
    """Looks over a sweep before its first job starts."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse what no job could do, and jobs that would write the same student."""
        with reported():
            if ranks.count() > 1:
                raise MTKDError(
                    f"torchrun or srun started {ranks.count()} processes of this sweep: start it once, and say "
                    "trainer=ddp, with which each job starts processes of its own"
                )
            jobs = planned(config)
            refuse_collisions(config, jobs)
            folder = _absolute(config.hydra.sweep.dir)
            pin(config, "hydra.sweep.dir", str(folder))  # one for all jobs, wherever they run
            if is_search(config.hydra):
                from mtkd_lightning.search import trials_left  # Optuna

                pin(config, "hydra.sweeper.study_name", study_name(config))
                pin(config, "hydra.sweeper.storage.path", str(_absolute(config.hydra.sweeper.storage.path)))
                config.hydra.sweeper.n_trials = trials_left(config.hydra.sweeper)
            folder.mkdir(parents=True, exist_ok=True)
            _PLAN.set(Plan(folder, [] if chooses(config.hydra) else jobs))


@contextmanager
def summed_up() -> Iterator[None]:
    """End a sweep with its table, whatever ended it, and with status 1 if a job is not done."""
    token = _PLAN.set(None)
    done = True
    try:
        yield
    except KeyboardInterrupt:
        log.error("Interrupted.")
        sys.exit(INTERRUPTED)
    finally:
        if (plan := _PLAN.get()) is not None:
            done = _sum_up(plan)
        _PLAN.reset(token)
    if not done:
        sys.exit(1)


INTERRUPTED = 130  # the status with which a command ends on Ctrl-C


def is_job() -> bool:
    """Say whether this runs as a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job(work: Callable[[DictConfig], float | None], config: DictConfig) -> float | None:
    """Do the work of one job; a failure is logged, left in its folder and not passed on.

    Args:
        work: the job; gives the student's validation PSNR-Y where there is one.
        config: of the job; it gets the job's own label.

    Returns:
        What ``work`` gave; None if it failed, which Optuna takes for a failed trial.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    record: dict[str, Any] = {"job": hydra.job.num, "overrides": overrides_of(hydra), "status": "unfinished"}
    start = time.perf_counter()
    config.label = label(config.label, record["overrides"])
    if ranks.rank() > 0:  # of a job that srun started on several devices; the first one keeps the record
        return work(config)
    with _logged_to(folder / "job.log"):
        try:
            record["name"] = str(config.name)
            write_json(folder / "job.json", record)
            before = _student(config)
            record["validation"] = value = work(config)
            record["status"] = "skipped" if before and before == _student(config) else "ok"
            record["benchmarks"] = _scores(config) if "evaluation" in config.stages else {}
            return value
        except Interrupted as error:
            log.error("%s", error)
            sys.exit(INTERRUPTED)
        except Pruned as reason:
            log.info("%s", reason)
            record |= {"status": "pruned", "validation": reason.value}
            return None
        except Exception as error:
            mendable = isinstance(error, MTKDError)
            log.error("Error in job %s: %s", record["job"], error, exc_info=not mendable)
            (folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            text = str(error) if mendable else f"{type(error).__name__}: {error}"
            record |= {"status": "failed", "error": text.partition("\n")[0]}
            return None
        finally:
            record["seconds"] = round(time.perf_counter() - start, 1)
            write_json(folder / "job.json", record)


def rows(records: Mapping[int, Mapping[str, Any]], jobs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """One row a job, of equal keys.

    Args:
        records: by number, what jobs left.
        jobs: overrides of those that were planned; one without a record was not started.
    """
    known = {**dict(enumerate(jobs)), **{number: record["overrides"] for number, record in records.items()}}
    common = set.intersection(*map(set, known.values())) if len(known) > 1 else set()
    benchmarks = sorted({name for record in records.values() for name in record.get("benchmarks") or {}})
    table = []
    for number, overrides in sorted(known.items()):
        record = records.get(number, {"status": "not started"})
        scores = record.get("benchmarks") or {}
        table.append(
            {
                "job": number,
                "varied": " ".join(x.lstrip("+") for x in overrides if x not in common),
                "status": record["status"],
                "seconds": record.get("seconds"),
                "validation": record.get("validation"),
                **{name: scores.get(name) for name in benchmarks},
                "name": record.get("name"),
                "error": record.get("error"),
            }
        )
    return table


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    texts = ["job", "varied", "status", "name", *(["error"] if any(row["error"] for row in table) else [])]
    shown = [*texts, *(key for key in table[0] if key not in (*texts, "error"))]
    cells = [[_cell(key, row[key]) for key in shown] for row in table]
    lines = aligned([escaped(key) for key in shown], cells, left=len(texts))
    legend = "PSNR-Y in dB of the validation pictures and of each benchmark (of DIV2K in RGB)."
    return "\n".join([*lines, "", legend, ""])


def _sum_up(plan: Plan) -> bool:
    """Write and show the table; say whether every job is done."""
    records = {}
    for path in plan.folder.glob("*/job.json"):
        if (record := read_json(path)) is not None:
            records[record["job"]] = record
    if not (table := rows(records, plan.jobs)):
        return True
    text = markdown(table)
    write_csv(plan.folder / "sweep.csv", table)
    write_text(plan.folder / "sweep.md", text)
    log.info("\n%s\nTable: %s and sweep.csv; of each job: job.log", text, plan.folder / "sweep.md")
    undone = [row["job"] for row in table if row["status"] not in DONE]
    if undone:
        log.error(
            "%d of %d jobs are not done (%s). The same command makes what is missing.",
            len(undone),
            len(table),
            ", ".join(map(str, undone)),
        )
    return not undone


DONE = ("ok", "skipped", "pruned")


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Copy the log to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _student(config: DictConfig) -> list[int]:
    """When the student and its scores were written."""
    files = (Path(config.paths.weights, f"{config.name}.json"), Path(config.paths.runs, config.name, "metrics.json"))
    return [path.stat().st_mtime_ns for path in map(Path.expanduser, files) if path.exists()]


def _scores(config: DictConfig) -> dict[str, float]:
    """Mean PSNR of the student by benchmark."""
    path = Path(config.paths.runs, config.name, "metrics.json").expanduser()
    table = network_tables.rows(json.loads(path.read_text(encoding="utf-8")))
    return {row["benchmark"]: row["psnr"] for row in table if row["network"] == "student"}


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return format(value, ".0f" if key == "seconds" else ".3f")
    return escaped(shorten(str(value), 120) if key == "error" else str(value))
