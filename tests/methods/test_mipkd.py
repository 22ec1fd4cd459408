import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.config import CONF, build
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.methods.mipkd import MiPKD, Mixer
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, Teacher
from mtkd_lightning.typing import SRBatch


def student() -> EDSR:
    return EDSR(scale=2, features=4, blocks=3)


def teacher() -> Teacher:
    return Teacher(SwinIR(2, embed_dim=6, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4))


def configured(networks: dict | None = None, **changes: object) -> MiPKD:
    torch.manual_seed(0)
    node = OmegaConf.merge(OmegaConf.load(CONF / "method" / "mipkd.yaml"), changes)
    return build(node, **{"student": student(), "teacher": teacher(), **(networks or {})})


@pytest.fixture
def batch() -> SRBatch:
    """Sides that are no multiples of the teacher's window."""
    generator = torch.Generator().manual_seed(5)
    lr, hr = (torch.rand(2, 3, 6 * k, 10 * k, generator=generator) for k in (1, 2))
    return SRBatch(lr, hr, ["a", "b"])


def distance(x: Tensor, y: Tensor) -> float:
    return (x - y).abs().mean().item()


def test_value_where_all_comes_from_the_student(batch):
    method = configured(share=1.0, weights={"feature": 2.0, "block": 3.0})
    taps = {"block0": "group0", "block1": "group1", "deep": "deep"}
    assert method.pairs == list(taps.items())
    sr, own = method.student.forward_features(batch.lr, taps)
    response, other = method.teacher.net.forward_features(batch.lr, taps.values())
    own = {tap: x / 255 for tap, x in own.items()}  # the student works in 0..255, the teacher in 0..1
    mixtures = {t: m.decode(m.encode_student(own[s])) for (s, t), m in zip(taps.items(), method.mixers, strict=True)}
    restored = {t: m.decode(m.encode_teacher(other[t])) for t, m in zip(taps.values(), method.mixers, strict=True)}
    served = method.teacher.net.reconstruct(mixtures["deep"], batch.lr)
    expected = {
        "feature": 2 * sum(distance(mixtures[t], other[t]) for t in other) / 3,
        "autoencoder": sum(distance(restored[t], other[t]) for t in other) / 3,
        "block": 3 * distance(served, response),
        "response": distance(sr, response),
        "ground_truth": distance(sr, batch.hr),
    }
    assert {name: term.item() for name, term in method(batch).items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_mask_for_every_picture_channel_and_place(share):
    mixer = Mixer(1, 8)
    mixer.encode_student, mixer.encode_teacher, mixer.decode = Fill(1.0), Fill(0.0), nn.Identity()
    feature = torch.zeros(4, 8, 32, 32)
    mixture, restored = mixer(feature, feature, share)
    assert set(mixture.unique().tolist()) == {0, 1}
    assert mixture.mean().item() == pytest.approx(share, abs=0.01)
    # Along each axis neighbours agree no more often than independent draws do.
    for axis in range(4):
        agree = (mixture.diff(dim=axis) == 0).float().mean().item()
        assert agree == pytest.approx(share**2 + (1 - share) ** 2, abs=0.02)
    assert not torch.equal(mixer(feature, feature, share)[0], mixture)
    assert not restored.any()


class Fill(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def test_where_gradients_go(batch):
    method = configured()
    terms = method(batch)
    learns = {
        name: {key for key, grad in gradients(method, term).items() if grad is not None and grad.any()}
        for name, term in terms.items()
    }
    body = {key for key, _ in method.student.named_parameters() if not key.startswith(("upsample", "conv_last"))}
    mixers = {key for key, _ in method.named_parameters() if key.startswith("mixers.")}
    last = {key for key in mixers if key.startswith("mixers.2.")}
    assert learns["feature"] == {f"student.{key}" for key in body} | mixers
    assert learns["autoencoder"] == {key for key in mixers if "encode_student" not in key}
    assert learns["block"] == {f"student.{key}" for key in body} | last
    assert learns["response"] == learns["ground_truth"] == {f"student.{p}" for p, _ in student().named_parameters()}
    assert not any(p.requires_grad for p in method.teacher.net.parameters())


def gradients(method: MiPKD, term: Tensor) -> dict[str, Tensor | None]:
    found = torch.autograd.grad(term, list(method.parameters()), retain_graph=True, allow_unused=True)
    return dict(zip([key for key, _ in method.named_parameters()], found, strict=True))


def test_the_mixers_learn(batch):
    method = configured()
    optimizer = torch.optim.Adam(method.parameters(), 1e-2)
    history = []
    for _ in range(40):
        torch.manual_seed(0)
        terms = method(batch)
        history.append({name: term.item() for name, term in terms.items()})
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    # The ground truth of this batch is noise.
    for name in set(method.terms) - {"ground_truth"}:
        assert history[-1][name] < 0.7 * history[0][name], name


def test_the_mixers_are_no_part_of_the_student():
    method = configured()
    mixers = {name for name in method.state_dict() if name.startswith("mixers.")}
    assert mixers
    assert set(method.state_dict()) == mixers | {f"student.{name}" for name in student().state_dict()}


def test_the_pairs_are_shown():
    assert "EDSR deep (4, h, w)" in configured().describe()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": [0.0, 0.5]}, "add 1.0 or {deep: deep}"),
        ({"taps": {"deep": "group0"}}, "add 1.0 or {deep: deep}"),
        ({"taps": {"grp": "deep"}}, "has no tap 'grp'"),
        ({"share": 0.0}, r"method.share=0.0"),
        ({"share": 1.5}, r"method.share=1.5"),
    ],
)
def test_what_does_not_fit(changes, message):
    node = OmegaConf.load(CONF / "method" / "mipkd.yaml")
    node.update(changes)
    with pytest.raises(MTKDError, match=message):
        build(node, student=student(), teacher=teacher())


def test_several_teachers_are_refused():
    several = Teacher(Ensemble({"a": teacher(), "b": teacher()}, Mean(2, 2)))
    node = OmegaConf.load(CONF / "method" / "mipkd.yaml")
    with pytest.raises(MTKDError, match=r"teacher\.only"):
        build(node, student=student(), teacher=several)


def test_a_teachers_range_of_values_changes_no_weight():
    """One function in two ranges, for the last layer is divided by what the first was multiplied with."""
    values = []
    for image_range in (1.0, 255.0):
        torch.manual_seed(0)
        net = EDSR(2, 4, 3, image_range=image_range)
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.zeros_(layer.bias)
        method = configured({"student": student(), "teacher": Teacher(net)})
        torch.manual_seed(1)
        batch = SRBatch(torch.rand(2, 3, 6, 10), torch.rand(2, 3, 12, 20), ["a", "b"])
        values.append({name: term.item() for name, term in method(batch).items()})
    assert values[0] == pytest.approx(values[1], rel=1e-4)
