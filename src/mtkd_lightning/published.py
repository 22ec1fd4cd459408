"""Weight files in circulation: read without running code from them, and loaded into the network they belong to."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mtkd_lightning.artifacts import load_into
from mtkd_lightning.backbones.base import Backbone, Published
from mtkd_lightning.backbones.dctlsa import DCTLSA
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.lkdn import LKDN
from mtkd_lightning.backbones.rcan import RCAN
from mtkd_lightning.backbones.smfanet import SMFANetPlus
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.errors import MTKDError

BACKBONES: tuple[type[Backbone], ...] = (EDSR, RCAN, SwinIR, SMFANetPlus, LKDN, DCTLSA)
"""Those that recognise their weight files."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
WRAPPINGS = ("params_ema", "params", "state_dict", "model")
"""Keys under which files hold their state dict; the first that is there counts."""

NAME_PREFIXES = ("module.", "_orig_mod.", "method.student.", "student.", "net_g.", "network.")
"""What parallel and compiled modules, Lightning's checkpoints (ours among them) and others put before every name."""

NO_WEIGHTS = {
    b"<": "a web page, perhaps the answer to a download that failed",
    b"version https://git-lfs": "the pointer that git-lfs keeps in place of the file; fetch the file with git lfs pull",
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a weights file, on the CPU, with plain names.

    Raises:
        MTKDError: there is no such file, it is damaged, or it holds anything but tensors in plain containers.
    """
    if not path.is_file():
        raise MTKDError(f"no weights file at {path.resolve()}; check the path")
    if path.suffix.lower() not in SUFFIXES:
        raise MTKDError(f"{path} cannot be read as weights: its name ends in none of {', '.join(SUFFIXES)}")
    safe = path.suffix.lower() == ".safetensors"
    try:
        content: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MTKDError(f"{path} cannot be read as weights: {_reason(path, error)}") from error
    return _state_dict(_averaged(content), path)


def build_network(tensors: Mapping[str, Tensor], source: object, **given: Any) -> Backbone:
    """`build_with_arguments` without the arguments."""
    return build_with_arguments(tensors, source, **given)[0]


def build_with_arguments(
    tensors: Mapping[str, Tensor], source: object, **given: Any
) -> tuple[Backbone, dict[str, Any]]:
    """Build the network that the tensors belong to, and load them strictly; give its constructor's arguments, too.

    Args:
        tensors: state dict of a file.
        source: what to call the file in messages.
        given: constructor arguments that the tensors do not tell.

    Raises:
        MTKDError: no backbone recognises the tensors, or not all of them; an argument is unknown, ambiguous and not
            given, or given and contradicted by the tensors.
    """
    for kind in BACKBONES:
        if (found := _recognise(kind, tensors, source)) is not None:
            break
    else:
        names = "\n".join(f"  {name} {tuple(x.shape)}" for name, x in list(tensors.items())[:6])
        raise MTKDError(
            f"{source} holds no network of a known kind; known are {', '.join(kind.__name__ for kind in BACKBONES)}. "
            f"Its {len(tensors)} tensors begin with\n{names}"
        )
    name = kind.__name__
    accepted = list(inspect.signature(kind).parameters)
    told = ", ".join(f"{key}={value}" for key, value in found.arguments.items())
    for key, value in given.items():
        if key not in accepted:
            raise MTKDError(
                f"{source} is of the kind {name}, which has no argument {key}; it has {', '.join(accepted)}"
            )
        if (
            key in found.arguments
            and key not in found.assumed
            and found.arguments[key] != (tuple(value) if isinstance(value, list) else value)
        ):
            raise MTKDError(f"{source} has {key}={found.arguments[key]}, not {key}={value} as given; leave {key} out")
    for key, usual in found.unknown.items():
        if key not in given:
            raise MTKDError(
                f"{source} is of the kind {name} ({told}), but its tensors do not tell {key}; it is {usual}. Say it in "
                f"Python, mtkd_lightning.load(..., {key}=...), or as a configured backbone of an experiment; a file "
                "that was trained here tells it by the .json beside it"
            )
    arguments = found.arguments | given
    try:
        network = kind(**arguments)
    except MTKDError as error:
        raise MTKDError(f"{source} ({told}): {error}") from error
    load_into(network, found.tensors, source)
    return network, arguments


def load_published(network: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Load strictly, under whatever names a file of this kind of network has; its mean colour too, if it has one.

    Raises:
        MTKDError: the file's network differs from this one, with the list of arguments, or else of tensors.
    """
    if not isinstance(network, Backbone) or (found := _recognise(type(network), tensors, source)) is None:
        load_into(network, tensors, source)
        return
    own = _recognise(type(network), network.state_dict(), "the configured network")
    configured = (own.arguments if own else {}) | vars(network)
    differing = [
        f"  {key}: {configured[key]} configured, {value} in the file"
        for key, value in found.arguments.items()
        if key in configured and key not in found.assumed and configured[key] != value
    ]
    if differing:
        lines = "\n".join(differing)
        raise MTKDError(
            f"{source} is another {type(network).__name__} than the one configured:\n{lines}\n"
            "Configure the network as the file is, or take another file."
        )
    load_into(network, found.tensors, source)


def _recognise(kind: type[Backbone], tensors: Mapping[str, Tensor], source: object) -> Published | None:
    try:
        return kind.published(tensors)
    except MTKDError as error:
        raise MTKDError(f"{source} looks like {kind.__name__}, but: {error}") from error
    except Exception as error:  # whatever a tensor leads to that has the right name and a wrong shape
        raise MTKDError(
            f"{source} looks like {kind.__name__}, but tensors that tell its size are missing or misshapen ({error!r})"
        ) from error


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return str(error)
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    for beginning, what in NO_WEIGHTS.items():
        if head.startswith(beginning):
            return f"it is {what}"
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"it holds a pickled {found[1]}, and unpickling other content than tensors could run code and is refused. "
            "If you trust where it comes from, load it once in Python with weights_only=False and save its state dict "
            "alone."
        )
    said = str(error).partition(". ")[0].strip() or "no more to read"
    return (
        f"it is empty, cut off, damaged or something else ({type(error).__name__}: {said}). Fetch or copy it again, or "
        "check what it is."
    )


def _averaged(content: Any) -> Any:
    """The student's average in a checkpoint of ours, which is what its training ends with; else what was given."""
    callbacks = content.get("callbacks") if isinstance(content, dict) else None
    average = callbacks.get("EMA") if isinstance(callbacks, dict) else None
    if not isinstance(average, dict):
        return content
    return {name: x for name, x in average.items() if str(name).startswith("student.")} or content


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in WRAPPINGS:  # one may hold another
        if isinstance(content, dict):
            content = next((content[key] for key in WRAPPINGS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        holds = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise MTKDError(
            f"{path} holds no state dict, a mapping of names to tensors, neither as a whole nor under "
            f"{', '.join(WRAPPINGS)}; it holds {holds}"
        )
    if not content:
        raise MTKDError(f"{path} holds no tensors: its state dict is empty")
    tensors = {str(name): x.detach() for name, x in content.items()}
    while prefix := next((p for p in NAME_PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    return tensors
