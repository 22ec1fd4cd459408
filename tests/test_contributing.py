"""The worked examples of CONTRIBUTING.md, put where it says, run as it says."""

import os
import shutil
import subprocess
from pathlib import Path

from examples import put_examples

ROOT = Path(__file__).parents[1]


def test_the_worked_examples_run(tmp_path, command):
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    assert put_examples(ROOT / "CONTRIBUTING.md", tmp_path) == 4
    arguments = [
        word for word in command("backbone@student=espcn", "method=charbonnier") if not word.startswith("student.")
    ]
    arguments.append("+backbone@teacher.members.espcn.backbone=espcn")

    result = subprocess.run(
        arguments,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert "teacher espcn" in result.stdout
    assert "response" in result.stdout
