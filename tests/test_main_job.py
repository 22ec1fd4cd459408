"""The main job from end to end, as its user meets it."""

import csv
import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from safetensors.numpy import load_file

STUDENT = "weights/tiny.safetensors"
AGGREGATOR = "weights/tiny_edsr-swinir_x2_dctswin_repaired_tiny"


@pytest.fixture
def copy(finished, tmp_path):
    """The finished folder, to be changed at will."""
    return shutil.copytree(finished, tmp_path / "copy")


def test_it_introduces_itself_and_its_split(finished):
    output = (finished / "output").read_text()
    assert output.index("GB will be made in cache/teachers") < output.index("training")
    assert "demonstration, not a benchmark" in output
    assert "train: coffee, rocket, hubble_deep_field, retina" in output
    assert "photographs: astronaut, chelsea" in output


def test_every_stage_leaves_a_verified_artefact(finished):
    for stem in ("tiny_edsr_x2", "tiny_swinir_x2", "tiny_edsr-swinir_x2_dctswin_repaired_tiny", "tiny"):
        record = json.loads((finished / "weights" / f"{stem}.json").read_text())
        assert len(record["sha256"]) == 64
        assert len(record["config_hash"]) == 16
        assert record["steps"] == 6
        assert record["protocol"] == "Y, crop 2, uint8, mean of images"
        assert record["versions"]["torch"]
        assert not (finished / "runs" / stem / "last.ckpt").exists()
        assert list((finished / "runs" / stem).rglob("metrics.csv"))


def test_the_sidecar_of_the_aggregator_names_its_members_in_order(finished):
    record = json.loads((finished / f"{AGGREGATOR}.json").read_text())
    members = [
        [name, json.loads((finished / f"weights/tiny_{name}_x2.json").read_text())["sha256"]]
        for name in ("edsr", "swinir")
    ]
    assert record["config"]["members"] == members


def test_weights_hold_one_network_alone(finished):
    assert not [name for name in load_file(finished / STUDENT) if name.startswith(("teacher", "student", "method"))]
    assert not [name for name in load_file(finished / f"{AGGREGATOR}.safetensors") if "member" in name]


def test_the_table_compares_all_networks(finished):
    with (finished / "runs/tiny/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [
        "bicubic",
        "teacher edsr",
        "teacher swinir",
        "mean of the teachers",
        "aggregator dctswin_repaired_tiny",
        "student",
    ]
    assert [row["network"] for row in rows] == names
    assert float(rows[0]["psnr"]) == pytest.approx(33.5, abs=2)
    assert int(rows[3]["parameters"]) == int(rows[1]["parameters"]) + int(rows[2]["parameters"])
    markdown = (finished / "runs/tiny/results.md").read_text()
    assert "Y, crop 2, uint8, mean of images" in markdown
    assert "2 per multiply-add" in markdown
    assert markdown in (finished / "output").read_text()


def test_a_window_of_every_held_out_photograph_is_kept(finished):
    kept = finished / "runs/tiny/pictures/photographs"
    assert sorted(path.name for path in kept.iterdir()) == ["astronaut", "chelsea"]
    names = sorted(path.stem for path in (kept / "astronaut").iterdir())
    assert names == [
        "HR",
        "LR",
        "aggregator dctswin_repaired_tiny",
        "bicubic",
        "mean of the teachers",
        "student",
        "teacher edsr",
        "teacher swinir",
    ]
    for path in kept.rglob("*.webp"):
        with Image.open(path) as image:
            pixels = np.asarray(image)
        assert pixels.shape == ((128, 128, 3) if path.stem == "LR" else (256, 256, 3))
        assert pixels.std() > 2


def test_the_record_outlives_the_cache_and_changes_with_what_is_kept(copy, job):
    shutil.rmtree(copy / "cache")
    assert len(list((copy / "runs/tiny/pictures").rglob("HR.webp"))) == 2
    before = json.loads((copy / "runs/tiny/metrics.json").read_text())
    shutil.rmtree(copy / "runs/tiny/pictures")
    result = job(copy, "report.pictures=1")
    assert result.returncode == 0, result.stdout
    after = json.loads((copy / "runs/tiny/metrics.json").read_text())
    assert after["images"] == before["images"]
    assert after["networks"] == before["networks"]  # measured seconds and all: nothing was scored again
    assert [picture["image"] for picture in after["pictures"]] == ["astronaut"]
    assert len(list((copy / "runs/tiny/pictures").rglob("HR.webp"))) == 1


