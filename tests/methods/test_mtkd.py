import numpy as np
import pytest
import pywt
import torch
from omegaconf import OmegaConf

from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.config import CONF, build, plain
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.losses.pixel import l1
from mtkd_lightning.losses.wavelet import WaveletLoss
from mtkd_lightning.methods.mtkd import MTKD
from mtkd_lightning.teachers.dctswin import DCTSwin
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.typing import SRBatch

SMALL = {"scale": 2, "features": 4, "blocks": 1}
WEIGHTS = {"response": 1.0, "ground_truth": 0.1}


def teacher() -> Teacher:
    aggregator = DCTSwin(2, 2, embed_dim=4, depths=[2], num_heads=[2], drop_path_rate=0.5, features=4)
    return Teacher(Ensemble({"a": Teacher(EDSR(**SMALL)), "b": Teacher(EDSR(**SMALL))}, aggregator))


def configured(name: str) -> MTKD:
    return build(OmegaConf.load(CONF / "method" / f"{name}.yaml"), student=EDSR(**SMALL), teacher=teacher())


def nets(method: MTKD) -> list[torch.nn.Module]:
    """All that must stay as it is: the ensemble's aggregator and members."""
    return [method.teacher.net, *(member.net for member in method.teacher.net.members.values())]


@pytest.fixture
def batch() -> SRBatch:
    return SRBatch(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 16, 16), ["a", "b"])


@pytest.fixture
def method() -> MTKD:
    return configured("mtkd")


def pictures(method: MTKD, batch: SRBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(x.detach().double().numpy() for x in (method.student(batch.lr), method.teacher(batch.lr), batch.hr))


def test_value_of_the_paper(method, batch):
    sr, response, hr = pictures(method, batch)
    low, high = pywt.dwt2(sr - response, "haar", mode="zero")
    terms = method(batch)
    assert terms.keys() == WEIGHTS.keys()
    assert terms["response"].item() == pytest.approx(np.abs(low).mean() + np.abs(high).mean(), rel=1e-5)
    assert terms["ground_truth"].item() == pytest.approx(0.1 * np.abs(sr - hr).mean(), rel=1e-5)


def test_value_of_the_release(batch):
    method = configured("mtkd_released")
    sr, response, hr = pictures(method, batch)
    terms = method(batch)
    assert terms["response"].item() == pytest.approx(np.abs(sr - response).mean(), rel=1e-5)
    assert terms["ground_truth"].item() == pytest.approx(0.1 * np.abs(sr - hr).mean(), rel=1e-5)


def test_weights_multiply_the_terms(method, batch):
    other = MTKD(method.student, method.teacher, {"response": 3.0, "ground_truth": 0.5}, method.response)
    one, another = method(batch), other(batch)
    assert another["response"].item() == pytest.approx(3 * one["response"].item())
    assert another["ground_truth"].item() == pytest.approx(5 * one["ground_truth"].item())


def test_configurations():
    paper, released = configured("mtkd"), configured("mtkd_released")
    assert paper.weights == released.weights == WEIGHTS
    assert isinstance(paper.response, WaveletLoss)
    assert (paper.response.wavelet, paper.response.levels) == ("haar", 1)
    assert (paper.response.low_weight, paper.response.high_weight) == (1, 1)
    assert released.response.func is l1
    assert plain(OmegaConf.load(CONF / "method" / "mtkd_released.yaml"))["response"].keys() == {"_target_", "_partial_"}


def test_the_student_alone_gets_gradients(method, batch):
    torch.stack(list(method.train()(batch).values())).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.student.parameters())
    assert all(p.grad is None and not p.requires_grad for net in nets(method) for p in net.parameters())


def test_the_teacher_is_no_part_of_the_module(method):
    assert set(method.parameters()) == set(method.student.parameters())
    assert all(name.startswith("student.") for name in method.state_dict())
    assert method.teacher.net not in list(method.modules())
    method.requires_grad_(True)
    assert not any(p.requires_grad for net in nets(method) for p in net.parameters())


def test_the_teacher_stays_in_eval_mode(method, batch):
    method.train()
    assert method.student.training
    assert not any(module.training for net in nets(method) for module in net.modules())
    # Its stochastic depth would otherwise show.
    assert torch.equal(method.teacher(batch.lr), method.teacher(batch.lr))


def test_the_teacher_moves_along(method, batch):
    before = method.teacher(batch.lr)
    method.to(torch.float64)
    tensors = [x for net in nets(method) for x in (*net.parameters(), *net.buffers())]
    assert {x.dtype for x in tensors if x.is_floating_point()} == {torch.float64}
    after = method.teacher(batch.lr.double())
    assert after.dtype == torch.float64
    assert torch.allclose(after.float(), before, atol=1e-2)
    method.to("meta")
    assert {x.device.type for net in nets(method) for x in net.parameters()} == {"meta"}


@pytest.mark.parametrize("weights", [{}, {"response": 1.0}, {**WEIGHTS, "gt": 1.0}])
def test_weights_that_do_not_fit(method, weights):
    with pytest.raises(MTKDError, match="takes exactly ground_truth, response"):
        MTKD(method.student, method.teacher, weights, l1)
