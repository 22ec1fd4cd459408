"""What the demonstration promises, on the whole of it."""

import csv
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "gain"), [(2, 0.5), (4, 0.3)])
def test_the_student_beats_bicubic_and_the_aggregator_every_teacher(tmp_path, monkeypatch, scale, gain):
    monkeypatch.delenv("OMP_NUM_THREADS")
    command = [sys.executable, "-m", "mtkd_lightning", "+experiment=rcan_multi_teacher", f"scale={scale}"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=1800)
    (results,) = tmp_path.glob("runs/*/results.csv")
    with results.open() as file:
        psnr = {row["network"]: float(row["psnr"]) for row in csv.DictReader(file)}
    assert psnr["student"] >= psnr["bicubic"] + gain
    best = max(value for network, value in psnr.items() if network.startswith("teacher"))
    assert psnr["aggregator dctswin_repaired_tiny"] >= best
