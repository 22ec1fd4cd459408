"""Pairs of low- and high-resolution pictures, whole."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mtkd_lightning.data.images import RGB, DeepRGB, list_pictures
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.errors import MTKDError


@dataclass(frozen=True)
class Pair:
    """A picture and its low-resolution version; `lr` None: to be made, bicubic; `teachers`: their pictures of it."""

    name: str
    hr: Path
    lr: Path | None = None
    teachers: Sequence[Path] = ()


def find_pairs(hr: str | Path, lr: str | Path | None, scale: int) -> list[Pair]:
    """Pair the pictures of two folders by relative path: `a/0001.png` with `a/0001.png` or `a/0001x4.png`.

    The name of a pair is the HR path in its folder without suffix, `a/0001`. LR pictures without HR are left.

    Raises:
        MTKDError: a folder is missing or has no pictures, a name occurs twice, an HR picture has no LR.
    """
    pictures = _by_name(Path(hr))
    if lr is None:
        return [Pair(name, path) for name, path in pictures.items()]
    found = _aligned(pictures, Path(lr), scale, "LR", ", or remove the LR folder and they are made")
    return [Pair(name, path, found[name]) for name, path in pictures.items()]


class PairedImages(Dataset[tuple[RGB, RGB, str]]):
    """Whole pictures as (lr (h, w, 3), hr (scale * h, scale * w, 3), name), read-only uint8.

    HR is cropped right and bottom to a multiple of the scale; with `strict_size` a need to crop is an error.
    """

    def __init__(self, pairs: Sequence[Pair], scale: int, store: PictureStore, *, strict_size: bool = False) -> None:
        if scale < 1:
            raise MTKDError(f"got scale {scale}; it must be a whole number from 1 up, such as 2, 3 or 4")
        self.pairs = list(pairs)
        self.scale = scale
        self.store = store
        self.strict_size = strict_size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[RGB, RGB, str]:
        pair = self.pairs[index]
        whole = self.store.rgb(pair.hr)
        height, width = (side - side % self.scale for side in whole.shape[:2])
        hr = whole[:height, :width]
        if self.strict_size and hr.shape != whole.shape:
            raise MTKDError(
                f"{pair.hr} is {size(whole)}, not a multiple of the scale {self.scale}: crop it, or let it "
                "be cropped right and bottom with strict_size=false"
            )
        lr = self.store.lr(pair.hr, self.scale) if pair.lr is None else self.store.rgb(pair.lr)
        if (lr.shape[0] * self.scale, lr.shape[1] * self.scale) != (height, width):
            raise MTKDError(
                f"{pair.lr} is {size(lr)} but {pair.hr} is {size(whole)}: at x{self.scale} its LR must be "
                f"{height // self.scale}x{width // self.scale}. Remake the LR picture, or remove the LR "
                "folder and it is made."
            )
        return lr, hr, pair.name

    def teacher_pictures(self, index: int) -> list[DeepRGB]:
        """Give what each teacher made of the picture, read-only (scale * h, scale * w, 3), uint8 or uint16."""
        pair = self.pairs[index]
        made = [self.store.mapped(path) if path.suffix == ".npy" else self.store.deep(path) for path in pair.teachers]
        wanted = self[index][1].shape if made else None
        for path, picture in zip(pair.teachers, made, strict=True):
            if picture.shape != wanted:
                raise MTKDError(
                    f"{path} is {size(picture)}, but {self.scale} times the LR picture of {pair.hr} is "
                    f"{size(self[index][1])}: make it anew from the LR picture, without cropping"
                )
        return made

    def with_teachers(self, folders: Sequence[Path]) -> "PairedImages":
        """The same pictures with those that teachers made of them, one folder a teacher, aligned by name.

        Raises:
            MTKDError: a folder is missing, or a picture in it.
        """
        pictures = {pair.name: pair.hr for pair in self.pairs}
        made = [_aligned(pictures, folder, self.scale, "teacher's") for folder in folders]
        return self.with_files([[by_name[pair.name] for pair in self.pairs] for by_name in made])

    def with_files(self, made: Sequence[Sequence[Path]]) -> "PairedImages":
        """The same pictures with those that teachers made of them: of each teacher, a file a picture."""
        pairs = [replace(pair, teachers=files) for pair, *files in zip(self.pairs, *made, strict=True)]
        return PairedImages(pairs, self.scale, self.store, strict_size=self.strict_size)

    def prepare(self, progress: Callable[[int, int], None] | None = None) -> list[tuple[int, int]]:
        """Decode what is not yet in the store, on all cores; give the height and width of each LR picture.

        `progress` is called with the number of pictures done and the number of all.
        """
        sizes = []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for lr_size in pool.map(self._lr_size, range(len(self))):
                sizes.append(lr_size)
                if progress is not None:
                    progress(len(sizes), len(self))
        return sizes

    def manifest(self) -> dict[str, Any]:
        """Say what the data is: scale, names in order, sha256 of the HR and LR files (None: LR is made)."""
        return {
            "scale": self.scale,
            "names": [pair.name for pair in self.pairs],
            "hr": [self.store.digest(pair.hr) for pair in self.pairs],
            "lr": [pair.lr and self.store.digest(pair.lr) for pair in self.pairs],
        }

    def manifest_hash(self) -> str:
        """Sha256 of the manifest: the same for the same pictures wherever they lie."""
        return sha256(json.dumps(self.manifest(), sort_keys=True).encode()).hexdigest()

    def lr_digest(self, index: int) -> str:
        """What the LR picture is, for the name of what is made of it."""
        pair = self.pairs[index]
        made = f"{self.store.digest(pair.hr)}-bicubic-x{self.scale}"
        return made if pair.lr is None else self.store.digest(pair.lr)

    def teacher_hashes(self) -> list[str]:
        """Sha256 over all that each teacher made of the pictures."""
        made = zip(*(pair.teachers for pair in self.pairs), strict=True)
        return [sha256("".join(map(self.store.digest, files)).encode()).hexdigest() for files in made]

    def _lr_size(self, index: int) -> tuple[int, int]:
        height, width, _ = self[index][0].shape
        self.teacher_pictures(index)
        return height, width


def first(names: Sequence[str], count: int = 5) -> str:
    """List the first few names for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def size(image: DeepRGB) -> str:
    """Height x width for a message."""
    return f"{image.shape[0]}x{image.shape[1]}"


def _aligned(pictures: Mapping[str, Path], folder: Path, scale: int, whose: str, or_else: str = "") -> dict[str, Path]:
    """Find the version of every picture in another folder, by name."""
    others = _by_name(folder)
    found, missing = {}, []
    for name, path in pictures.items():
        match [others[key] for key in (name, f"{name}x{scale}") if key in others]:
            case [other]:
                found[name] = other
            case []:
                missing.append(name)
            case [one, other]:
                raise MTKDError(f"{path} has two {whose} pictures, {one} and {other}: remove one")
    if missing:
        raise MTKDError(
            f"{len(missing)} of {len(pictures)} pictures have no {whose} picture in {folder}: {first(missing)}. "
            f"Wanted are the same names, with or without x{scale} at the end; add them{or_else}."
        )
    return found


def _by_name(folder: Path) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in list_pictures(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise MTKDError(f"{named[name]} and {path} have the same name: rename or remove one")
        named[name] = path
    return named
