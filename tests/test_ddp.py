"""Two real processes train, score and resume as one does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mtkd_lightning.data.images import write_png

DDP = ["trainer=ddp", "trainer.devices=2"]
STEMS = ["tiny_edsr_x2", "tiny_swinir_x2", "tiny_edsr-swinir_x2_dctswin_repaired_tiny", "tiny"]
TRAINED = ["stages=[teachers,aggregation,distillation]", "training.teachers.steps=10", "training.aggregation.steps=10"]
SCRATCH = [
    "method=scratch",
    "stages=[distillation]",
    "training.distillation.steps=60",
    "training.distillation.checkpoint_every=7",
    "training.distillation.validate_every=60",
]


def assert_close(ours: Path, theirs: Path, stem: str = "tiny") -> None:
    """Same weights but for the order of sums, which each step of Adam amplifies."""
    a, b = (load_file(root / "weights" / f"{stem}.safetensors") for root in (ours, theirs))
    assert a.keys() == b.keys()
    for name, values in a.items():
        np.testing.assert_allclose(values, b[name], atol=2e-4, err_msg=f"{stem} {name}")


def ranks_of(process: subprocess.Popen) -> dict[int, int]:
    """Process ids of what it started, by rank."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(entry[5:]): int(child) for entry in environment if entry.startswith(b"RANK=")}
    return found


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0]
    except OSError:
        return False


def wait_for_the_end_of(ranks: dict[int, int]) -> None:
    deadline = time.monotonic() + 30
    while any(map(alive, ranks.values())):
        assert time.monotonic() < deadline, "a rank went on alone"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, job) -> Path:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    result = job(folder, *SCRATCH)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture
def interrupted(tmp_path, command) -> Iterator[tuple[subprocess.Popen, dict[int, int]]]:
    """Two processes that have written a checkpoint and go on, and their ids."""
    process = subprocess.Popen(
        command(*SCRATCH, *DDP),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (tmp_path / "runs/tiny/last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    yield process, ranks_of(process)
    process.kill()
    process.communicate()


def test_two_processes_make_what_one_makes(job, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, overrides in zip(folders, ([], DDP), strict=True):
        folder.mkdir()
        result = job(folder, *TRAINED, *overrides)
        assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("distillation: wrote") == 1  # one of them speaks and writes

    for stem in STEMS:
        assert_close(*folders, stem)
        one, two = (json.loads((folder / "weights" / f"{stem}.json").read_text()) for folder in folders)
        assert one["initial_sha256"] == two["initial_sha256"]
        assert (one["processes"], two["processes"]) == (1, 2)
        assert one["metrics"]["val/psnr"] == pytest.approx(two["metrics"]["val/psnr"], abs=1e-3)
        assert len(list((folders[1] / "runs" / stem / "curves").iterdir())) == 1


@pytest.mark.parametrize(
    ("killed", "resumed_by"),
    [
        ("one rank", DDP),
        ("all", []),
        pytest.param("one rank", [], marks=pytest.mark.slow),
        pytest.param("all", DDP, marks=pytest.mark.slow),
    ],
    ids=["one rank, two go on", "all, one goes on", "one rank, one goes on", "all, two go on"],
)
def test_killed_it_goes_on_with_any_number_of_processes(interrupted, job, tmp_path, killed, resumed_by, alone):
    process, ranks = interrupted
    assert sorted(ranks) == [0, 1]
    for pid in [ranks[1]] if killed == "one rank" else [process.pid, *ranks.values()]:
        os.kill(pid, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)
    if killed == "one rank":
        assert process.returncode == 1
        assert "rank 1 of 2 was ended by SIGKILL" in said
        assert "Traceback" not in said
        assert not any(map(alive, ranks.values()))
    wait_for_the_end_of(ranks)
    assert not (tmp_path / "weights" / "tiny.safetensors").exists()

    result = job(tmp_path, *SCRATCH, *resumed_by)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "going on from" in result.stdout
    assert_close(tmp_path, alone)
    ours, theirs = (json.loads((root / "weights/tiny.json").read_text()) for root in (tmp_path, alone))
    assert ours["config_hash"] == theirs["config_hash"]


def test_without_their_starter_ranks_end(interrupted):
    process, ranks = interrupted
    process.kill()
    wait_for_the_end_of(ranks)


def of_srun(rank: int) -> dict[str, str]:
    """What SLURM's srun tells one of two processes of a machine."""
    told = {
        "PROCID": rank,
        "LOCALID": rank,
        "STEP_NUM_TASKS": 2,
        "STEP_NUM_NODES": 1,
        "NTASKS": 2,
        "NTASKS_PER_NODE": 2,
    }
    told |= {"NNODES": 1, "NODEID": 0, "NODELIST": "127.0.0.1", "JOB_ID": os.getpid(), "JOB_NAME": "tests"}
    return os.environ | {f"SLURM_{key}": str(value) for key, value in told.items()}


def test_started_by_srun_the_others_tell_of_a_killed_one(tmp_path, command):
    processes = [
        subprocess.Popen(
            command(*SCRATCH, "trainer=ddp", "training.distillation.steps=5000"),
            cwd=tmp_path,
            env=of_srun(rank),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        while not (tmp_path / "runs/tiny/last.ckpt").exists():
            assert [process.poll() for process in processes] == [None, None], processes[0].communicate()[0]
            time.sleep(0.01)
        processes[1].kill()
        said, _ = processes[0].communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 1
    assert "Error: rank 0 lost another process of the job" in said
    assert "Traceback" not in said


def test_srun_without_a_number_a_node_is_refused(job, tmp_path, monkeypatch):
    for name, value in of_srun(0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    result = job(tmp_path, "trainer=ddp")
    assert result.returncode == 1
    assert "--ntasks-per-node=<GPUs of a node> in place of --ntasks" in result.stdout


@pytest.mark.slow
def test_a_job_of_slurm(command, job, tmp_path, alone):
    if not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no SLURM that runs")
    launched = ["srun", "--ntasks-per-node=2", *command(*SCRATCH, "trainer=ddp")]
    result = subprocess.run(launched, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_close(tmp_path, alone)


def test_scores_are_those_of_one_process_and_the_teacher_is_in_no_bucket(tmp_path, picture):
    for i in range(3):
        write_png(tmp_path / "pictures/train" / f"{i}.png", np.roll(picture, 9 * i, axis=1))
    for i in range(5):
        write_png(tmp_path / "pictures/validation" / f"{i}.png", picture[i : i + 40, 7 * i : 40 + 5 * i])
    outputs = []
    for number in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        (output := tmp_path / str(number)).mkdir()
        shared = {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, Path(__file__).with_name("ddp_worker.py"), tmp_path / "pictures", tmp_path, output]
        started = [
            subprocess.Popen(
                command, env={**os.environ, **shared, "MASTER_PORT": port, "RANK": str(k), "LOCAL_RANK": str(k)}
            )
            for k in range(number)
        ]
        try:
            assert [process.wait(120) for process in started] == [0] * number
        finally:
            for process in started:
                process.kill()
        outputs += [json.loads((output / f"{k}.json").read_text()) for k in range(number)]
    for seen in outputs:
        assert seen["metrics"] == outputs[0]["metrics"]  # all digits
        assert seen["reduced"] == seen["student"]
        assert all(name.startswith("method.student.") for name in seen["checkpoint"])
