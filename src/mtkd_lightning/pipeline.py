"""The stages of the main job. Each leaves a named artefact; one that is there already is verified and skipped."""

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.utils import get_class
from lightning.pytorch import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mtkd_lightning import artifacts, evaluation, report
from mtkd_lightning.artifacts import Artifact, OtherConfigurationError
from mtkd_lightning.config import STAGES, build, plain
from mtkd_lightning.data.batches import TrainingBatches
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.evaluation import Bicubic
from mtkd_lightning.files import file_sha256, replacing
from mtkd_lightning.methods.aggregation import Aggregation
from mtkd_lightning.methods.base import Method
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.metrics.functional import SSIM_SIDE
from mtkd_lightning.networks import Weights, load, locate
from mtkd_lightning.published import load_published, read_tensors
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.cache import Settings, TeacherCache
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher
from mtkd_lightning.training import CHECKPOINT, device_name, resumable, train
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
        self.weights, self.runs = (Path(config.paths[key]).expanduser() for key in ("weights", "runs"))
        self.recipes: dict[str, Recipe] = {stage: build(node) for stage, node in config.training.items()}
        self.pictures: Pictures = build(config.data)
        gpu = config.trainer.accelerator == "gpu" or (
            config.trainer.accelerator == "auto" and torch.cuda.is_available()
        )
        self.device = torch.device("cuda" if gpu else "cpu")
        # Lightning's own "auto" would take an Apple GPU, which has no float64 for the metrics.
        self.trainer = partial(build, config.trainer, accelerator="gpu" if gpu else "cpu")
        kind = _class(config.method._target_)
        self.needs_teacher: bool = getattr(kind, "needs_teacher", True)
        self.learns_from_pictures = bool(config.teacher.cache and getattr(kind, "pictures_suffice", False))
        self.settings = Settings(**{key.name: config.teacher[key.name] for key in fields(Settings)})
        if self.needs_teacher and (folders := [Path(folder).expanduser() for folder in self._folders().values()]):
            self.pictures = self.pictures.with_teachers(folders)
        self._seen_better: set[str] = set()
        self._try()

    def _try(self) -> None:
        """Build everything, networks on shapes alone, and try the losses, so that what cannot work ends here."""
        self.trainer(logger=False)
        if {"evaluation", "report"} & set(self.config.stages):
            self._benchmarks()
        members = {name: self._teacher(name, shape_alone=True) for name in self._members() if self.needs_teacher}
        with torch.device("meta"):
            self._method(build(self.config.student), Teacher(Ensemble(members, self._merger())))
        patch, enlarge = self.recipes["distillation"].lr_patch, nn.Upsample(scale_factor=self.scale)
        lr = torch.zeros(1, 3, patch, patch)
        self._method(enlarge, Teacher(enlarge))(SRBatch(lr, enlarge(lr), [""]))
        if (given := self.recipes["distillation"].init_from) is not None:
            load_published(build(self.config.student), read_tensors(Path(given).expanduser()), given)

    def run(self) -> None:
        """Run each asked stage, in the order in which they depend on each other."""
        self._introduce()
        for stage in STAGES:
            if stage in self.config.stages:
                getattr(self, stage)()

    def teachers(self) -> None:
        """Train every member that has no weights yet."""
        for name in self._members() if self.needs_teacher else ():
            self._member(name, make=True)

    def cache(self) -> None:
        """Make the members' pictures ahead of the stages that would make them when they need them."""
        if self.needs_teacher and self.config.teacher.cache:
            for pairs in (self.pictures.train, self.pictures.validation):
                self._with_members(pairs)

    def aggregation(self) -> None:
        """Stage 1: train the aggregator on the frozen members' pictures."""
        if self.needs_teacher:
            self._aggregator(make=True)

    def distillation(self) -> None:
        """Stage 2: train the student."""
        self._student(make=True)

    def evaluation(self) -> None:
        """Score bicubic, every member, their mean, the aggregator and the student on the benchmarks."""
        if self._metrics() is not None:
            log.info("evaluation: %s is there.", self.folder / "metrics.json")
            return
        metrics = evaluation.evaluate(self._networks(), self._benchmarks(), self.scale, self.device)
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
        report.write_crops(networks, self._benchmarks(), self.scale, self.device, crops)
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
            "teacher": self._teacher_config() if self.needs_teacher else None,
            "benchmarks": {name: pairs.manifest_hash() for name, pairs in self._benchmarks().items()},
        }

    @property
    def folder(self) -> Path:
        """Of this run: curves, metrics, tables, crops."""
        return self.runs / str(self.config.name)

    def _introduce(self) -> None:
        log.info("%s on %s. %s", self.config.name, device_name(self.device), self.pictures.note)
        sets = {"train": self.pictures.train, "validation": self.pictures.validation, **self.pictures.benchmarks}
        for name, pairs in sets.items():
            names = [pair.name for pair in pairs.pairs]
            log.info("  %s: %s", name, ", ".join(names) if len(names) <= 8 else f"{len(names)} pictures")
        if asked := [self.recipes[stage] for stage in self.recipes.keys() & set(self.config.stages)]:
            recipe = max(asked, key=lambda recipe: recipe.lr_patch)
            TrainingBatches(
                self.pictures.train, batch_size=recipe.batch_size, lr_patch=recipe.lr_patch, seed=recipe.seed
            ).prepare(_say_progress)
        for pairs in (self.pictures.validation, *self.pictures.benchmarks.values()):
            smallest = min(min(size) for size in pairs.prepare(_say_progress)) * self.scale
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

    def _members(self) -> list[str]:
        return list(self.config.teacher.members)

    def _folders(self) -> dict[str, str]:
        """Members that are pictures on disk, in the order of a batch's teacher_sr."""
        return {name: node.folder for name, node in self.config.teacher.members.items() if node.get("folder")}

    def _given(self, member: str) -> Weights | None:
        """Weights that the user names for a member, instead of having it trained."""
        text = self.config.teacher.members[member].get("weights")
        return locate(text, self.weights) if text else None

    def _merger(self) -> nn.Module:
        merger: nn.Module = build(self.config.aggregator, members=len(self._members()))
        return merger

    def _method(self, student: nn.Module, teacher: Teacher | None) -> Method:
        arguments = {"teacher": teacher} if self.needs_teacher else {}
        method: Method = build(self.config.method, student=student, **arguments)
        return method

    # Artefacts: found, or made where a stage asks for that.

    def _member(self, name: str, make: bool = False) -> Artifact:
        node = self.config.teacher.members[name]
        if folder := node.get("folder"):
            index = list(self._folders()).index(name)
            return Artifact(Path(folder), {"sha256": self.pictures.train.teacher_hash(index)})
        if given := self._given(name):
            return _file(given.path)
        return self._artifact(
            f"{self.config.teacher.name}_{name}_x{self.scale}",
            "teachers",
            {"network": plain(node.backbone)},
            lambda: (Scratch(build(node.backbone)), self.pictures),
            make,
            seed=node.get("seed"),
        )

    def _aggregator(self, make: bool = False) -> Artifact | None:
        if not list(self._merger().parameters()):
            return None
        return self._artifact(
            f"{self.config.teacher.name}_{'-'.join(self._members())}_x{self.scale}_{self.config.aggregator_name}",
            "aggregation",
            {
                "network": plain(self.config.aggregator),
                "members": self._member_hashes(),
                "teacher_pictures": self._kept(),
            },
            self._merging,
            make,
        )

    def _student(self, make: bool = False) -> Artifact:
        return self._artifact(
            self.config.name,
            "distillation",
            {
                "network": plain(self.config.student),
                "method": plain(self.config.method),
                "teacher": self._teacher_config() if self.needs_teacher else None,
                "teacher_pictures": self._kept() if self.learns_from_pictures else None,
            },
            self._taught,
            make,
        )

    def _artifact(
        self,
        stem: str,
        stage: str,
        config: dict[str, Any],
        method: Callable[[], tuple[Method, Pictures]],
        make: bool,
        seed: int | None = None,
    ) -> Artifact:
        recipe = self.recipes[stage]
        if seed is not None:
            recipe = replace(recipe, seed=seed)
        config = {
            "stage": stage,
            "scale": self.scale,
            **config,
            "recipe": {**plain(self.config.training[stage]), "seed": recipe.seed},
            "init_sha256": recipe.init_from and file_sha256(Path(recipe.init_from).expanduser()),
            "data": self.pictures.train.manifest_hash(),
            "precision": self.config.trainer.precision,
            "gradient_clip_val": self.config.trainer.gradient_clip_val,
        }
        path = self.weights / f"{stem}.safetensors"
        if not make:
            if (found := artifacts.find(path, config)) is None:
                raise MTKDError(f"{path} is not there yet; add {stage} to stages=[...] to make it")
            return found
        with _exclusive(self.runs / stem):
            if (found := self._asked(artifacts.find, path, config, remake=artifacts.put_aside)) is not None:
                log.info("%s: %s is there.", stage, path)
                return found
            log.info("%s: training %s for %d steps.", stage, stem, recipe.steps)
            with replacing(self.runs / stem / "config.yaml") as temporary:
                temporary.write_text(OmegaConf.to_yaml(self.config, resolve=True))
            seed_everything(recipe.seed, verbose=False)
            trained, pictures = method()
            if recipe.init_from is not None:
                source = Path(recipe.init_from).expanduser()
                load_published(_learned(trained.student), read_tensors(source), source)
            record = train(
                trained,
                recipe,
                pictures,
                trainer=self.trainer,
                run=self.runs / stem,
                checkpoint=self._asked(resumable, self.runs / stem, config, remake=_delete_checkpoint),
                config=config,
                label=f"{stage} {stem}",
                num_workers=self.config.num_workers,
            )
            artifact = artifacts.save(path, _learned(trained.student).state_dict(), config, **record)
            _delete_checkpoint(self.runs / stem)
            log.info("%s: wrote %s, validation PSNR %.2f dB.", stage, path, record["metrics"]["val/psnr"])
            return artifact

    def _asked(
        self,
        find: Callable[[Path, dict[str, Any]], Any],
        path: Path,
        config: dict[str, Any],
        *,
        remake: Callable[[Path], None],
    ) -> Any:
        """Find what is on disk; if another configuration made it, stop, or with existing=remake put it away."""
        try:
            return find(path, config)
        except OtherConfigurationError:
            if self.config.existing != "remake":
                raise
            remake(path)
            return None

    # What is loaded from artefacts.

    def _member_hashes(self) -> list[list[str]]:
        return [[name, self._member(name).sha256] for name in self._members()]

    def _teacher_config(self) -> dict[str, Any]:
        aggregator = self._aggregator()
        return {
            "members": self._member_hashes(),
            "aggregator": plain(self.config.aggregator),
            "aggregator_sha256": aggregator and aggregator.sha256,
        }

    def _teacher(self, name: str, shape_alone: bool = False) -> Teacher | None:
        """A member with its weights, or None if it is a folder of pictures.

        With ``shape_alone`` one that is trained here is built without memory or weights.
        """
        node = self.config.teacher.members[name]
        if node.get("folder"):
            return None
        if (given := self._given(name)) is None:
            with torch.device("meta" if shape_alone else "cpu"):
                network: nn.Module = build(node.backbone)
            return Teacher(network if shape_alone else _load(network, self._member(name)))
        if node.get("backbone"):
            network = build(node.backbone)
            load_published(network, read_tensors(given.path), given.path)
        else:
            network = load(given)
        if (scale := getattr(network, "scale", self.scale)) != self.scale:
            raise MTKDError(f"teacher.members.{name}.weights={node.weights} enlarge x{scale}, but scale={self.scale}")
        return Teacher(network)

    def _approved(self, name: str) -> Teacher | None:
        """A member, after it has shown that it is better than bicubic."""
        member = self._teacher(name)
        if name in self._seen_better:
            return member
        network = member.net if member else GivenPicture(list(self._folders()).index(name))
        own, bicubic = evaluation.beside_bicubic(network, self.pictures.validation, self.device)
        log.info("teacher %s: %.2f dB on a few validation pictures, bicubic %.2f dB.", name, own, bicubic)
        if not own > bicubic and not self.config.teacher.accept_weak:
            raise MTKDError(
                f"teacher {name} scores {own:.2f} dB on a few validation pictures, bicubic {bicubic:.2f} dB: "
                "nothing can be learnt from it. Weights of another network or scale, another range of values or "
                "another way of making LR pictures are the usual reasons, or a training that was too short. "
                "To teach with it nevertheless say teacher.accept_weak=true."
            )
        self._seen_better.add(name)
        return member

    def _ensemble(self, members: dict[str, Teacher | None]) -> Ensemble:
        merger, aggregator = self._merger(), self._aggregator()
        return Ensemble(members, _load(merger, aggregator) if aggregator else merger)

    # What is trained, and on which pictures. What learns is built first: its weights follow from the seed alone.

    def _merging(self) -> tuple[Method, Pictures]:
        """Stage 1."""
        merger = self._merger()
        if not self.config.teacher.cache:
            members = {name: self._approved(name) for name in self._members()}
            return Aggregation(Ensemble(members, merger)), self.pictures
        train, validation = map(self._with_members, (self.pictures.train, self.pictures.validation))
        merged = replace(self.pictures, train=train, validation=validation)
        return Aggregation(Ensemble(dict.fromkeys(self._members()), merger)), merged

    def _taught(self) -> tuple[Method, Pictures]:
        """Stage 2."""
        student = build(self.config.student)
        if not self.needs_teacher:
            return self._method(student, None), self.pictures
        if not self.learns_from_pictures:
            members = {name: self._approved(name) for name in self._members()}
            return self._method(student, Teacher(self._ensemble(members))), self.pictures
        merged = replace(self.pictures, train=self._with_merged(self.pictures.train))
        return self._method(student, Teacher(GivenPicture())), merged

    # Teachers' pictures, made once.

    def _kept(self) -> dict[str, Any] | None:
        """How teachers' pictures are made and kept, or None where the teachers run online."""
        return asdict(self.settings) if self.config.teacher.cache else None

    def _with_members(self, pairs: PairedImages) -> PairedImages:
        """Every member's picture beside each pair."""
        given = iter(zip(*(pair.teachers for pair in pairs.pairs), strict=True))
        bare = pairs.with_files([])
        return pairs.with_files(
            [next(given) if name in self._folders() else self._pictures_of(name, bare) for name in self._members()]
        )

    def _pictures_of(self, name: str, pairs: PairedImages) -> list[Path]:
        def network() -> nn.Module:
            member = self._approved(name)
            assert member is not None
            return member.net

        return self._cache(self._member(name).sha256).make(
            pairs, network, self.device, f"teacher {name}", _say_progress
        )

    def _with_merged(self, pairs: PairedImages) -> PairedImages:
        """The ensemble's picture beside each pair."""
        members = self._with_members(pairs)
        names = self._members()
        if len(names) == 1 and isinstance(self._merger(), Mean):
            return members
        cache = self._cache(self._teacher_config())
        ensemble = partial(self._ensemble, dict.fromkeys(names))
        label = f"aggregator {self.config.aggregator_name}"
        return pairs.with_files([cache.make(members, ensemble, self.device, label, _say_progress)])

    def _cache(self, made_by: Any) -> TeacherCache:
        return TeacherCache(Path(self.config.paths.cache).expanduser() / "teachers", self.settings, made_by)

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"bicubic": Bicubic(self.scale)}
        if self.needs_teacher:
            ensemble = self._ensemble({name: self._teacher(name) for name in self._members()})
            given = itertools.count()
            networks |= {
                f"teacher {name}": member.net if member else GivenPicture(next(given))
                for name, member in ensemble.members.items()
            }
            networks[MEAN] = Ensemble(ensemble.members, Mean(self.scale, len(ensemble.members)))
            if not isinstance(ensemble.aggregator, Mean):
                networks[f"aggregator {self.config.aggregator_name}"] = ensemble
        student = self._student()
        networks["student"] = _load(build(self.config.student), student)
        return networks


