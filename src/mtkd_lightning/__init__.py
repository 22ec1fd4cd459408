"""Multi-teacher knowledge distillation of image super-resolution networks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from torch import nn

__version__ = "0.1.0"


def load(weights: "str | PathLike[str]", **arguments: object) -> "nn.Module":
    """Give a network with its weights, ready to enlarge pictures.

    ``student = mtkd_lightning.load("student.safetensors")``, then ``sr = student(lr)``. It takes RGB pictures
    (b, 3, h, w) in 0..1 and gives (b, 3, scale * h, scale * w), not clamped; its scale is ``.scale``. It is on the CPU,
    in float32, in eval mode, and its weights take no gradient (``lr`` may); ``network.train().requires_grad_()`` undoes
    both.

    Args:
        weights: a file of weights, of any network that the project knows; a run, by its folder or by its name in
            ``weights/``; or a name of the catalogue, which is then downloaded.
        arguments: of the network, such as ``res_scale``, that a file of tensors alone does not tell.

    Raises:
        errors.MTKDError: there is no such file, run or name, or it holds no network that is known.
    """
    # Late: the package itself is imported in no time, and without torch.
    from dataclasses import replace
    from os import fspath
    from pathlib import Path

    from mtkd_lightning import networks

    found = networks.locate(fspath(weights), Path("weights"))
    network = networks.load(replace(found, arguments=found.arguments | arguments))
    return network.eval().requires_grad_(False)
