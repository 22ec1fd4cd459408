from copy import deepcopy
from types import MappingProxyType

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mtkd_lightning.backbones.base import Backbone
from mtkd_lightning.backbones.dctlsa import DCTLSA
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.foreign import Foreign
from mtkd_lightning.backbones.rcan import RCAN
from mtkd_lightning.backbones.smfanet import SMFANetPlus
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.config import CONF, build
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.methods.crosskd import CrossKD, make_adapter
from mtkd_lightning.methods.taps import value_range
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.typing import SRBatch

WEIGHTS = {"ground_truth": 1.0, "response": 2.0, "cross": 3.0}
TEACHERS = {
    "SMFANet+": lambda scale: SMFANetPlus(scale, features=6, blocks=1),
    "DCTLSA": lambda scale: DCTLSA(scale, features=10, blocks=2, heads=2, window_size=4),
    "RCAN": lambda scale: RCAN(scale, features=4, groups=1, blocks=1, reduction=2),
    "SwinIR": lambda scale: SwinIR(scale, 6, depths=[2], num_heads=[2], window_size=4, drop_path_rate=0.5),
    "narrow EDSR": lambda scale: EDSR(scale, features=3, blocks=1),
}
TAIL = ("upsample.", "conv_last.")


def edsr(scale: int = 2, features: int = 4, **settings: float) -> EDSR:
    return EDSR(scale, features, blocks=1, **settings)


def make(teacher: nn.Module, dual: float = 0.0, student: nn.Module | None = None) -> CrossKD:
    return CrossKD(student or edsr(teacher.scale), Teacher(teacher), WEIGHTS, dual)


def make_batch(scale: int = 2, height: int = 9, width: int = 10) -> SRBatch:
    """By default of sides that windows do not fit into."""
    return SRBatch(torch.rand(2, 3, height, width), torch.rand(2, 3, height * scale, width * scale), ["a", "b"])


def with_random_adapters(method: CrossKD) -> CrossKD:
    for adapter in (method.adapter, method.dual_adapter):
        for p in adapter.parameters():
            nn.init.normal_(p)
    return method


def distance(sr: Tensor, target: Tensor) -> float:
    return (sr.detach().double() - target.double()).abs().mean().item()


def mixed(feature: Tensor, adapter: nn.Module) -> Tensor:
    """A 1x1 convolution, pixel by pixel."""
    if not list(adapter.parameters()):
        return feature
    return torch.einsum("oi,bihw->bohw", adapter.weight[:, :, 0, 0], feature) + adapter.bias[:, None, None]


def parameters(method: CrossKD, tail: bool) -> list[nn.Parameter]:
    return [p for name, p in method.student.named_parameters() if name.startswith(TAIL) == tail]


def reached(tensors: list[nn.Parameter]) -> set[bool]:
    return {p.grad is not None and bool(p.grad.abs().sum() > 0) for p in tensors}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kind", TEACHERS)
def test_values(kind, scale):
    method, batch = with_random_adapters(make(TEACHERS[kind](scale), dual=0.5)), make_batch(scale)
    net = method.teacher.net
    with torch.no_grad():
        sr, own = method.student.forward_features(batch.lr, ["deep"])
        response, other = net.forward_features(batch.lr, ["deep"])
        # EDSR and RCAN work in 0..255, the others in 0..1.
        ratio = 1.0 if "EDSR" in kind or kind == "RCAN" else 1 / 255
        cross = net.reconstruct(mixed(own["deep"] * ratio, method.adapter), batch.lr)
        back = method.student.reconstruct(mixed(other["deep"] / ratio, method.dual_adapter), batch.lr)
    expected = {
        "ground_truth": distance(sr, batch.hr),
        "response": 2 * distance(sr, response),
        "cross": 3 * distance(cross, response),
        "dual": 0.5 * distance(back, batch.hr),
    }
    assert {term: value.item() for term, value in method(batch).items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("dual", [0.0, 1.0])
def test_one_step(kind, dual):
    """All of the student and the adapters gets gradients, nothing of the teacher does."""
    method = make(TEACHERS[kind](2), dual).train()
    teacher, before = method.teacher.net, deepcopy(method.teacher.net.state_dict())
    terms = method(make_batch())
    assert terms.keys() == WEIGHTS.keys() | ({"dual"} if dual else set())
    torch.stack(list(terms.values())).sum().backward()
    assert reached(list(method.parameters())) == {True}
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())


def test_the_cross_term_trains_the_body_alone():
    method = make(SMFANetPlus(2, features=6, blocks=1), dual=1.0)
    method(make_batch())["cross"].backward()
    assert reached(parameters(method, tail=False)) == reached(list(method.adapter.parameters())) == {True}
    assert reached(parameters(method, tail=True)) == reached(list(method.dual_adapter.parameters())) == {False}


def test_the_dual_term_trains_the_tail_alone():
    method = make(SMFANetPlus(2, features=6, blocks=1), dual=1.0)
    method(make_batch())["dual"].backward()
    assert reached(parameters(method, tail=True)) == reached(list(method.dual_adapter.parameters())) == {True}
    assert reached(parameters(method, tail=False)) == reached(list(method.adapter.parameters())) == {False}


