"""The stages of the main job. Each leaves a named artefact; one that is there already is verified and skipped."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import nn

from mtkd_lightning import artifacts, evaluation, pictures, ranks
from mtkd_lightning.artifacts import Artifact
from mtkd_lightning.backbones.foreign import Foreign
from mtkd_lightning.config import STAGES, build, plain
from mtkd_lightning.data.batches import TrainingBatches
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.evaluation import Bicubic
from mtkd_lightning.files import alone, read_json, write_json
from mtkd_lightning.lineup import Lineup
from mtkd_lightning.loggers import Tracker
from mtkd_lightning.making import Maker, load, say_progress
from mtkd_lightning.methods.base import Method
from mtkd_lightning.metrics.functional import SSIM_SIDE
from mtkd_lightning.network_tables import write_tables
from mtkd_lightning.published import load_published, read_tensors
from mtkd_lightning.report.page import write_report
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher
from mtkd_lightning.training import device_name
from mtkd_lightning.typing import SRBatch

log = logging.getLogger(__name__)


class Pipeline:
    """Runs the stages that a checked configuration asks for.

    Everything that the configuration describes is built once before the first stage, so that a value that does not fit
    is refused before anything is trained.

    Raises:
        MTKDError: from any stage, for what the user can mend.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.scale: int = config.scale
        self.maker = Maker(config)
        pictures: Pictures = build(config.data)
        kind = _class(config.method._target_)
        self.teacher = Lineup(config, pictures, self.maker) if getattr(kind, "needs_teacher", True) else None
        self.learns_from_pictures = bool(config.teacher.cache and getattr(kind, "pictures_suffice", False))
        self.pictures = self.teacher.pictures if self.teacher else pictures
        self._try()

    def _try(self) -> None:
        """Build everything and take a step, all on shapes alone, so that what cannot work ends here."""
        self.maker.trainer(logger=False)
        if {"evaluation", "report"} & set(self.config.stages):
            self._benchmarks()
        distillation = self.maker.recipes["distillation"]
        teacher = self._teacher_on_shapes()
        with torch.device("meta"):
            student = build(self.config.student)
            method = self._method(student, teacher).to("meta")
            lr = torch.zeros(1, 3, distillation.lr_patch, distillation.lr_patch)
            hr = nn.functional.interpolate(lr, scale_factor=self.scale)
        if not _has_foreign(student, teacher):  # which may look at values
            pictures = 1 if self.learns_from_pictures else len(self.pictures.train.pairs[0].teachers)
            method(SRBatch(lr, hr, [""], hr[:, None].repeat(1, pictures, 1, 1, 1) if pictures else None))
        if text := method.describe():
            log.info("%s", text)
        if (given := distillation.init_from) is not None:
            load_published(build(self.config.student), read_tensors(Path(given).expanduser()), given)

    def _teacher_on_shapes(self) -> Teacher | None:
        if self.teacher is None:
            return None
        members = {name: self.teacher.member(name, shape_alone=True) for name in self.teacher.names}
        with torch.device("meta"):
            merger = self.teacher.merger()
        if self.learns_from_pictures:
            return Teacher(GivenPicture())
        return self.teacher.alone(members) or Teacher(Ensemble(members, merger))

    def run(self) -> None:
        """Run each asked stage, in the order in which they depend on each other."""
        ranks.first(self._introduce)
        for stage in STAGES:
            if stage in self.config.stages and (ranks.rank() == 0 or stage not in ("evaluation", "report")):
                getattr(self, stage)()

    def teachers(self) -> None:
        """Train every member that has no weights yet."""
        if self.teacher:
            for name in self.teacher.names:
                self.teacher.artifact_of(name, make=True)

    def cache(self) -> None:
        """Make the members' pictures ahead of the stages that would make them when they need them."""
        if self.teacher and self.teacher.cached:
            for pairs in (self.pictures.train, self.pictures.validation):
                self.teacher.with_members(pairs)

    def aggregation(self) -> None:
        """Stage 1: train the aggregator on the frozen members' pictures."""
        if self.teacher:
            self.teacher.aggregator(make=True)

    def distillation(self) -> None:
        """Stage 2: train the student."""
        self._student(make=True)

    def evaluation(self) -> None:
        """Score bicubic, every member, their mean, the aggregator and the student on the benchmarks."""
        asked = pictures.chosen(self._benchmarks(), self.config.report.pictures)
        kept = pictures.records(self._benchmarks(), asked)
        record = self._metrics()
        if record is not None and record.get("pictures") == kept:
            log.info("evaluation: %s is there.", self.folder / "metrics.json")
            return
        networks = self._networks()
        student = {"student": networks.pop("student")}
        if record is None:
            metrics = self._scores_of_others(networks)
            scores = evaluation.evaluate(student, self._benchmarks(), self.scale, self.maker.device)
            metrics["networks"] |= scores["networks"]
            metrics["images"] += scores["images"]
            record = {"of": self._evaluated(), "run": self._run_record(metrics["protocols"]), **metrics}
        self._keep_pictures(networks, student, asked)
        write_json(self.folder / "metrics.json", {**record, "pictures": kept})
        stem, seed = self.config.name, record["run"]["seed"]
        with Tracker(self.config, "distillation", stem, seed, self.folder, training=False) as tracker:
            tracker.scored(record)

    def _keep_pictures(
        self, others: dict[str, nn.Module], student: dict[str, nn.Module], asked: pictures.Chosen
    ) -> None:
        """Keep windows of a few pictures for the report.

        Those of the others are made once, beside their scores. The run's folder gets links to them: it stays whole when
        the cache is deleted or the folder is taken elsewhere, at no cost of space.
        """
        arguments: dict[str, Any] = {"benchmarks": self._benchmarks(), "asked": asked, "device": self.maker.device}
        shared, folder = self._others_scored()[0].with_suffix(""), self.folder / "pictures"
        pictures.remove(folder)
        if asked:
            pictures.keep(others, folder=shared, given=True, **arguments)
            pictures.keep(student, folder=folder, **arguments)
            pictures.link(shared, folder)

    def _others_scored(self) -> tuple[Path, dict[str, Any]]:
        """Where the scores of all networks but the student are, or will be, and of what they are."""
        of = {key: value for key, value in self._evaluated().items() if key != "student"}
        return Path(self.config.paths.cache).expanduser() / "scores" / f"{artifacts.config_hash(of)}.json", of

    def _scores_of_others(self, networks: dict[str, nn.Module]) -> dict[str, Any]:
        """Scores of all networks but the student, measured once for all runs that have the same teachers."""
        path, of = self._others_scored()
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path.with_suffix(".lock"), "Another run scores the teachers; waiting for it."):
            if (known := read_json(path)) is not None and known.pop("of", None) == of:
                log.info("evaluation: the teachers' scores are in %s.", path)
                return known
            scores = evaluation.evaluate(networks, self._benchmarks(), self.scale, self.maker.device)
            write_json(path, {"of": of, **scores})
        return scores

    def report(self) -> None:
        """Write and show this run's table; write the page of all runs."""
        metrics = self._metrics()
        if metrics is None:
            raise MTKDError(
                f"there is no {self.folder / 'metrics.json'} of these networks; add evaluation to stages=[...]"
            )
        table = write_tables(metrics, self.folder, self.config.name, self.pictures.note)
        log.info("\n%s\nTable: %s and results.csv", table, self.folder / "results.md")
        page = write_report([self.maker.runs], Path(self.config.paths.root).expanduser() / "report")
        log.info("Report: %s", page)

    def validation_psnr(self) -> float | None:
        """The student's PSNR-Y on the validation pictures, in dB; None where no stage is about the student."""
        if not {"distillation", "evaluation", "report"} & set(self.config.stages):
            return None
        return float(self._student().record["metrics"]["val/psnr"])

    def _metrics(self) -> dict[str, Any] | None:
        """What the evaluation of exactly these networks and pictures left, if it is there."""
        metrics = read_json(self.folder / "metrics.json")
        asked = {"of": self._evaluated(), "run": self._run_record(metrics.get("protocols", {}))} if metrics else {}
        return metrics if metrics and all(metrics.get(key) == value for key, value in asked.items()) else None

    def _evaluated(self) -> dict[str, Any]:
        return {
            "student": self._student().sha256,
            "teacher": self.teacher and self.teacher.made_by(),
            "benchmarks": {
                name: [pairs.manifest_hash(), *pairs.teacher_hashes()] for name, pairs in self._benchmarks().items()
            },
        }

    def _run_record(self, protocols: dict[str, str]) -> dict[str, Any]:
        """What a comparison needs to know: who this is, what it cost, and what must match for it to be fair."""
        made = self._student().record
        of = made["config"]
        recipe = {key: value for key, value in of["recipe"].items() if key not in ("seed", *artifacts.NOT_IN_HASH)}
        fairness = {
            **{key: of[key] for key in ("scale", "data", "init_sha256", "precision", "gradient_clip_val")},
            "student": of["network"],
            "recipe": recipe,
            "protocols": protocols,
            "benchmarks": {name: pairs.manifest_hash() for name, pairs in self._benchmarks().items()},
        }
        return {
            "name": self.config.name,
            "variant": self.config.label,
            "student": self.config.student_name,
            "method": self.config.method_name,
            "scale": self.scale,
            "seed": made["seed"],
            **{key: made[key] for key in ("steps", "seconds", "teacher_passes", "initial_sha256")},
            "teacher_pictures": ("kept" if self.learns_from_pictures else "online") if self.teacher else None,
            "settings": {
                "method": of["method"],
                "teacher": self.teacher and {"members": self.teacher.names, "aggregator": self.config.aggregator_name},
                "teacher_pictures": of["teacher_pictures"],
            },
            "fairness": fairness,
            "fingerprint": artifacts.config_hash(fairness),
        }

    @property
    def folder(self) -> Path:
        """Of this run: curves, metrics, tables, pictures."""
        return self.maker.runs / str(self.config.name)

    def _introduce(self) -> None:
        log.info("%s on %s. %s", self.config.name, device_name(self.maker.device), self.pictures.note)
        sets = {"train": self.pictures.train, "validation": self.pictures.validation, **self.pictures.benchmarks}
        for name, pairs in sets.items():
            names = [pair.name for pair in pairs.pairs]
            log.info("  %s: %s", name, ", ".join(names) if len(names) <= 8 else f"{len(names)} pictures")
        if asked := [self.maker.recipes[stage] for stage in self.maker.recipes.keys() & set(self.config.stages)]:
            recipe = max(asked, key=lambda recipe: recipe.lr_patch)
            TrainingBatches(
                self.pictures.train, batch_size=recipe.batch_size, lr_patch=recipe.lr_patch, seed=recipe.seed
            ).prepare(say_progress)
        for pairs in (self.pictures.validation, *self.pictures.benchmarks.values()):
            smallest = min(min(size) for size in pairs.prepare(say_progress)) * self.scale
            if smallest < (needed := SSIM_SIDE + 2 * self.scale):
                raise MTKDError(
                    f"a picture of {pairs.pairs[0].hr.parent} has a side of {smallest} pixels; scoring needs {needed} "
                    f"({SSIM_SIDE} for SSIM, {self.scale} for the border on each side): remove it"
                )

    def _benchmarks(self) -> dict[str, PairedImages]:
        if not self.pictures.benchmarks:
            raise MTKDError(
                "there is no benchmark to evaluate on: put one under <data.root>/benchmarks/<name>/HR, or leave "
                "evaluation and report out of stages=[...]"
            )
        return self.pictures.benchmarks

    # What is built from the configuration. Networks are built right after seeding where they are trained.

    def _method(self, student: nn.Module, teacher: Teacher | None) -> Method:
        arguments = {"teacher": teacher} if self.teacher else {}
        method: Method = build(self.config.method, student=student, **arguments)
        return method

    def _student(self, make: bool = False) -> Artifact:
        return self.maker.artifact(
            self.config.name,
            "distillation",
            {
                "network": plain(self.config.student),
                "method": plain(self.config.method),
                "teacher": self.teacher and self.teacher.made_by(),
                "teacher_pictures": self.teacher.kept() if self.teacher and self.learns_from_pictures else None,
            },
            self._taught,
            make=make,
            data=self.pictures.train.manifest_hash(),
            parts=self.teacher.parts if self.teacher else tuple,
        )

    def _taught(self) -> tuple[Method, Pictures]:
        student = build(self.config.student)  # first: its weights follow from the seed alone
        if self.teacher is None:
            return self._method(student, None), self.pictures
        if not self.learns_from_pictures:
            return self._method(student, self.teacher.online()), self.pictures
        train, validation = map(self.teacher.with_merged, (self.pictures.train, self.pictures.validation))
        merged = replace(self.pictures, train=train, validation=validation)
        return self._method(student, Teacher(GivenPicture())), merged

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"bicubic": Bicubic(self.scale)}
        if self.teacher:
            ensemble = self.teacher.ensemble({name: self.teacher.member(name) for name in self.teacher.names})
            given = itertools.count()
            networks |= {
                f"teacher {name}": member.net if member else GivenPicture(next(given))
                for name, member in ensemble.members.items()
            }
            networks[MEAN] = Ensemble(ensemble.members, Mean(self.scale, len(ensemble.members)))
            if not isinstance(ensemble.aggregator, Mean):
                networks[f"aggregator {self.config.aggregator_name}"] = ensemble
        networks["student"] = load(build(self.config.student), self._student())
        return networks


MEAN = "mean of the teachers"


def _has_foreign(student: nn.Module, teacher: Teacher | None) -> bool:
    members = getattr(teacher.net, "members", {"": teacher}).values() if teacher else ()
    return any(isinstance(network, Foreign) for network in (student, *(member.net for member in members if member)))


def _class(target: str) -> type:
    try:
        return get_class(target)
    except Exception as error:
        raise MTKDError(f"method._target_={target} is no class that can be imported: {error}") from error
