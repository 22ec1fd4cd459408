"""The stages of the main job. Each leaves a named artefact; one that is there already is verified and skipped."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.utils import get_class
from lightning.pytorch import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mtkd_lightning import artifacts, report
from mtkd_lightning.artifacts import Artifact, OtherConfigurationError
from mtkd_lightning.config import STAGES, build, plain
from mtkd_lightning.data.batches import TrainingBatches
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.evaluation import Bicubic, evaluate
from mtkd_lightning.files import file_sha256, replacing
from mtkd_lightning.methods.base import Method
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.training import CHECKPOINT, resumable, train

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
        self.weights, self.runs = Path(config.paths.weights), Path(config.paths.runs)
        self.recipes: dict[str, Recipe] = {stage: build(node) for stage, node in config.training.items()}
        self.pictures: Pictures = build(config.data)
        self.needs_teacher: bool = getattr(get_class(config.method._target_), "needs_teacher", True)
        self.has_gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
        with torch.device("meta"):
            ensemble = Ensemble({name: Teacher(self._network(name)) for name in self._members()}, self._merger())
            self._method(build(config.student), Teacher(ensemble))
        build(config.trainer, logger=False)
        for name in self._members():
            if config.teacher.members[name].get("weights"):
                _load(self._network(name), self._member(name))
        for recipe in self.recipes.values():
            if recipe.init_from is not None:
                artifacts.read_weights(Path(recipe.init_from))

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

    def aggregation(self) -> None:
        """Stage 1: train the aggregator on the frozen members' pictures."""
        if self.needs_teacher:
            self._aggregator(make=True)

    def distillation(self) -> None:
        """Stage 2: train the student."""
        self._student(make=True)

    def evaluation(self) -> None:
        """Score bicubic, every member, their mean, the aggregator and the student on the benchmarks."""
        path = self.folder / "metrics.json"
        what = {
            "student": self._student().sha256,
            "teacher": self._teacher_config() if self.needs_teacher else None,
            "benchmarks": {name: pairs.manifest_hash() for name, pairs in self._benchmarks().items()},
        }
        if path.exists() and json.loads(path.read_text())["of"] == what:
            log.info("evaluation: %s is there.", path)
            return
        metrics = evaluate(self._networks(), self._benchmarks(), self.scale, self._device())
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"of": what, **metrics}, indent=1) + "\n")

    def report(self) -> None:
        """Write the table and the crops, and show the table."""
        path = self.folder / "metrics.json"
        if not path.exists():
            raise MTKDError(f"stage report needs {path}; add evaluation to stages=[...]")
        metrics = json.loads(path.read_text())
        table = report.write_tables(metrics, self.folder, self.config.name, self.pictures.note)
        networks = {name: net for name, net in self._networks().items() if name != MEAN}
        crops = self.folder / "crops.png"
        report.write_crops(networks, self._benchmarks(), self.scale, self._device(), crops)
        log.info("\n%s\nTable: %s and results.csv; crops: %s", table, self.folder / "results.md", crops)

    @property
    def folder(self) -> Path:
        """Of this run: curves, metrics, tables, crops."""
        return self.runs / str(self.config.name)

    def _introduce(self) -> None:
        log.info("%s on %s. %s", self.config.name, self._device(), self.pictures.note)
        sets = {"train": self.pictures.train, "validation": self.pictures.validation, **self.pictures.benchmarks}
        for name, pairs in sets.items():
            names = [pair.name for pair in pairs.pairs]
            log.info("  %s: %s", name, ", ".join(names) if len(names) <= 8 else f"{len(names)} pictures")
        for pairs in sets.values():
            pairs.prepare()
        for stage in self.recipes.keys() & set(self.config.stages):
            recipe = self.recipes[stage]
            TrainingBatches(
                self.pictures.train, batch_size=recipe.batch_size, lr_patch=recipe.lr_patch, seed=recipe.seed
            ).prepare()
        with replacing(self.folder / "config.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(self.config, resolve=True))

    def _device(self) -> torch.device:
        return torch.device("cuda" if self.has_gpu else "cpu")

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

    def _network(self, member: str) -> nn.Module:
        network: nn.Module = build(self.config.teacher.members[member].backbone)
        return network

    def _merger(self) -> nn.Module:
        merger: nn.Module = build(self.config.aggregator, members=len(self._members()))
        return merger

    def _method(self, student: nn.Module, teacher: Teacher | None) -> Method:
        arguments = {"teacher": teacher} if self.needs_teacher else {}
        # Not through the configuration system, which would copy what it is given.
        method: Method = build(self.config.method, student=student, **arguments)
        return method

    # Artefacts: found, or made where a stage asks for that.

    def _member(self, name: str, make: bool = False) -> Artifact:
        node = self.config.teacher.members[name]
        if given := node.get("weights"):
            if not Path(given).is_file():
                raise MTKDError(f"teacher.members.{name}.weights={given}: there is no such file")
            return Artifact(Path(given), {"sha256": file_sha256(Path(given))})
        return self._artifact(
            f"{self.config.teacher.name}_{name}_x{self.scale}",
            "teachers",
            {"network": plain(node.backbone)},
            lambda: Scratch(self._network(name)),
            make,
        )

    def _aggregator(self, make: bool = False) -> Artifact | None:
        if not list(self._merger().parameters()):
            return None
        return self._artifact(
            f"{self.config.teacher.name}_{'-'.join(self._members())}_x{self.scale}_{self.config.aggregator_name}",
            "aggregation",
            {"network": plain(self.config.aggregator), "members": self._member_hashes()},
            lambda: Scratch(Ensemble(self._loaded_members(), self._merger())),
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
            },
            lambda: self._method(build(self.config.student), Teacher(self._ensemble()) if self.needs_teacher else None),
            make,
        )

    def _artifact(
        self, stem: str, stage: str, config: dict[str, Any], method: Callable[[], Method], make: bool
    ) -> Artifact:
        recipe = self.recipes[stage]
        config = {
            "stage": stage,
            "scale": self.scale,
            **config,
            "recipe": plain(self.config.training[stage]),
            "init_sha256": recipe.init_from and file_sha256(Path(recipe.init_from)),
            "data": self.pictures.train.manifest_hash(),
            "precision": self.config.trainer.precision,
        }
        path = self.weights / f"{stem}.safetensors"
        found: Artifact | None = self._asked(artifacts.find, path, config, remake=artifacts.put_aside)
        if found is not None:
            if make:
                log.info("%s: %s is there.", stage, path)
            return found
        if not make:
            raise MTKDError(f"{path} is not there yet; add {stage} to stages=[...] to make it")
        with _exclusive(self.runs / stem):
            if (found := artifacts.find(path, config)) is not None:  # another run made it meanwhile
                return found
            log.info("%s: training %s for %d steps.", stage, stem, recipe.steps)
            seed_everything(recipe.seed, verbose=False)
            trained = method()
            if recipe.init_from is not None:
                source = Path(recipe.init_from)
                artifacts.load_into(_learned(trained.student), artifacts.read_weights(source), source)
            record = train(
                trained,
                recipe,
                self.pictures,
                trainer=partial(build, self.config.trainer),
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

    def _loaded_members(self) -> dict[str, Teacher]:
        return {name: Teacher(_load(self._network(name), self._member(name))) for name in self._members()}

    def _ensemble(self) -> Ensemble:
        merger, aggregator = self._merger(), self._aggregator()
        return Ensemble(self._loaded_members(), _load(merger, aggregator) if aggregator else merger)

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module] = {"bicubic": Bicubic(self.scale)}
        if self.needs_teacher:
            ensemble = self._ensemble()
            networks |= {f"teacher {name}": member.net for name, member in ensemble.members.items()}
            networks[MEAN] = Ensemble(ensemble.members, Mean(self.scale, len(ensemble.members)))
            if not isinstance(ensemble.aggregator, Mean):
                networks[f"aggregator {self.config.aggregator_name}"] = ensemble
        student = self._student()
        networks["student"] = _load(build(self.config.student), student)
        return networks


MEAN = "mean of the teachers"


def _delete_checkpoint(run: Path) -> None:
    (run / CHECKPOINT).unlink(missing_ok=True)


def _learned(student: nn.Module) -> nn.Module:
    return student.aggregator if isinstance(student, Ensemble) else student


def _load(network: nn.Module, artifact: Artifact) -> nn.Module:
    tensors = artifact.tensors() if artifact.record.get("config") else artifacts.read_weights(artifact.path)
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
        yield
    finally:
        lock.release()
