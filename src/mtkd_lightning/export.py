"""Networks as files for elsewhere: ``python -m mtkd_lightning.export weights=lkdn_x4 format=onnx``."""

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, ListConfig

from mtkd_lightning import __version__
from mtkd_lightning.config import CONF, check_keys
from mtkd_lightning.errors import MTKDError, reported
from mtkd_lightning.files import replacing, write_text

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}
NEEDED = ("onnx", "onnxscript", "onnxruntime")

USES = {
    "safetensors": 'import mtkd_lightning\nstudent = mtkd_lightning.load("{file}")\n'
    "sr = student(lr)  # a tensor (b, 3, h, w), RGB in 0..1",
    "onnx": 'import onnxruntime\nstudent = onnxruntime.InferenceSession("{file}")\n'
    'sr = student.run(None, {{"lr": lr}})[0]  # an array (b, 3, h, w), RGB in 0..1, float32',
    # Guards of the trace: sizes at which a tensor happens to be contiguous. The graph is right for them, too.
    "torch_export": 'import torch\nstudent = torch.export.load("{file}").module(check_guards=False)\n'
    "sr = student(lr)  # a tensor (b, 3, h, w), RGB in 0..1, float32",
}


@hydra.main(config_path=str(CONF), config_name="export", version_base="1.3")
def main(config: DictConfig) -> None:
    """Check the configuration, then export; bad input ends with its message and status 1."""
    with reported():
        check_keys(config, "export")
        run(config)


def run(config: DictConfig) -> None:
    """Write what ``weights`` names in every format that is asked for, and its model card; all or nothing.

    Raises:
        MTKDError: weights that cannot be used, files that are there, a package that is not, or an exported network
            that makes another picture.
    """
    formats = [str(x) for x in config.format] if isinstance(config.format, ListConfig) else [str(config.format)]
    for name in formats or ["[]"]:
        if name not in SUFFIXES:
            raise MTKDError(f"format={name}: allowed are {', '.join(SUFFIXES)}, or a list of them")
    if not isinstance(config.half, bool):
        raise MTKDError(f"half={config.half}: it must be true or false")
    if config.existing not in ("stop", "replace"):
        raise MTKDError(f"existing={config.existing}: allowed are stop, replace")
    if "onnx" in formats and (missing := [package for package in NEEDED if find_spec(package) is None]):
        raise MTKDError(f"format=onnx needs {', '.join(missing)}: pip install 'mtkd_lightning[export]'")
    # Late: an error above should not wait for torch.
    from mtkd_lightning import card, networks
    from mtkd_lightning.metrics.complexity import flops, parameters

    weights = networks.locate(str(config.weights), Path(config.paths.weights).expanduser())
    name = weights.name + ("_half" if config.half else "")
    output = Path(config.output).expanduser()
    targets = {kind: output / f"{name}{SUFFIXES[kind]}" for kind in dict.fromkeys(formats)}
    _refuse(weights.path, [*targets.values(), output / f"{name}.md"], config.existing)
    loaded, record = networks.read(weights)
    network: Any = loaded.eval().requires_grad_(False)
    known = card.about(weights, record)
    if config.licence is not None:
        known["licence"] = str(config.licence)
    told = {"name": name, "version": __version__, "config": record["config"], "about": known}
    made, lines = {}, []
    for kind in targets:
        log.info("%s of %s, x%d ...", kind, weights.name, network.scale)
        made[kind], line = _make(kind, network, config.half, told)
        lines.append(f"`{targets[kind].name}`: {line}")
        log.info("  %s", line)
    for kind, path in targets.items():
        with replacing(path) as temporary:
            temporary.write_bytes(made[kind])
    arguments = {key: value for key, value in record["config"]["network"].items() if key != "_target_"}
    facts = {
        "kind": type(network).__name__,
        "arguments": arguments,
        "scale": network.scale,
        "parameters": parameters(network),
        "gflops": flops(network, 720 // network.scale, 1280 // network.scale) / 1e9,
    }
    use = USES[formats[0]].format(file=targets[formats[0]].name)
    write_text(output / f"{name}.md", card.markdown(name, facts, known, lines, use))
    log.info("Wrote %s", ", ".join(map(str, [*targets.values(), output / f"{name}.md"])))


def _refuse(source: Path, paths: list[Path], existing: str) -> None:
    """Refuse to write over what is there, unless told to, and over the weights themselves always."""
    for path in paths:
        if path.resolve() == source.resolve():
            raise MTKDError(f"{path} is what would be exported: choose another folder with output=...")
        if path.suffix == ".safetensors" and path.with_suffix(".json").exists():
            raise MTKDError(
                f"{path.with_suffix('.json')} would be taken for the sidecar of the exported file: choose another "
                "folder with output=..."
            )
        if existing == "stop" and path.exists():
            raise MTKDError(f"{path} is there: say existing=replace, or choose another folder with output=...")


def _make(kind: str, network: "nn.Module", half: bool, told: dict[str, Any]) -> tuple[bytes, str]:
    """An exported network, and a line about it."""
    if kind == "safetensors":
        from safetensors.torch import save

        from mtkd_lightning.artifacts import EMBEDDED

        tensors = {
            key: (x.half() if half and x.is_floating_point() else x).contiguous()
            for key, x in network.state_dict().items()
        }
        text = json.dumps(told)
        return save(tensors, {EMBEDDED: text}), f"weights in {'float16' if half else 'float32'}, complete in itself"
    from mtkd_lightning import graphs

    exported = graphs.to_onnx(network, half, told) if kind == "onnx" else graphs.to_torch_export(network, half, told)
    return exported.content, str(exported)


if __name__ == "__main__":
    main()
