"""What a step of distillation costs beside a step of training the student alone, and where the rest goes.

EDSR-baseline student at x4, LR patch 32, batch 16, Adam, photographs of scikit-image; the variants take turns step by
step (on a GPU in blocks of steps), a repeat is trainings of their own. Medians of their seconds and of their ratios to
the scratch step, and the range of the repeats' medians, are printed and written to ``steps.json``. Kept pictures are
bicubic ones (their content costs nothing); ``online`` runs the paper's three teachers, random weights, on every batch,
for a turn in each of two repeats.

    python benchmarks/steps.py [repeats turns] [online]
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common import DEVICE, Loop, arguments, config, over, publish, summary, train_in_turns, training, with_kept
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
    (repeats, turns), words = arguments(4, 4)
    made = config("preset=paper", "student=paper/edsr", "method=mtkd")
    with tempfile.TemporaryDirectory() as folder:
        pictures = demo_photographs(SCALE, folder).train
        kept = {count: merged(pictures, count, Path(folder) / "teachers") for count in (1, 2, 3, 4)}

        def scratch(workers: int = 0) -> Iterator[float]:
            return training(Scratch(build(made.student)), pictures, Loop(workers=workers))

        def distil(count: int, workers: int = 0) -> Iterator[float]:
            return training(distillation(made, Teacher(GivenPicture())), kept[count], Loop(workers=workers))

        variants: dict[str, Callable[[], Iterator[float]]] = {SCRATCH: scratch}
        variants |= {f"mtkd, kept pictures of {count}": partial(distil, count) for count in kept}
        variants |= {f"{SCRATCH}, 2 workers": partial(scratch, 2), f"{KEPT}, 2 workers": partial(distil, 3, 2)}
        found = train_in_turns(variants, repeats, turns)
        result = {name: summary("scratch", timings, found[SCRATCH]) for name, timings in found.items()}
        if "online" in words:
            variants[ONLINE] = lambda: training(distillation(made, Teacher(paper_teachers(made))), pictures)
            found = train_in_turns({name: variants[name] for name in (SCRATCH, KEPT, ONLINE)}, 2, 1)
            result[ONLINE] = summary("scratch", found[ONLINE], found[SCRATCH])
            result[ONLINE] |= over("kept", found[ONLINE], found[KEPT])
    publish(__file__, {"repeats": repeats, "turns": turns, "variants": result})


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
