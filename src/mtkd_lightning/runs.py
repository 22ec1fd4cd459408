"""What the runs of a comparison left: their metrics.json, read and checked."""

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from mtkd_lightning.errors import MTKDError

log = logging.getLogger(__name__)

# What a run says of itself in metrics.json.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "variant": str,
    "student": str,
    "method": str,
    "scale": int,
    "seed": int,
    "steps": int,
    "seconds": (int, float),
    "teacher_passes": int,
    "teacher_pictures": (str, type(None)),
    "fairness": dict,
    "fingerprint": str,
    "initial_sha256": str,
}

BEFORE = ("teacher_pictures", "aggregator_seconds")


@dataclass(frozen=True)
class Run:
    """One student: what made it, and its PSNR and SSIM by benchmark and picture.

    Attributes:
        device: that trained it; None in records of older versions.
        before: ``teacher_pictures`` enlarged and ``aggregator_seconds`` of training before its own, 0 where there was
            none; None in records of older versions.
        settings: what its variant set: method, teacher, how kept pictures are made; empty in records of older versions.
        code: git revision that trained it, ``+`` behind it with changes of its own; None where that is not known.
        sha256: of its file of weights; None in records that were written to take along.
        networks: parameters, flops and seconds per megapixel by network; the student's is one of them.
        others: mean PSNR by network and benchmark of all that are not the student.
        pictures: what was kept for the report: benchmark, image and window (top, left, height, width) of each.
    """

    path: Path
    variant: str
    student: str
    method: str
    scale: int
    seed: int
    steps: int
    seconds: float
    teacher_passes: int
    teacher_pictures: str | None
    fairness: dict[str, Any]
    fingerprint: str
    initial_sha256: str
    protocols: dict[str, str]
    psnr: dict[str, dict[str, float]]
    ssim: dict[str, dict[str, float]]
    device: str | None = None
    before: dict[str, float] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    code: str | None = None
    sha256: str | None = None
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    others: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list)

    def must_match(self) -> dict[str, str]:
        """Everything that has to be the same in a fair comparison: dotted key -> value as text."""
        scored = {
            benchmark: f"{len(images)} pictures, {hashlib.sha256(json.dumps(sorted(images)).encode()).hexdigest()}"
            for benchmark, images in self.psnr.items()
        }
        return dict(flat({**self.fairness, "scale": self.scale, "scored": scored}))


class Problems(list[str]):
    """What was wrong with the runs that are read, each said in the log, too."""

    def __call__(self, text: str) -> None:
        """Add one."""
        self.append(text)
        log.warning("%s", text)


def read_runs(folders: Sequence[Path], complain: Callable[[str], None] = log.warning) -> list[Run]:
    """Read every ``*/metrics.json``; what cannot be compared is complained of in a line and left out.

    Raises:
        MTKDError: a folder has no run, or none is left.
    """
    runs = []
    for folder in folders:
        paths = sorted(folder.glob("*/metrics.json"))
        if not paths:
            raise MTKDError(
                f"no run to compare: there is no {folder / '*' / 'metrics.json'}. The evaluation stage of the main job "
                "writes one a run (python -m mtkd_lightning +experiment=...); runs=[...] names the folders of runs"
            )
        for path in paths:
            try:
                runs.append(_read(path))
            except MTKDError as error:
                complain(f"{path} is left out: {error}")
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                complain(f"{path} is left out: it cannot be read ({type(error).__name__}: {error})")
    if not runs:
        raise MTKDError(
            f"no run to compare: none of the metrics.json under {', '.join(map(str, folders))} can be used, for the "
            "reasons above. Remove such a file and run the command of its run again; its evaluation writes a new one"
        )
    return runs


def _read(path: Path) -> Run:
    metrics = json.loads(path.read_text(encoding="utf-8"))
    if not (isinstance(metrics, dict) and isinstance(metrics.get("run"), dict)):
        raise MTKDError(
            "it does not say what made it, as in older versions; remove it and run the command of its run again"
        )
    run = metrics["run"]
    for key, kind in FIELDS.items():
        if not isinstance(run[key], kind):
            raise MTKDError(f"run.{key} is {run[key]!r}")
    scores: dict[str, Any] = {"psnr": {}, "ssim": {}}
    others: dict[str, dict[str, list[float]]] = {}
    for image in metrics["images"]:
        if image["network"] != "student":
            others.setdefault(image["network"], {}).setdefault(image["benchmark"], []).append(image["psnr"])
        else:
            for measure, by_benchmark in scores.items():
                known = by_benchmark.setdefault(image["benchmark"], {})
                if not math.isfinite(image[measure]) or image["image"] in known:
                    twice = ", and is there twice" if image["image"] in known else ""
                    raise MTKDError(f"{measure} of {image['benchmark']}/{image['image']} is {image[measure]}{twice}")
                known[image["image"]] = image[measure]
    if not scores["psnr"]:
        raise MTKDError("it has no score of a student")
    code = run.get("code")
    return Run(
        path,
        protocols=dict(metrics["protocols"]),
        **scores,
        **{key: run[key] for key in FIELDS},
        device=run.get("device") and str(run["device"]),
        before={key: float(run["before"][key]) for key in BEFORE} if "before" in run else None,
        settings=dict(run.get("settings", {})),
        code=code and code["revision"][:8] + "+" * code["dirty"],
        sha256=metrics.get("of", {}).get("student"),
        networks=dict(metrics["networks"]),
        others={name: {benchmark: fmean(psnr) for benchmark, psnr in found.items()} for name, found in others.items()},
        pictures=list(metrics.get("pictures", [])),
    )


def shortened(value: str) -> str:
    """A value of ``must_match`` as a reader wants it, with the first digits of a hash."""
    return re.sub(r"[0-9a-f]{24,}", lambda found: found[0][:12], value.strip('"'))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as pairs of a dotted key and a value in JSON."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, sort_keys=True)
