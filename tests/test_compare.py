"""``python -m mtkd_lightning.compare`` as its user meets it, and its statistics on scores with known differences."""

import csv
import hashlib
import itertools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy import stats

from mtkd_lightning import compare
from mtkd_lightning.comparison import differences, interval
from mtkd_lightning.runs import read_runs
from mtkd_lightning.tables import escaped

FAIRNESS = {
    "student": {"_target_": "EDSR", "features": 32},
    "data": "d" * 64,
    "batch_size": 16,
    "steps": 6000,
    "optimizer": {"lr": 5e-4},
    "init_from": None,
}
COUNTS = {"Set5": 5, "B100": 40}
SCENE = np.random.default_rng(1)
# Pictures differ by decibels, and each has a gain of its own from the method: the interval must be of the gains.
PICTURES = {name: SCENE.normal(30, 3, count) for name, count in COUNTS.items()}
GAINS = {name: SCENE.normal(0.1, 0.05, count) for name, count in COUNTS.items()}


def fingerprint(fairness: dict) -> str:
    return hashlib.sha256(json.dumps(fairness).encode()).hexdigest()[:8]


USUAL = fingerprint(FAIRNESS)


def left(
    folder: Path, method: str, seed: int, psnr: Callable[[str], np.ndarray], name: str | None = None, **changed
) -> Path:
    """What the evaluation of one run leaves; ``psnr`` gives the scores of a benchmark's pictures."""
    fairness = FAIRNESS | changed.pop("fairness", {})
    run = {
        "name": f"{method}_{seed}",
        "variant": f"edsr_{method}",
        "student": "edsr",
        "method": method,
        "scale": 4,
        "seed": seed,
        "steps": fairness["steps"],
        "seconds": 600.0,
        "teacher_passes": 0,
        "teacher_pictures": None,
        "fairness": fairness,
        "fingerprint": fingerprint(fairness),
        "initial_sha256": str(seed) * 64,
    }
    images = [
        {"benchmark": benchmark, "network": network, "image": f"{i:03d}", "psnr": float(value - lower), "ssim": 0.875}
        for network, lower in (("bicubic", 2), ("student", 0))
        for benchmark in COUNTS
        for i, value in enumerate(psnr(benchmark))
    ]
    protocols = dict.fromkeys(COUNTS, "Y, crop 4, uint8, mean of images")
    metrics = {"of": {}, "protocols": protocols, "scale": 4, "networks": {}, "images": images, "run": run | changed}
    path = folder / (name or f"run{len(list(folder.glob('*')))}") / "metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(metrics))
    return path


def scratch(folder: Path, seed: int = 0, offset: float = 0.0, **changed) -> Path:
    return left(folder, "scratch", seed, lambda benchmark: PICTURES[benchmark] + offset, **changed)


