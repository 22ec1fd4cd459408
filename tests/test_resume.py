"""A main job that is killed in every stage ends with the weights of one that is not, bit for bit."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

# Long enough to be killed between two checkpoints; stochastic depth makes the steps depend on the random state.
OVERRIDES = [
    "aggregator.drop_path_rate=0.3",
    *(
        f"training.{stage}.{setting}"
        for stage in ("teachers", "aggregation", "distillation")
        for setting in ("steps=40", "checkpoint_every=7", "validate_every=20")
    ),
    "stages=[teachers,aggregation,distillation]",
]
STEMS = ["tiny_edsr_x2", "tiny_swinir_x2", "tiny_edsr-swinir_x2_dctswin_repaired_tiny", "tiny"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, job) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = job(folder, *OVERRIDES)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_in_every_stage_ends_with_the_same_weights(job, killed_job, tmp_path, uninterrupted, num_workers):
    overrides = [*OVERRIDES, f"num_workers={num_workers}"]
    for stem in STEMS[1:]:
        killed_job(tmp_path, *overrides, when=tmp_path / "runs" / stem / "last.ckpt")
        assert not (tmp_path / "weights" / f"{stem}.safetensors").exists()

    result = job(tmp_path, *overrides)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "going on from" in result.stdout
    for stem in STEMS:
        ours, theirs = (load_file(root / "weights" / f"{stem}.safetensors") for root in (tmp_path, uninterrupted))
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            assert values.tobytes() == theirs[name].tobytes(), (stem, name)


def test_resumed_behind_its_last_step_it_keeps_the_average(job, killed_job, tmp_path, uninterrupted):
    """A checkpoint of the last step is there while the last validation runs."""
    overrides = [*OVERRIDES, "training.teachers.checkpoint_every=40", "stages=[teachers]"]
    killed_job(tmp_path, *overrides, when=tmp_path / "runs" / STEMS[0] / "last.ckpt")
    if (tmp_path / "weights" / f"{STEMS[0]}.safetensors").exists():
        pytest.skip("it was finished before it could be killed")

    result = job(tmp_path, *overrides)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "going on from" in result.stdout
    ours, theirs = (load_file(root / "weights" / f"{STEMS[0]}.safetensors") for root in (tmp_path, uninterrupted))
    assert all(values.tobytes() == theirs[name].tobytes() for name, values in ours.items())


def test_the_clock_runs_over_all_sittings(uninterrupted):
    record = json.loads((uninterrupted / "weights" / "tiny.json").read_text())
    assert record["steps"] == 40
    assert record["seconds"] > 0
