"""What a comparison rests on: the same start, the same samples and the same care for every method."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from mtkd_lightning.networks import load, locate

METHODS = {
    "scratch": [],
    "kd": ["aggregator=mean"],
    "at": ["teacher.only=[swinir]", "aggregator=mean", "method.taps=[1.0]"],
    "crosskd": ["teacher.only=[swinir]", "aggregator=mean"],
}
STAGES = "stages=[teachers,aggregation,distillation,evaluation]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, job) -> Path:
    """The tiny main job once a method, and one with another batch size."""
    folder = tmp_path_factory.mktemp("fairness")
    for name, overrides in METHODS.items():
        result = job(folder, f"method={name}", f"name={name}", f"label={name}", STAGES, *overrides)
        assert result.returncode == 0, result.stdout + result.stderr
        if name in ("at", "crosskd"):
            assert "SwinIR deep (4, h, w)" in result.stdout
    small = ["method=scratch", "name=small", "label=small", "training.distillation.batch_size=1", STAGES]
    assert job(folder, *small).returncode == 0
    return folder


def record(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / name / "metrics.json").read_text())["run"]


def test_every_method_starts_from_the_same_student(runs):
    starts = {record(runs, name)["initial_sha256"] for name in [*METHODS, "small"]}
    assert len(starts) == 1
    ends = {load_file(runs / "weights" / f"{name}.safetensors")["conv_last.weight"].tobytes() for name in METHODS}
    assert len(ends) == len(METHODS)


def test_what_must_match_is_recorded(runs):
    prints = {name: record(runs, name)["fingerprint"] for name in METHODS}
    assert len(set(prints.values())) == 1
    assert record(runs, "small")["fingerprint"] != prints["scratch"]
    fairness = record(runs, "kd")["fairness"]
    assert fairness["recipe"]["steps"] == 6
    assert fairness["student"]["features"] == 4
    assert "seed" not in json.dumps(fairness)


def test_what_teaching_cost_is_recorded(runs):
    passes = {name: record(runs, name)["teacher_passes"] for name in METHODS}
    assert passes == {"scratch": 0, "kd": 0, "at": 6 * 2, "crosskd": 0}
    assert [record(runs, name)["teacher_pictures"] for name in METHODS] == [None, "kept", "kept", "kept"]


def test_every_method_sees_the_same_samples(runs, command):
    """Bitwise, as they come out of the loader that each method's training builds."""
    seen = {}
    code = (
        "import sys, torch\nfrom hashlib import sha256\nfrom mtkd_lightning.data.datamodule import SRDataModule\n"
        "from mtkd_lightning.__main__ import main\nfloats = SRDataModule.on_after_batch_transfer\n"
        "def told(self, batch, index):\n"
        "    if self.trainer.training: print('batch', sha256(batch.lr.numpy().tobytes() + batch.hr.numpy().tobytes())"
        ".hexdigest(), batch.name)\n"
        "    return floats(self, batch, index)\n"
        "SRDataModule.on_after_batch_transfer = told\nmain()"
    )
    for name, overrides in METHODS.items():
        words = [f"method={name}", "name=again_" + name, "stages=[distillation]", *overrides]
        result = subprocess.run(
            [sys.executable, "-c", code, *command(*words)[3:]], cwd=runs, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stdout + result.stderr
        seen[name] = [line for line in result.stdout.splitlines() if line.startswith("batch")]
    assert len(seen["scratch"]) == 6
    assert all(lines == seen["scratch"] for lines in seen.values())


def test_the_comparison_of_real_runs(runs):
    result = subprocess.run(
        [sys.executable, "-m", "mtkd_lightning.compare"], cwd=runs, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "recipe.batch_size" in result.stdout
    table = (runs / "comparison/results.csv").read_text().splitlines()
    assert len(table) == 1 + 5
    refused = subprocess.run(
        [sys.executable, "-m", "mtkd_lightning.compare", "only=[small,kd]"], cwd=runs, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "recipe.batch_size" in refused.stdout + refused.stderr


def test_students_to_take_along(runs):
    """In float16 they give the same picture to half a grey level, and load by their path alone."""
    command = [sys.executable, "-m", "mtkd_lightning.compare", "students=true", "only=[kd,at]"]
    result = subprocess.run(command, cwd=runs, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    taken = runs / "comparison" / "students"
    assert {path.name for path in taken.iterdir()} == {
        f"{x}.{end}" for x in ("kd", "at") for end in ("safetensors", "json")
    }
    lr = torch.rand(1, 3, 12, 9)
    whole, half = (load(locate(str(folder / "kd.safetensors"), runs)) for folder in (runs / "weights", taken))
    assert (taken / "kd.safetensors").stat().st_size < 0.7 * (runs / "weights" / "kd.safetensors").stat().st_size
    with torch.no_grad():
        assert 0 < (whole(lr) - half(lr)).abs().max() < 0.5 / 255
    (runs / "weights" / "at.json").rename(runs / "at.json")
    result = subprocess.run(command, cwd=runs, capture_output=True, text=True, timeout=120)
    (runs / "at.json").rename(runs / "weights" / "at.json")
    assert result.returncode == 1
    assert "students=true needs the weights of" in result.stdout + result.stderr


def test_parts_of_a_batch_are_the_batch(runs, job):
    """Gradient accumulation gives the weights of the whole batch, to rounding."""
    words = [
        "method=scratch",
        "label=parts",
        "name=parts",
        "trainer.accumulate_grad_batches=2",
        "stages=[distillation]",
    ]
    result = job(runs, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    whole, parts = (load_file(runs / "weights" / f"{name}.safetensors") for name in ("scratch", "parts"))
    # Adam's first steps have the size of the learning rate whatever the gradient, so rounding is seen in full.
    largest = max(abs(whole[name] - parts[name]).max() for name in whole)
    assert 0 < largest < 2e-3
