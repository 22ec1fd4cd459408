"""What a sweep's jobs are called."""

import re

import pytest

from mtkd_lightning.naming import LONGEST, label


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "mtkd"),
        (["+experiment=edsr_mtkd", "seed=2", "scale=3", "preset=cpu", "data.root=x", "stages=[report]"], "mtkd"),
        (["paths.root=/somewhere", "existing=remake", "trainer.accelerator=cpu", "num_workers=2"], "mtkd"),
        (["training.distillation.validate_every=50"], "mtkd"),
        (["trainer=ddp", "trainer.devices=2"], "mtkd"),
        (["trainer=bf16"], "mtkd-trainer=bf16"),
        (["method.weights.ground_truth=0.05"], "mtkd-ground_truth=0.05"),
        (["method.weights.ground_truth=5e-2"], "mtkd-ground_truth=0.05"),
        (["method.weights.ground_truth=0.12345678901"], "mtkd-ground_truth=0.123457"),
        (["method.weights.ground_truth=1", "aggregator=mean"], "mtkd-aggregator=mean-ground_truth=1"),
        (["aggregator=mean", "method.weights.ground_truth=1"], "mtkd-aggregator=mean-ground_truth=1"),
        (["training.teachers.steps=5", "student.features=4"], "mtkd-features=4-steps=5"),
        (
            ["training.teachers.steps=5", "training.distillation.steps=6"],
            "mtkd-distillation.steps=6-teachers.steps=5",
        ),
        (["training.teachers.seed=3"], "mtkd-teachers.seed=3"),
        (["teacher.only=[rcan,edsr]", "teacher.cache=false"], "mtkd-cache=false-only=rcan+edsr"),
        (["~teacher.members.rcan"], "mtkd-without_rcan"),
        (["~teacher.members.rcan=null"], "mtkd-without_rcan"),
        (["+backbone@teacher.members.big.backbone=edsr_tiny"], "mtkd-backbone=edsr_tiny"),
        (["label=mine", "method.weights.ground_truth=1"], "mtkd"),
    ],
)
def test_a_label_tells_what_decides_the_weights(overrides, expected):
    assert label("mtkd", overrides) == expected


@pytest.mark.parametrize("value", ["/a/b.pth", "a" * 300, "'ä b'", "{block3: block5, deep: deep}", "'../../x'"])
def test_what_no_file_can_be_called_gets_a_hash(value):
    given = label("mtkd", [f"student.x={value}"])
    assert re.fullmatch(r"mtkd-x=[\w.+=-]*_[0-9a-f]{6}", given, re.ASCII)
    assert len(given) < 64


def test_two_values_that_look_alike_are_two():
    assert label("m", ["student.x='a b'"]) != label("m", ["student.x='a/b'"])
    assert label("m", ["student.x=[a,b]"]) != label("m", ["student.x='a b'"])


def test_many_overrides_are_cut():
    labels = {label("mtkd", [*(f"student.some_key{i}={i}" for i in range(30)), f"student.z={z}"]) for z in (1, 2)}
    assert len(labels) == 2
    assert max(map(len, labels)) == len("mtkd-") + LONGEST
