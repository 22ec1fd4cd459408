"""Networks with their weights, by what the user calls them: a name of the catalogue, a file, a run."""

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mtkd_lightning import artifacts, catalogue
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.published import BACKBONES, build_network, read_tensors


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
    """Build the network that a file belongs to, by its sidecar or by its tensors, and load it.

    Raises:
        MTKDError: the file cannot be read, or does not tell which network it is.
    """
    sidecar = weights.path.with_suffix(".json")
    if weights.path.suffix != ".safetensors" or not sidecar.is_file():
        return build_network(read_tensors(weights.path), weights.path, **weights.arguments)
    try:
        record = json.loads(sidecar.read_text())
        config, _ = record["config"], record["sha256"]
        node = dict(config["network"])
        target = str(node.pop("_target_"))
    except (ValueError, KeyError, TypeError) as error:
        raise MTKDError(
            f"{sidecar} cannot be read ({error!r}); move it away to go by the tensors of {weights.path.name} alone"
        ) from error
    if config.get("stage") == "aggregation":
        raise MTKDError(
            f"{weights.path} is an aggregator, which enlarges nothing without its teachers: it is scored by its own "
            "experiment, with stages=[evaluation,report]"
        )
    # Not by Hydra, which would call whatever the file names, in an interpolation too.
    trusted = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in BACKBONES}
    if target not in trusted:
        raise MTKDError(
            f"{sidecar} asks for {target}: what comes with a file of weights may build backbones of this project "
            "alone: anything else could run code. Use it in an experiment, where the configuration names the network."
        )
    try:
        network = trusted[target](**node)
    except TypeError as error:
        raise MTKDError(f"{sidecar} does not fit {target}: {error}") from error
    artifacts.load_into(network, artifacts.Artifact(weights.path, record).tensors(), weights.path)
    return network
