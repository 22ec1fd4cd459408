"""The stages of the main job. Each leaves a named artefact; one that is there already is verified and skipped."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import nn

from mtkd_lightning import ranks
from mtkd_lightning.artifacts import Artifact
from mtkd_lightning.backbones.foreign import Foreign
from mtkd_lightning.config import STAGES, build, plain
from mtkd_lightning.data.batches import TrainingBatches
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.errors import MTKDError, enough_memory
from mtkd_lightning.evaluation import refuse_small
from mtkd_lightning.lineup import Lineup
from mtkd_lightning.making import Maker, exclusive, say_progress
from mtkd_lightning.methods.base import Method
from mtkd_lightning.network_tables import write_tables
from mtkd_lightning.published import load_published, read_tensors
from mtkd_lightning.report.page import write_report
from mtkd_lightning.scoring import Scoring
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher
from mtkd_lightning.training import device_name, without_expected_warnings
from mtkd_lightning.typing import SRBatch

log = logging.getLogger(__name__)

LESS_MEMORY = (
    "a step needs less with trainer.accumulate_grad_batches=2 or trainer=bf16, teachers' pictures with a smaller "
    "teacher.tile; pictures of validation and benchmarks are enlarged whole"
)


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
        suffice = getattr(kind, "pictures_suffice", False)
        # A batch has room for one kind of pictures: an ensemble that runs needs those of its members that are folders.
        self.keeps_pictures = bool(self.teacher and self.teacher.cached and (suffice or not self.teacher.has_folders))
        self.runs_teacher = not (self.keeps_pictures and suffice)
        self.pictures = self.teacher.pictures if self.teacher else pictures
        self._try()

    def _try(self) -> None:
        """Build everything and take a step, all on shapes alone, so that what cannot work ends here."""
        with without_expected_warnings():
            self.maker.trainer(logger=False)
        for stage, recipe in self.maker.recipes.items():
            try:
                recipe.optimizer([nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
            except (TypeError, ValueError, RuntimeError) as error:
                raise MTKDError(f"training.{stage}.optimizer cannot be built: {error}") from error
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
            pictures = 1 if self.keeps_pictures else len(self.pictures.train.pairs[0].teachers)
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
        if not self.runs_teacher:
            return Teacher(GivenPicture())
        return self.teacher.alone(members) or Teacher(Ensemble(members, merger))

    def run(self) -> None:
        """Run each asked stage, in the order in which they depend on each other."""
        ranks.first(self._introduce)
        for stage in STAGES:
            if stage in self.config.stages and (ranks.rank() == 0 or stage not in ("evaluation", "report")):
                with enough_memory(f"{stage} on {device_name(self.maker.device)}; {LESS_MEMORY}"):
                    getattr(self, stage)()

    def teachers(self) -> None:
        """Train every member that has no weights yet."""
        if self.teacher:
            for name in self.teacher.names:
                self.teacher.artifact_of(name, make=True)

    def cache(self) -> None:
        """Make the members' pictures, and the merged ones once stage 1 is done, ahead of the stages that need them."""
        if self.teacher and self.teacher.cached:
            make = self.teacher.with_merged if self.teacher.is_trained() else self.teacher.with_members
            for pairs in (self.pictures.train, self.pictures.validation):
                make(pairs)

    def aggregation(self) -> None:
        """Stage 1: train the aggregator on the frozen members' pictures."""
        if self.teacher:
            self.teacher.aggregator(make=True)

    def distillation(self) -> None:
        """Stage 2: train the student."""
        self._student(make=True)

    def evaluation(self) -> None:
        """Score bicubic, every member, their mean, the aggregator and the student on the benchmarks."""
        self._scoring().make()

    def report(self) -> None:
        """Write and show this run's table; write the page of all runs."""
        scoring = self._scoring()
        metrics, folder = scoring.found(), scoring.folder
        if metrics is None:
            raise MTKDError(f"there is no {folder / 'metrics.json'} of these networks; add evaluation to stages=[...]")
        with exclusive(folder):
            table = write_tables(metrics, folder, self.config.name, self.pictures.note)
        log.info("\n%s\nTable: %s and results.csv", table, folder / "results.md")
        page = write_report([self.maker.runs], Path(self.config.paths.root).expanduser() / "report")
        log.info("Report: %s", page)

    def validation_psnr(self) -> float | None:
        """The student's PSNR-Y on the validation pictures, in dB; None where no stage is about the student."""
        if not {"distillation", "evaluation", "report"} & set(self.config.stages):
            return None
        return float(self._student().record["metrics"]["val/psnr"])

    def _scoring(self) -> Scoring:
        learns_from = ("kept" if self.keeps_pictures else "online") if self.teacher else None
        return Scoring(self.config, self.maker, self.teacher, self._benchmarks(), self._student, learns_from)

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
        self._need_space()
        for pairs in (self.pictures.validation, *self.pictures.benchmarks.values()):
            refuse_small(pairs, pairs.prepare(say_progress))

    def _need_space(self) -> None:
        """Refuse, before anything is trained, what the teachers' pictures of the asked stages will not fit."""
        if not (self.teacher and self.keeps_pictures):
            return
        stages, trained = self.config.stages, self.teacher.is_trained()
        merged = ("distillation" in stages and not self._has_student()) or ("cache" in stages and trained)
        if merged or (not trained and {"cache", "aggregation"} & set(stages)):
            self.teacher.need_space(merged)

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
                "teacher_pictures": self.teacher.kept() if self.teacher and self.keeps_pictures else None,
            },
            self._taught,
            make=make,
            data=self.pictures.train.manifest_hash(),
            parts=self.teacher.parts if self.teacher else tuple,
        )

    def _has_student(self) -> bool:
        try:
            return bool(self._student())
        except MTKDError:  # there is none, or the stage says what is wrong
            return False

    def _taught(self) -> tuple[Method, Pictures]:
        student = build(self.config.student)  # first: its weights follow from the seed alone
        if self.teacher is None:
            return self._method(student, None), self.pictures
        pictures = self.pictures
        with torch.random.fork_rng(devices=[]):  # adapters start alike, whether or not pictures are there already
            if self.keeps_pictures:
                train, validation = map(self.teacher.with_merged, (pictures.train, pictures.validation))
                pictures = replace(pictures, train=train, validation=validation)
            teacher = self.teacher.online() if self.runs_teacher else Teacher(GivenPicture())
        return self._method(student, teacher), pictures


def _has_foreign(student: nn.Module, teacher: Teacher | None) -> bool:
    members = getattr(teacher.net, "members", {"": teacher}).values() if teacher else ()
    return any(isinstance(network, Foreign) for network in (student, *(member.net for member in members if member)))


def _class(target: str) -> type:
    try:
        return get_class(target)
    except Exception as error:
        raise MTKDError(f"method._target_={target} is no class that can be imported: {error}") from error
