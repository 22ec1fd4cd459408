"""Weights & Biases as a logger that a training never depends on.

W&B's own files go to <dir>/wandb alone, and nothing of it to the console but a line at the start and at the end.
A server that cannot be reached, a key that it does not take: the run is kept offline. A failure later on ends the
logging to W&B, with a line, and nothing else; the CSV beside the checkpoint has it all.
"""

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import wandb
from lightning.fabric.loggers.logger import _DummyExperiment as DummyExperiment
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mtkd_lightning.artifacts import Artifact
from mtkd_lightning.files import replacing
from mtkd_lightning.loggers import PATIENCE, Names, keep_to, unreachable, wandb_server

log = logging.getLogger(__name__)

ID = "wandb_id"  # in the folder of a training


class Wandb(WandbLogger):
    """Lightning's logger with one run a network, which begins when it is first used, on rank 0.

    Args:
        names: of the run.
        folder: of the training, where the run's id is kept.
        settings: of conf/logger/wandb.yaml.
        mode: online or offline.
        anew: whether to begin a run rather than to go on with the one whose id is kept.
    """

    def __init__(self, names: Names, folder: Path, settings: Mapping[str, Any], mode: str, *, anew: bool) -> None:
        where = Path(settings["dir"]).expanduser().resolve()
        super().__init__(name=names.name, project=settings["project"], save_dir=where)
        self.names = names
        self.mode: Any = mode
        self.files = where / "wandb"
        self.artifacts: bool = settings["artifacts"]
        self._entity: str | None = settings["entity"]
        self._kept, self._anew = folder / ID, anew
        self._said: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun if it is not yet."""
        if self._experiment is None:
            self._experiment = self._begin()
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a point of the curves."""
        with self._surviving("curves"):
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Log pictures."""
        with self._surviving("pictures"):
            super().log_image(key, images, step, **kwargs)

    @rank_zero_only
    def log_summary(self, values: Mapping[str, Any]) -> None:
        """Give the run's final values."""
        with self._surviving("results"):
            if self._running:
                self.experiment.summary.update(dict(values))

    @rank_zero_only
    def log_rows(self, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Log a table."""
        with self._surviving("table"):
            if self._running and rows:
                table = wandb.Table(list(rows[0]), [list(row.values()) for row in rows])
                self.experiment.log({key: table, "trainer/global_step": step})

    @rank_zero_only
    def log_lineage(self, kind: str, made: Artifact, of: Sequence[tuple[str, Artifact]]) -> None:
        """Say what the run made, and of what."""
        with self._surviving("lineage"):
            if self._running:
                for its_kind, part in of:
                    # What use_artifact() does; that refuses to while offline, although the record can be kept.
                    self.experiment._log_artifact(
                        self._artifact(its_kind, part), aliases=[], is_user_created=True, use_after_commit=True
                    )
                self.experiment.log_artifact(self._artifact(kind, made))

    def finish(self, *, failed: bool) -> None:
        """End the run, uploading what is not uploaded as long as the server can be reached."""
        run: Any = self._experiment
        self._experiment = DummyExperiment()  # type: ignore[assignment]
        if run is None or isinstance(run, DummyExperiment):
            return
        done = threading.Thread(target=_finish, args=(run, int(failed)), daemon=True)
        done.start()
        done.join(PATIENCE)
        while done.is_alive() and not run.offline and unreachable() is None:
            done.join(PATIENCE)
        kept = Path(run.dir).parent
        if done.is_alive():  # and goes on trying until this process ends
            log.warning("W&B does not answer: %s may lack something there; `wandb sync %s` adds it.", run.name, kept)
        elif run.offline:
            log.info("W&B: %s is kept in %s; `wandb sync` uploads it.", run.name, kept)

    @property
    def _running(self) -> bool:
        return not isinstance(self.experiment, DummyExperiment)

    def _begin(self) -> Any:
        keep_to(self.files)
        if self.mode == "online" and (why := unreachable()):
            self._fall_back(why)
        before = set(self.files.glob("run-*"))
        try:
            self._id = self._identify()
            try:
                run = self._init()
            except Exception as error:
                if self.mode == "offline":
                    raise
                self._fall_back(str(error).splitlines()[0])
                wandb.teardown()  # which holds the id
                for left in set(self.files.glob("run-*")) - before:
                    if left.name.endswith(f"-{self._id}"):
                        shutil.rmtree(left, ignore_errors=True)
                run = self._init()
        except Exception as error:
            log.warning(
                "W&B cannot be used (%s: %s): %s goes on without it.", type(error).__name__, error, self.names.name
            )
            return DummyExperiment()
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        if self.mode == "online":
            log.info("W&B: %s is at %s", self.names.name, run.url)
        return run

    def _fall_back(self, why: str) -> None:
        log.warning("W&B at %s cannot be used (%s): %s is kept offline.", wandb_server(), why, self.names.name)
        self.mode = "offline"

    def _identify(self) -> str:
        """The id of the run to go on with, or a new one, kept for those that come later."""
        if not self._anew and self._kept.is_file():
            return self._kept.read_text().strip()
        new = uuid4().hex[:8]
        with replacing(self._kept) as temporary:
            temporary.write_text(new + "\n")
        return new

    def _init(self) -> Any:
        settings = wandb.Settings(
            reinit="create_new", silent=True, console="off", init_timeout=PATIENCE, login_timeout=PATIENCE
        )
        wandb.setup(settings)
        self.files.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=self._project,
            entity=self._entity,
            name=self.names.name[:128],
            id=self._id,
            resume="allow",
            group=self.names.group[:128],
            job_type=self.names.job_type,
            tags=[tag[:64] for tag in self.names.tags],
            config=self.names.config,
            dir=self._save_dir,
            mode=self.mode,
            settings=settings,
        )

    def _artifact(self, kind: str, part: Artifact) -> Any:
        allowed = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in part.path.stem)
        made = wandb.Artifact(allowed[:128], kind, metadata={"sha256": part.sha256, "file": part.path.name})
        if self.artifacts and part.path.is_file():
            made.add_file(str(part.path), policy="immutable", skip_cache=True)
        else:
            # The same bytes for the same network, by which runs that make it and runs that use it meet.
            with made.new_file("sha256", mode="w") as file:
                file.write(part.sha256 + "\n")
        return made

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if what not in self._said:
                log.warning(
                    "W&B did not take the %s of %s (%s: %s).", what, self.names.name, type(error).__name__, error
                )
            self._said.add(what)


def _finish(run: Any, code: int) -> None:
    try:
        run.finish(exit_code=code)
    except Exception as error:
        log.debug("W&B could not end a run", exc_info=error)
