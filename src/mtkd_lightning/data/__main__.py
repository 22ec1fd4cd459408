"""Get a data set: ``python -m mtkd_lightning.data name=div2k``."""

import hydra
from omegaconf import DictConfig

from mtkd_lightning.config import CONF
from mtkd_lightning.data.datasets import read_request
from mtkd_lightning.errors import reported


@hydra.main(config_path=str(CONF), config_name="prepare", version_base="1.3")
def main(config: DictConfig) -> None:
    """Check what is asked for, then get it; bad input ends with its message and status 1."""
    with reported():
        request = read_request(config)
        # Late, because it imports torch and an error in the configuration should come at once.
        from mtkd_lightning.data.prepare import Preparation

        Preparation(request).run()


if __name__ == "__main__":
    main()
