"""The main job: ``python -m mtkd_lightning +experiment=rcan_multi_teacher``."""

import logging
import sys
import time

import hydra
from omegaconf import DictConfig

from mtkd_lightning import ranks, sweep
from mtkd_lightning.config import CONF, check
from mtkd_lightning.errors import reported
from mtkd_lightning.experiments import register

log = logging.getLogger(__name__)


def main() -> None:
    """Read the command line, of which `run` does the work."""
    if not {"--help", "-h"} & set(sys.argv):  # for which Hydra would copy all of them a hundred times
        register()
        with reported():
            sweep.need_plugins(sys.argv)
    with sweep.summed_up():
        run()


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
