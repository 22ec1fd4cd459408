"""Loaders for Lightning: training batches from the step that a run is at, whole pictures for validation."""

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from mtkd_lightning.data.batches import StepSampler, TrainingBatches, WholePictures
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.typing import SRBatch, floats


class SRDataModule(LightningDataModule):
    """Pictures cut as a recipe says."""

    def __init__(self, pictures: Pictures, recipe: Recipe, num_workers: int = 0) -> None:
        super().__init__()
        self.pictures = pictures
        self.recipe = recipe
        self.num_workers = num_workers

    def train_dataloader(self) -> "ResumedLoader":
        """All batches from the trainer's step on, in parts if asked: a whole training is one epoch of Lightning's."""
        assert self.trainer is not None
        parts = self.trainer.accumulate_grad_batches
        batches = TrainingBatches(
            self.pictures.train,
            batch_size=self.recipe.batch_size,
            lr_patch=self.recipe.lr_patch,
            seed=self.recipe.seed,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            parts=parts,
        )
        return ResumedLoader(
            batches,
            batch_size=None,
            sampler=StepSampler(self.trainer.global_step * parts, self.recipe.steps * parts),
            num_workers=self.num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def val_dataloader(self) -> "DataLoader[Any]":
        """The held-out pictures of the training set, one at a time, each on one rank."""
        assert self.trainer is not None
        pictures = WholePictures(self.pictures.validation)
        # More ranks than pictures see some twice, which count once: each takes part in the gathering of scores.
        mine = range(self.trainer.global_rank % len(pictures), len(pictures), self.trainer.world_size)
        return DataLoader(pictures, batch_size=None, sampler=mine)

    def on_after_batch_transfer(self, batch: SRBatch, dataloader_idx: int) -> SRBatch:
        """Bytes to floats in 0..1, on the device that computes."""
        return floats(batch)


class ResumedLoader(DataLoader[Any]):
    """A loader whose first batch is the trainer's step: it resumes without a state of its own.

    Its length is that of the whole training, as Lightning expects of a loader that was resumed in mid-epoch; it has the
    two state methods because by them Lightning recognises one that can be.
    """

    def __len__(self) -> int:
        return self.sampler.stop  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step is in the checkpoint already."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""
