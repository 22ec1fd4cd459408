"""Loggers, tested on what real offline runs left."""

import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from mtkd_lightning.config import CONF
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.loggers import Names, check, has_key, results, wandb_mode, wandb_server

TEACHER, AGGREGATOR = "tiny_edsr_x2", "tiny_edsr-swinir_x2_dctswin_repaired_tiny"
VARIABLES = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CONFIG_DIR", "NETRC")
COSTS = ("seconds", "steps", "teacher_passes", "parameters", "gflops", "seconds_per_megapixel")


def clean(home: Path, **more: str) -> dict[str, str]:
    """An environment without W&B keys, whatever the tester has."""
    return {**{key: value for key, value in os.environ.items() if key not in VARIABLES}, "HOME": str(home), **more}


def read(folder: Path) -> dict[str, list[dict]]:
    """Records of a run's .wandb file by their type, through W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    records: dict[str, list[dict]] = {}
    for record in map(json.loads, lines):
        records.setdefault(record["type"], []).append(record.get(record["type"], {}))
    return records


def summary(records: dict[str, list[dict]]) -> dict:
    return {key: value for part in records["summary"] for key, value in part.get("update", {}).items()}


def history(records: dict[str, list[dict]]) -> list[dict]:
    return [row["item"] for row in records["history"]]


@pytest.fixture(scope="module")
def logged(finished, tmp_path_factory, command):
    """Two students and a teacher of theirs, trained in one process with both loggers and no network; what it wrote."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("logged") / "job")
    for suffix in ("safetensors", "json"):
        (folder / f"weights/{TEACHER}.{suffix}").unlink()  # is made anew, the same to the last bit
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = clean(folder / "home", http_proxy=url, https_proxy=url, HTTP_PROXY=url, HTTPS_PROXY=url)
        named = ["name=logged_${seed}", "label=rcan_multi_teacher"]
        overrides = ["logger=both", "seed=0,1", *named, "trainer.log_every_n_steps=2"]
        stages = "stages=[teachers,aggregation,distillation,evaluation]"
        result = subprocess.run(
            [*command()[:3], "--multirun", *command()[3:], *overrides, stages],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        with pytest.raises(BlockingIOError):  # nobody has asked for the network
            proxy.accept()
    (folder / "output").write_text(result.stdout + result.stderr)
    return folder


@pytest.fixture(scope="module")
def runs(logged):
    """Records of all offline runs by the network's name, in the order in which they were made."""
    found: dict[str, list[dict]] = {}
    for path in sorted((logged / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_ctime):
        records = read(path)
        found.setdefault(records["run"][0]["display_name"], []).append(records)
    return found


def test_one_run_a_network_trained_and_scored_under_one_id(logged, runs):
    assert {name: len(parts) for name, parts in runs.items()} == {TEACHER: 1, "logged_0": 2, "logged_1": 2}
    ids = {name: {part["run"][0]["run_id"] for part in parts} for name, parts in runs.items()}
    assert all(len(found) == 1 for found in ids.values())
    assert len(set.union(*ids.values())) == 3
    for name, found in ids.items():
        assert (logged / "runs" / name / "wandb_id").read_text().split() == list(found)


def test_names(runs):
    for seed in (0, 1):
        for part in runs[f"logged_{seed}"]:
            run = part["run"][0]
            assert run["project"] == "mtkd_lightning"
            assert run["run_group"] == "rcan_demo_x2"
            assert run["job_type"] == "distillation"
            assert run["tags"] == ["rcan", "mtkd", "rcan_multi_teacher", "x2", f"seed{seed}"]
            config = run["config"]["update"]
            assert config["method"]["weights"] == {"response": 1, "ground_truth": 0.1}
            chosen = {key: config[key] for key in ("stage", "artifact", "seed", "network_seed", "label", "study_name")}
            assert chosen == {
                "stage": "distillation", "artifact": f"logged_{seed}", "seed": seed, "network_seed": seed,
                "label": "rcan_multi_teacher", "study_name": "rcan_demo_x2",
            }  # fmt: skip
    teacher = runs[TEACHER][0]["run"][0]
    assert (teacher["job_type"], teacher["run_group"]) == ("teachers", "rcan_demo_x2")
    assert teacher["tags"] == ["tiny", "x2", "seed0"]


def test_curves_are_those_of_the_csv(logged, runs):
    for seed in (0, 1):
        rows = history(runs[f"logged_{seed}"][0])
        steps = [row["trainer/global_step"] for row in rows if "train/response" in row]
        assert steps == [1, 3, 5]
        with (logged / f"runs/logged_{seed}/curves/version_0/metrics.csv").open() as file:
            written = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
        trained = ("response", "ground_truth", "learning_rate", "gradient_norm", "samples_per_second")
        for names in ([f"train/{name}" for name in trained], ["val/psnr", "val/ssim", "val/psnr_to_teacher"]):
            curves = [[[row[key] for row in table if key in row] for key in names] for table in (rows, written)]
            assert curves[0] == curves[1]
            assert all(curves[0])
            assert all(np.isfinite(values).all() and min(values) > 0 for values in curves[0])


def test_pictures_are_strips_of_the_same_region(logged, runs):
    drawn = [row for row in history(runs["logged_0"][0]) if any(key.startswith("crops") for key in row)]
    assert [row["trainer/global_step"] for row in drawn] == [6]  # not once more by the final validation
    (path,) = (
        path
        for path in (logged / "wandb").glob("offline-run-*/files/media/images/crops_*.png")
        if runs["logged_0"][0]["run"][0]["run_id"] in str(path)
    )
    strip = np.asarray(Image.open(path)).astype(int)
    side = strip.shape[0]
    assert strip.shape == (192, 6 * 192, 3)
    lr, teacher, student, hr, errors = (strip[:, i * side : (i + 1) * side] for i in (0, 1, 2, 3, 5))
    assert (lr[::4, ::4] == lr[2::4, 2::4]).all()  # an LR pixel is four of HR, each drawn as four
    assert np.abs(teacher - hr).mean() > 1
    assert np.abs(errors[..., 0] - np.minimum(8 * np.abs(student - hr).mean(-1), 255)).max() <= 8
    assert (errors[..., 0] == errors[..., 1]).all()


def test_scores_are_those_of_the_evaluation(logged, runs):
    for name in ("logged_0", "logged_1"):
        metrics = json.loads((logged / f"runs/{name}/metrics.json").read_text())
        found = summary(runs[name][1])
        expected, _ = results(metrics)
        assert {f"cost/{cost}" for cost in COSTS} | {"test/photographs/psnr", "test/ssim"} <= expected.keys()
        assert {key: found[key] for key in expected} == pytest.approx(expected)
        assert found["results.nrows"] == 6
    table = next((logged / "wandb").glob("offline-run-*/files/media/table/results_*.json"))
    assert json.loads(table.read_text())["columns"] == ["benchmark", "network", "psnr", "ssim"]


def test_lineage_leads_from_the_teachers_to_the_student(runs):
    def artifacts(name: str) -> dict[str, dict]:
        return {record["name"]: record for record in runs[name][0]["artifact"]}

    made = artifacts(TEACHER)[TEACHER]
    assert made["type"] == "teacher"
    assert not made.get("use_after_commit")
    for name in ("logged_0", "logged_1"):
        found = artifacts(name)
        assert {key: record["type"] for key, record in found.items()} == {
            TEACHER: "teacher", "tiny_swinir_x2": "teacher", AGGREGATOR: "aggregator", name: "student",
        }  # fmt: skip
        assert {key for key, record in found.items() if record.get("use_after_commit")} == set(found) - {name}
        assert found[TEACHER]["digest"] == made["digest"]  # one version, made there and used here
        assert [entry["path"] for entry in found[name]["manifest"]["contents"]] == ["sha256"]


def test_nothing_lies_elsewhere_and_little_is_said(logged):
    assert not [path for path in (logged / "home").rglob("*") if "wandb" in str(path.relative_to(logged))]
    assert {path.name for path in logged.iterdir()} - {"home"} == {
        "weights",
        "runs",
        "report",
        "cache",
        "output",
        "wandb",
    }
    said = [line for line in (logged / "output").read_text().splitlines() if "wandb" in line.lower() or "W&B" in line]
    assert len(said) == 5
    assert all(re.fullmatch(r"W&B: \S+ is kept in \S+; `wandb sync` uploads it\.", line) for line in said)


def test_tensorboard_has_the_same(logged, runs):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(logged / "runs/logged_0/tensorboard")).Reload()
    psnr = [row["val/psnr"] for row in history(runs["logged_0"][0]) if "val/psnr" in row]
    assert [event.value for event in events.Scalars("val/psnr")] == pytest.approx(psnr)
    assert [event.step for event in events.Scalars("train/response")] == [1, 3, 5]
    assert events.Scalars("test/photographs/psnr")[0].value == pytest.approx(
        summary(runs["logged_0"][1])["test/photographs/psnr"]
    )
    assert events.Tags()["images"] == ["crops/immunohistochemistry"]


def test_the_dashboard_names_what_is_recorded(logged, runs, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "mtkd_lightning.dashboard", "study_name=rcan_demo_x2", f"output={tmp_path}/spec.json"],
        cwd=logged, env=clean(tmp_path), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no key for https://api.wandb.ai" in result.stdout
    assert "wandb sync" in result.stdout
    specification = json.loads((tmp_path / "spec.json").read_text())
    parts = runs["logged_0"]
    config = parts[0]["run"][0]["config"]["update"]
    recorded = {
        re.sub(r"\..*", "", key) for part in parts for key in (*summary(part), *(k for r in history(part) for k in r))
    }
    named: list[str] = []

    def walk(node: object, key: str = "") -> None:
        if isinstance(node, dict):
            if node.get("section") in ("config", "summary"):
                named.append(f"{node['section']}:{node['name']}")
            for name, value in node.items():
                walk(value, name)
        elif isinstance(node, list):
            for value in node:
                walk(value, key)
        elif isinstance(node, str) and key in ("xAxis", "yAxis", "accessor", "columnOrder"):
            named.append(node)
        elif isinstance(node, str) and key in ("metrics", "mediaKeys", "targetKey"):
            named.append(f"summary:{node}")
        elif isinstance(node, str) and key == "groupBy":
            named.append(f"config:{node}")

    walk(specification)
    kinds = {"summary": 0, "config": 0}
    for name in set(named) - {"_step", "trainer/global_step", "run:displayName"}:
        kind, _, key = name.partition(":")
        if kind == "run":
            continue
        assert kind in kinds, name
        kinds[kind] += 1
        if kind == "summary":
            assert key in recorded, name
        else:
            node: object = config
            for step in key.split("."):
                if step != "value":
                    assert isinstance(node, dict)
                    assert step in node, name
                    node = node[step]
    assert "trainer/global_step" in recorded
    assert kinds["summary"] >= 15
    assert kinds["config"] >= 6
    assert {"config:method.value.weights.ground_truth", "config:label.value", "summary:crops"} <= set(named)


def test_the_dashboard_refuses_what_it_cannot_do(tmp_path, logged):
    def said(*arguments: str, **variables: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "mtkd_lightning.dashboard", f"output={tmp_path}/spec.json", *arguments],
            cwd=logged, env=clean(tmp_path, **variables), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert result.returncode == 1
        assert "Traceback" not in result.stdout + result.stderr
        return result.stdout + result.stderr

    assert "needs a key" in said("save=true")
    assert "allowed are true, false, null" in said("save=perhaps")
    assert "no run to compare" in said("runs=[nowhere]")
    away = said(WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "cannot be reached" in away
    assert json.loads((tmp_path / "spec.json").read_text())["report"]["spec"]["blocks"]


@pytest.mark.slow
def test_a_killed_training_goes_on_in_its_run(finished, tmp_path, command, killed_job, job, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "job")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    steps = ("training.distillation.steps=40", "training.distillation.checkpoint_every=7")
    overrides = ("logger=both", "name=killed", "stages=[distillation]", "trainer.log_every_n_steps=5", *steps)
    killed_job(folder, *overrides, when=folder / "runs/killed/last.ckpt")
    before = (folder / "runs/killed/wandb_id").read_text()
    result = job(folder, *overrides)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "going on from" in result.stdout
    assert (folder / "runs/killed/wandb_id").read_text() == before
    records = read(max((folder / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_ctime))
    assert records["run"][0]["run_id"] == before.strip()
    assert history(records)[0]["trainer/global_step"] >= 5
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "runs/killed/tensorboard")).Reload()
    steps_seen = [event.step for event in events.Scalars("train/response")]
    assert steps_seen == list(range(4, 40, 5))


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """No key and no settings of the tester's; gives a function that writes netrc."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return lambda host: (tmp_path / ".netrc").write_text(f"machine {host} login user password {'0' * 40}\n")


def test_the_mode_follows_the_key(alone, monkeypatch, tmp_path):
    assert wandb_mode(None) == "offline"
    alone("example.org")
    assert not has_key()
    alone("api.wandb.ai")
    assert wandb_mode(None) == "online"
    assert wandb_mode("offline") == "offline"
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert wandb_mode(None) == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(None) == "disabled"
    assert wandb_mode("online") == "online"
    (tmp_path / ".config/wandb").mkdir(parents=True)
    (tmp_path / ".config/wandb/settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert wandb_server() == "https://wandb.example.org"
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_key()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logger=wandb", "logger.wandb.mode=of"], "logger.wandb.mode='of': allowed are online, offline, disabled"),
        (["logger=wandb", "logger.wandb.mode=online"], "there is no key: `wandb login`, or set WANDB_API_KEY"),
        (["logger=wandb", "logger.wandb.project=a/b"], "logger.wandb.project='a/b'"),
        (["logger=wandb", "logger.wandb.artifacts=all"], "logger.wandb.artifacts='all'"),
        (["logger=wandb", "+logger.wandb.projct=a"], "logger.wandb has no key 'projct': did you mean project?"),
        (["+logger.mlflow.uri=a"], "logger has no key 'mlflow'"),
        (["logger.images=-1"], "logger.images=-1: it must be a whole number from 0 up"),
        (["logger.images_every=0"], "logger.images_every=0: it must be a whole number from 1 up"),
    ],
)
def test_bad_settings_are_refused(alone, refused, overrides, message):
    assert message in refused(*overrides)


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_named(package, alone, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    node = OmegaConf.merge(
        OmegaConf.load(CONF / "logger/default.yaml"), OmegaConf.load(CONF / f"logger/{package}.yaml")
    )
    with pytest.raises(MTKDError, match=rf"logger={package} needs the package {package}.*pip install"):
        check(node)


def test_names_of_other_stages():
    config = OmegaConf.create(
        {
            "teacher": {"name": "t"},
            "student_name": "s",
            "method_name": "kd",
            "label": "s_kd",
            "scale": 3,
            "study_name": 7,
        }
    )
    assert Names.of(config, "aggregation", "t_a-b_x3_mean", 5).tags == ("t", "x3", "seed5")
    student = Names.of(config, "distillation", "s_kd_x3", 5)
    assert student.tags == ("s", "kd", "s_kd", "x3", "seed5")
    assert student.group == "7"
