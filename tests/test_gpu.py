"""The main job on a GPU: every precision, and a run that is interrupted on one device and goes on on another."""

import json
import os

import pytest
from safetensors.torch import load_file

# Another device to try these tests themselves on.
ACCELERATOR = os.environ.get("MTKD_GPU_TESTS_ON", "gpu")
STAGES = "stages=[teachers,aggregation,distillation,evaluation]"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("method", ["mtkd", "fakd", "mipkd"])
def test_the_main_job(job, tmp_path, precision, method):
    one = [] if method == "mtkd" else ["teacher.only=[swinir]", "aggregator=mean", "method.taps=[1.0]"]
    words = [f"trainer.accelerator={ACCELERATOR}", f"trainer.precision={precision}", f"method={method}", *one, STAGES]
    result = job(tmp_path, *words, "trainer.gradient_clip_val=1.0")
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "weights/tiny.json").read_text())
    assert record["device"].startswith("cpu") == (ACCELERATOR == "cpu")
    assert (tmp_path / "runs/tiny/metrics.json").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("order", [(ACCELERATOR, "cpu"), ("cpu", ACCELERATOR)])
def test_a_run_goes_on_on_another_device(job, killed_job, tmp_path, order):
    words = ["method=scratch", "training.distillation.steps=400", "stages=[distillation]"]
    killed_job(tmp_path, f"trainer.accelerator={order[0]}", *words, when=tmp_path / "runs/tiny/last.ckpt")
    result = job(tmp_path, f"trainer.accelerator={order[1]}", *words)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "going on from" in result.stdout
    whole = tmp_path / "whole"
    whole.mkdir()
    assert job(whole, f"trainer.accelerator={order[1]}", *words).returncode == 0
    weights = [load_file(folder / "weights/tiny.safetensors") for folder in (tmp_path, whole)]
    assert all((weights[1][name] - x).abs().max() < 0.05 for name, x in weights[0].items())
