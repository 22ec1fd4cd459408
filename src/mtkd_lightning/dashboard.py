"""The W&B workspace and report that show a study's winner: ``python -m mtkd_lightning.dashboard``."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtkd_lightning.config import CONF, check_keys
from mtkd_lightning.errors import MTKDError, reported
from mtkd_lightning.files import write_json
from mtkd_lightning.loggers import has_key, keep_to, unreachable, wandb_server
from mtkd_lightning.runs import read_runs

log = logging.getLogger(__name__)


@hydra.main(config_path=str(CONF), config_name="dashboard", version_base="1.3")
def main(config: DictConfig) -> None:
    """Check the configuration, then build; bad input ends with its message and status 1."""
    with reported():
        check_keys(config, "dashboard")
        run(config)


def run(config: DictConfig) -> None:
    """Write the specification, and save it to W&B where that is asked for.

    Raises:
        MTKDError: no run, a missing package, no key, or W&B refuses.
    """
    if config.save not in (None, True, False):
        raise MTKDError(f"save={config.save}: allowed are true, false, null")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise MTKDError(
            "the dashboard is built with wandb-workspaces, which is not here: pip install 'mtkd_lightning[dashboard]'"
        )
    if config.save and not has_key():
        raise MTKDError(f"save=true needs a key for {wandb_server()}: `wandb login`, or set WANDB_API_KEY")
    folders = [Path(text).expanduser() for text in config.runs]
    benchmarks = list(dict.fromkeys(benchmark for run in read_runs(folders) for benchmark in run.psnr))
    weights = loss_weights(folders)
    keep_to(Path(config.paths.root).expanduser().resolve() / "wandb")
    # Late, because it imports W&B.
    from mtkd_lightning.dashboard_panels import Dashboard

    dashboard = Dashboard(config.project, config.study_name, benchmarks, weights)
    output = Path(config.output).expanduser()
    write_json(output, dashboard.specification())
    log.info("The specification of the workspace and the report is in %s.", output)
    if config.save or (config.save is None and has_key()):
        for what, url in _saved(dashboard, config.entity).items():
            log.info("%s: %s", what, url)
    else:
        log.info(
            "It was not saved to W&B%s. With a key (`wandb login`) upload the runs and save it:\n"
            "  wandb sync wandb/offline-run-*\n  python -m mtkd_lightning.dashboard project=%s save=true",
            "" if has_key() else f": there is no key for {wandb_server()}",
            config.project,
        )


def loss_weights(folders: list[Path]) -> list[str]:
    """Keys of ``method.weights`` in the configurations that the runs left, those that most runs have first."""
    count: dict[str, int] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*/config.yaml"))):
        if not path.with_name("metrics.json").is_file():  # no student's
            continue
        try:
            weights = OmegaConf.select(OmegaConf.load(path), "method.weights") or {}
        except (OSError, ValueError, OmegaConfBaseException) as error:
            log.warning("%s is left out: %s", path, error)
            continue
        for key in weights:
            count[str(key)] = count.get(str(key), 0) + 1
    return sorted(count, key=lambda key: (-count[key], key))


def _saved(dashboard: Any, entity: str | None) -> dict[str, str]:
    if (why := unreachable()) is not None:
        raise MTKDError(f"W&B at {wandb_server()} cannot be reached ({why}); save=false writes the specification alone")
    try:
        found: dict[str, str] = dashboard.save(entity)
    except Exception as error:
        raise MTKDError(
            f"W&B at {wandb_server()} did not take the dashboard ({type(error).__name__}: {error}). Check the key, "
            "entity=... and project=..., or write the specification alone with save=false"
        ) from error
    return found


if __name__ == "__main__":
    main()
