"""The stages of the main job. Each leaves a named artefact; one that is there already is verified and skipped."""

import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import nn

from mtkd_lightning import evaluation, report
from mtkd_lightning.artifacts import Artifact
from mtkd_lightning.config import STAGES, build, plain
from mtkd_lightning.data.batches import TrainingBatches
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.evaluation import Bicubic
from mtkd_lightning.files import replacing
from mtkd_lightning.lineup import Lineup
from mtkd_lightning.making import Maker, load, say_progress
from mtkd_lightning.methods.base import Method
from mtkd_lightning.metrics.functional import SSIM_SIDE
from mtkd_lightning.published import load_published, read_tensors
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
        """Build everything, networks on shapes alone, and try the losses, so that what cannot work ends here."""
        self.maker.trainer(logger=False)
        if {"evaluation", "report"} & set(self.config.stages):
            self._benchmarks()
        teacher = self.teacher
        members = {name: teacher.member(name, shape_alone=True) for name in teacher.names} if teacher else {}
        with torch.device("meta"):
            merger = build(self.config.aggregator, members=len(self.config.teacher.members))
            self._method(build(self.config.student), Teacher(Ensemble(members, merger)))
        distillation = self.maker.recipes["distillation"]
        patch, enlarge = distillation.lr_patch, nn.Upsample(scale_factor=self.scale)
        lr = torch.zeros(1, 3, patch, patch)
        self._method(enlarge, Teacher(enlarge))(SRBatch(lr, enlarge(lr), [""]))
        if (given := distillation.init_from) is not None:
            load_published(build(self.config.student), read_tensors(Path(given).expanduser()), given)

    def run(self) -> None:
        """Run each asked stage, in the order in which they depend on each other."""
        self._introduce()
        for stage in STAGES:
            if stage in self.config.stages:
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
        if self._metrics() is not None:
            log.info("evaluation: %s is there.", self.folder / "metrics.json")
            return
        metrics = evaluation.evaluate(self._networks(), self._benchmarks(), self.scale, self.maker.device)
        with replacing(self.folder / "metrics.json") as temporary:
            temporary.write_text(json.dumps({"of": self._evaluated(), **metrics}, indent=1) + "\n")

    def report(self) -> None:
        """Write the table and the crops, and show the table."""
        metrics = self._metrics()
        if metrics is None:
            raise MTKDError(
                f"there is no {self.folder / 'metrics.json'} of these networks; add evaluation to stages=[...]"
            )
        table = report.write_tables(metrics, self.folder, self.config.name, self.pictures.note)
        networks = {name: net for name, net in self._networks().items() if name != MEAN}
        crops = self.folder / "crops.png"
        report.write_crops(networks, self._benchmarks(), self.scale, self.maker.device, crops)
        log.info("\n%s\nTable: %s and results.csv; crops: %s", table, self.folder / "results.md", crops)

    def _metrics(self) -> dict[str, Any] | None:
        """What the evaluation of exactly these networks and pictures left, if it is there."""
        try:
            metrics: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        except (OSError, ValueError):
            return None
        return metrics if metrics.get("of") == self._evaluated() else None

    def _evaluated(self) -> dict[str, Any]:
        return {
            "student": self._student().sha256,
            "teacher": self.teacher and self.teacher.made_by(),
            "benchmarks": {
                name: [pairs.manifest_hash(), *pairs.teacher_hashes()] for name, pairs in self._benchmarks().items()
            },
        }

    @property
    def folder(self) -> Path:
        """Of this run: curves, metrics, tables, crops."""
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
        )

    def _taught(self) -> tuple[Method, Pictures]:
        student = build(self.config.student)  # first: its weights follow from the seed alone
        if self.teacher is None:
            return self._method(student, None), self.pictures
        if not self.learns_from_pictures:
            members = {name: self.teacher.approved(name) for name in self.teacher.names}
            return self._method(student, Teacher(self.teacher.ensemble(members))), self.pictures
        merged = replace(self.pictures, train=self.teacher.with_merged(self.pictures.train))
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


def _class(target: str) -> type:
    try:
        return get_class(target)
    except Exception as error:
        raise MTKDError(f"method._target_={target} is no class that can be imported: {error}") from error
