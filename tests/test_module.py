"""A training through Lightning is the loop that one would write by hand."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from mtkd_lightning import making, pipeline
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.config import CONF
from mtkd_lightning.data.batches import TrainingBatches, WholePictures
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.sources import Pictures, folders
from mtkd_lightning.errors import Interrupted, MTKDError
from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.methods.base import Method
from mtkd_lightning.methods.mtkd import MTKD
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.metrics.functional import Protocol, psnr, ssim
from mtkd_lightning.published import read_tensors
from mtkd_lightning.recipe import Recipe, multistep
from mtkd_lightning.teachers.dctswin import DCTSwin
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.training import resumable, train
from mtkd_lightning.typing import SRBatch

STEPS = 6
trainer = partial(Trainer, accelerator="cpu", devices=1, log_every_n_steps=1)


@pytest.fixture
def root(tmp_path, picture) -> Path:
    for i in range(3):
        write_png(tmp_path / "pictures/train" / f"{i}.png", np.roll(picture, 9 * i, axis=1))
    for i in range(2):
        write_png(tmp_path / "pictures/validation" / f"{i}.png", picture[i : i + 40, 7 * i : 40])
    return tmp_path / "pictures"


@pytest.fixture
def pictures(root, tmp_path) -> Pictures:
    return folders(root, 2, tmp_path / "cache")


def network(features: int = 4) -> nn.Module:
    return EDSR(scale=2, features=features, blocks=1)


def recipe(**options: Any) -> Recipe:
    values = {
        "steps": STEPS,
        "batch_size": 2,
        "lr_patch": 8,
        "learning_rate": 1e-3,
        "optimizer": torch.optim.Adam,
        "scheduler": partial(multistep, milestones=[0.5, 0.8], gamma=0.1),
        "seed": 5,
        "validate_every": 3,
        "checkpoint_every": 4,
    }
    return Recipe(**{**values, **options})


@pytest.fixture
def trained(pictures, tmp_path) -> Callable[..., dict[str, Any]]:
    def run(method: Method, loop: Callable[..., Trainer] = trainer, **options: Any) -> dict[str, Any]:
        arguments = {"run": tmp_path / "run", "checkpoint": None, "config": {"of": "a test"}, "label": "test"}
        return train(method, recipe(**options), pictures, trainer=loop, **arguments)

    return run


def distillation() -> MTKD:
    aggregator = DCTSwin(2, 2, embed_dim=4, depths=[2], num_heads=[2], features=4)
    teacher = Teacher(Ensemble({"a": Teacher(network(6)), "b": Teacher(network(5))}, aggregator))
    return MTKD(network(), teacher, {"response": 1.0, "ground_truth": 0.1}, l1)


def tensors(content: Any) -> list[Tensor]:
    """All of a checkpoint, wherever they are in it."""
    if isinstance(content, Tensor):
        return [content]
    items = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return [x for item in items for x in tensors(item)]


def curves(folder: Path, column: str) -> dict[int, float]:
    with (folder / "run/curves/version_0/metrics.csv").open() as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row.get(column)}


def test_the_learning_rate_follows_the_recipe(trained, tmp_path):
    trained(Scratch(network()))
    factors = [1, 1, 1, 0.1, 0.1, 0.01]
    assert curves(tmp_path, "train/learning_rate") == pytest.approx({i: 1e-3 * x for i, x in enumerate(factors)})


def test_a_training_shorter_than_the_logging_interval_logs_its_last_step(trained, tmp_path):
    trained(Scratch(network()), partial(Trainer, accelerator="cpu", devices=1, log_every_n_steps=50))
    assert curves(tmp_path, "train/ground_truth").keys() == {STEPS - 1}


def test_values_are_read_only_where_they_are_logged(trained, monkeypatch):
    """On a GPU each reading waits for all work before it."""
    step, read = 0, set()
    item = Tensor.item

    class Count(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: SRBatch, batch_idx: int) -> None:
            nonlocal step
            step = batch_idx + 1

    def counted(tensor: Tensor) -> Any:
        read.add(step)
        return item(tensor)

    def loop(callbacks: list[Callback], **rest: Any) -> Trainer:
        return trainer(callbacks=[*callbacks, Count()], **{**rest, "log_every_n_steps": 2})

    monkeypatch.setattr(Tensor, "item", counted)
    fused = partial(torch.optim.Adam, fused=True)  # the others read the number of steps, which lies on the CPU
    trained(distillation(), loop, validate_every=STEPS, checkpoint_every=STEPS, optimizer=fused)
    assert read <= {0, 2, 4, STEPS}
    assert {2, 4} <= read


def test_gradients_are_clipped_in_mixed_precision(trained):
    """Which Lightning refuses to do with the fused optimiser that is the default."""
    student = network()
    before = [p.detach().clone() for p in student.parameters()]
    loop, descent = partial(trainer, precision="bf16-mixed"), partial(torch.optim.SGD, fused=True)
    trained(Scratch(student), loop, optimizer=descent, learning_rate=1.0, ema_decay=None, gradient_clip_val=1e-3)
    changes = [p.detach() - old for p, old in zip(student.parameters(), before, strict=True)]
    moved = torch.cat([x.flatten() for x in changes]).norm().item()
    assert 1e-4 < moved <= STEPS * 1e-3


def test_the_loss_is_the_sum_of_the_terms(trained, pictures):
    """One step of gradient descent says what was descended."""
    method = distillation()
    lr, hr, *_ = TrainingBatches(pictures.train, batch_size=2, lr_patch=8, seed=5)[0]
    before = [p.detach().clone() for p in method.student.parameters()]
    terms = method(SRBatch(lr / 255, hr / 255, []))
    gradients = torch.autograd.grad(terms["response"] + terms["ground_truth"], list(method.student.parameters()))
    trained(method, steps=1, optimizer=torch.optim.SGD)
    for p, was, gradient in zip(method.student.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p.detach(), was - 1e-3 * gradient, rtol=1e-5, atol=1e-7)


def test_validation_is_the_metric_of_each_picture(trained, pictures):
    student = network()
    record = trained(Scratch(student))
    scores = {"val/psnr": [], "val/ssim": []}
    for lr, hr, *_ in map(WholePictures(pictures.validation).__getitem__, range(2)):
        with torch.no_grad():
            sr = student(lr / 255)
        scores["val/psnr"].append(psnr(sr, hr / 255, Protocol(2)).item())
        scores["val/ssim"].append(ssim(sr, hr / 255, Protocol(2)).item())
    assert record["metrics"] == {key: pytest.approx(np.mean(values), abs=1e-3) for key, values in scores.items()}
    assert record["protocol"] == "Y, crop 2, uint8, mean of images"
    assert (record["steps"], record["seed"]) == (STEPS, 5)
    json.dumps(record)


def test_the_checkpoint_holds_no_teacher(trained, tmp_path):
    method = distillation()
    theirs = [*method.teacher.net.parameters()]
    theirs += [p for member in method.teacher.net.members.values() for p in member.net.parameters()]
    trained(method, ema_decay=0.9)

    checkpoint = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(name.startswith("method.student.") for name in checkpoint["state_dict"])
    held = tensors(checkpoint)
    values = sum(p.numel() for p in method.student.parameters())
    assert 4 * values <= sum(x.numel() for x in held) < 4 * values + 100  # weights, average, two moments of Adam
    assert not [x for x in held for y in theirs if x.shape == y.shape and torch.equal(x, y)]


def test_a_checkpoint_gives_the_average(trained, tmp_path):
    """Which its training would end with."""
    trained(Scratch(network()), ema_decay=0.9)
    checkpoint = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    average = {name.removeprefix("student."): x for name, x in checkpoint["callbacks"]["EMA"].items()}
    found = read_tensors(tmp_path / "run/last.ckpt")
    assert found.keys() == average.keys()
    assert all(torch.equal(x, average[name]) for name, x in found.items())
    live = checkpoint["state_dict"]
    assert not all(torch.equal(x, live[f"method.student.{name}"]) for name, x in found.items())


def test_the_teacher_does_not_change(trained):
    method = distillation()
    nets = [method.teacher.net, *(member.net for member in method.teacher.net.members.values())]
    before = [p.clone() for net in nets for p in net.parameters()]
    trained(method)
    assert all(
        torch.equal(p, was) for p, was in zip((p for net in nets for p in net.parameters()), before, strict=True)
    )
    assert not any(module.training for net in nets for module in net.modules())


def test_a_checkpoint_goes_on_to_the_same_weights(trained, pictures, tmp_path):
    """The checkpoint of step 4 is left behind by a training of 6 steps."""
    torch.manual_seed(0)
    method = Scratch(network())
    trained(method, ema_decay=0.9)
    config = {"of": "a test"}
    checkpoint = resumable(tmp_path / "run", config)
    other = Scratch(network())
    train(other, recipe(ema_decay=0.9), pictures, trainer=trainer, run=tmp_path / "run", checkpoint=checkpoint,
          config=config, label="test")  # fmt: skip
    assert all(torch.equal(x, y) for x, y in zip(method.parameters(), other.parameters(), strict=True))


def test_twice_interrupted_in_parts_of_batches(trained, pictures, tmp_path):
    """The second time behind the first part of the first step after a checkpoint."""

    class Stop(Callback):
        def __init__(self, batch_idx: int) -> None:
            self.batch_idx = batch_idx

        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == self.batch_idx:
                raise SystemExit

    def sitting(run: str, *callbacks: Callback) -> Method:
        torch.manual_seed(0)
        method, loop = Scratch(network()), partial(trainer, accumulate_grad_batches=2)
        train(method, recipe(ema_decay=0.9), pictures, trainer=loop, run=tmp_path / run, config={"of": "a test"},
              checkpoint=resumable(tmp_path / run, {"of": "a test"}), label="test", callbacks=callbacks)  # fmt: skip
        return method

    whole = sitting("whole")
    for _ in range(2):
        with pytest.raises(Interrupted):
            sitting("cut", Stop(9))
        assert torch.load(tmp_path / "cut/last.ckpt", weights_only=True)["global_step"] == 4
    cut = sitting("cut")
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters(), cut.parameters(), strict=True))


def test_broken_weights_do_not_replace_a_checkpoint(trained, tmp_path):
    class Break(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 3:
                next(pl_module.method.student.parameters()).data.fill_(torch.nan)

    def loop(callbacks: list[Callback], **arguments: Any) -> Trainer:
        return trainer(callbacks=[*callbacks, Break()], **{**arguments, "log_every_n_steps": 50})

    with pytest.raises(MTKDError, match="checkpoint of step 4 are not finite"):
        trained(Scratch(network()), partial(loop), checkpoint_every=2)
    checkpoint = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(x.isfinite().all() for x in checkpoint["state_dict"].values())


class Spy(Callback):
    """Keeps what a training starts with and sees."""

    def __init__(self) -> None:
        self.student: dict[str, Tensor] = {}
        self.batches: list[SRBatch] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.student = {name: x.clone() for name, x in pl_module.method.student.state_dict().items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: SRBatch, batch_idx: int) -> None:
        self.batches.append(batch)


def test_a_student_and_its_twin_start_and_are_fed_alike(root, tmp_path, monkeypatch):
    """Through the pipeline, which seeds: with a teacher or without, the seed alone decides."""

    def distilled(method: str, seed: int) -> Spy:
        spy = Spy()

        def spied(*arguments: Any, trainer: Callable[..., Trainer], label: str, **options: Any) -> dict[str, Any]:
            def loop(callbacks: list[Callback], **rest: Any) -> Trainer:
                return trainer(callbacks=[*callbacks, *([spy] if "distillation" in label else [])], **rest)

            return train(*arguments, trainer=loop, label=label, **options)

        monkeypatch.setattr(making, "train", spied)
        short = ("steps=3", "batch_size=2", "lr_patch=8")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(
                "config",
                [
                    "student=demo/rcan", f"method={method}", f"seed={seed}", f"name={method}{seed}", "scale=2",
                    f"paths.root={tmp_path}", "aggregator_name=a", "method_name=a", "study_name=a",
                    "data=folders", f"data.root={root}",
                    "student.features=4", "student.groups=1", "student.blocks=1", "student.reduction=2",
                    "teacher.members.edsr.backbone.features=4", "~teacher.members.swinir", "~teacher.members.rcan",
                    "stages=[teachers,aggregation,distillation]", "teacher.accept_weak=true",
                    *(f"training.{stage}.{x}" for stage in ("teachers", "aggregation", "distillation") for x in short),
                ],
            )  # fmt: skip
        pipeline.Pipeline(config).run()
        return spy

    mtkd, scratch, other = distilled("mtkd", 3), distilled("scratch", 3), distilled("scratch", 4)
    assert len(mtkd.batches) == 3
    assert mtkd.student.keys() == scratch.student.keys()
    assert all(torch.equal(x, scratch.student[name]) for name, x in mtkd.student.items())
    for one, twin in zip(mtkd.batches, scratch.batches, strict=True):
        assert torch.equal(one.lr, twin.lr)
        assert torch.equal(one.hr, twin.hr)
        assert one.name == twin.name
    assert not all(torch.equal(x, other.student[name]) for name, x in mtkd.student.items())
    assert not torch.equal(mtkd.batches[0].lr, other.batches[0].lr)
