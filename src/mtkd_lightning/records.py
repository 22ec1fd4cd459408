"""The scores of a comparison to take along: a small record a run, which later comparisons read like the run itself."""

import json
from collections.abc import Sequence
from pathlib import Path

from mtkd_lightning.comparison import Group
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import write_text
from mtkd_lightning.runs import Run


def write_records(groups: Sequence[Group], folder: Path) -> None:
    """Write ``<run>/metrics.json`` for every run: what made it, and its student's PSNR and SSIM by picture.

    Raises:
        MTKDError: two runs have the same name.
    """
    named: dict[str, Run] = {}
    for run in (run for group in groups for seeds in group.variants.values() for run in seeds.values()):
        other = named.setdefault(run.path.parent.name, run)
        if other is not run:
            raise MTKDError(
                f"records=true: two runs have one name, {other.path} and {run.path}: rename one's folder, or leave "
                "one out of runs=[...]"
            )
    for name, run in named.items():
        metrics = json.loads(run.path.read_text(encoding="utf-8"))
        record = {
            "run": metrics["run"],
            "protocols": metrics["protocols"],
            "networks": {key: value for key, value in metrics["networks"].items() if key == "student"},
            "images": [image for image in metrics["images"] if image["network"] == "student"],
        }
        write_text(folder / name / "metrics.json", json.dumps(record, separators=(",", ":")) + "\n")
