"""Weights that can be trusted: a safetensors file and a sidecar that says what made it."""

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import file_sha256, replacing, write_json

log = logging.getLogger(__name__)

# How a training is watched, and a path whose file's hash stands beside it: not what the network becomes.
NOT_IN_HASH = ("validate_every", "checkpoint_every", "init_from")

EMBEDDED = "mtkd_lightning"
"""Key of a safetensors file's metadata under which lies, as JSON, what a sidecar says."""


class OtherConfigurationError(MTKDError):
    """What is on disk was made by another configuration than the one asked for."""


@dataclass(frozen=True)
class Artifact:
    """A finished network on disk: ``path`` (.safetensors) and the content of its ``.json`` sidecar."""

    path: Path
    record: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of the weights file."""
        return str(self.record["sha256"])

    def tensors(self) -> dict[str, Tensor]:
        """Read the weights.

        Raises:
            MTKDError: as `verify`.
        """
        self.verify()
        return load_file(self.path)

    def verify(self) -> None:
        """Check that the weights are the ones that were written.

        Raises:
            MTKDError: the file was changed or cut after the sidecar was written.
        """
        if file_sha256(self.path) != self.sha256:
            raise MTKDError(
                f"{self.path} is not the file that {self.path.with_suffix('.json').name} describes (sha256 differs): "
                "it was changed or cut off. Restore it, or delete both files to make it anew."
            )


def config_hash(config: Mapping[str, Any]) -> str:
    """Sixteen hex digits over everything in ``config`` that decides the weights."""
    canonical = json.dumps(_relevant(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def save(path: Path, tensors: Mapping[str, Tensor], config: dict[str, Any], **record: Any) -> Artifact:
    """Write weights, then their sidecar, each to a temporary name that is renamed when complete.

    Raises:
        MTKDError: a weight is not finite, or the disk is full.
    """
    refuse_broken(tensors, path)
    # What rebuilds the network, for a file that loses its sidecar; no more, or equal weights would be unequal files.
    enough = {"config": {key: config[key] for key in ("stage", "scale", "network") if key in config}}
    if path.exists() and not path.with_suffix(".json").exists():  # a file of the user's, or half of a killed run's
        put_aside(path)
        log.warning("%s had no .json beside it, so it is no artefact of a run; it was renamed to *.old", path)
    contiguous = {name: x.detach().to("cpu").contiguous() for name, x in tensors.items()}
    with replacing(path) as temporary:
        # Not save_file, whose files no other user may read.
        temporary.write_bytes(to_bytes(contiguous, {EMBEDDED: json.dumps(enough)}))
        sha256 = file_sha256(temporary)
    record = {"config_hash": config_hash(config), "sha256": sha256, **record, **provenance(), "config": config}
    write_json(path.with_suffix(".json"), record)
    return Artifact(path, record)


def find(path: Path, config: Mapping[str, Any]) -> Artifact | None:
    """Give the finished artefact at ``path``, or None if there is none yet.

    Raises:
        MTKDError: one is there, but another configuration made it, or its sidecar cannot be read.
    """
    sidecar = path.with_suffix(".json")
    if not (path.exists() and sidecar.exists()):
        return None
    try:
        record = json.loads(sidecar.read_text())
        made, made_by, _ = record["config_hash"], record["config"], record["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise MTKDError(f"{sidecar} cannot be read ({error!r}); delete it and {path.name} to make both anew") from error
    refuse_other(path, made_by, config, made)
    return Artifact(path, record)


def embedded(path: Path) -> str | None:
    """What a safetensors file says of itself, as JSON, if it does."""
    with safe_open(path, "pt") as file:
        found: str | None = (file.metadata() or {}).get(EMBEDDED)
    return found


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 of names and values."""
    found = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        found.update(name.encode())
        found.update(x.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def refuse_other(what: Path, made_by: Mapping[str, Any], asked: Mapping[str, Any], made: str) -> None:
    """Raise MTKDError, naming what differs, unless ``made`` is the hash of ``asked``."""
    if made == (wanted := config_hash(asked)):
        return
    differences = "\n".join(f"  {line}" for line in _differences(_relevant(made_by), _relevant(asked)))
    raise OtherConfigurationError(
        f"{what} was made by another configuration ({made}) than the one asked for ({wanted}):\n{differences}\n"
        "Nothing was overwritten. Ask for the old configuration again, keep both with another name (name=... of a "
        "student, teacher.name=... of teachers, aggregator_name=...) or place (paths.weights=... and paths.runs=...), "
        "or say existing=remake, with the stage that makes it, to put the old one aside as *.old and make it anew."
    )


STEADIER = (
    "Lower the recipe's learning_rate, give it a longer warm-up (scheduler.warmup of cosine, a share of the steps), "
    "clip its gradients (gradient_clip_val=1) or use trainer.precision=32-true; a changed recipe starts anew."
)


def refuse_broken(tensors: Mapping[str, Tensor], what: object) -> None:
    """Raise MTKDError if a weight is infinite or no number."""
    if broken := _broken(tensors):
        raise MTKDError(
            f"{len(broken)} weights for {what} are not finite, {broken[0]} first; they were not written, the last "
            f"checkpoint is kept. {STEADIER}"
        )


def _broken(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, x in tensors.items() if not (x.is_meta or torch.isfinite(x).all())]


def put_aside(path: Path) -> None:
    """Rename an artefact to ``*.old.*``, replacing what was put aside before."""
    for file in (path, path.with_suffix(".json")):
        if file.exists():
            file.replace(file.with_stem(f"{file.stem}.old"))


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Load strictly.

    Raises:
        MTKDError: tensors are missing, unexpected or misshapen, with the list, or not finite.
    """
    if broken := _broken(tensors):
        raise MTKDError(f"{source}: {len(broken)} of its tensors are not finite, {broken[0]} first: take another file")
    own = network.state_dict()
    misshapen = {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape}
    problems = [
        f"{name} is {tuple(tensors[name].shape)} in the file and {tuple(own[name].shape)} in the network"
        for name in misshapen
    ]
    # Asking the network itself, which knows what published files of its kind hold beside the weights.
    fitting = {name: x for name, x in tensors.items() if name not in misshapen}
    missing, unexpected = network.load_state_dict(fitting, strict=False)
    problems += [f"missing {name} {tuple(own[name].shape)}" for name in missing if name not in misshapen]
    problems += [f"unexpected {name} {tuple(tensors[name].shape)}" for name in unexpected]
    if problems:
        shown = "\n".join(f"  {line}" for line in sorted(problems)[:12])
        more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise MTKDError(
            f"{source} holds the weights of another network than this {type(network).__name__}:\n{shown}{more}\n"
            "Check the network's size and the scale against the file."
        )


@cache
def provenance() -> dict[str, Any]:
    """What the code was: git revision and versions."""
    return {
        "git": _git(),
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in _PACKAGES}},
    }


_PACKAGES = ("mtkd-lightning", "torch", "lightning", "hydra-core", "torchmetrics", "pytorch-wavelets", "numpy")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"revision": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _relevant(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in NOT_IN_HASH
    }


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    absent = object()
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, absent), new.get(key, absent)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            was, now = ("absent" if x is absent else json.dumps(x) for x in (a, b))
            yield f"{prefix}{key}: {was} there, {now} asked"
