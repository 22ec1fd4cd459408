"""Published weights by name: where they come from, under which licence, what they should score.

One file a network in conf/catalogue. RCAN's authors publish theirs in an archive on file-sharing pages, which give no
link to a file: download them by hand and name them by their path.
"""

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from omegaconf import OmegaConf

from mtkd_lightning.config import CONF
from mtkd_lightning.download import fetch, forget
from mtkd_lightning.errors import MTKDError


@dataclass(frozen=True)
class Entry:
    """One file of weights.

    Attributes:
        name: ``<network>_x<scale>``.
        network: the file of conf/catalogue that holds it.
        scale: of LR to HR.
        url: where its authors publish it.
        file: what it is called in the cache and in a mirror.
        sha256: whole, or the first digits, or None, as far as it is published.
        licence: of the weights.
        training_data: what the network was trained on.
        parameters: how many the network has.
        arguments: of the network's constructor, where the tensors do not tell them.
        expected: benchmark -> PSNR on Y in dB; empty where no number is at hand.
        source: of the expected numbers.
    """

    name: str
    network: str
    scale: int
    url: str
    file: str
    sha256: str | None
    licence: str
    training_data: str
    parameters: int
    arguments: dict[str, Any]
    expected: dict[str, float]
    source: str


def entries() -> dict[str, Entry]:
    """The whole catalogue, by name."""
    found = (entry for path in sorted((CONF / "catalogue").glob("*.yaml")) for entry in _read(path))
    return {entry.name: entry for entry in found}


def obtain(name: str) -> Path:
    """Give the verified file of a name of the catalogue, from the cache or downloaded into it.

    Raises:
        MTKDError: an unknown name, or a file that cannot be had.
    """
    known = entries()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise MTKDError(f"the catalogue of weights has no {name!r}: {hint}It has {', '.join(known)}")
    entry = known[name]
    path = downloaded(entry)
    there = path.is_file()
    fetch(entry.url, path, sha256=entry.sha256)
    if entry.sha256 is None and not there:
        _refuse_other_content(path)
    return path


def _refuse_other_content(path: Path) -> None:
    """Remove what came in place of a file of which no sha256 is published: an error page, a part."""
    from mtkd_lightning.published import read_tensors  # late, for it imports torch

    try:
        read_tensors(path)
    except MTKDError as error:
        forget(path)
        raise MTKDError(f"{error}. It was removed: the same command fetches it again") from error


def downloaded(entry: Entry) -> Path:
    """Where its file is, once it was downloaded."""
    return cache_folder() / "weights" / entry.file


def cache_folder() -> Path:
    """Where downloads are kept: MTKD_LIGHTNING_CACHE, or ~/.cache/mtkd_lightning; weights in its folder weights."""
    return Path(os.environ.get("MTKD_LIGHTNING_CACHE") or "~/.cache/mtkd_lightning").expanduser()


def _read(path: Path) -> Iterator[Entry]:
    network: Any = OmegaConf.to_container(OmegaConf.load(path))
    try:
        scales = network.pop("scales")
        for scale, values in scales.items():
            name = f"{path.stem}_x{scale}"
            file = name + PurePosixPath(urlsplit(values["url"]).path).suffix
            yield Entry(name=name, network=path.stem, scale=scale, file=file, **network, **values)
    except (AttributeError, KeyError, TypeError) as error:
        raise MTKDError(f"{path} is not an entry of the catalogue: {error}") from error
