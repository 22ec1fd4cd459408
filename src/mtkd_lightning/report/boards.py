"""A group of a comparison as plain numbers, for a table and its plots."""

import json
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np

from mtkd_lightning.comparison import Group, Seeds, before, differences, differing, footnotes, intervals, per_seed
from mtkd_lightning.runs import Run, flat, shortened
from mtkd_lightning.tables import protocols


def board(group: Group, groups: list[Group]) -> dict[str, Any]:
    """What the page shows of a group; ``differs`` says why it is apart from the first of ``groups``."""
    run, notes = group.first, footnotes(group)
    bounds = {benchmark: _intervals(group, benchmark) for benchmark in group.benchmarks}
    ranked = list(group.variants)
    variants: list[dict[str, Any]] = []
    for name, seeds in group.variants.items():
        of_mean = [fmean(scores) for scores in zip(*(per_seed(seeds, x) for x in group.benchmarks), strict=True)]
        cost = best_seed(seeds).networks.get("student", {})
        variants.append(
            {
                "name": name,
                "method": best_seed(seeds).method,
                "seeds": sorted(seeds),
                "mean": fmean(of_mean),
                "spread": stdev(of_mean) if len(of_mean) > 1 else None,
                "scores": {x: _scores(seeds, x) for x in group.benchmarks},
                "to_baseline": {x: to(bounds[x], ranked.index(name), ranked, group.baseline) for x in group.benchmarks},
                "parameters": cost.get("parameters"),
                "flops": cost.get("flops"),
                "seconds": fmean(x.seconds for x in seeds.values()),
                "passes": fmean(x.teacher_passes for x in seeds.values()),
                "pictures": ", ".join(sorted({x.teacher_pictures for x in seeds.values() if x.teacher_pictures})),
                "before": before(seeds),
                "notes": notes.get(name, []),
                "settings": _settings(best_seed(seeds)),
                "runs": [_run(seeds[seed], group) for seed in sorted(seeds)],
            }
        )
    return {
        "title": f"{run.student}, x{run.scale}, {run.steps:,} steps",
        "student": run.student,
        "scale": run.scale,
        "steps": run.steps,
        "fingerprint": run.fingerprint,
        "protocol": protocols({"protocols": run.protocols}),
        "luma": {x: text.startswith("Y") for x, text in run.protocols.items()},
        "benchmarks": group.benchmarks,
        "baseline": group.baseline,
        "images": {x: list(run.psnr[x]) for x in group.benchmarks},
        "variants": variants,
        "intervals": bounds,
        "varied": _varied([variant["settings"] for variant in variants]),
        "others": _others(group),
        "differs": {
            key: [_short(key, value) for value in values] for key, values in differing([groups[0], group]).items()
        },
    }


def best_seed(seeds: Seeds) -> Run:
    """The run with the best mean PSNR over benchmarks."""
    return max(seeds.values(), key=lambda run: fmean(fmean(images.values()) for images in run.psnr.values()))


def to(bounds: dict[str, list[float]], index: int, ranked: list[str], other: str | None) -> list[float] | None:
    """Mean and bounds of a variant's differences to another, None if there are none."""
    if other is None or ranked[index] == other:
        return None
    there = ranked.index(other)
    if (found := bounds.get(f"{min(index, there)}-{max(index, there)}")) is None:
        return None
    mean, low, high = found
    return found if index < there else [-mean, -high, -low]


def _scores(seeds: Seeds, benchmark: str) -> dict[str, Any]:
    psnr = per_seed(seeds, benchmark)
    spread = stdev(psnr) if len(psnr) > 1 else None
    return {"psnr": fmean(psnr), "spread": spread, "ssim": fmean(per_seed(seeds, benchmark, "ssim"))}


def _intervals(group: Group, benchmark: str) -> dict[str, list[float]]:
    """Mean, low and high of the differences of every two variants, by their places ``i-j``, i < j."""
    seeds = list(group.variants.values())
    columns = {
        f"{i}-{j}": found
        for i, j in combinations(range(len(seeds)), 2)
        if len(found := differences(seeds[i], seeds[j], benchmark)) > 1
    }
    if not columns:
        return {}
    matrix = np.stack(list(columns.values()), axis=1)
    table = np.column_stack([matrix.mean(0), intervals(matrix)])
    return {key: [round(float(x), 5) for x in line] for key, line in zip(columns, table, strict=True)}


def _run(run: Run, group: Group) -> dict[str, Any]:
    psnr = {x: [round(run.psnr[x][image], 4) for image in group.first.psnr[x]] for x in group.benchmarks}
    return {"name": run.path.parent.name, "seed": run.seed, "psnr": psnr}


def _settings(run: Run) -> dict[str, Any]:
    """Numbers as they are, everything else as text; without hashes of teachers, which tell a reader nothing."""
    found = {}
    for key, text in flat(run.settings):
        value = json.loads(text)
        if key.endswith("_target_") and isinstance(value, str):
            key, value = key.removesuffix("._target_"), value.rpartition(".")[2]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        found[key] = value if number else ", ".join(value) if _texts(value) else shortened(json.dumps(value))
    return {key: value for key, value in found.items() if value != "null" and key != "teacher.made_by"}


def _short(key: str, value: str) -> str:
    return shortened(value).rpartition(".")[2] if key.endswith("_target_") else shortened(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _varied(settings: list[dict[str, Any]]) -> list[str]:
    """Keys that have at least two values."""
    keys = dict.fromkeys(key for of_variant in settings for key in of_variant)
    return [key for key in keys if len({x[key] for x in settings if key in x}) > 1]


def _others(group: Group) -> list[dict[str, Any]]:
    """Teachers, their mean, aggregator and bicubic, each once; two of one name are told apart by a variant's."""
    found: dict[str, dict[str, Any]] = {}
    for variant, seeds in group.variants.items():
        for run in seeds.values():
            for name, psnr in run.others.items():
                cost = run.networks.get(name, {})
                other = {
                    "parameters": cost.get("parameters"),
                    "flops": cost.get("flops"),
                    "psnr": {benchmark: round(value, 4) for benchmark, value in psnr.items()},
                }
                if found.setdefault(name, other) != other:
                    found.setdefault(f"{name} ({variant})", other)
    return [{"name": name, **other} for name, other in found.items()]
