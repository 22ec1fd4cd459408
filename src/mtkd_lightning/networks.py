"""Networks with their weights, by what the user calls them: a name of the catalogue, a file, a run."""

import difflib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd_lightning import artifacts, catalogue
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.published import BACKBONES, build_with_arguments, read_tensors

log = logging.getLogger(__name__)

GREY_OFF = 0.05
"""In 0..1. Networks in the range they were trained for are off by 0.005 at most, small SwinIRs in another by 0.17."""


@dataclass(frozen=True)
class Weights:
    """A file of weights, what to call it, and constructor arguments that its tensors do not tell."""

    name: str
    path: Path
    arguments: dict[str, Any] = field(default_factory=dict)


def locate(text: str, finished: Path) -> Weights:
    """Find weights by a file's path, the name or folder of a run, or a name of the catalogue (then downloaded).

    Args:
        text: what the user said.
        finished: folder of the networks that were trained here.

    Raises:
        MTKDError: there is nothing of that name, or it cannot be downloaded.
    """
    path = Path(text).expanduser().absolute()
    if path.is_file():
        return Weights(path.stem, path)
    # The folder of a run lies beside that of its weights.
    run = (
        path.parents[1] / "weights" / f"{path.name}.safetensors" if path.is_dir() else finished / f"{text}.safetensors"
    )
    if run.is_file():
        return Weights(path.name, run)
    entries = catalogue.entries()
    if text in entries:
        return Weights(text, catalogue.obtain(text), dict(entries[text].arguments))
    runs = sorted(file.stem for file in finished.glob("*.safetensors"))
    close = difflib.get_close_matches(text, [*entries, *runs], n=3)
    raise MTKDError(
        f"weights={text}: there is no such file, no run of that name in {finished}, and it is not in the catalogue. "
        + (f"Did you mean {' or '.join(close)}? " if close else "")
        + f"The catalogue has {', '.join(sorted({entry.network for entry in entries.values()}))}, "
        "each with _x2, _x3 or _x4 at its end."
    )


def load(weights: Weights) -> nn.Module:
    """Build the network that a file belongs to, and load it.

    Raises:
        MTKDError: the file cannot be read, or does not tell which network it is.
    """
    return read(weights)[0]


def read(weights: Weights) -> tuple[nn.Module, dict[str, Any]]:
    """Build the network that a file belongs to, and load it; give what is known of it, too.

    It is known from the file's sidecar, else from its metadata, else from its tensors. ``config`` always has ``scale``
    and ``network`` (``_target_`` and the arguments).

    Raises:
        MTKDError: the file cannot be read, or does not tell which network it is.
    """
    path, sidecar = weights.path, weights.path.with_suffix(".json")
    safe = path.suffix == ".safetensors"
    if safe and sidecar.is_file():
        record = _parsed(sidecar.read_text(), sidecar, f"; move it away to go by {path.name} alone")
        return _built(record, sidecar, artifacts.Artifact(path, record).tensors, weights.arguments), record
    tensors = read_tensors(path)
    if safe and (text := artifacts.embedded(path)) is not None:
        record = _parsed(text, path, " from its metadata: it is damaged, or of another version")
        return _built(record, path, lambda: tensors, weights.arguments), record
    network, arguments = build_with_arguments(tensors, path, **weights.arguments)
    _warn_of_another_range(network, path)
    return network, {"config": {"scale": network.scale, "network": {"_target_": name_of(type(network)), **arguments}}}


@torch.no_grad()
def _warn_of_another_range(network: nn.Module, path: Path) -> None:
    """Tensors do not tell the range of values they were trained for; a grey picture that does not stay grey does."""
    off = (network(torch.full((1, 3, 16, 16), 0.5)) - 0.5).abs().mean().item()
    if off > GREY_OFF:
        log.warning(
            "%s makes a picture of 0.5 one that is %.2f off: it may have been trained for another range of values. "
            "mtkd_lightning.load(..., image_range=255), or 1, sets it where the network has one",
            path,
            off,
        )


def name_of(kind: type) -> str:
    """A class by its import path, as configurations have it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _parsed(text: str, source: Path, remedy: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(text)
        str(record["config"]["network"]["_target_"])
        if source.suffix == ".json":
            str(record["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise MTKDError(f"{source} cannot be read ({error!r}){remedy}") from error
    return record


def _built(
    record: dict[str, Any], source: Path, tensors: Callable[[], Mapping[str, Tensor]], given: Mapping[str, Any]
) -> nn.Module:
    if given:
        raise MTKDError(f"{source} tells what its network is; leave {', '.join(given)} out")
    node = dict(record["config"]["network"])
    target = str(node.pop("_target_"))
    if record["config"].get("stage") == "aggregation":
        raise MTKDError(
            f"{source} is of an aggregator, which enlarges nothing without its teachers: it is scored by its own "
            "experiment, with stages=[evaluation,report]"
        )
    # Not by Hydra, which would call whatever the file names, in an interpolation too.
    trusted = {name_of(kind): kind for kind in BACKBONES}
    if target not in trusted:
        raise MTKDError(
            f"{source} asks for {target}: what comes with a file of weights may build backbones of this project "
            "alone: anything else could run code. Use it in an experiment, where the configuration names the network."
        )
    try:
        network = trusted[target](**node)
    except TypeError as error:
        raise MTKDError(f"{source} does not fit {target}: {error}") from error
    artifacts.load_into(network, tensors(), source.with_suffix(".safetensors"))
    return network
