"""The kept pictures of runs, each file once, small enough for a page."""

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mtkd_lightning.runs import Run

RGB = NDArray[np.uint8]

BUDGET = 3_000_000  # bytes of all pictures on a page
SMALLEST = 128  # side in HR pixels below which there are fewer pictures instead

# Benchmark, image, window, scale and the ground truth's hash; by network the file and its pixels.
_Key = tuple[Any, ...]
_Scene = dict[str, tuple[bytes, RGB]]


def read_windows(
    runs: Mapping[str, Run], complain: Callable[[str], None], budget: int = BUDGET
) -> tuple[list[dict[str, Any]], list[str]]:
    """Gather what the students (by label) and all others made of the same windows.

    Where the files are larger than ``budget``, windows are cut to where the students differ most.

    Returns:
        Pictures: benchmark, image, scale, window, and ``tiles``: network, student's label if it is one, and a WebP in
        base64. Then the labels of runs that have kept none.
    """
    scenes: dict[_Key, _Scene] = {}
    without = []
    seen: dict[bytes, RGB] = {}  # most files are the same in all runs
    for label, run in runs.items():
        for key, files in _scenes(run, seen, complain):
            scene = scenes.setdefault(key, {})
            for network, file in files.items():
                own = label if network == "student" else network
                if scene.setdefault(own, file)[0] != file[0]:
                    scene.setdefault(f"{own} ({label})", file)
        if not run.pictures:
            without.append(label)
    shown, factor = _fitting(list(scenes.items()), budget)
    return [_shown(key, scene, factor, list(runs)) for key, scene in shown], without


def _fitting(scenes: list[tuple[_Key, _Scene]], budget: int) -> tuple[list[tuple[_Key, _Scene]], float]:
    """As many pictures as the budget allows, and what their sides are shrunk by."""
    sizes = [sum(len(data) for data, _ in scene.values()) for _, scene in scenes]
    sides = [min(key[2][2:]) for key, _ in scenes]
    for count in range(len(scenes), 0, -1):
        factor = min(1.0, math.sqrt(budget / sum(sizes[:count])))
        if factor == 1 or count == 1 or factor * min(sides[:count]) >= SMALLEST:
            return scenes[:count], factor
    return [], 1.0


def densest(values: NDArray[np.float64], height: int, width: int, step: int) -> tuple[int, int]:
    """Top and left, multiples of ``step``, of the rectangle with the largest sum."""
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    sums = sums[::step, ::step]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top) * step, int(left) * step


def _scenes(run: Run, seen: dict[bytes, RGB], complain: Callable[[str], None]) -> list[tuple[_Key, _Scene]]:
    found = []
    for record in run.pictures:
        try:
            benchmark, image = str(record["benchmark"]), str(record["image"])
            top, left, height, width = map(int, record["window"])
        except (KeyError, TypeError, ValueError):
            complain(f"{run.path}: a picture's record is left out, it is {record!r}")
            continue
        folder = run.path.parent / "pictures" / quote(benchmark, "") / quote(image, "")
        files = {}
        for path in sorted(folder.glob("*.webp")):
            network = unquote(path.stem)
            by = run.scale if network == "LR" else 1
            try:
                files[network] = _read(path, seen, height // by, width // by)
            except (OSError, ValueError, SyntaxError) as error:
                complain(f"{path} is left out: {error}")
        if "HR" not in files or "student" not in files:
            complain(f"{folder}: its pictures are left out, HR or the student's is missing")
            continue
        sha256 = hashlib.sha256(files["HR"][0]).hexdigest()
        found.append(((benchmark, image, (top, left, height, width), run.scale, sha256), files))
    return found


def _read(path: Path, seen: dict[bytes, RGB], height: int, width: int) -> tuple[bytes, RGB]:
    data = path.read_bytes()
    if (pixels := seen.get(data)) is None:
        try:
            with Image.open(BytesIO(data), formats=("WEBP",)) as image:
                pixels = seen[data] = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise ValueError(f"it cannot be decoded ({error})") from error
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"it has {pixels.shape[0]}x{pixels.shape[1]} pixels, not {height}x{width}")
    return data, pixels


def _shown(key: _Key, scene: _Scene, factor: float, labels: Sequence[str]) -> dict[str, Any]:
    benchmark, image, (top, left, height, width), scale, _ = key
    files = {name: data for name, (data, _) in scene.items()}
    if factor < 1:
        step = 2 * scale
        small_height, small_width = (max(int(side * factor) // step, 1) * step for side in (height, width))
        grey = np.stack([scene[name][1].mean(2) for name in labels if name in scene] + [scene["HR"][1].mean(2)])
        down, right = densest(grey.var(0), small_height, small_width, scale)
        for name, (_, pixels) in scene.items():
            by = scale if name == "LR" else 1
            cut = pixels[down // by : (down + small_height) // by, right // by : (right + small_width) // by]
            files[name] = encoded(cut)
        top, left, height, width = top + down, left + right, small_height, small_width
    return {
        "benchmark": benchmark,
        "image": image,
        "scale": scale,
        "window": [top, left, height, width],
        "tiles": [
            {"network": name, "label": name if name in labels else None, "data": base64.b64encode(files[name]).decode()}
            for name in sorted(files, key=lambda name: _place(name, labels))
        ],
    }


def _place(name: str, labels: Sequence[str]) -> tuple[int, int, str]:
    """LR and HR first, then what the teachers' side made, then students as they rank."""
    if name in labels:
        return 9, labels.index(name), name
    kinds = ("LR", "HR", "bicubic", "teacher", "mean", "aggregator")
    return next((i for i, kind in enumerate(kinds) if name.startswith(kind)), 8), 0, name


def encoded(picture: RGB) -> bytes:
    """A lossless WebP."""
    file = BytesIO()
    Image.fromarray(picture).save(file, format="WEBP", lossless=True, quality=75, method=1)
    return file.getvalue()