MEAN = "mean of the teachers"


@cache
def _file(path: Path) -> Artifact:
    return Artifact(path, {"sha256": file_sha256(path)})


def _class(target: str) -> type:
    try:
        return get_class(target)
    except Exception as error:
        raise MTKDError(f"method._target_={target} is no class that can be imported: {error}") from error


def _say_progress(done: int, total: int) -> None:
    if total > 50 and done % 50 == 0:
        log.info("  decoded %d of %d pictures", done, total)


def _delete_checkpoint(run: Path) -> None:
    (run / CHECKPOINT).unlink(missing_ok=True)


def _learned(student: nn.Module) -> nn.Module:
    return student.aggregator if isinstance(student, Ensemble) else student


def _load(network: nn.Module, artifact: Artifact) -> nn.Module:
    tensors = artifact.tensors() if artifact.record.get("config") else read_tensors(artifact.path)
    artifacts.load_into(network, tensors, artifact.path)
    return network


@contextmanager
def _exclusive(run: Path) -> Iterator[None]:
    """Hold what one run may train at a time; the system lets go of it when a process dies."""
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Another run is training %s; waiting for it.", run.name)
        lock.acquire()
    try:
        for left_by_a_killed_run in run.glob(".*.tmp"):
            left_by_a_killed_run.unlink()
        yield
    finally:
        lock.release()
