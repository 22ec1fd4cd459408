"""What a step of distillation costs beside a step of training the student alone, and where the rest goes.

EDSR-baseline student at x4, LR patch 32, batch 16, Adam, photographs of scikit-image; the variants take turns, and
the medians of their ratios to the scratch step are printed and written to ``steps.json``. Kept pictures are
bicubic ones (their content costs nothing); ``online`` runs the paper's three teachers, random weights, on every batch,
for a step in each of two turns.

    python benchmarks/steps.py [repeats steps] [online]
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import DEVICE, Loop, Timing, arguments, config, in_turns, publish, ratio, train, with_kept
from mtkd_lightning.config import build
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import demo_photographs
from mtkd_lightning.methods.base import Method
from mtkd_lightning.methods.scratch import Scratch
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.cache import Settings, TeacherCache
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher

SCALE = 4
SCRATCH, KEPT, ONLINE = "scratch", "mtkd, kept pictures of 3", "mtkd, the paper's three teachers online"


def main() -> None:
    """Measure, print and write."""
    (repeats, steps), words = arguments(5, 6)
    made = config("preset=paper", "student=paper/edsr", "method=mtkd")
    with tempfile.TemporaryDirectory() as folder:
        pictures = demo_photographs(SCALE, folder).train
        kept = {count: merged(pictures, count, Path(folder) / "teachers") for count in (1, 2, 3, 4)}

        def scratch(workers: int = 0) -> Timing:
            return train(Scratch(build(made.student)), pictures, steps, Loop(workers=workers))

        def distil(count: int, workers: int = 0) -> Timing:
            return train(distillation(made, Teacher(GivenPicture())), kept[count], steps, Loop(workers=workers))

        variants: dict[str, Callable[[], Timing]] = {SCRATCH: scratch}
        variants |= {f"mtkd, kept pictures of {count}": partial(distil, count) for count in kept}
        variants |= {f"{SCRATCH}, 2 workers": partial(scratch, 2), f"{KEPT}, 2 workers": partial(distil, 3, 2)}
        found = in_turns(variants, repeats)
        result = {name: _summary(timings, found[SCRATCH]) for name, timings in found.items()}
        if "online" in words:
            variants[ONLINE] = lambda: train(distillation(made, Teacher(paper_teachers(made))), pictures, 1)
            found = in_turns({name: variants[name] for name in (SCRATCH, KEPT, ONLINE)}, 2)
            result[ONLINE] = _summary(found[ONLINE], found[SCRATCH]) | {
                "over_kept": round(_ratio(found[ONLINE], found[KEPT]), 2)
            }
    publish(__file__, {"repeats": repeats, "steps": steps, "variants": result})


def _summary(timings: Sequence[Timing], scratch: Sequence[Timing]) -> dict[str, float]:
    return {
        "seconds": round(statistics.median(timing.step for timing in timings), 4),
        "over_scratch": round(_ratio(timings, scratch), 4),
        "waiting_for_data": round(statistics.median(timing.waiting for timing in timings), 4),
    }


def _ratio(found: Sequence[Timing], base: Sequence[Timing]) -> float:
    return ratio(*([timing.step for timing in timings] for timings in (found, base)))


def merged(pictures: PairedImages, count: int, folder: Path) -> PairedImages:
    """The pictures with a merged one of ``count`` teachers beside each."""
    merger = Ensemble(dict.fromkeys(map(str, range(count))), Mean(SCALE, count))
    cache = TeacherCache(folder, Settings(), f"mean {count}")
    files = cache.make(with_kept(pictures, count, folder), lambda: merger, DEVICE, "mean")
    return pictures.with_files([files])


def distillation(made: Any, teacher: Teacher) -> Method:
    """The configured method, its student anew."""
    method: Method = build(made.method, student=build(made.student), teacher=teacher)
    return method


def paper_teachers(made: Any) -> Ensemble:
    """The configured teachers and their aggregator, random weights."""
    members = {name: Teacher(build(node.backbone)) for name, node in made.teacher.members.items()}
    return Ensemble(members, build(made.aggregator, members=len(members)))


if __name__ == "__main__":
    main()
