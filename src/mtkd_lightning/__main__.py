"""The main job: ``python -m mtkd_lightning +experiment=rcan_multi_teacher``."""

import logging
import sys
import time

import hydra
from omegaconf import DictConfig, OmegaConf

from mtkd_lightning import ranks, sweep
from mtkd_lightning.config import CONF, check
from mtkd_lightning.errors import reported
from mtkd_lightning.experiments import register

log = logging.getLogger(__name__)


def main() -> None:
    """Read the command line, of which `run` does the work."""
    if {"--help", "-h"} & set(sys.argv):
        sys.stdout.write(usage())
        return
    register()
    with reported():
        sweep.need_plugins(sys.argv)
    with sweep.summed_up():
        run()


def usage() -> str:
    """What --help shows. Hydra would copy all that it knows for each group, which takes seconds."""
    folders = sorted({path.parent for path in CONF.rglob("*.yaml")} - {CONF})
    groups = [f"  {x.relative_to(CONF)}: {', '.join(sorted(path.stem for path in x.glob('*.yaml')))}" for x in folders]
    template: str = OmegaConf.load(CONF / "config.yaml").hydra.help.template
    return template.replace("$APP_CONFIG_GROUPS", "Groups:\n" + "\n".join(groups) + "\n")


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def run(config: DictConfig) -> float | None:
    """Do the work; bad input ends with its message and status 1, in a sweep it is the job's alone."""
    if sweep.is_job():
        return sweep.job(work, config)
    with reported():
        return work(config)


def work(config: DictConfig) -> float | None:
    """Check the configuration, then run its stages, on as many processes as it asks for.

    Returns:
        The student's validation PSNR-Y where there is one.
    """
    check(config)
    start = time.perf_counter()
    # Late, because importing Lightning takes seconds and an error in the configuration should come at once.
    from mtkd_lightning.launch import launch, on_gpu, processes

    if ranks.count() == 1 and (number := processes(config)) > 1:
        return launch(config, number)
    from mtkd_lightning.pipeline import Pipeline

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # set to INFO by its import; it repeats what we say
    with ranks.joined(on_gpu(config)):
        pipeline = Pipeline(config)
        pipeline.run()
        log.info("Finished in %.0f s.", time.perf_counter() - start)
        return pipeline.validation_psnr()


if __name__ == "__main__":
    main()
