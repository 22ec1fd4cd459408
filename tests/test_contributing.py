"""The worked examples of CONTRIBUTING.md, put where it says, run as it says."""

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_worked_examples_run(tmp_path, command):
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "CONTRIBUTING.md").read_text()
    examples = re.findall(r"`((?:src|conf)/[\w/.]+)`:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL)
    assert len(examples) == 4
    for path, content in examples:
        (tmp_path / path).write_text(content)
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