def kd(folder: Path, seed: int = 0, offset: float = 0.0, method: str = "kd", **changed) -> Path:
    return left(folder, method, seed, lambda name: PICTURES[name] + GAINS[name] + offset, **changed)


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def comparing(tmp_path, monkeypatch, capsys):
    """Run the command in this process, in an empty folder; give its status and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compare", *overrides])
        capsys.readouterr()
        try:
            compare.main()
        except SystemExit as stop:
            return int(stop.code or 0), "".join(capsys.readouterr())
        return 0, "".join(capsys.readouterr())

    return run


@pytest.fixture
def tables(comparing, tmp_path):
    """Run the command, which must end well; give each table of comparison.md as rows of cells by column."""

    def run(*overrides: str) -> list[dict[str, dict[str, str]]]:
        status, written = comparing(*overrides)
        assert status == 0, written
        text = (tmp_path / "comparison/comparison.md").read_text()
        assert text in written
        found = []
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            lines = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
            assert len({len(line) for line in block.splitlines()}) == 1
            found.append({line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]})
        return found

    return run


def text(tmp_path: Path) -> str:
    return (tmp_path / "comparison/comparison.md").read_text()


def test_the_table(tables, runs, tmp_path):
    for seed, offset in enumerate((-0.02, 0.0, 0.05)):
        scratch(runs, seed, offset)
        kd(runs, seed, 2 * offset, seconds=690.0, teacher_passes=1200, teacher_pictures="kept")
    (table,) = tables()
    assert list(table) == ["edsr_kd", "edsr_scratch"]
    assert [row["seeds"] for row in table.values()] == ["3", "3"]
    for benchmark, values in PICTURES.items():
        means = [values.mean() + offset for offset in (-0.02, 0.0, 0.05)]
        shown = f"{np.mean(means):.3f} ± {statistics.stdev(means):.3f} / 0.8750"
        assert table["edsr_scratch"][benchmark] == shown
        assert table["edsr_scratch"][f"{benchmark} to edsr_scratch"] == "baseline"
        gain, low, high = map(
            float, re.fullmatch(r"(.+) \[(.+), (.+)\]", table["edsr_kd"][f"{benchmark} to edsr_scratch"]).groups()
        )
        assert gain == pytest.approx(GAINS[benchmark].mean() + 0.01, abs=6e-4)
        assert low < gain < high
    means = [values.mean() + 0.01 for values in PICTURES.values()]
    assert table["edsr_scratch"]["mean"] == f"{np.mean(means):.3f}"
    assert table["edsr_kd"]["seconds"] == "690"
    assert table["edsr_kd"]["s / step to edsr_scratch"] == "1.15"
    assert table["edsr_kd"]["teacher passes"] == "1,200 kept"
    assert table["edsr_scratch"]["teacher passes"] == "0"
    assert f"## edsr, x4, 6,000 steps, fingerprint {USUAL}\n" in text(tmp_path)
    assert "Y, crop 4, uint8, mean of images (Set5, B100)" in text(tmp_path)
    assert "\\*" not in text(tmp_path)
    assert "In what the tables differ" not in text(tmp_path)


def test_the_file_of_results(tables, runs, tmp_path):
    scratch(runs, 1)
    kd(runs, 0, variant="edsr_other")
    tables()
    with (tmp_path / "comparison/results.csv").open(newline="") as file:
        content = list(csv.reader(file))
    assert content[0] == [
        "student", "scale", "method", "variant", "seed", "benchmark", "psnr_y", "ssim_y", "steps", "seconds",
        "fingerprint",
    ]  # fmt: skip
    assert len(content) == 1 + 2 * len(COUNTS)
    first = ["edsr", "4", "kd", "edsr_other", "0", "Set5"]
    assert content[1][:6] == first
    assert float(content[1][6]) == pytest.approx((PICTURES["Set5"] + GAINS["Set5"]).mean(), abs=5e-5)
    assert content[1][7:] == ["0.875", "6000", "600.0", USUAL]


def test_one_seed_has_no_spread(tables, runs):
    scratch(runs)
    (table,) = tables()
    assert table["edsr_scratch"]["Set5"] == f"{PICTURES['Set5'].mean():.3f} ± - / 0.8750"


def test_seeds_that_disagree_are_counted(tables, runs):
    for seed, offset in enumerate((0.0, 0.2, -0.5)):
        scratch(runs, seed)
        kd(runs, seed, offset)
        kd(runs, seed, 0.0, method="mtkd")
    (table,) = tables()
    cell = table["edsr_kd"]["B100 to edsr_scratch"]
    assert cell.startswith("-0.0")
    assert cell.endswith("] (1/3)")
    assert table["edsr_mtkd"]["B100 to edsr_scratch"].endswith("]")


def test_seeds_are_paired_by_their_number(runs):
    scratch(runs, 0, offset=1.0)
    scratch(runs, 3, offset=2.0)
    kd(runs, 3, offset=4.0)
    kd(runs, 7, offset=9.0)
    by_method = {method: {} for method in ("kd", "scratch")}
    for run in read_runs([runs]):
        by_method[run.method][run.seed] = run
    found = differences(by_method["kd"], by_method["scratch"], "B100")
    np.testing.assert_allclose(found, GAINS["B100"] + 2.0)


def test_the_interval_is_that_of_another_implementation():
    for values in (GAINS["B100"], SCENE.exponential(1.0, 60)):
        other = stats.bootstrap(
            (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
        ).confidence_interval
        np.testing.assert_allclose(interval(values), other, atol=0.03 * (other.high - other.low))
        assert interval(values) == interval(values)


def test_the_interval_is_that_of_all_possible_draws():
    means = np.array([np.mean(drawn) for drawn in itertools.product(GAINS["Set5"], repeat=5)])
    for bound, share in zip(interval(GAINS["Set5"]), (0.025, 0.975), strict=True):
        assert (means < bound - 1e-9).mean() - 0.006 < share < (means < bound + 1e-9).mean() + 0.006


def test_the_interval_is_that_of_a_normal_mean():
    values = SCENE.normal(0.3, 2.0, 1000)
    half = 1.96 * values.std() / np.sqrt(1000)
    np.testing.assert_allclose(interval(values), (values.mean() - half, values.mean() + half), atol=0.05 * half)
    assert interval(values, level=0.5)[0] > interval(values)[0]


def test_one_picture_has_no_interval(tables, runs, monkeypatch):
    monkeypatch.setitem(PICTURES, "Set5", np.array([31.0]))
    monkeypatch.setitem(GAINS, "Set5", np.array([0.25]))
    scratch(runs)
    kd(runs)
    (table,) = tables()
    assert table["edsr_kd"]["Set5 to edsr_scratch"] == "+0.250 [-]"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"fairness": {"batch_size": 8}}, {"batch_size": {"8", "16"}}),
        ({"fairness": {"student": {"_target_": "EDSR", "features": 64}}}, {"student.features": {"64", "32"}}),
        ({"fairness": {"optimizer": {}}}, {"optimizer": {"{}", "absent"}, "optimizer.lr": {"absent", "0.0005"}}),
        ({"fairness": {"data": "e" * 64}}, {"data": {"e" * 12, "d" * 12}}),
        ({"scale": 2}, {"scale": {"2", "4"}}),
    ],
)
def test_unequal_students_are_in_tables_of_their_own(tables, runs, tmp_path, changed, expected):
    scratch(runs)
    kd(runs, **changed)
    found = tables()
    assert sorted(list(table) for table in found) == [["edsr_kd"], ["edsr_scratch"]]
    assert all(("Set5 to edsr_scratch" in table[name]) == (name == "edsr_scratch") for table in found for name in table)
    closing = text(tmp_path).split("## In what the tables differ\n\n")[1].split("\n\n")[0]
    stated = {line[2:].split(": ")[0]: re.findall(r"(\S+) \((\w+)\)", line) for line in closing.splitlines()}
    assert {key: {value for value, _ in values} for key, values in stated.items()} == expected
    fingerprints = {USUAL, fingerprint(FAIRNESS | changed.get("fairness", {}))}
    assert all({name for _, name in values} == fingerprints for values in stated.values())


def test_other_pictures_under_the_same_fingerprint_are_not_compared(tables, runs, tmp_path, monkeypatch):
    scratch(runs)
    monkeypatch.setitem(PICTURES, "Set5", PICTURES["Set5"][:4])
    monkeypatch.setitem(GAINS, "Set5", GAINS["Set5"][:4])
    kd(runs)
    assert len(tables()) == 2
    closing = text(tmp_path).split("## In what the tables differ")[1]
    assert "scored.Set5: 4 pictures" in closing or "scored.Set5: 5 pictures" in closing
    assert "steps" not in closing.split("PSNR in dB")[0]


def test_only(tables, comparing, runs, tmp_path):
    scratch(runs)
    kd(runs)
    kd(runs, method="mtkd", fairness={"steps": 2000, "data": "e" * 64})
    kd(runs, method="mtkd", fairness={"steps": 2000})
    assert [list(table) for table in tables("only=[edsr_kd,edsr_scratch]")] == [["edsr_kd", "edsr_scratch"]]
    (table,) = tables("only=edsr_kd")
    assert not any("to" in column.split() for column in table["edsr_kd"])

    status, written = comparing("only=[edsr_kd,edsr_mtkd]")
    assert status == 1
    assert "edsr_kd and edsr_mtkd cannot be compared fairly, they differ in steps (6000 and 2000)." in written
    assert "data" not in written  # of the two that there are, the nearer
    assert "unmatched=mark" in written

    found = tables("only=[edsr_kd,edsr_mtkd]", "unmatched=mark")
    assert len(found) == 3
    assert text(tmp_path).count(", unmatched\n") == 3
    assert "Unmatched: not to be compared with edsr_mtkd" in text(tmp_path)

    scratch(runs, fairness={"steps": 2000})
    tables("only=[edsr_kd,edsr_mtkd,edsr_scratch]", "unmatched=mark")
    assert text(tmp_path).count(", unmatched\n") == 3
    tables("only=[edsr_scratch,edsr_mtkd]", "unmatched=mark")
    assert ", unmatched" not in text(tmp_path)


def test_seeds_that_others_lack_are_marked(tables, runs, tmp_path):
    for seed in (0, 1, 2):
        scratch(runs, seed)
    kd(runs, 1)
    kd(runs, 5, method="at")
    (table,) = tables()
    assert set(table) == {r"edsr_kd\*", r"edsr_at\*", r"edsr_scratch\*"}
    assert r"\* edsr_kd has no seed 0, 2, 5," in text(tmp_path)
    assert r"\* edsr_scratch has no seed 5," in text(tmp_path)
    assert table[r"edsr_at\*"]["Set5 to edsr_scratch"] == "-"


def test_of_a_seed_in_another_table_it_is_said(tables, runs, tmp_path):
    for seed in (0, 1, 2):
        scratch(runs, seed)
        if seed:
            kd(runs, seed, **({"fairness": {"steps": 2000}} if seed == 2 else {}))
    tables()
    assert (
        r"\* edsr_kd has no seed 0, 2, which others have (trained or scored otherwise, 2 is in another table);"
        in text(tmp_path)
    )


def test_other_initial_weights_are_marked(tables, runs, tmp_path):
    for seed in (0, 1):
        scratch(runs, seed)
        kd(runs, seed)
        kd(runs, seed, method="at", **({"initial_sha256": "ab" * 32} if seed else {}))
    (table,) = tables()
    assert set(table) == {"edsr_kd", r"edsr_at\*", "edsr_scratch"}
    assert r"\* edsr_at started from other weights than the others with seed 1 (abababababab)" in text(tmp_path)


def test_of_two_that_start_apart_both_are_marked(tables, runs):
    scratch(runs)
    kd(runs, initial_sha256="ab" * 32)
    assert set(tables()[0]) == {r"edsr_kd\*", r"edsr_scratch\*"}


def test_the_baseline(tables, comparing, runs):
    scratch(runs)
    kd(runs)
    kd(runs, 0, 0.1, method="mtkd")
    scratch(runs, fairness={"steps": 2000})
    whole, short = sorted(tables("baseline=edsr_kd"), key=len, reverse=True)
    assert whole["edsr_mtkd"]["B100 to edsr_kd"] == "+0.100 [+0.100, +0.100]"
    assert short["edsr_scratch"]["B100 to edsr_scratch"] == "baseline"
    assert comparing("baseline=[edsr_kd,edsr_mtkd]")[0] == 1
    assert [set(table) for table in tables("only=edsr_mtkd", "baseline=edsr_kd")] == [{"edsr_mtkd", "edsr_kd"}]
    scratch(runs, variant="edsr_again")
    status, written = comparing()
    assert status == 1
    assert "edsr_again and edsr_scratch may each be the baseline" in written
    assert tables("baseline=edsr_again")


def set_so(weight: float = 0.1, teacher: dict | None = None) -> dict:
    return {"method": {"_target_": "KD", "weights": {"response": weight}}, "teacher": teacher, "teacher_pictures": None}


TRIO, OTHERS, UNSAID = ({"aggregator": "dctswin", **x} for x in ({"made_by": "a" * 16}, {"made_by": "b" * 16}, {}))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ([set_so(0.1), {}, set_so(0.3)], "method.weights.response (0.1 and 0.3)"),
        ([set_so(), set_so(), set_so(teacher=UNSAID)], "teacher (null and absent); teacher.aggregator"),
        (
            [set_so(teacher=TRIO), set_so(teacher=UNSAID), set_so(teacher=OTHERS)],
            f"teacher.made_by ({'a' * 16} and {'b' * 16})",
        ),
    ],
)
def test_a_label_is_one_variant(comparing, runs, settings, key):
    paths = [kd(runs, seed, settings=x) for seed, x in enumerate(settings)]
    status, written = comparing()
    assert status == 1
    assert "edsr_kd is not one variant, " in written
    assert f"differ in {key}" in written
    assert all(f"runs/{path.parent.name}/metrics.json" in written for path in (paths[0], paths[2]))
    assert "label=..." in written
    kd(runs, 2, name=paths[2].parent.name + "_", settings=settings[0])  # as it should be
    paths[2].unlink()
    assert comparing()[0] == 0


def test_a_label_may_be_trained_otherwise_in_another_table(tables, runs):
    kd(runs, 0, settings=set_so(0.1))
    kd(runs, 1, settings=set_so(0.3), fairness={"steps": 2000})
    assert len(tables()) == 2


def test_what_was_made_before(tables, runs, tmp_path):
    before = {"teacher_pictures": 1650, "aggregator_seconds": 904.6}
    scratch(runs, before=dict.fromkeys(before, 0))
    kd(runs, 0, method="mtkd", before=before)
    kd(runs, 1, method="mtkd")
    kd(runs, method="kd_mean", before=before | {"aggregator_seconds": 0})
    kd(runs, method="online", before=before | {"teacher_pictures": 0})
    kd(runs)
    (table,) = tables()
    assert {name.split("_", 1)[1].rstrip("\\*"): row["before"] for name, row in table.items()} == {
        "scratch": "0",
        "mtkd": "1,650 pictures; aggregator 905 s",
        "kd_mean": "1,650 pictures",
        "online": "aggregator 905 s",
        "kd": "-",
    }
    assert "Before: " in text(tmp_path)


def test_seconds_a_step_are_not_compared_between_devices(tables, runs):
    scratch(runs, device="cpu, 1 threads")
    kd(runs, device="cpu, 1 threads", seconds=900.0)
    kd(runs, method="gpu", device="NVIDIA H200")
    kd(runs, method="older")
    (table,) = tables()
    shown = {name: row["s / step to edsr_scratch"] for name, row in table.items()}
    assert shown == {"edsr_scratch": "1.00", "edsr_kd": "1.50", "edsr_gpu": "-", "edsr_older": "1.00"}


def weighted(path: Path, psnr: float, value: float) -> None:
    """The weights of a run, and how well they did on validation pictures."""
    weights = path.parents[2] / "weights" / f"{path.parent.name}.safetensors"
    weights.parent.mkdir(exist_ok=True)
    save_file({"x": np.array([value], np.float32)}, weights)
    record = {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest(), "metrics": {"val/psnr": psnr}}
    weights.with_suffix(".json").write_text(json.dumps(record))


def test_every_table_gives_its_own_students(tables, runs, tmp_path):
    """The best of a label at another scale, or after more steps, is no student of this table."""
    short = {"steps": 2000}
    weighted(kd(runs, 0), 29.0, 1)
    weighted(kd(runs, 1), 29.5, 2)
    weighted(kd(runs, 0, scale=2), 33.0, 3)
    weighted(scratch(runs), 28.0, 4)
    weighted(scratch(runs, fairness=short), 27.0, 5)
    weighted(kd(runs, method="at"), 28.0, 6)
    tables("students=true")
    taken = tmp_path / "comparison/students"
    found = {path.stem: load_file(path)["x"].item() for path in taken.glob("*.safetensors")}
    assert {path.stem for path in taken.glob("*.json")} == found.keys()
    assert found.pop("edsr_at") == 6
    assert (found.pop("edsr_kd_x4"), found.pop("edsr_kd_x2")) == (2, 3)
    assert found == {f"edsr_scratch_{USUAL}": 4, f"edsr_scratch_{fingerprint(FAIRNESS | short)}": 5}


def test_a_student_that_was_not_scored_is_not_taken_along(comparing, tables, runs):
    """After a training anew the old scores lie beside it until it is evaluated, too."""
    path = kd(runs)
    weighted(path, 29.0, 1)
    metrics = json.loads(path.read_text())
    metrics["of"]["student"] = json.loads((runs.parent / "weights/run0.json").read_text())["sha256"]
    path.write_text(json.dumps(metrics))
    tables("students=true")
    weighted(path, 29.5, 2)
    status, written = comparing("students=true")
    assert status == 1
    assert "run0.safetensors is not the student that runs/run0/metrics.json scores" in written


def test_the_code_that_trained_is_told(tables, runs, tmp_path):
    scratch(runs)
    kd(runs, code={"revision": "0123456789", "dirty": False})
    kd(runs, method="at", code={"revision": "abcdef0123", "dirty": True})
    tables()
    assert "\nCode: 01234567, abcdef01+.\n" in text(tmp_path)


def test_what_cannot_be_read_is_left_out_in_one_line(tables, runs, comparing, tmp_path):
    scratch(runs)
    broken = {
        "older": lambda metrics: metrics.pop("run"),
        "fieldless": lambda metrics: metrics["run"].pop("fingerprint"),
        "typeless": lambda metrics: metrics["run"].update(steps="many"),
        "infinite": lambda metrics: metrics["images"][-1].update(psnr=float("inf")),
        "studentless": lambda metrics: [image.update(network="other") for image in metrics["images"]],
        "imageless": lambda metrics: metrics.update(images=None),
        "makerless": lambda metrics: metrics.update(run=None),
        "doubled": lambda metrics: metrics["images"].append(metrics["images"][-1]),
    }
    for name, spoil in broken.items():
        path = kd(runs, name=name)
        metrics = json.loads(path.read_text())
        spoil(metrics)
        path.write_text(json.dumps(metrics))
    path = kd(runs, name="truncated")
    path.write_text(path.read_text()[:1000])
    for name, content in (("binary", b"\xff\xfe\x00"), ("list", b"[]"), ("number", b"1"), ("empty", b"")):
        (runs / name).mkdir()
        (runs / name / "metrics.json").write_bytes(content)
    (runs / "folder/metrics.json").mkdir(parents=True)
    (table,) = tables()
    assert list(table) == ["edsr_scratch"]
    _, written = comparing()
    left_out = [line for line in written.splitlines() if "is left out" in line and not line.startswith("- ")]
    assert len(left_out) == len(broken) + 6
    assert "Traceback" not in written
    assert any("older" in line and "remove it" in line for line in left_out)
    assert any("psnr of B100/039 is inf" in line for line in left_out)
    assert any("and is there twice" in line for line in left_out)
    assert text(tmp_path).count(" is left out: ") == len(left_out)


def test_several_folders_and_copies(tables, comparing, tmp_path):
    scratch(tmp_path / "a")
    scratch(tmp_path / "b")
    kd(tmp_path / "b")
    (table,) = tables("runs=[a,b]")
    assert [row["seeds"] for row in table.values()] == ["1", "1"]
    scratch(tmp_path / "c", offset=0.1)
    status, written = comparing("runs=[a,c]")
    assert status == 1
    assert "edsr_scratch has two results of seed 0, a/" in written


def test_records_stand_for_the_runs(tables, comparing, tmp_path):
    """The same tables come from them, and the figure, when the runs are gone; a new run can be put beside them."""
    of_long = {"fairness": {"steps": 10_000}}
    for seed in (0, 1):
        scratch(tmp_path / "runs", seed, offset=0.01 * seed)
        kd(tmp_path / "runs", seed)
    kd(tmp_path / "runs", **of_long)
    asked = ("records=true", "figure=true")
    tables(*asked)
    made = {path.name: path.read_bytes() for path in (tmp_path / "comparison").glob("*.*")}
    assert made.keys() == {"comparison.md", "comparison.svg", "results.csv"}
    (tmp_path / "comparison/runs").rename(tmp_path / "kept")
    for path in (tmp_path / "runs").glob("*/metrics.json"):
        assert (tmp_path / "kept" / path.parent.name / "metrics.json").stat().st_size < path.stat().st_size
    (tmp_path / "runs").rename(tmp_path / "gone")
    tables("runs=kept", *asked)
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "comparison").glob("*.*")}
    kd(tmp_path / "new", method="at", name="at")
    first, _ = tables("runs=[kept,new]")
    assert first.keys() == {"edsr_scratch", "edsr_kd", r"edsr_at\*"}
    # One file would take the place of the other.
    kd(tmp_path / "new", name="run0", method="fakd")
    status, written = comparing("runs=[kept,new]", "records=true")
    assert status == 1
    assert "two runs have one name, " in written
    assert "kept/run0/metrics.json" in written
    assert "new/run0/metrics.json" in written


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["runs=nowhere"], "there is no nowhere/*/metrics.json. The evaluation stage"),
        (["runs=[runs,nowhere]"], "there is no nowhere/*/metrics.json"),
        (["runs=old"], "none of the metrics.json under old can be used"),
        (["only=[edsr_skratch]"], "only: there is no variant 'edsr_skratch': did you mean edsr_scratch?"),
        (["baseline=mtkd"], "baseline: there is no variant 'mtkd'"),
        (["unmatched=maybe"], "unmatched=maybe: allowed are refuse, mark"),
        (["figure=1"], "figure=1: allowed are true, false"),
        (["records=1"], "records=1: allowed are true, false"),
        (["+onli=a"], "no key 'onli': did you mean only?"),
        (["output=runs/run0/metrics.json"], "cannot be written"),
    ],
)
def test_bad_input(comparing, runs, tmp_path, overrides, expected):
    scratch(runs)
    kd(runs)
    (tmp_path / "old/x").mkdir(parents=True)
    (tmp_path / "old/x/metrics.json").write_text("{}")
    status, written = comparing(*overrides)
    assert status == 1
    assert expected in written
    assert "Traceback" not in written
    assert not (tmp_path / "comparison").exists()


def test_names_cannot_break_the_table(tables, comparing, runs, tmp_path):
    name = "a|b <b>*x*</b> _y_ [z](u) edsr_kd"
    kd(runs, variant=name, student="ed|sr")
    scratch(runs, student="ed|sr", variant="x\ny")
    (table,) = tables("figure=true")
    assert list(table) == [escaped(name), "x y"]
    assert f"students=true: {name!r} is no name of a file" in comparing("students=true")[1]
    assert escaped(name) == r"a\|b &lt;b&gt;\*x\*&lt;/b&gt; \_y\_ \[z\](u) edsr_kd"
    assert r"## ed\|sr, x4" in text(tmp_path)
    assert "<" not in text(tmp_path)
    with (tmp_path / "comparison/results.csv").open(newline="") as file:
        assert {row["variant"] for row in csv.DictReader(file)} == {name, "x\ny"}


def test_the_figure(tables, runs, tmp_path):
    for seed, offset in enumerate((-0.03, 0.0, 0.02)):
        scratch(runs, seed + 1, offset)
        kd(runs, seed, offset)
        kd(runs, seed, offset, method="$mtkd$", fairness={"steps": 2000})
    tables("figure=true")
    path = tmp_path / "comparison/comparison.svg"
    first = path.read_bytes()
    tables("figure=true")
    assert path.read_bytes() == first
    assert len(first) < 300_000
    drawing = ElementTree.fromstring(first)
    assert drawing.tag.endswith("svg")
    assert b"<dc:date>" not in first
    assert b"fill: #ffffff" in first
    labels = first.decode()
    for label in ("edsr_kd*", "edsr_scratch*", "edsr_$mtkd$", "Set5", "B100", "edsr, x4, 2,000 steps"):
        assert f"<!-- {label}" in labels
    axes = [element for element in drawing.iter() if re.fullmatch(r"axes_\d+", element.get("id", ""))]
    assert len(axes) == 4
    colour = "#e69f00"
    drawn = [x for x in drawing.iter("{http://www.w3.org/2000/svg}use") if colour in (x.get("style") or "").lower()]
    assert len(drawn) == 2 * 3 * 3


def test_a_variant_far_below_the_others_is_a_number_at_the_edge(tables, runs, tmp_path):
    scratch(runs)
    for k, offset in enumerate((0.02, 0.05, 0.1, -9.0, 1.5)):
        kd(runs, 0, offset, method=f"kd{k}")
    (table,) = tables("figure=true")
    labels = (tmp_path / "comparison/comparison.svg").read_text()
    far = {f"{float(table['edsr_kd3'][benchmark].split()[0]):.2f}" for benchmark in COUNTS}
    assert set(re.findall(r"<!-- {4}(\d+\.\d\d) -->", labels)) == far  # the best has no number
    ticks = [float(text) for text in re.findall(r"<!-- (\d+\.\d+) -->", labels)]
    assert ticks
    assert max(ticks) - min(ticks) < 5


def test_without_matplotlib(comparing, runs, tmp_path, monkeypatch):
    scratch(runs)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "mtkd_lightning.figures", raising=False)
    status, written = comparing("figure=true")
    assert status == 1
    assert "pip install 'mtkd_lightning[figures]'" in written
    assert not (tmp_path / "comparison").exists()
    assert comparing()[0] == 0


def test_the_command_starts_without_torch(runs, tmp_path):
    scratch(runs)
    command = [sys.executable, "-X", "importtime", "-m", "mtkd_lightning.compare"]
    start = time.perf_counter()
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert time.perf_counter() - start < 10
    assert result.returncode == 0, result.stdout
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time")}
    assert "mtkd_lightning.comparison" in imported
    assert not imported & {"torch", "lightning", "matplotlib", "skimage", "cv2"}
