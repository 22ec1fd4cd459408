"""How long, on what and how fast one network is trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mtkd_lightning.errors import MTKDError


@dataclass(frozen=True)
class Recipe:
    """One training: everything here except the two intervals decides the weights that come out.

    Attributes:
        steps: optimiser updates.
        batch_size: patches in an update.
        lr_patch: side of a square LR patch in pixels; the HR patch is ``scale`` times that.
        learning_rate: the optimiser's base step size.
        optimizer: ``(parameters, lr=...) -> torch.optim.Optimizer``.
        scheduler: ``progress in [0, 1] -> factor`` on the learning rate.
        seed: of the initial weights, the order of the samples and everything random in a step.
        ema_decay: of the moving average that is validated and kept; None keeps the last weights.
        gradient_clip_val: of the gradient's norm; None does not clip.
        init_from: weights file that the student starts from; None starts from its initialisation.
        validate_every: steps between validations.
        checkpoint_every: steps between checkpoints, what a killed run loses at most.
    """

    steps: int
    batch_size: int
    lr_patch: int
    learning_rate: float
    optimizer: Callable[..., Any]
    scheduler: Callable[[float], float]
    seed: int = 0
    ema_decay: float | None = None
    gradient_clip_val: float | None = None
    init_from: str | None = None
    validate_every: int = 1000
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "lr_patch", "validate_every", "checkpoint_every"):
            if not (isinstance(value := getattr(self, key), int) and value > 0):
                raise MTKDError(f"{key}={value!r} in a recipe: it must be a whole number above 0")
        if not (isinstance(self.learning_rate, int | float) and self.learning_rate > 0):
            raise MTKDError(f"learning_rate={self.learning_rate!r} in a recipe: it must be above 0")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise MTKDError(f"ema_decay={self.ema_decay!r} in a recipe: it must lie in [0, 1), or be null")
        if self.gradient_clip_val is not None and not self.gradient_clip_val > 0:
            raise MTKDError(f"gradient_clip_val={self.gradient_clip_val!r} in a recipe: it must be above 0, or be null")
        self.scheduler(0.0)  # refuses values that do not fit


def multistep(progress: float, *, milestones: list[float], gamma: float) -> float:
    """Factor that is multiplied by ``gamma`` at each milestone (shares of the steps).

    Raises:
        MTKDError: a milestone outside [0, 1].
    """
    if not all(0 <= milestone <= 1 for milestone in milestones):
        raise MTKDError(f"scheduler.milestones={milestones}: they are shares of the steps, in [0, 1]")
    return float(gamma ** sum(progress >= milestone for milestone in milestones))


def cosine(progress: float, *, warmup: float = 0.0, final: float = 0.0) -> float:
    """Factor that rises linearly over the first ``warmup`` of the training, then falls to ``final`` as a cosine.

    Raises:
        MTKDError: a warm-up outside [0, 1).
    """
    if not 0 <= warmup < 1:
        raise MTKDError(f"scheduler.warmup={warmup}: it is a share of the steps, in [0, 1)")
    if progress < warmup:
        return progress / warmup
    phase = min(1.0, (progress - warmup) / (1.0 - warmup))
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * phase)) / 2
