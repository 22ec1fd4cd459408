"""What a comparison rests on: the same start, the same samples and the same care for every method."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file

from mtkd_lightning import artifacts
from mtkd_lightning.artifacts import Artifact
from mtkd_lightning.config import CONF, build
from mtkd_lightning.experiments import ONE_TEACHER, register
from mtkd_lightning.networks import load, locate
from mtkd_lightning.pipeline import Pipeline

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
ALONE = {"scratch", "scratch_detail", "scratch_wavelet"}  # without a teacher
PATCH = "training.distillation.lr_patch=16"  # which DUKD can reduce once more

# The main job several times in one process, which says what is in the batches of the last training of each.
PROGRAM = """
import json, sys
from hashlib import sha256
from mtkd_lightning.__main__ import main
from mtkd_lightning.data.datamodule import SRDataModule

floats = SRDataModule.on_after_batch_transfer
def told(self, batch, index):
    if self.trainer.training:
        pixels = b"".join(x.cpu().numpy().tobytes() for x in (batch.lr, batch.hr))
        print("batch", sha256(pixels).hexdigest(), batch.name)
    return floats(self, batch, index)
SRDataModule.on_after_batch_transfer = told

for words in json.loads(sys.argv[1]):
    print("job", words[-1])
    sys.argv = words
    main()
"""


def chosen(method: str, *words: str, name: str | None = None) -> list[str]:
    """How a file of conf/method is run: with one teacher where its experiments have one, else with all, merged."""
    words = [f"method={method}", PATCH, "stages=[distillation,evaluation]", *words]
    if method in ONE_TEACHER:
        words += ["teacher.only=[swinir]", "aggregator=mean"]
    if "taps" in OmegaConf.load(CONF / "method" / f"{method}.yaml"):
        words.append("method.taps=[1.0]")
    return [*words, f"name={name or method}", f"label={name or method}"]


@pytest.fixture(scope="module")
def told(tmp_path_factory, command) -> tuple[Path, dict[str, str]]:
    """The tiny main job with every method, with another batch size, with a cold cache: its folder, what each said."""
    folder = tmp_path_factory.mktemp("fairness")
    small = chosen("scratch", "training.distillation.batch_size=1", name="small")
    cold = chosen("mipkd", "paths.cache=cold", name="cold")
    jobs = [["stages=[teachers,aggregation]", "label=before"], *map(chosen, METHODS), small, cold]
    words = [sys.executable, "-c", PROGRAM, json.dumps([command(*job)[2:] for job in jobs])]
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    parts = (part.partition("\n") for part in result.stdout.split("job label=")[1:])
    return folder, {name: text for name, _, text in parts}


@pytest.fixture(scope="module")
def runs(told) -> Path:
    return told[0]


def record(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / name / "metrics.json").read_text())["run"]


def test_every_method_starts_from_the_same_student(runs):
    starts = {record(runs, name)["initial_sha256"] for name in [*METHODS, "small"]}
    assert len(starts) == 1
    ends = {load_file(runs / "weights" / f"{name}.safetensors")["conv_last.weight"].tobytes() for name in METHODS}
    assert len(ends) == len(METHODS)


def test_a_run_says_which_code_trained_it(runs):
    here, of_run = artifacts.provenance()["git"], record(runs, "mtkd")["code"]
    assert of_run == here or of_run["revision"] == here["revision"]  # files may change meanwhile


def test_a_methods_own_weights_do_not_depend_on_what_is_in_the_cache(told):
    assert "teacher swinir: making" in told[1]["cold"]
    assert "teacher swinir: making" not in told[1]["mipkd"]
    warm, cold = (load_file(told[0] / "weights" / f"{name}.safetensors") for name in ("mipkd", "cold"))
    assert all((cold[name] == x).all() for name, x in warm.items())


def test_every_method_sees_the_same_samples(told):
    """Bitwise, as they come out of the loader that each method's training builds."""
    seen = {name: [x for x in text.splitlines() if x.startswith("batch")] for name, text in told[1].items()}
    assert len(set(seen["scratch"])) == 6
    assert seen["small"] != seen["scratch"]
    assert {name: lines for name, lines in seen.items() if lines != seen["scratch"]}.keys() == {"before", "small"}


def test_methods_that_read_features_say_which(told):
    assert all("SwinIR deep (4, h, w)" in told[1][name] for name in ("at", "crosskd", "fakd", "mipkd"))


def test_what_must_match_is_recorded(runs):
    prints = {name: record(runs, name)["fingerprint"] for name in METHODS}
    assert len(set(prints.values())) == 1
    assert record(runs, "small")["fingerprint"] != prints["scratch"]


