"""Finished networks by name: found on disk, or trained and left there where a stage asks for that."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mtkd_lightning import artifacts, ranks
from mtkd_lightning.artifacts import Artifact, OtherConfigurationError, digest
from mtkd_lightning.callbacks.pruning import pruning
from mtkd_lightning.config import build, plain
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import alone, file_sha256, write_text
from mtkd_lightning.launch import on_gpu
from mtkd_lightning.loggers import Tracker
from mtkd_lightning.methods.base import Method
from mtkd_lightning.published import load_published, read_tensors
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.teacher import Ensemble
from mtkd_lightning.training import CHECKPOINT, resumable, train

log = logging.getLogger(__name__)


class Maker:
    """Finds and makes the artefacts of a run.

    Attributes:
        device: where networks run.
        trainer: builds Lightning's trainer.
        recipes: by stage.
        weights: folder of finished networks.
        runs: folder of what trainings leave.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = config
        self.weights, self.runs = (Path(config.paths[key]).expanduser() for key in ("weights", "runs"))
        self.recipes: dict[str, Recipe] = {stage: build(node) for stage, node in config.training.items()}
        self.device = torch.device("cuda" if on_gpu(config) else "cpu")
        if self.device.type == "cpu" and config.trainer.precision == "16-mixed":
            raise MTKDError("trainer.precision=16-mixed needs a GPU; on a CPU say bf16-mixed, trainer=bf16")
        self.trainer = partial(
            build,
            config.trainer,
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=ranks.per_node(),
            num_nodes=ranks.count() // ranks.per_node(),
        )

    def artifact(
        self,
        stem: str,
        stage: str,
        config: dict[str, Any],
        method: Callable[[], tuple[Method, Pictures]],
        *,
        make: bool,
        data: str,
        seed: int | None = None,
        parts: Callable[[], Sequence[tuple[str, Artifact]]] = tuple,
    ) -> Artifact:
        """Give the network of a name, trained first if ``make`` asks for that and it is not there.

        Args:
            stem: its name.
            stage: whose recipe trains it.
            config: what decides its weights beside recipe, data and precision.
            method: builds what is trained, right after seeding, and the pictures for that.
            make: train it if it is not there.
            data: hash of the training pictures.
            seed: in place of the recipe's.
            parts: gives the (type, network) that it is made of.

        Raises:
            MTKDError: it is not there, or another configuration made it, or its training fails.
        """
        recipe = self.recipes[stage]
        if seed is not None:
            recipe = replace(recipe, seed=seed)
        settings = plain(self.config.training[stage])
        clip = settings.pop("gradient_clip_val")  # stands beside the recipe, as it did when trainer alone had it
        config = {
            "stage": stage,
            "scale": self.config.scale,
            **config,
            "recipe": {**settings, "seed": recipe.seed},
            "init_sha256": recipe.init_from and file_sha256(Path(recipe.init_from).expanduser()),
            "data": data,
            "precision": self.config.trainer.precision,
            "gradient_clip_val": clip,
            "accumulate_grad_batches": self.config.trainer.accumulate_grad_batches,
        }
        path = self.weights / f"{stem}.safetensors"
        if not make:
            if (found := artifacts.find(path, config)) is None:
                raise MTKDError(f"{path} is not there yet; add {stage} to stages=[...] to make it")
            return found
        with ExitStack() as held:
            # The first rank alone asks, holds and writes; what it finds, all do.
            ranks.first(held.enter_context, exclusive(self.runs / stem))
            if (
                found := ranks.first(self._asked, artifacts.find, path, config, remake=artifacts.put_aside)
            ) is not None:
                ranks.first(found.verify)
                log.info("%s: %s is there.", stage, path)
                return found
            checkpoint = ranks.first(self._asked, resumable, self.runs / stem, config, remake=_delete_checkpoint)
            log.info("%s: training %s for %d steps.", stage, stem, recipe.steps)
            ranks.first(write_text, self.runs / stem / "config.yaml", OmegaConf.to_yaml(self.config, resolve=True))
            seed_everything(recipe.seed, verbose=False)
            trained, pictures = method()
            if recipe.init_from is not None:
                source = Path(recipe.init_from).expanduser()
                load_published(_learned(trained.student), read_tensors(source), source)
            tracker = held.enter_context(
                Tracker(self.config, stage, stem, recipe.seed, self.runs / stem, checkpoint=checkpoint)
            )
            initial = digest(_learned(trained.student).state_dict())
            record = train(
                trained,
                recipe,
                pictures,
                trainer=self.trainer,
                run=self.runs / stem,
                checkpoint=checkpoint,
                config=config,
                label=f"{stage} {stem}",
                num_workers=self.config.num_workers,
                compiled=self.config.compile and stage == "distillation",
                loggers=tracker.loggers,
                callbacks=[*tracker.callbacks(), *(pruning() if stage == "distillation" else [])],
            )
            weights = _learned(trained.student).state_dict()
            artifact = ranks.first(artifacts.save, path, weights, config, initial_sha256=initial, **record)
            tracker.made(artifact, parts)
            ranks.first(_delete_checkpoint, self.runs / stem)
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


def load(network: nn.Module, artifact: Artifact) -> nn.Module:
    """Load an artefact's weights strictly."""
    artifacts.load_into(network, artifact.tensors(), artifact.path)
    return network


def say_progress(done: int, total: int) -> None:
    """Log how far a preparation is, where it takes long."""
    if total > 50 and done % 50 == 0:
        log.info("  %d of %d pictures", done, total)


def _delete_checkpoint(run: Path) -> None:
    (run / CHECKPOINT).unlink(missing_ok=True)


def _learned(student: nn.Module) -> nn.Module:
    return student.aggregator if isinstance(student, Ensemble) else student


@contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Hold a run's folder, which is cleared of half-written files: so whoever writes into it must hold it."""
    with alone(run / ".lock", f"Another run is at work on {run.name}; waiting for it."):
        for left_by_a_killed_run in run.glob(".*.tmp"):
            left_by_a_killed_run.unlink(missing_ok=True)
        yield
