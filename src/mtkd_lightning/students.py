"""The students of a comparison to take along: of each table and variant one, in float16, with what made it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes

from mtkd_lightning.comparison import Group
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import file_sha256, replacing, write_json
from mtkd_lightning.runs import Run


def write_students(groups: Sequence[Group], folder: Path) -> None:
    """Write ``<variant>.safetensors`` and its sidecar: of the seeds the one that was best on validation pictures.

    The benchmarks have no say in which. The sidecar is that of the training, with the new file's hash. A variant of
    several groups has a file of each, with the scale in its name, or the fingerprint where scales are no difference.

    Raises:
        MTKDError: the weights of a run are not in the folder ``weights`` beside its runs, or are not those that were
            scored.
    """
    for group in groups:
        for variant, seeds in group.variants.items():
            if Path(variant).name != variant:
                raise MTKDError(f"students=true: {variant!r} is no name of a file; train it under another label")
            path, record = max(map(_weights, seeds.values()), key=lambda file: file[1]["metrics"]["val/psnr"])
            _write(path, record, folder / f"{_name(variant, group, groups)}.safetensors")


def _name(variant: str, group: Group, groups: Sequence[Group]) -> str:
    alike = [other for other in groups if variant in other.variants]
    if len(alike) == 1:
        return variant
    scales = {other.first.scale for other in alike}
    return f"{variant}_x{group.first.scale}" if len(scales) == len(alike) else f"{variant}_{group.first.fingerprint}"


def _write(path: Path, record: dict[str, Any], target: Path) -> None:
    tensors = {
        name: x.astype(np.float16) if np.issubdtype(x.dtype, np.floating) else x for name, x in load_file(path).items()
    }
    with replacing(target) as temporary:
        with safe_open(path, "np") as file:
            temporary.write_bytes(to_bytes(tensors, file.metadata()))
        sha256 = file_sha256(temporary)
    write_json(target.with_suffix(".json"), {**record, "sha256": sha256, "stored_as": "float16"})


def _weights(run: Run) -> tuple[Path, dict[str, Any]]:
    path = run.path.parents[2] / "weights" / f"{run.path.parent.name}.safetensors"
    try:
        record: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        same = file_sha256(path) == record["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise MTKDError(f"students=true needs the weights of {run.path}, and {path} cannot be read: {error}") from error
    if not same:
        raise MTKDError(f"{path} is not the file that its .json describes: restore it, or leave students=true out")
    if run.sha256 not in (None, record["sha256"]):
        raise MTKDError(
            f"{path} is not the student that {run.path} scores: run its command again, whose evaluation scores it anew"
        )
    return path, record
