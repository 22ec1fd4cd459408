"""What a step of each method costs beside a step of training the student alone, in the setting of `study=compact_x4`.

The study's small EDSR student, batch, patch and precision; teachers of the compact trio with random weights, on
photographs of scikit-image. In place of kept pictures of teachers there are bicubic ones, for their content costs
nothing. The methods take turns step by step (on a GPU in blocks of steps), a repeat is trainings of
their own; the medians of their seconds a step and of the ratios to `scratch`, and the range of the repeats' medians,
are printed and written to ``methods.json``.

    python benchmarks/methods.py [repeats turns]
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common import Loop, arguments, config, publish, summary, train_in_turns, training
from mtkd_lightning.config import build
from mtkd_lightning.data.paired import PairedImages
from mtkd_lightning.data.sources import demo_photographs
from mtkd_lightning.methods.base import Method
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher
from steps import SCALE, merged

METHODS = ("scratch", "kd", "mtkd", "at", "fakd", "crosskd", "dukd", "mipkd", "kd online", "mtkd online")
MEMBERS = ("smfanet_plus", "lkdn", "dctlsa")


def main() -> None:
    """Measure, print and write."""
    (repeats, turns), _ = arguments(5, 10)
    with tempfile.TemporaryDirectory() as folder:
        pictures = demo_photographs(SCALE, folder).train
        kept = merged(pictures, 1, Path(folder) / "teachers")
        variants = {name: partial(_training, name, pictures, kept) for name in METHODS}
        found = train_in_turns(variants, repeats, turns, warm_up=2)
    result = {name: summary("scratch", timings, found["scratch"]) for name, timings in found.items()}
    publish(__file__, {"repeats": repeats, "turns": turns, "methods": result})


def _training(name: str, pictures: PairedImages, kept: PairedImages) -> Iterator[float]:
    kind, *online = name.split()
    return training(_method(kind, bool(online)), pictures if online else kept, Loop(lr_patch=24, bf16=True))


def _method(kind: str, online: bool) -> Method:
    backbones = [f"+backbone@members.{name}={name}" for name in MEMBERS]
    made = config("preset=compact", "student=compact/edsr", f"method={kind}", *backbones)
    members = {name: Teacher(build(node)) for name, node in made.members.items()}
    teacher = members[made.teacher.alone]
    if kind in ("kd", "mtkd") and not online:
        teacher = Teacher(GivenPicture())
    elif kind == "mtkd":
        teacher = Teacher(Ensemble(members, build(made.aggregator, members=len(members))))
    arguments = {} if kind == "scratch" else {"teacher": teacher}
    method: Method = build(made.method, student=build(made.student), **arguments)
    return method


if __name__ == "__main__":
    main()
