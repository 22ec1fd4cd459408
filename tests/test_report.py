"""The page as its reader meets it, in a real Chromium, of copies of a real run; and what it is made of."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from browser import Page, chromium
from mtkd_lightning.comparison import differences, grouped, interval
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.wavelet import _haar
from mtkd_lightning.metrics.functional import Protocol, luma, psnr
from mtkd_lightning.report.curves import read_curves
from mtkd_lightning.report.page import write_report
from mtkd_lightning.report.windows import encoded, read_windows
from mtkd_lightning.runs import read_runs

HOSTILE = "</script><script>document.title='taken'</script><!--<img src=x onerror=\"document.title='taken'\">%{x}"


def another(source: Path, folder: Path, variant: str, seed: int, gain: float, **changed) -> Path:
    """A run like a real one, with other scores, pixels and settings."""
    target = Path(shutil.copytree(source, folder / f"run{len(list(folder.glob('*')))}"))
    metrics = json.loads((target / "metrics.json").read_text())
    generator = np.random.default_rng(int(1000 * gain) + seed)
    metrics["run"] |= {"variant": variant, "seed": seed} | changed
    if "weight" in changed:
        metrics["run"]["settings"]["method"]["weights"]["ground_truth"] = changed["weight"]
    for image in metrics["images"]:
        if image["network"] == "student":
            image["psnr"] += gain + generator.normal(0, 0.02)
    (target / "metrics.json").write_text(json.dumps(metrics))
    for path in target.glob("pictures/*/*/student.webp"):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        noisy = (pixels + generator.integers(-3, 4, pixels.shape)).clip(0, 255).astype(np.uint8)
        path.unlink()  # a copy of a link may be one
        path.write_bytes(encoded(noisy))
    return target


@pytest.fixture(scope="session")
def real(finished) -> Path:
    return finished / "runs/tiny"


@pytest.fixture(scope="session")
def runs(real, tmp_path_factory) -> Path:
    """Seven runs: three variants of two seeds that may be compared, and one that was trained otherwise."""
    folder = tmp_path_factory.mktemp("several") / "runs"
    for seed in (0, 1):
        another(real, folder, "scratch", seed, 0.0, method="scratch", settings={"method": {"_target_": "x.Scratch"}})
        another(real, folder, "low", seed, 0.1, weight=0.1)
        another(real, folder, "high", seed, 0.2, weight=1.0)
    other = another(real, folder, "longer", 0, 0.5)
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["run"]["fairness"]["recipe"]["steps"] = 7
    (other / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="session")
def written(runs) -> Path:
    return write_report([runs], runs.parent / "report")


@pytest.fixture(scope="session")
def browser():
    if (program := chromium()) is None:
        pytest.skip("there is no chromium (apt-get install chromium)")
    with Page(program) as page:
        yield page


@pytest.fixture
def page(browser, written):
    browser.emulate(width=1280, height=900, dark=False)
    browser.open(written)
    browser.js("localStorage.clear()")
    browser.open(written)
    yield browser
    assert browser.errors == []


def pixels(written: Path, picture: int = 0) -> dict[str, np.ndarray]:
    """What the page has embedded, by network."""
    text = re.search(r'id="data">(.*?)</script>', written.read_text(), re.DOTALL)[1]
    tiles = json.loads(text)["pictures"][picture]["tiles"]
    return {
        tile["network"]: np.asarray(Image.open(BytesIO(base64.b64decode(tile["data"]))).convert("RGB"))
        for tile in tiles
    }


def expected(sr: np.ndarray, hr: np.ndarray, region: list[int]) -> float:
    left, top, width, height = region
    cut = [
        torch.tensor(x[top : top + height, left : left + width]).permute(2, 0, 1)[None].double() / 255 for x in (sr, hr)
    ]
    return psnr(*cut, Protocol(0)).item()


def shown(page) -> dict[str, float]:
    return page.js(
        "Object.fromEntries([...document.querySelectorAll('#tiles figure[data-psnr]')]"
        ".map((x) => [x.dataset.network, Number(x.dataset.psnr)]))"
    )


def test_the_main_job_ends_with_the_page(finished):
    assert (finished / "output").read_text().count("Report: report/index.html") == 1
    assert {path.name for path in (finished / "report").iterdir()} == {"index.html", "results.csv", "results.md"}


def test_the_page_loads_alone(page, written):
    assert [address for address in page.requests if not address.startswith(("data:", "blob:"))] == [written.as_uri()]
    assert page.js("document.querySelectorAll('.plot .main-svg').length") >= 10
    assert page.js("document.querySelectorAll('#tiles figure').length") >= 8
    assert "high" in page.js("document.querySelector('.winner .name').textContent")
    assert page.js("document.documentElement.scrollWidth") == 1280
    assert written.stat().st_size < 8e6


def test_what_was_trained_otherwise_is_apart_and_says_why(page):
    assert page.js("document.querySelectorAll('.board').length") == 2
    assert "recipe.steps" in page.js("document.querySelector('.board .apart').textContent")
    page.choose("group", 1)
    assert page.js("[...document.getElementById('paired-a').options].map((x) => x.text)") == ["longer"]


def test_the_table_is_sorted_by_what_is_asked(page):
    names = "[...document.querySelector('tbody').rows].map((x) => x.cells[0].dataset.value)"
    assert page.js(names) == ["high", "low", "scratch"]
    page.click("thead th:nth-child(3) button")
    page.click("thead th:nth-child(3) button")
    assert page.js(names) == ["scratch", "low", "high"]
    assert page.js("document.querySelector('thead th:nth-child(3)').ariaSort") == "ascending"
    page.js("document.querySelector('thead th button').focus()")
    page.press("Enter")
    assert page.js(names) == ["high", "low", "scratch"]


def test_dark_and_light(page, written):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.js(paper)
    page.emulate(dark=True)
    dark = page.js(paper)
    assert light != dark
    page.click("#theme")
    assert page.js(paper) == light
    page.open(written)
    assert page.js(paper) == light  # remembered, whatever the system has
    page.js("document.getElementById('theme').focus()")
    page.press(" ")
    assert page.js(paper) == dark


def test_a_dragged_region_is_scored_as_by_numpy(page, written):
    left, top, width, height = page.box("#stage-canvas")
    page.drag((left + 0.1 * width, top + 0.2 * height), (left + 0.5 * width, top + 0.45 * height))
    region = page.js("region")
    assert region[2] == pytest.approx(0.4 * 256, abs=2)
    assert region[3] == pytest.approx(0.25 * 256, abs=2)
    found, images = shown(page), pixels(written)
    assert set(found) == set(images) - {"LR", "HR"} - {"1/longer"}
    for network, value in found.items():
        assert value == pytest.approx(expected(images[network], images["HR"], region), abs=1e-9), network
    drawn = page.js(
        "(() => { const c = document.querySelector('#tiles figure[data-network=HR] canvas');"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"
    )
    x, y, w, h = region
    assert (np.array(drawn).reshape(h, w, 4)[..., :3] == images["HR"][y : y + h, x : x + w]).all()
    page.click("#errors")
    assert page.js("document.querySelectorAll('#tiles canvas').length") == 2 * len(found) + 2
    page.choose("picture", 1)
    page.js("viewerReady")
    assert shown(page) != found


def test_the_region_by_keyboard_and_by_finger(page):
    page.box("#stage")
    page.js("document.getElementById('stage').focus()")
    before = page.js("region")
    page.press("ArrowRight")
    page.press("ArrowDown", shift=True)
    assert page.js("region") == [before[0] + 4, before[1], before[2], before[3] + 4]
    page.press("Home")
    assert page.js("region") == [0, 0, 256, 256]
    page.emulate(width=390, height=844, touch=True)
    left, top, width, height = page.box("#stage-canvas")
    page.swipe((left + 10, top + 10), (left + 0.5 * width, top + 0.5 * height))
    assert page.js("region")[2] == pytest.approx(128 - 10 / width * 256, abs=2)
    page.emulate(width=1280, height=900)


def test_a_phone_has_no_sideways_scrolling(page, written):
    page.emulate(width=390, height=844, touch=True)
    page.open(written)
    assert page.js("document.documentElement.scrollWidth") == 390
    page.emulate(width=1280, height=900)


def test_variants_are_shown_and_hidden(page):
    page.click("#curves [data-legend] input")
    assert "0/high" not in shown(page)
    assert page.js("document.getElementById('curves-plot').data.length") == 4
    assert page.js("document.querySelector('#viewer [data-legend] input').checked") is False


def test_differences_of_two_variants_are_those_of_the_comparison(page, runs):
    page.choose("paired-a", 0)
    page.choose("paired-b", 1)
    variants = grouped(read_runs([runs]))[0].variants
    if "high" not in variants:
        variants = grouped(read_runs([runs]))[1].variants
    values = differences(variants["high"], variants["low"], "photographs")
    bars = page.js("document.getElementById('paired-plot').data[0].y")
    np.testing.assert_allclose(bars, np.sort(values), atol=2e-4)
    numbers = re.findall(r"[+\u2212]\d\.\d{3}", page.js("document.getElementById('paired-text').textContent"))
    assert [float(x.replace("\u2212", "-")) for x in numbers] == pytest.approx(
        [values.mean(), *interval(values)], abs=1e-3
    )


def test_settings_that_vary_are_plotted(page):
    assert page.js("document.getElementById('sweep-key').value") == "method.weights.ground_truth"
    assert sorted(page.js("document.getElementById('sweep-plot').data.at(-1).x")) == [0.1, 1.0]
    assert page.js("document.getElementById('parallel-plot').data.length") == 3


def test_wavelet_bands_are_those_of_the_loss(page, written):
    page.choose("wavelet-b", "0/low")
    text = page.js("document.getElementById('bands-text').textContent")
    images = pixels(written)
    grey = [luma(torch.tensor(images[name]).permute(2, 0, 1)[None].double() / 255) for name in ("HR", "0/low")]
    low, high = _haar(grey[0] - grey[1], "constant")
    wanted = [band.abs().mean().item() for band in (low, *high)]
    assert [float(x) for x in re.findall(r"\d+\.\d+", text)] == pytest.approx(wanted, abs=1e-3)


def test_names_with_html_in_them_do_nothing(browser, real, tmp_path):
    folder = tmp_path / "runs"
    another(real, folder, HOSTILE, 0, 0.1)
    target = another(real, folder, "plain", 0, 0.0)
    metrics = json.loads((target / "metrics.json").read_text())
    metrics["networks"][HOSTILE] = {"parameters": 5, "flops": 1e9, "seconds_per_megapixel": 1}
    metrics["images"] += [{**image, "network": HOSTILE} for image in metrics["images"] if image["network"] == "student"]
    metrics["run"]["settings"]["method"]["note"] = HOSTILE
    (target / "metrics.json").write_text(json.dumps(metrics))
    (folder / "<b>bold").mkdir()
    browser.open(write_report([folder], tmp_path / "report"))
    assert browser.errors == []
    assert browser.js("document.title") == "Report of 2 runs"
    assert browser.js("document.querySelector('.winner .name').textContent").endswith(HOSTILE)
    assert browser.js("document.querySelectorAll('main img, main script, main b.bold').length") == 0
    assert HOSTILE in browser.js("document.getElementById('viewer').textContent")


def test_what_is_broken_is_named_and_the_rest_is_shown(browser, real, tmp_path, caplog):
    folder = tmp_path / "runs"
    another(real, folder, "good", 0, 0.0)
    for name in ("cut", "older", "nothing", "lines", "pixels", "bare", "twin"):
        target = Path(shutil.copytree(another(real, folder, name, 0, 0.1), folder / name))
        shutil.rmtree(folder / max(folder.glob("run[0-9]*"), key=lambda path: int(path.name[3:])).name)
        metrics = json.loads((target / "metrics.json").read_text())
        if name == "cut":
            (target / "metrics.json").write_text(json.dumps(metrics)[:500])
        elif name == "older":
            del metrics["run"]
            (target / "metrics.json").write_text(json.dumps(metrics))
        elif name == "nothing":
            shutil.rmtree(target)
            target.mkdir()
        elif name == "lines":
            path = next(target.rglob("metrics.csv"))
            path.write_bytes(path.read_bytes()[:-20] + b"\nx,y\n\xff\xfe")
        elif name == "pixels":
            path = next(target.rglob("astronaut/student.webp"))
            path.write_bytes(path.read_bytes()[:900])
        elif name == "bare":
            del metrics["pictures"], metrics["run"]["settings"]
            (target / "metrics.json").write_text(json.dumps(metrics))
        elif name == "twin":
            metrics["run"]["variant"] = "good"
            (target / "metrics.json").write_text(json.dumps(metrics))
    browser.open(write_report([folder], tmp_path / "report"))
    assert browser.errors == []
    shown_text = browser.js("document.getElementById('problems').textContent")
    for text in ("cut/metrics.json", "older/metrics.json", "nothing is left out", "lines/curves", "astronaut", "twin"):
        assert text in shown_text, text
        assert text in caplog.text, text
    assert "No pictures were kept of bare" in shown_text
    names = browser.js("[...document.querySelectorAll('tbody th')].map((x) => x.dataset.value)")
    assert sorted(names) == ["bare", "good", "lines", "pixels"]


def test_runs_that_are_all_broken_still_give_a_page(browser, tmp_path):
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/metrics.json").write_text("{")
    browser.open(write_report([tmp_path / "runs"], tmp_path / "report"))
    assert browser.errors == []
    assert "a/metrics.json is left out" in browser.js("document.body.textContent")


def test_no_run_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(MTKDError, match="no run to compare"):
        write_report([tmp_path], tmp_path / "report")


def test_a_label_of_two_settings_gives_a_page_that_says_so(real, tmp_path):
    for seed, weight in enumerate((0.1, 0.7)):
        another(real, tmp_path / "runs", "one", seed, 0.0, weight=weight)
    text = write_report([tmp_path / "runs"], tmp_path / "report").read_text()
    assert "method.weights.ground_truth (0.1 and 0.7)" in text
    assert re.search(r"8 pictures; aggregator \d+ s", text)  # of four photographs, two members each
    assert "made_by" in (real / "metrics.json").read_text()
    assert "made_by" not in text


def test_two_baselines_give_a_page_all_the_same(real, tmp_path):
    for name, gain in (("one", 0.0), ("two", 0.1)):
        another(real, tmp_path / "runs", name, 0, gain, method="scratch")
    text = write_report([tmp_path / "runs"], tmp_path / "report").read_text()
    assert "may each be the baseline" in text
    assert "to two" in text
    assert "to one" in write_report([tmp_path / "runs"], tmp_path / "report", ["one"]).read_text()


def test_the_command(runs, tmp_path):
    command = [sys.executable, "-m", "mtkd_lightning.report", f"runs=[{runs}]", "output=here"]
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    jobs = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)  # as two jobs of a sweep that end at once
    ]
    for job, (output, imports) in [(job, job.communicate(timeout=120)) for job in jobs]:
        assert job.returncode == 0, output
        assert "Report: here/index.html" in output
        assert re.search(r"\| +jinja2$", imports, re.MULTILINE)
        assert not re.search(r"\| +(torch|lightning)$", imports, re.MULTILINE)
    assert (tmp_path / "here/index.html").read_text().rstrip().endswith("</html>")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["index.html", "results.csv", "results.md"]
    refused = subprocess.run([*command, "baselines=x"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "baseline" in refused.stdout + refused.stderr


def test_curves_of_a_resumed_training_are_joined_by_step(tmp_path):
    for version, lines in (
        (0, ["0,1,5.0,", "0,2,4.0,", "0,3,9.9,"]),
        (10, ["0,3,3.0,", "0,4,,28.5"]),
        (2, ["0,3,8.8,"]),
    ):
        path = tmp_path / f"curves/version_{version}/metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(["epoch,step,train/loss,val/psnr", *lines]) + "\n")
    problems: list[str] = []
    assert read_curves(tmp_path, problems.append) == {
        "train/loss": ([1, 2, 3], [5.0, 4.0, 3.0]),
        "val/psnr": ([4], [28.5]),
    }
    assert problems == []
    path.write_text("epoch,step,train/loss\n" + "".join(f"0,{i},{i}.5\n" for i in range(5000)) + "0,5000")
    steps, values = read_curves(tmp_path, problems.append)["train/loss"]
    assert len(steps) <= 201
    assert steps[-1] == 4999 or values[-1] == 3.0


@pytest.mark.parametrize("budget", [60_000, 150_000, 400_000])
def test_windows_are_cut_alike_to_fit_the_budget(runs, budget):
    of = {f"0/{run.variant}": run for run in read_runs([runs]) if run.seed == 0}
    whole, _ = read_windows(of, pytest.fail, 10**9)
    cut, without = read_windows(of, pytest.fail, budget)
    assert without == []
    assert 1 <= len(cut) <= len(whole)
    total = sum(len(base64.b64decode(tile["data"])) for picture in cut for tile in picture["tiles"])
    assert total < 1.4 * budget  # the busiest part of a picture takes more bytes than its share of pixels

    def decoded(picture):
        return {
            tile["network"]: np.asarray(Image.open(BytesIO(base64.b64decode(tile["data"]))))
            for tile in picture["tiles"]
        }

    for small, large in zip(cut, whole, strict=False):
        top, left, height, width = small["window"]
        top, left = top - large["window"][0], left - large["window"][1]
        assert height % 4 == 0
        assert width % 4 == 0
        before, after = decoded(large), decoded(small)
        for network, image in after.items():
            by = 2 if network == "LR" else 1
            same = before[network][top // by : (top + height) // by, left // by : (left + width) // by]
            assert (image == same).all(), network
