"""What a run's networks score on the benchmarks, and what a comparison has to know of the run: its metrics.json."""

import itertools
import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from mtkd_lightning import artifacts, evaluation, pictures
from mtkd_lightning.artifacts import Artifact
from mtkd_lightning.config import build
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.evaluation import Bicubic
from mtkd_lightning.files import alone, read_json, write_json
from mtkd_lightning.lineup import Lineup
from mtkd_lightning.loggers import Tracker
from mtkd_lightning.making import Maker, exclusive, load
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture

log = logging.getLogger(__name__)


class Scoring:
    """Scores of bicubic, every member, their mean, the aggregator and the student.

    Args:
        config: of the run.
        maker: of the artefacts.
        teacher: whose members and aggregator are scored; None for a method without.
        benchmarks: pictures by the benchmark's name.
        student: gives it, finished.
        learns_from: ``"kept"`` or ``"online"`` pictures of the teacher; None for a method without.
    """

    def __init__(
        self,
        config: DictConfig,
        maker: Maker,
        teacher: Lineup | None,
        benchmarks: dict[str, PairedImages],
        student: Callable[[], Artifact],
        learns_from: str | None,
    ) -> None:
        self.config = config
        self.scale: int = config.scale
        self.maker = maker
        self.teacher = teacher
        self.benchmarks = benchmarks
        self._student = student
        self.learns_from = learns_from
        self.folder = maker.runs / str(config.name)

    @cached_property
    def student(self) -> Artifact:
        """The finished student.

        Raises:
            MTKDError: it is not there.
        """
        return self._student()

    def make(self) -> None:
        """Score what is not scored yet, keep pictures for the report, and tell the loggers."""
        with exclusive(self.folder):
            self._make()

    def _make(self) -> None:
        asked = pictures.chosen(self.benchmarks, self.config.report.pictures)
        kept = pictures.records(self.benchmarks, asked)
        record = self.found()
        if record is not None and record.get("pictures") == kept:
            log.info("evaluation: %s is there.", self.folder / "metrics.json")
            return
        others = self._others()
        student = {"student": load(build(self.config.student), self.student)}
        if record is None:
            metrics = self._scores_of(others)
            scores = evaluation.evaluate(student, self.benchmarks, self.scale, self.maker.device)
            metrics["networks"] |= scores["networks"]
            metrics["images"] += scores["images"]
            record = {"of": self._evaluated, "run": self._run_record(metrics["protocols"]), **metrics}
        self._keep_pictures(others, student, asked)
        write_json(self.folder / "metrics.json", {**record, "pictures": kept})
        stem, seed = self.config.name, record["run"]["seed"]
        with Tracker(self.config, "distillation", stem, seed, self.folder, training=False) as tracker:
            tracker.scored(record)

    def found(self) -> dict[str, Any] | None:
        """What the evaluation of exactly these networks and pictures left, if it is there."""
        metrics = read_json(self.folder / "metrics.json")
        asked = {"of": self._evaluated, "run": self._run_record(metrics.get("protocols", {}))} if metrics else {}
        return metrics if metrics and all(metrics.get(key) == value for key, value in asked.items()) else None

    def _keep_pictures(
        self, others: dict[str, nn.Module], student: dict[str, nn.Module], asked: pictures.Chosen
    ) -> None:
        """Keep windows of a few pictures for the report.

        Those of the others are made once, beside their scores. The run's folder gets links to them: it stays whole when
        the cache is deleted or the folder is taken elsewhere, at no cost of space.
        """
        arguments: dict[str, Any] = {"benchmarks": self.benchmarks, "asked": asked, "device": self.maker.device}
        shared, folder = self._others_scored()[0].with_suffix(""), self.folder / "pictures"
        pictures.remove(folder)
        if asked:
            pictures.keep(others, folder=shared, given=True, **arguments)
            pictures.keep(student, folder=folder, **arguments)
            pictures.link(shared, folder)

    def _others_scored(self) -> tuple[Path, dict[str, Any]]:
        """Where the scores of all networks but the student are, or will be, and of what they are."""
        of = {key: value for key, value in self._evaluated.items() if key != "student"}
        return Path(self.config.paths.cache).expanduser() / "scores" / f"{artifacts.config_hash(of)}.json", of

    def _scores_of(self, others: dict[str, nn.Module]) -> dict[str, Any]:
        """Scores of all networks but the student, measured once for all runs that have the same teachers."""
        path, of = self._others_scored()
        with alone(path.with_suffix(".lock"), "Another run scores the teachers; waiting for it."):
            if (known := read_json(path)) is not None and known.pop("of", None) == of:
                log.info("evaluation: the teachers' scores are in %s.", path)
                return known
            scores = evaluation.evaluate(others, self.benchmarks, self.scale, self.maker.device)
            write_json(path, {"of": of, **scores})
        return scores

    def _others(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"bicubic": Bicubic(self.scale)}
        if self.teacher:
            ensemble = self.teacher.ensemble({name: self.teacher.member(name) for name in self.teacher.names})
            given = itertools.count()
            networks |= {
                f"teacher {name}": member.net if member else GivenPicture(next(given))
                for name, member in ensemble.members.items()
            }
            networks["mean of the teachers"] = Ensemble(ensemble.members, Mean(self.scale, len(ensemble.members)))
            if not isinstance(ensemble.aggregator, Mean):
                networks[f"aggregator {self.config.aggregator_name}"] = ensemble
        return networks

    @cached_property
    def _evaluated(self) -> dict[str, Any]:
        return {
            "student": self.student.sha256,
            "teacher": self.teacher and self.teacher.made_by(),
            "benchmarks": {
                name: [pairs.manifest_hash(), *pairs.teacher_hashes()] for name, pairs in self.benchmarks.items()
            },
        }

    def _run_record(self, protocols: dict[str, str]) -> dict[str, Any]:
        """What a comparison needs to know: who this is, what it cost, and what must match for it to be fair."""
        made = self.student.record
        of = made["config"]
        recipe = {key: value for key, value in of["recipe"].items() if key not in ("seed", *artifacts.NOT_IN_HASH)}
        fairness = {
            **{key: of[key] for key in ("scale", "data", "init_sha256", "precision", "gradient_clip_val")},
            "student": of["network"],
            "recipe": recipe,
            "protocols": protocols,
            "benchmarks": {name: pairs.manifest_hash() for name, pairs in self.benchmarks.items()},
        }
        # How a batch is cut changes what methods draw at random. A whole one is as in records that do not say.
        cut = {key: of_them.get(key, 1) for key, of_them in (("accumulate_grad_batches", of), ("processes", made))}
        fairness |= {key: parts for key, parts in cut.items() if parts != 1}
        return {
            "name": self.config.name,
            "variant": self.config.label,
            "student": self.config.student_name,
            "method": self.config.method_name,
            "scale": self.scale,
            "seed": made["seed"],
            **{key: made[key] for key in ("steps", "seconds", "teacher_passes", "initial_sha256")},
            "device": made.get("device"),
            "code": made.get("git"),
            "teacher_pictures": self.learns_from,
            "before": self._before(),
            "settings": {
                "method": of["method"],
                "teacher": self.teacher
                and {
                    "members": self.teacher.names,
                    "aggregator": self.config.aggregator_name,
                    "made_by": artifacts.config_hash(self._evaluated["teacher"]),
                },
                "teacher_pictures": of["teacher_pictures"],
            },
            "fairness": fairness,
            "fingerprint": artifacts.config_hash(fairness),
        }

    def _before(self) -> dict[str, float]:
        """What teaching cost before the student's training: pictures that members enlarged, aggregator's seconds."""
        aggregator = self.teacher.aggregator() if self.teacher else None
        pictures = 0
        if self.teacher and self.learns_from == "kept":
            members = [self.config.teacher.members[name] for name in self.teacher.names]
            turned = 8 if self.teacher.settings.self_ensemble else 1
            pictures = sum(not node.get("folder") for node in members) * len(self.teacher.pictures.train) * turned
        return {"teacher_pictures": pictures, "aggregator_seconds": aggregator.record["seconds"] if aggregator else 0}
