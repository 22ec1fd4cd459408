"""Scores and costs of networks, picture by picture."""

import time

import numpy as np
import torch
from torch import nn

from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.paired import PairedImages, find_pairs
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.evaluation import evaluate
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, Teacher


class Sleepy(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, lr):
        time.sleep(self.seconds)
        return nn.functional.interpolate(lr, scale_factor=2)


def test_seconds_are_those_of_the_forwards_that_were_made(tmp_path, picture):
    """Pictures of 32x48 to 64x96 at x2, 0.006144 megapixels; a merged one takes what its members took, and its own."""
    for k in range(3):
        write_png(tmp_path / "hr" / f"{k}.png", np.roll(picture[:32, :48], k, 0).repeat(2, 0).repeat(2, 1))
    pairs = PairedImages(find_pairs(tmp_path / "hr", None, 2), 2, PictureStore(tmp_path / "store"))
    members = {"a": Teacher(Sleepy(0.05)), "b": Teacher(Sleepy(0.1))}
    networks = {"a": members["a"].net, "b": members["b"].net, "mean": Ensemble(members, Mean(2, 2))}
    costs = evaluate(networks, {"set": pairs}, 2, torch.device("cpu"))["networks"]
    took = {name: cost["seconds_per_megapixel"] * 0.006144 for name, cost in costs.items()}
    assert 0.05 <= took["a"] < 0.5
    assert 0.1 <= took["b"] < 0.5
    assert 0.15 <= took["mean"] < 1
