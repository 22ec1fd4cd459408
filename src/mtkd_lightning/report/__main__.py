"""Show the runs of a folder on one page: ``python -m mtkd_lightning.report``."""

import logging
from pathlib import Path

import hydra
from omegaconf import DictConfig

from mtkd_lightning.compare import texts
from mtkd_lightning.config import CONF, check_keys
from mtkd_lightning.errors import reported
from mtkd_lightning.report.page import write_report

log = logging.getLogger(__name__)


@hydra.main(config_path=str(CONF), config_name="report", version_base="1.3")
def main(config: DictConfig) -> None:
    """Check the configuration, then write the page; bad input ends with its message and status 1."""
    with reported():
        check_keys(config, "report")
        folders = [Path(text).expanduser() for text in texts(config.runs)]
        page = write_report(folders, Path(config.output).expanduser(), texts(config.baseline))
        log.info("Report: %s, with results.csv and results.md", page)


if __name__ == "__main__":
    main()
