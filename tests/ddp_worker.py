"""One of several processes of test_ddp.py: scores pictures, takes a step, writes what it saw."""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from mtkd_lightning import ranks
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.data.datamodule import SRDataModule
from mtkd_lightning.data.sources import folders
from mtkd_lightning.methods.kd import KD
from mtkd_lightning.metrics.functional import Protocol
from mtkd_lightning.module import SRModule
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.teacher import Teacher


def main(root: Path, cache: Path, output: Path) -> None:
    recipe = Recipe(
        steps=1, batch_size=2, lr_patch=8, learning_rate=1e-3, optimizer=torch.optim.Adam, scheduler=lambda x: 1.0
    )
    torch.manual_seed(0)
    student, large = EDSR(scale=2, features=4, blocks=1), EDSR(scale=2, features=8, blocks=2)
    weights = {"response": 1.0, "ground_truth": 1.0}
    module = SRModule(KD(student=student, teacher=Teacher(large), weights=weights), recipe, Protocol(crop_border=2))
    data = SRDataModule(folders(root, 2, cache), recipe)
    with ranks.joined(gpu=False):
        trainer = Trainer(
            accelerator="cpu",
            devices=ranks.per_node(),
            strategy=DDPStrategy(broadcast_buffers=False) if ranks.count() > 1 else "auto",
            plugins=list(filter(None, [ranks.environment()])),
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
        (metrics,) = trainer.validate(module, data, verbose=False)
        trainer.fit(module, data)
        reduced = sum(parameter.numel() for parameter in trainer.strategy.model.parameters())
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        seen = {
            "metrics": {key: value.hex() for key, value in metrics.items()},
            "reduced": reduced,
            "student": sum(parameter.numel() for parameter in student.parameters()),
            "checkpoint": sorted(checkpoint["state_dict"]),
        }
        (output / f"{ranks.rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
