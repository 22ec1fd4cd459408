"""The report of fifty runs: seconds to write it, megabytes, and seconds until a Chromium has drawn all of it.

The runs are copies of a real one (of the demonstration with few steps, made here) with other scores, curves and pixels:
three benchmarks of a hundred pictures each, six kept pictures, 17 variants of three seeds (the last lacks one), then 50
variants of one. Medians are printed and written to ``report.json``.

    python benchmarks/report.py [repeats]
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from common import arguments, publish
from mtkd_lightning.report.page import write_report
from mtkd_lightning.report.windows import encoded

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import Page, chromium

COUNT = 50
JOB = [
    "+experiment=edsr_mtkd",
    "teacher.accept_weak=true",
    *(f"training.{stage}.steps=20" for stage in ("teachers", "aggregation", "distillation")),
    "trainer.log_every_n_steps=1",
]


def real(folder: Path) -> Path:
    """Make the run that the others are copies of."""
    command = [sys.executable, "-m", "mtkd_lightning", *JOB, f"paths.root={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next((folder / "runs").glob("*/metrics.json")).parent


def copies(run: Path, folder: Path, variants: int) -> None:
    """Fill ``folder`` with runs of so many variants."""
    generator = np.random.default_rng(0)
    source = json.loads((run / "metrics.json").read_text())
    lines = next(run.glob("curves/*/metrics.csv")).read_text().splitlines()
    scenes = [path.parent for path in sorted(run.glob("pictures/*/*/HR.webp"))]
    shared = {
        (k, path.name): turned(path, k // len(scenes))
        for k in range(6)
        for path in sorted(scenes[k % len(scenes)].glob("*.webp"))
    }
    files = {key: encoded(picture) for key, picture in shared.items()}
    for number in range(COUNT):
        variant, seed = number % variants, number // variants
        name = f"edsr_mtkd_weight{variant}_seed{seed}"
        target = folder / name
        metrics = changed(source, name, variant, seed, generator)
        (target / "curves/version_0").mkdir(parents=True)
        (target / "metrics.json").write_text(json.dumps(metrics))
        (target / "curves/version_0/metrics.csv").write_text(
            "\n".join([lines[0], *(line for i in range(10) for line in later(lines[1:], 20 * i))]) + "\n"
        )
        for (k, file), picture in shared.items():
            place = target / "pictures" / quote("Set0", "") / f"picture{k}"
            place.mkdir(parents=True, exist_ok=True)
            data = files[k, file]
            if file == "student.webp":
                noise = generator.integers(-1, 2, picture.shape) * (generator.random(picture.shape) < 0.1)
                data = encoded((picture.astype(int) + noise).clip(0, 255).astype(np.uint8))
            (place / file).write_bytes(data)


def turned(path: Path, quarter: int) -> Any:
    """A picture, another one for another ``quarter``."""
    with Image.open(path) as image:
        return np.ascontiguousarray(np.rot90(np.asarray(image.convert("RGB")), quarter))


def changed(source: dict[str, Any], name: str, variant: int, seed: int, generator: Any) -> dict[str, Any]:
    """The record of another run: a gain of its variant, noise of its seed and pictures."""
    metrics = json.loads(json.dumps(source))
    protocol = next(iter(metrics["protocols"].values()))
    metrics["protocols"] = dict.fromkeys(("Set0", "Set1", "Set2"), protocol)
    metrics["run"] |= {"name": name, "variant": f"edsr_mtkd_weight{variant}", "seed": seed}
    metrics["run"]["settings"]["method"]["weights"]["ground_truth"] = round(0.02 * 1.2**variant, 4)
    metrics["run"]["settings"]["method"]["response"]["levels"] = 1 + variant % 3
    height, width = metrics["pictures"][0]["window"][2:]
    metrics["pictures"] = [
        {"benchmark": "Set0", "image": f"picture{k}", "window": [0, 0, height, width]} for k in range(6)
    ]
    metrics["images"] = [
        {
            "benchmark": f"Set{k}",
            "network": network,
            "image": f"{i:03d}",
            "psnr": 28 + 3 * np.sin(i + k) + (generator.normal(0.01 * variant, 0.1) if network == "student" else 0),
            "ssim": 0.8,
        }
        for k in range(3)
        for network in metrics["networks"]
        for i in range(100)
    ]
    return metrics


def later(lines: list[str], steps: int) -> list[str]:
    """Lines of a curve, some steps later."""
    cells = [line.split(",") for line in lines]
    return [",".join([x[0], str(int(x[1]) + steps), *x[2:]]) for x in cells]


def main() -> None:
    """Measure and publish."""
    (repeats,), _ = arguments(3)
    results: dict[str, Any] = {"runs": COUNT, "repeats": repeats}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = real(folder / "real")
        for variants in (17, 50):
            copies(run, folder / "runs", variants)
            wrote, opened = [], []
            for _ in range(repeats):
                start = time.perf_counter()
                page = write_report([folder / "runs"], folder / "report")
                wrote.append(time.perf_counter() - start)
            found = {"seconds_to_write": statistics.median(wrote), "megabytes": page.stat().st_size / 1e6}
            if program := chromium():
                with Page(program) as browser:
                    for _ in range(repeats):
                        opened.append(browser.open(page))
                    assert not browser.errors, browser.errors
                    found["seconds_to_first_paint"] = browser.js(
                        "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
                    )
                found["seconds_to_draw_all"] = statistics.median(opened)
            results[f"{variants} variants"] = {key: round(value, 2) for key, value in found.items()}
            shutil.rmtree(folder / "runs")
    publish(__file__, results, device="cpu")


if __name__ == "__main__":
    main()