@pytest.mark.parametrize("kind", TEACHERS)
def test_a_student_that_is_the_teacher_crosses_without_loss(kind):
    teacher = TEACHERS[kind](2).eval()
    method = make(teacher, student=deepcopy(teacher))
    terms = method(make_batch(height=8, width=8))
    assert max(terms["response"].item(), terms["cross"].item()) < 1e-6
    assert terms["ground_truth"] > 0.1
    assert not list(method.adapter.parameters())


def test_features_change_to_the_range_of_the_other_network():
    """One function in two ranges of values, for the network is linear but for its biases and ReLUs."""
    student, teacher = edsr(image_range=255.0), edsr(image_range=1.0)
    state = {name: x / 255 if name.endswith("bias") else x for name, x in student.state_dict().items()}
    teacher.load_state_dict(state)
    method, batch = make(teacher, 1.0, student), make_batch()
    terms = method(batch)
    assert method.range_ratio == pytest.approx(1 / 255)
    assert terms["cross"].item() < 1e-5
    assert terms["dual"].item() == pytest.approx(terms["ground_truth"].item(), rel=1e-4)


def test_a_foreign_network_says_its_range():
    assert value_range(Foreign(nn.Upsample(scale_factor=2), scale=2, image_range=255.0)) == 255
    assert value_range(Foreign(nn.Upsample(scale_factor=2), scale=2)) == 1


@pytest.mark.parametrize(("channels_in", "channels_out"), [(4, 6), (6, 4), (4, 4)])
def test_an_adapter_starts_with_what_both_sides_have(channels_in, channels_out):
    feature = torch.rand(2, channels_in, 3, 5)
    adapted = make_adapter(channels_in, channels_out)(feature)
    assert adapted.shape == (2, channels_out, 3, 5)
    assert torch.equal(adapted[:, :4], feature[:, :4])
    assert not adapted[:, 4:].any()


def test_adapters_are_in_the_checkpoint_and_the_teacher_is_not():
    method = make(SMFANetPlus(2, features=6, blocks=1), dual=1.0)
    names = {name for name in method.state_dict() if not name.startswith("student.")}
    assert names == {f"{adapter}.{x}" for adapter in ("adapter", "dual_adapter") for x in ("weight", "bias")}
    assert all(name.startswith("student.") for name in make(edsr(features=4), dual=1.0).state_dict())
    assert set(make(SMFANetPlus(2, features=6, blocks=1)).state_dict()) - set(method.state_dict()) == set()
    assert method.teacher.net not in list(method.modules())


def test_adapters_leave_the_student_as_the_seed_makes_it():
    def built(dual: float) -> dict[str, Tensor]:
        torch.manual_seed(1)
        return make(SMFANetPlus(2, features=6, blocks=1), dual).student.state_dict()

    torch.manual_seed(1)
    SMFANetPlus(2, features=6, blocks=1)
    expected = edsr().state_dict()
    for dual in (0.0, 1.0):
        assert all(torch.equal(x, expected[name]) for name, x in built(dual).items())


def test_the_dual_path_changes_no_other_term():
    teacher, student, batch = edsr(features=6), edsr(), make_batch()
    alone, dual = make(teacher, 0.0, student)(batch), make(teacher, True, student)(batch)
    assert alone == {term: dual[term] for term in WEIGHTS}
    assert set(dual) - set(alone) == {"dual"}


class Bodiless(Backbone):
    """A network that shows no deep feature."""

    scale = 2
    tap_channels = MappingProxyType({"shallow": 3})

    def extract(self, lr, keep):
        return keep("shallow", lr)

    def reconstruct(self, deep, lr):
        return nn.functional.interpolate(deep, scale_factor=2)


@pytest.mark.parametrize("net", [Bodiless(), Foreign(nn.Upsample(scale_factor=2), scale=2)])
def test_networks_without_a_deep_feature(net):
    with pytest.raises(MTKDError, match="has no tap 'deep'"):
        make(net)
    with pytest.raises(MTKDError, match="has no tap 'deep'"):
        make(edsr(), student=net)


def test_a_foreign_network_cannot_begin_from_a_feature():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1))
    foreign = Foreign(net, scale=2, taps={"deep": "0"})
    with pytest.raises(MTKDError, match="lets the teacher begin from a feature"):
        make(foreign)
    with pytest.raises(MTKDError, match="lets the student begin from a feature"):
        make(edsr(), dual=1.0, student=foreign)
    make(edsr(), student=foreign)


def test_an_ensemble_has_no_tail():
    ensemble = Ensemble({"a": Teacher(edsr()), "b": Teacher(edsr())}, Mean(2, 2))
    with pytest.raises(MTKDError, match=r"features of the teacher.*teacher\.only"):
        CrossKD(edsr(), Teacher(ensemble), WEIGHTS)


@pytest.mark.parametrize("dual", [-1.0, float("nan")])
def test_weights_of_the_dual_path(dual):
    with pytest.raises(MTKDError, match=r"method\.dual"):
        make(edsr(), dual)


def test_it_says_what_crosses():
    (_, line) = make(SMFANetPlus(2, features=6, blocks=1)).describe().splitlines()
    assert " ".join(line.split()) == "EDSR deep (4, h, w) SMFANetPlus deep (6, h, w)"


def test_configuration():
    method = build(OmegaConf.load(CONF / "method" / "crosskd.yaml"), student=edsr(), teacher=Teacher(edsr()))
    assert method.weights == dict.fromkeys(WEIGHTS, 1)
    assert method.dual == 0
    assert not method.pictures_suffice
