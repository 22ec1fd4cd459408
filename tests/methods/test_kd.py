import pytest
import torch
from omegaconf import OmegaConf

from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.config import CONF, build
from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.losses.wavelet import WaveletLoss
from mtkd_lightning.methods.kd import KD
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher
from mtkd_lightning.typing import SRBatch

SMALL = {"scale": 2, "features": 4, "blocks": 1}


def configured(teacher: Teacher) -> KD:
    return build(OmegaConf.load(CONF / "method" / "kd.yaml"), student=EDSR(**SMALL), teacher=teacher)


@pytest.fixture
def batch() -> SRBatch:
    return SRBatch(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16), ["a", "b"], torch.rand(2, 1, 3, 16, 16))


def test_value(batch):
    batch = batch._replace(teacher_sr=None)
    method = configured(Teacher(EDSR(**SMALL)))
    terms = method(batch)
    sr = method.student(batch.lr)
    assert terms["response"].item() == pytest.approx((sr - method.teacher.net(batch.lr)).abs().mean().item())
    assert terms["ground_truth"].item() == pytest.approx((sr - batch.hr).abs().mean().item())


def test_of_several_members_the_mean_teaches(batch):
    members = {name: Teacher(EDSR(**SMALL)) for name in "abc"}
    method = configured(Teacher(Ensemble(members, Mean(2, 3))))
    mean = sum(member(batch.lr) for member in members.values()) / 3
    response = method(batch._replace(teacher_sr=None))["response"]
    assert response.item() == pytest.approx((method.student(batch.lr) - mean).abs().mean().item())
    one = configured(members["a"])
    one.student = method.student
    assert response != one(batch._replace(teacher_sr=None))["response"]


def test_pictures_suffice(batch):
    method = configured(Teacher(GivenPicture()))
    assert method.pictures_suffice
    sr = method.student(batch.lr)
    assert method(batch)["response"].item() == pytest.approx((sr - batch.teacher_sr[:, 0]).abs().mean().item())


def test_the_response_may_be_another_loss(batch):
    student, teacher = EDSR(**SMALL), Teacher(GivenPicture())
    weights = {"response": 0.5, "ground_truth": 0.25}
    terms = KD(student, teacher, weights, WaveletLoss())(batch)
    sr = student(batch.lr)
    assert terms["response"].item() == pytest.approx(0.5 * WaveletLoss()(sr, batch.teacher_sr[:, 0]).item())
    assert terms["ground_truth"].item() == pytest.approx(0.25 * l1(sr, batch.hr).item())