def test_the_same_command_again_skips_what_is_finished(copy, job):
    before = {path: path.stat().st_mtime_ns for path in (copy / "weights").iterdir()}
    result = job(copy)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("is there.") == 5
    assert "training" not in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (copy / "weights").iterdir()}


def test_another_student_needs_the_merged_pictures_alone(copy, job):
    """Those of members, several times as many, can be deleted after stage 1."""
    folders = sorted((copy / "cache/teachers").iterdir(), key=lambda folder: folder.stat().st_mtime)
    assert len(folders) == 3
    for members in folders[:2]:
        shutil.rmtree(members)
    result = job(copy, "name=other", "method.weights.ground_truth=0.3", "stages=[distillation]")
    assert result.returncode == 0, result.stdout
    assert "making" not in result.stdout
    assert "Teachers' pictures" not in result.stdout
    assert (copy / "weights/other.safetensors").exists()


def test_one_stage_alone(copy, job):
    for suffix in (".safetensors", ".json"):
        (copy / f"{AGGREGATOR}{suffix}").rename(copy / f"old{suffix}")
    result = job(copy, "stages=[aggregation]")
    assert result.returncode == 0, result.stdout
    ours, before = load_file(copy / f"{AGGREGATOR}.safetensors"), load_file(copy / "old.safetensors")
    assert all((ours[name] == before[name]).all() for name in before)


@pytest.mark.parametrize(
    ("members", "overrides"),
    [
        (["edsr"], ["~teacher.members.swinir"]),
        (["edsr", "swinir", "big"], ["+backbone@teacher.members.big.backbone=edsr_tiny"]),
    ],
)
def test_the_number_of_members_is_configuration(copy, job, members, overrides):
    result = job(copy, *overrides, "name=other", "stages=[teachers,aggregation,distillation]")
    assert result.returncode == 0, result.stdout
    record = json.loads((copy / f"weights/tiny_{'-'.join(members)}_x2_dctswin_repaired_tiny.json").read_text())
    assert [name for name, _ in record["config"]["members"]] == members


@pytest.mark.parametrize("variant", ["dctswin", "online", "x8"])
def test_aggregators_of_variants_lie_beside_each_other(copy, job, variant):
    result = job(copy, f"+variant={variant}", "stages=[aggregation]")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(list((copy / "weights").glob("*_dctswin_*.safetensors"))) == 2


def test_mean_has_nothing_to_learn(copy, job):
    result = job(copy, "aggregator=mean", "name=other")
    assert result.returncode == 0, result.stdout
    assert not list((copy / "weights").glob("*_mean*"))
    assert "aggregator mean" not in (copy / "runs/other/results.md").read_text()


def test_scratch_trains_no_teacher(job, tmp_path):
    result = job(tmp_path, "method=scratch")
    assert result.returncode == 0, result.stdout
    assert [path.name for path in sorted((tmp_path / "weights").iterdir())] == ["tiny.json", "tiny.safetensors"]


def test_two_runs_at_once_make_an_artefact_once(tmp_path, command):
    runs = []
    for _ in range(2):
        runs.append(
            subprocess.Popen(
                command("training.teachers.steps=60"),
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        time.sleep(0.5)
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sum(output.count("for 60 steps") for output in outputs) == 2, outputs
    assert any("waiting for it" in output for output in outputs), outputs
    assert "metrics.json is there" in "".join(outputs), outputs


def test_tables_wait_for_a_run_that_would_clear_them_away(copy, command):
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    lock = FileLock(copy / "runs/tiny/.lock")
    with lock.acquire(), subprocess.Popen(command("stages=[report]"), cwd=copy, **pipe) as run:
        assert any("Another run is at work on tiny; waiting for it." in line for line in run.stdout)
        lock.release()
        assert "Table: runs/tiny/results.md" in run.communicate(timeout=120)[0]
    assert run.returncode == 0


def test_existing_remake_puts_the_old_one_aside(copy, job):
    old = (copy / "weights/tiny_edsr_x2.safetensors").read_bytes()
    result = job(copy, "training.teachers.steps=7", "existing=remake", "stages=[teachers]")
    assert result.returncode == 0, result.stdout
    assert (copy / "weights/tiny_edsr_x2.old.safetensors").read_bytes() == old
    assert json.loads((copy / "weights/tiny_edsr_x2.json").read_text())["steps"] == 7


def test_an_installed_wheel_runs_from_any_folder(tmp_path):
    from pathlib import Path

    root = Path(__file__).parents[1]
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, root]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    code = (
        "import sys; sys.path.insert(0, 'site'); import runpy; runpy.run_module('mtkd_lightning', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "--cfg", "job", "+experiment=edsr_multi_teacher", "preset=paper"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "features: 256" in result.stdout