def test_what_teaching_cost_is_recorded(runs):
    records = {name: record(runs, name) for name in METHODS}
    passes = {
        "scratch": 0,
        "kd": 0,
        "mtkd": 0,
        "crosskd": 0,
        "at": 6 * 2,
        "dukd": 6 * 2 * 2,
    }  # DUKD's: of other patches
    assert {name: records[name]["teacher_passes"] for name in passes} == passes
    assert {name for name, x in records.items() if x["teacher_pictures"] != "kept"} == ALONE
    merged = json.loads((runs / "weights/tiny_edsr-swinir_x2_dctswin_repaired_tiny.json").read_text())["seconds"]
    before = {name: tuple(x["before"].values()) for name, x in records.items()}
    assert before == {
        name: (0, 0) if name in ALONE else (4, 0) if name in ONE_TEACHER else (8, merged) for name in METHODS
    }
    assert len({x["device"] for x in records.values()}) == 1


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, command):
    """What the evaluation would record of a student, trained or not: (overrides, protocol, what its sidecar has)."""
    folder = tmp_path_factory.mktemp("recorded")
    for root in ("data", "more"):  # which differ in their benchmark
        for name in (*(f"train/{i}" for i in range(3)), "validation/0", f"benchmarks/Set5/HR/{root}"):
            path = folder / root / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((96, 96, 3), len(name), np.uint8)).save(path)
    register()

    def record(*overrides: str, protocol: str = "Y", **made) -> dict:
        def finished(path: Path, config: dict) -> Artifact:
            sidecar = {"sha256": artifacts.config_hash(config), "seed": config["recipe"]["seed"], "steps": 6}
            costs = {"seconds": 1.0, "teacher_passes": 0, "initial_sha256": "0" * 64}
            return Artifact(path, {**sidecar, **costs, "config": config, **made})

        with initialize_config_dir(str(CONF), version_base="1.3"), pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(artifacts, "find", finished)
            words = ["data=folders", "data.root=data", PATCH, *overrides]
            config = compose("config", command(*words)[3:], return_hydra_config=True)
            patch.setattr(HydraConfig.instance(), "cfg", None)
            HydraConfig.instance().set_config(config)
            with open_dict(config):
                del config["hydra"]
            return Pipeline(config)._scoring()._run_record({"Set5": protocol})

    torch.manual_seed(0)
    for name in "ab":
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", command()[3:])
        save_file(build(config.student).state_dict(), folder / f"{name}.safetensors")
    return record


RECIPE = "training.distillation"
MUST_MATCH = {
    "scale": "scale=3",
    "student": "student.features=6",
    "data": "data.exclude=['0']",
    "benchmarks": "data.root=more",
    "steps": f"{RECIPE}.steps=7",
    "batch_size": f"{RECIPE}.batch_size=4",
    "lr_patch": f"{RECIPE}.lr_patch=12",
    "learning_rate": f"{RECIPE}.learning_rate=0.1",
    "optimizer": f"{RECIPE}.optimizer.betas=[0.9,0.99]",
    "scheduler": f"scheduler@{RECIPE}.scheduler=multistep",
    "warmup": f"{RECIPE}.scheduler.warmup=0.1",
    "ema_decay": f"{RECIPE}.ema_decay=null",
    "init_from": f"{RECIPE}.init_from=a.safetensors",
    "initial weights": f"{RECIPE}.init_from=b.safetensors",
    "precision": "trainer.precision=bf16-mixed",
    "clip": "trainer.gradient_clip_val=1.0",
    "clip of the student": f"{RECIPE}.gradient_clip_val=2.0",
    "parts": "trainer.accumulate_grad_batches=2",
}


def test_everything_that_must_match_is_in_the_fingerprint(recorded):
    found = {name: recorded(override)["fingerprint"] for name, override in MUST_MATCH.items()}
    found["usual"] = recorded()["fingerprint"]
    found["protocol"] = recorded(protocol="RGB")["fingerprint"]
    found["processes"] = recorded(processes=2)["fingerprint"]
    assert len(set(found.values())) == len(found), found


def test_nothing_else_is_in_the_fingerprint(recorded):
    usual = recorded(processes=1)
    others = [
        *map(chosen, METHODS),
        ["seed=1"],
        ["teacher.only=[swinir]"],
        ["teacher.cache=false"],
        ["teacher.self_ensemble=true"],
        ["training.aggregation.steps=7"],
        [f"{RECIPE}.validate_every=3", f"{RECIPE}.checkpoint_every=1"],
        ["num_workers=1"],
    ]
    assert {recorded(*words)["fingerprint"] for words in others} == {usual["fingerprint"]}
    # So that those of earlier runs stay.
    assert not {"processes", "accumulate_grad_batches"} & usual["fairness"].keys()
    assert recorded("teacher.self_ensemble=true")["before"] == {"teacher_pictures": 8 * 2 * 3, "aggregator_seconds": 1}
    assert recorded("training.aggregation.steps=7")["settings"] != usual["settings"] == recorded("seed=1")["settings"]


def test_the_comparison_of_real_runs(runs):
    result = subprocess.run(
        [sys.executable, "-m", "mtkd_lightning.compare"], cwd=runs, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "recipe.batch_size" in result.stdout
    table = (runs / "comparison/results.csv").read_text().splitlines()
    assert len(table) == 1 + len(METHODS) + 2
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
    words = chosen("scratch", "trainer.accumulate_grad_batches=2", name="parts")
    result = job(runs, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    whole, parts = (load_file(runs / "weights" / f"{name}.safetensors") for name in ("scratch", "parts"))
    # Adam's first steps have the size of the learning rate whatever the gradient, so rounding is seen in full.
    largest = max(abs(whole[name] - parts[name]).max() for name in whole)
    assert 0 < largest < 2e-3
