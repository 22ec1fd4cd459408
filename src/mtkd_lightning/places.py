"""Which photographs are meant, and where the enlarged ones go."""

import glob
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from mtkd_lightning.data.images import PICTURE_SUFFIXES, list_pictures
from mtkd_lightning.errors import MTKDError


@dataclass(frozen=True)
class Job:
    """A picture, and where the enlarged one goes."""

    source: Path
    target: Path


def find(given: Any, output: Path) -> list[tuple[Path, Path]]:
    """Pictures of files, folders and patterns, each with its name under the output folder, whose suffix is the old one.

    Raises:
        MTKDError: nothing there, or an output that another run would take for an input.
    """
    found: dict[Path, Path] = {}
    texts = list(given) if isinstance(given, ListConfig) else [given]
    if not texts:
        raise MTKDError("input=[]: name at least one picture, folder or pattern")
    for text in texts:
        path = Path(str(text)).expanduser()
        if path.is_dir():
            if output.resolve().is_relative_to(path.resolve()):
                raise MTKDError(
                    f"output={output} lies inside input={path}, and what is enlarged would be input of the next run: "
                    "choose a folder outside"
                )
            root, paths = path, list_pictures(path)
        elif not path.exists() and glob.has_magic(str(path)):
            root, paths = _matches(path, output)
        else:
            root, paths = path.parent, [path]
        for path in paths:
            found.setdefault(path.absolute(), path.relative_to(root))
    return list(found.items())


def plan(sources: list[tuple[Path, Path]], output: Path, config: DictConfig, *, scale: int, weights: str) -> list[Job]:
    """Say where each picture goes.

    Raises:
        MTKDError: two would go to the same place, or one to that of an input.
    """
    alone = len(sources) == 1 and output.suffix.lower() in PICTURE_SUFFIXES and not output.is_dir()
    jobs = []
    for source, relative in sources:
        suffix = config.format or relative.suffix[1:]
        name = config.pattern.format(stem=relative.stem, suffix=suffix, scale=scale, weights=weights)
        target = output if alone else output / relative.parent / name
        if config.compare:
            target = target.with_name(f"{target.stem}_compare.png")
        elif target.suffix.lower() not in PICTURE_SUFFIXES:
            raise MTKDError(
                f"{source} would go to {target.name}, whose suffix is not that of a format that can be written, "
                f"{' '.join(PICTURE_SUFFIXES)}: say format=png"
            )
        jobs.append(Job(source, target))
    taken = {source.resolve(): source for source, _ in sources}
    for job in jobs:
        place = job.target.resolve()
        if (other := taken.setdefault(place, job.source)) is not job.source or place == job.source.resolve():
            raise MTKDError(
                f"{job.source} would go to {job.target}, "
                + ("which is an input" if place == other.resolve() else f"where {other} goes, too")
                + ": choose another output, or a pattern with {stem}; pictures of one name in two formats keep apart "
                "without format=... and with {suffix}"
            )
    return jobs


def _matches(pattern: Path, output: Path) -> tuple[Path, list[Path]]:
    """The part of a pattern that is a folder's name, and the pictures that match."""
    fixed = []
    for part in pattern.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    found = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    paths = [path for path in found if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()]
    if not paths:
        raise MTKDError(
            f"input={pattern}: no picture matches; allowed suffixes are {' '.join(PICTURE_SUFFIXES)}, and a name with "
            "brackets is taken for a pattern"
        )
    folders = [root] if "**" in pattern.parts else [path.parent for path in paths]
    deep = "**" in pattern.parts
    for folder in map(Path.resolve, folders):
        if output.resolve() == folder or (deep and output.resolve().is_relative_to(folder)):
            raise MTKDError(
                f"output={output} lies inside {folder}, where input={pattern} looks, and what is enlarged would be "
                "input of the next run: choose a folder outside"
            )
    return root, paths


def check_writable(folder: Path) -> None:
    """Make a folder, and refuse one that takes no files.

    Raises:
        MTKDError: as said.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MTKDError(
            f"{folder} cannot be written to ({error.strerror or error}): choose another, or check its permissions"
        ) from error
