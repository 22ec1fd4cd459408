"""Train one network as a recipe says: start, resume or find that it is done."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mtkd_lightning import artifacts, ranks
from mtkd_lightning.callbacks.ema import EMA
from mtkd_lightning.callbacks.monitor import Monitor
from mtkd_lightning.callbacks.progress import progress
from mtkd_lightning.data.datamodule import SRDataModule
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.errors import Interrupted, MTKDError
from mtkd_lightning.files import replacing
from mtkd_lightning.methods.base import Method
from mtkd_lightning.metrics.functional import Protocol
from mtkd_lightning.module import SRModule
from mtkd_lightning.recipe import Recipe

log = logging.getLogger(__name__)


def train(
    method: Method,
    recipe: Recipe,
    pictures: Pictures,
    *,
    trainer: Callable[..., Trainer],
    run: Path,
    checkpoint: Path | None,
    config: dict[str, Any],
    label: str,
    num_workers: int = 0,
    compiled: bool = False,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train ``method.student`` to the recipe's last step.

    The averaged weights are left in the student.

    Args:
        method: what is trained; its student has its initial weights.
        recipe: how.
        pictures: on what.
        trainer: ``(**arguments) -> Trainer``, a machine's part of the settings.
        run: folder of the checkpoint and the logged curves.
        checkpoint: what to go on from, see `resumable`.
        config: everything that decides the weights.
        label: what the progress bar calls it.
        num_workers: of the loader.
        compiled: whether ``torch.compile`` makes the student's steps.
        loggers: beside the one that writes CSV into ``run``.
        callbacks: what else is to happen around a step.

    Returns:
        Steps, seconds (all sittings together), pictures or patches that teachers enlarged at these steps, and
        validation metrics, for the sidecar.

    Raises:
        MTKDError: a loss that is not finite, no space, an interrupt.
    """
    if checkpoint is not None:
        log.info("%s: going on from %s.", label, checkpoint)
    protocol = Protocol(crop_border=pictures.train.scale)
    module = SRModule(method, recipe, protocol)
    record = Record(config)
    data = SRDataModule(pictures, recipe, num_workers)
    if compiled:
        method.student.compile()
    with without_expected_warnings():
        loop = trainer(
            max_steps=recipe.steps,
            gradient_clip_val=recipe.gradient_clip_val,
            val_check_interval=min(recipe.validate_every, recipe.steps),
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            logger=[CSVLogger(run, name="curves"), *loggers],
            plugins=[WholeCheckpoints(), *filter(None, [ranks.environment()])],
            callbacks=[
                record,
                *([EMA(recipe.ema_decay)] if recipe.ema_decay is not None else []),
                Monitor(recipe.batch_size),
                *callbacks,
                progress(label),
                StepCheckpoints(
                    run,
                    CHECKPOINT.removesuffix(".ckpt"),
                    every_n_train_steps=recipe.checkpoint_every,
                    enable_version_counter=False,
                ),
            ],
        )
        loop.log_every_n_steps = min(loop.log_every_n_steps, recipe.steps)  # type: ignore[attr-defined]
        loop.val_check_interval *= loop.accumulate_grad_batches  # Lightning counts parts of batches there
        try:
            loop.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit:  # Lightning's way to end on Ctrl-C and on SIGTERM
            raise Interrupted(
                f"{label} was interrupted at step {loop.global_step} of {recipe.steps}; the same command goes on from "
                f"the last checkpoint (one each {recipe.checkpoint_every} steps)"
            ) from None
        if loop.global_step != recipe.steps:
            raise MTKDError(f"{label} ended at step {loop.global_step} of {recipe.steps}; a callback stopped it")
        (metrics,) = loop.validate(module, data, verbose=False)
    return {
        "steps": recipe.steps,
        "seconds": round(record.seconds, 1),
        "teacher_passes": record.teacher_passes,
        "seed": recipe.seed,
        "metrics": {key: round(value, 4) for key, value in metrics.items()},
        "protocol": str(protocol),
        "device": device_name(loop.strategy.root_device),
        "processes": record.processes,
    }


def resumable(run: Path, config: dict[str, Any]) -> Path | None:
    """Give the checkpoint in ``run`` that a training of ``config`` can go on from, or None if there is none.

    Raises:
        OtherConfigurationError: the one that is there belongs to another configuration.
        MTKDError: it cannot be read.
    """
    checkpoint = run / CHECKPOINT
    if not checkpoint.exists():
        return None
    try:
        made_by = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["callbacks"]["Record"]
    except Exception as error:
        raise MTKDError(f"{checkpoint} cannot be read ({error}); delete it to start that training anew") from error
    artifacts.refuse_other(checkpoint, made_by["config"], config, made_by["config_hash"])
    return checkpoint


def device_name(device: torch.device) -> str:
    """What a device is called in records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


CHECKPOINT = "last.ckpt"

# Each is a choice of ours that Lightning finds unusual.
EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # a batch is slices of a memory map
    ".*Checkpoint directory .* exists and is not empty.*",  # that is a resumed run
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*smaller than the logging interval.*",  # then the last step is logged
    ".*recommended to use `self.log.'val/.*sync_dist=True.*",  # our metrics gather by themselves
    ".*The `srun` command is available on your system but is not used.*",  # nor need it be
    ".*`broadcast_buffers` is deprecated.*",  # in favour of a name that older versions of torch do not know
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",  # between torch and Lightning
)


@contextmanager
def without_expected_warnings() -> Iterator[None]:
    """Keep Lightning from warning of what is meant to be so."""
    with warnings.catch_warnings():
        for pattern in EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", pattern)
        yield


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it: what is there is complete, whatever kills a run."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        # Through a file of Python's, whose error says that the disk is full; torch's own hides it.
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


class StepCheckpoints(ModelCheckpoint):
    """Saves after whole steps alone: Lightning's would save behind the first part of a batch, too, once resumed."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if the step is done and it is time."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Record(Callback):
    """Keeps in the checkpoint what it was made by, and for how long."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.seconds = 0.0
        self.teacher_passes = 0
        self.processes = ranks.count()
        self._since = 0.0
        self._counted = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Move the clock, and count what teachers did."""
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now
        if (teacher := pl_module.method.teacher) is not None:  # type: ignore[union-attr]
            passes: int = teacher.passes  # type: ignore[union-attr, assignment]
            self.teacher_passes += (passes - self._counted) * trainer.world_size  # ranks have equal parts
            self._counted = passes

    def state_dict(self) -> dict[str, Any]:
        """Give configuration, seconds and passes to the checkpoint."""
        counts = {"seconds": self.seconds, "teacher_passes": self.teacher_passes, "processes": self.processes}
        return {**counts, "config": self.config, "config_hash": artifacts.config_hash(self.config)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; of processes it is the most that any sitting had."""
        self.seconds, self.teacher_passes = state_dict["seconds"], state_dict["teacher_passes"]
        self.processes = max(self.processes, state_dict.get("processes", 1))
