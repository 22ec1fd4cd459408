"""Sweeps: names, jobs that fail alone, the table, launchers, shared prerequisites, bad input."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.sweep import markdown, rows

SWEEPS = "runs/multirun"


@pytest.fixture
def sweep(command):
    """Start a sweep over tiny jobs, as a user does, in a group of processes of its own."""

    def start(folder: Path, *overrides: str) -> subprocess.Popen:
        python, *arguments = (argument for argument in command(*overrides) if argument != "name=tiny")
        return subprocess.Popen(
            [python, *arguments[:2], "-m", *arguments[2:]],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # What runs the tests may ignore Ctrl-C, as what is started with nohup does, and its children with it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


@pytest.fixture
def multirun(monkeypatch, tmp_path, capsys):
    """Run a sweep in this process with a given function as the work of its jobs; give status, table and output."""

    def run(work, *overrides: str) -> tuple[int, list[dict[str, str]], str]:
        from mtkd_lightning import __main__ as module

        (folder := tmp_path / "it's a folder, with=signs").mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(module, "work", work)
        monkeypatch.setattr(sys, "argv", ["mtkd_lightning", "-m", *overrides])
        status = 0
        try:
            module.main()
        except SystemExit as stop:
            status = stop.code
        return status, last_table(folder), "".join(capsys.readouterr())

    return run


def last_table(folder: Path) -> list[dict[str, str]]:
    path = max((folder / SWEEPS).glob("*/sweep.csv"), key=lambda path: path.stat().st_mtime_ns)
    with path.open() as file:
        return list(csv.DictReader(file))


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def test_jobs_that_fail_leave_the_others_alone(multirun, tmp_path):
    def work(config):
        if config.seed == 1:
            raise MTKDError("a value | is <wrong>\nand more")
        if config.seed == 2:
            raise ZeroDivisionError("surprise")
        return 30.0 + config.seed

    status, table, output = multirun(work, "stages=[distillation]", "seed=0,1,2,3")
    assert status == 1
    assert [row["status"] for row in table] == ["ok", "failed", "failed", "ok"]
    assert [row["validation"] for row in table] == ["30.0", "", "", "33.0"]
    assert [row["varied"] for row in table] == [f"seed={n}" for n in range(4)]
    assert [row["error"] for row in table] == ["", "a value | is <wrong>", "ZeroDivisionError: surprise", ""]
    assert "2 of 4 jobs are not done (1, 2). The same command makes what is missing." in output
    (folder,) = tmp_path.glob(f"*/{SWEEPS}/*")
    assert "a value \\| is &lt;wrong&gt;" in (folder / "sweep.md").read_text()
    assert (folder / "sweep.md").read_text() in output
    assert "line" in (folder / "1/traceback.txt").read_text()
    assert "ZeroDivisionError: surprise" in (folder / "2/traceback.txt").read_text()
    assert "Traceback" in (folder / "2/job.log").read_text()
    assert not (folder / "0/traceback.txt").exists()


def test_all_well_ends_with_status_0(multirun):
    status, table, _ = multirun(lambda config: None, "seed=0,1", "stages=[teachers]")
    assert status == 0
    assert [row["status"] for row in table] == ["ok", "ok"]


def test_each_job_has_its_name(multirun):
    names = []
    values = "method.weights.ground_truth=0.05,0.1"
    multirun(lambda config: names.append((config.label, config.name)), "+experiment=edsr_mtkd", values, "seed=0,1")
    assert names == [
        (f"edsr_mtkd-ground_truth={value}", f"edsr_mtkd-ground_truth={value}_demo_x4_seed{seed}")
        for value in ("0.05", "0.1")
        for seed in (0, 1)
    ]


@pytest.mark.parametrize(("study", "end"), [("compact_x4", ""), ("compact_x4_long", "_long")])
def test_the_study_keeps_its_names(multirun, study, end):
    names = []
    experiments = "+experiment=edsr_mtkd_mean,swinir_kd"
    overrides = (f"+study={study}", "data.root=pictures", "stages=[distillation]", experiments, "seed=0,2")
    multirun(lambda config: names.append(config.name), *overrides)
    labels = (f"edsr_mtkd_mean{end}", f"swinir_kd{end}")
    assert names == [f"{label}_compact_x4_seed{seed}" for label in labels for seed in (0, 2)]


def test_an_interrupt_ends_the_sweep(multirun):
    def work(config):
        if config.seed == 1:
            raise KeyboardInterrupt

    status, table, _ = multirun(work, "seed=0,1,2", "stages=[teachers]")
    assert status == 130
    assert [row["status"] for row in table] == ["ok", "unfinished", "not started"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["foo=1,2"], ["job 0 (foo=1)", "Could not override 'foo'"]),
        (["+foo=1,2"], ["job 0 (+foo=1)", "no key 'foo'"]),
        (["+training.distillation.foo=1,2"], ["job 0", "training.distillation has no key 'foo'"]),
        (["seed=range(3,3)"], ["the sweep has no job", "seed=range(3,3)"]),
        (["method.weights.ground_truth=interval(0,1)"], ["does not support sweep type", "INTERVAL"]),
        (["name=x", "seed=0,1"], ["jobs 0 (seed=0) and 1 (seed=1)", "weights/x.safetensors", "name='mine_${seed}'"]),
        (["label=x", "method.weights.ground_truth=1,2"], ["jobs 0 (", "ground_truth=1", "leave name=... and label="]),
        (["num_workers=0,1"], ["jobs 0 (num_workers=0) and 1 (num_workers=1) would both write"]),
        (["seed=0,0"], ["jobs 0 (all) and 1 (the same) would both write"]),
    ],
)
def test_what_no_job_could_do_is_said_before_the_first(refused, tmp_path, overrides, said):
    output = refused("-m", *overrides, tiny=False)
    for text in said:
        assert text in output
    assert not list(tmp_path.rglob("*.json"))
    assert "torch" not in output


def test_a_name_can_hold_what_is_varied(multirun):
    names = []
    multirun(lambda config: names.append(config.name), "name=mine_${seed}", "seed=3,4")
    assert names == ["mine_3", "mine_4"]


def test_a_plugin_that_is_not_there(tmp_path):
    code = (
        "import sys; sys.modules['hydra_plugins.hydra_ray_launcher'] = None; sys.argv[1:] = ['-m', 'launcher=ray']; "
        "from mtkd_lightning.__main__ import main; main(); "
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    wanted = "Error: launcher=ray needs a plugin that is not installed: pip install 'mtkd_lightning[ray]'\n"
    assert result.stderr == wanted


def test_every_launcher_and_search_says_what_it_needs():
    from mtkd_lightning.config import CONF
    from mtkd_lightning.sweep import PLUGINS

    groups = ("launcher", "hparams_search")
    assert {f"{group}={path.stem}" for group in groups for path in (CONF / group).glob("*.yaml")} == set(PLUGINS)


def test_rows_of_jobs_that_left_nothing():
    overrides = ["a=1", "b=2", "+c=3"], ["a=1", "b=3", "+c=3"]
    record = {"overrides": overrides[0], "status": "ok", "seconds": 2.0, "benchmarks": {"Set5": 30.1234}, "name": "x"}
    table = rows({0: record}, overrides)
    assert [(row["varied"], row["status"], row["Set5"]) for row in table] == [
        ("b=2", "ok", 30.1234),
        ("b=3", "not started", None),
    ]
    assert "| 0   | b=2    | ok          | x    |       2 |          - | 30.123 |" in markdown(table)


def test_a_sweep_of_real_jobs_and_the_same_again(finished, tmp_path, sweep):
    folder = shutil.copytree(finished, tmp_path / "copy")
    overrides = ("label=tiny_${method.response.wavelet}", "method.response.wavelet=haar,nonsense")
    status, output = finish(sweep(folder, *overrides))
    assert status == 1, output
    good, bad = last_table(folder)
    assert (good["status"], bad["status"]) == ("ok", "failed")
    record = json.loads((folder / "weights/tiny_haar_demo_x2_seed0.json").read_text())
    assert float(good["validation"]) == record["metrics"]["val/psnr"]
    with (folder / "runs/tiny_haar_demo_x2_seed0/results.csv").open() as file:
        (student,) = (row for row in csv.DictReader(file) if row["network"] == "student")
    assert float(good["photographs"]) == float(student["psnr"])
    assert "has no wavelet 'nonsense'" in bad["error"]

    status, output = finish(sweep(folder, *(x.replace("nonsense", "db2") for x in overrides)))
    assert status == 0, output
    assert [row["status"] for row in last_table(folder)] == ["skipped", "ok"]


@pytest.mark.slow
def test_jobs_that_start_together_share_what_they_need(tmp_path, sweep):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    stages = "stages=[teachers,aggregation,distillation]"
    status, output = finish(sweep(tmp_path, "label=tiny", "launcher=joblib", "seed=0,1", stages))
    assert status == 0, output
    assert [row["status"] for row in last_table(tmp_path)] == ["ok", "ok"]
    for made in ("tiny_edsr_x2", "tiny_swinir_x2", "tiny_edsr-swinir_x2_dctswin_repaired_tiny"):
        assert output.count(f"training {made} for") == 1, output
    assert "waiting for it" in output


def test_a_killed_holder_blocks_nobody(tmp_path, killed_job, sweep):
    slow = ("training.teachers.steps=100000", "stages=[teachers]")
    killed_job(tmp_path, *slow, when=tmp_path / "runs/tiny_edsr_x2/last.ckpt")
    status, output = finish(sweep(tmp_path, "label=tiny", "seed=0", "stages=[teachers]", "existing=remake"))
    assert status == 0, output
    assert (tmp_path / "weights/tiny_edsr_x2.safetensors").exists()


def test_ctrl_c_ends_all_processes(tmp_path, sweep):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    overrides = ("label=tiny", "method=scratch", "stages=[distillation]", "training.distillation.steps=100000")
    process = sweep(tmp_path, *overrides, "launcher=joblib", "seed=0,1,2")
    while not list((tmp_path / "runs").glob("tiny*/last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    status, output = finish(process)
    assert status == 130, output
    assert [row["status"] for row in last_table(tmp_path)] == ["unfinished", "unfinished", "not started"]
    deadline = time.monotonic() + 20
    while running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not running(process.pid)


def running(session: int) -> list[str]:
    """Processes of a session that are not finished."""
    states = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            states.append(stat.parent.name)
    return states


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "plugin"), [("submitit_local", "submitit_launcher"), ("ray_local", "ray_launcher")]
)
def test_other_launchers(finished, tmp_path, sweep, launcher, plugin):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}")
    folder = shutil.copytree(finished, tmp_path / "copy")
    values = "method.response.wavelet=haar,nonsense"
    status, output = finish(sweep(folder, "label=tiny_${method.response.wavelet}", f"launcher={launcher}", values))
    assert status == 1, output
    assert [row["status"] for row in last_table(folder)] == ["ok", "failed"]
    assert (folder / "weights/tiny_haar_demo_x2_seed0.safetensors").exists()
