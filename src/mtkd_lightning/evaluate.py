"""Score networks on benchmarks: ``python -m mtkd_lightning.evaluate weights=lkdn_x4 data.root=...``."""

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf

from mtkd_lightning.config import CONF, SCALES, build, check_keys
from mtkd_lightning.errors import MTKDError, enough_memory, reported
from mtkd_lightning.files import write_text
from mtkd_lightning.tables import write_csv

log = logging.getLogger(__name__)


@hydra.main(config_path=str(CONF), config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    """Check the configuration, then score; bad input ends with its message and status 1."""
    with reported(), enough_memory("give a smaller tile, such as tile=256"):
        check_keys(config, "evaluate")
        run(config)


def run(config: DictConfig) -> None:
    """Score what ``weights`` names at every scale that it has; write and show the tables.

    Raises:
        MTKDError: weights or benchmarks that cannot be used.
    """
    scales = _list(config.scale) or list(SCALES)
    if set(scales) - set(SCALES):
        raise MTKDError(f"scale={config.scale}: allowed are {', '.join(map(str, SCALES))}, or a list of them")
    if not _list(config.weights):
        raise MTKDError("weights=[]: name at least one network")
    for key in ("tile", "overlap"):
        if config[key] is not None and (not isinstance(config[key], int) or config[key] < 0):
            raise MTKDError(f"{key}={config[key]}: it must be a whole number of LR pixels")
    texts = [name for text in _list(config.weights) for name in _at_every_scale(str(text), scales)]
    # Late: an error above should not wait for torch.
    from mtkd_lightning.evaluation import Bicubic, evaluate, refuse_small
    from mtkd_lightning.inference import choose_device
    from mtkd_lightning.network_tables import network_table
    from mtkd_lightning.network_tables import rows as rows_of
    from mtkd_lightning.networks import load, locate
    from mtkd_lightning.teachers.aggregators import Mean
    from mtkd_lightning.teachers.teacher import Ensemble, Teacher

    device = choose_device(config.device)
    output = Path(config.output).expanduser()
    write_text(output / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    finished = Path(config.paths.weights).expanduser()
    by_scale: dict[int, dict[str, Any]] = {}
    for text in texts:
        weights = locate(text, finished)
        network: Any = load(weights)
        same = by_scale.setdefault(network.scale, {"bicubic": Bicubic(network.scale)})
        name = weights.name if weights.name not in same else f"{weights.path.parent.name}_{weights.name}"
        same[name if name not in same else f"{name} ({len(same)})"] = network
    if unasked := sorted(set(by_scale) - set(scales)):
        raise MTKDError(f"scale={config.scale}, but there are weights for x{unasked[0]}; leave scale=null for all")
    evaluated = []
    for scale, networks in sorted(by_scale.items()):
        benchmarks = build(config.data, scale=scale).benchmarks
        if not benchmarks:
            raise MTKDError(f"{config.data.root} has no benchmark: say data=benchmarks, or put some there")
        for pairs in benchmarks.values():
            refuse_small(pairs, pairs.prepare())
        members = {
            name: Teacher(_wrapped(network, scale, config)) for name, network in networks.items() if name != "bicubic"
        }
        networks |= {name: member.net for name, member in members.items()}
        if config.mean and len(members) > 1:
            networks[f"mean of the {len(members)}"] = Ensemble(members, Mean(scale, len(members)))
        save = config.save and Path(config.save).expanduser() / f"x{scale}"
        log.info("x%d: %s on %s.", scale, ", ".join(networks), ", ".join(benchmarks))
        evaluated.append(evaluate(networks, benchmarks, scale, device, save=save, progress=_show))
    table = network_table(evaluated)
    write_csv(output / "results.csv", [row for metrics in evaluated for row in rows_of(metrics)])
    write_csv(
        output / "images.csv",
        [{"scale": metrics["scale"], **image} for metrics in evaluated for image in metrics["images"]],
    )
    write_text(output / "results.md", table)
    log.info("\n%s\nTables: %s and results.csv; each picture: images.csv", table, output / "results.md")


def _at_every_scale(text: str, scales: list[int]) -> list[str]:
    """A name of the catalogue without a scale stands for all of its scales."""
    from mtkd_lightning import catalogue

    known = catalogue.entries()
    named = [f"{text}_x{scale}" for scale in scales]
    return [name for name in named if name in known] or [text]


def _wrapped(network: Any, scale: int, config: DictConfig) -> Any:
    from mtkd_lightning.inference import SelfEnsemble, Tiled

    if config.self_ensemble:
        network = SelfEnsemble(network)  # inside tiles, where it takes the memory of a tile
    return network if config.tile is None else Tiled(network, scale, config.tile, config.overlap)


def _show(done: int, total: int) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {total} pictures" + ("\n" if done == total else ""))
        sys.stderr.flush()
    elif done % 20 == 0 or done == total:
        log.info("%d of %d pictures", done, total)


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, ListConfig) else [value]


if __name__ == "__main__":
    main()
