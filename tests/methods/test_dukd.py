from copy import deepcopy
from itertools import product

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mtkd_lightning.backbones.dctlsa import DCTLSA
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.rcan import RCAN
from mtkd_lightning.backbones.smfanet import SMFANetPlus
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.config import CONF, build
from mtkd_lightning.data.resize import imresize, resize_matrix
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.methods.dukd import DUKD, OPERATIONS, operate, zoom_in, zoom_out
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher
from mtkd_lightning.typing import SRBatch

WEIGHTS = {"ground_truth": 5.0, "response": 1.0, "zoom_in": 2.0, "zoom_out": 3.0, "zoom_out_ground_truth": 4.0}
ZOOM_OUT = ("zoom_out", "zoom_out_ground_truth")
TEACHERS = {
    "SMFANet+": lambda scale: SMFANetPlus(scale, features=6, blocks=1),
    "DCTLSA": lambda scale: DCTLSA(scale, features=10, blocks=2, heads=2, window_size=4),
    "RCAN": lambda scale: RCAN(scale, features=6, groups=1, blocks=1, reduction=2),
    "SwinIR": lambda scale: SwinIR(scale, 6, depths=[2], num_heads=[2], window_size=4, drop_path_rate=0.5),
    "mean of two": lambda scale: Ensemble({"a": Teacher(edsr(scale)), "b": Teacher(edsr(scale))}, Mean(scale, 2)),
}


def edsr(scale: int) -> EDSR:
    return EDSR(scale, features=4, blocks=1)


def levels(*shape: int) -> Tensor:
    """A random picture of values that arithmetic with 1 does not round."""
    return torch.randint(257, shape) / 256


def make_batch(scale: int, side: int | None = None) -> SRBatch:
    side = side or 8 * scale
    return SRBatch(levels(2, 3, side, side), levels(2, 3, side * scale, side * scale), ["a", "b"])


def make(scale: int = 2, teacher: nn.Module | None = None, **settings: object) -> DUKD:
    return DUKD(edsr(scale), Teacher(teacher or edsr(scale)), settings.pop("weights", WEIGHTS), **settings)


def terms_of(method: DUKD, batch: SRBatch, seed: int = 7) -> dict[str, float]:
    torch.manual_seed(seed)
    return {term: value.item() for term, value in method(batch).items()}


def distance(sr: Tensor, target: Tensor) -> float:
    return np.abs(sr.detach().double().numpy() - target.double().numpy()).mean()


@pytest.mark.parametrize("probability", [0, 1])
def test_values(probability):
    # All four pieces, and all operations or none: nothing is left to chance.
    method, batch = make(patches=4, probability=probability), make_batch(2)
    pieces = torch.cat([batch.hr[..., y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)])
    if probability:
        # Both flips and a transposition are a transposition about the other diagonal.
        other_diagonal = np.ascontiguousarray(1 - pieces.numpy()[..., ::-1, ::-1].swapaxes(-2, -1))
        operated = 1 - method.student(torch.from_numpy(other_diagonal)).rot90(2, (-2, -1)).mT
    else:
        operated = method.student(pieces)
    half = torch.from_numpy(reduced(batch.lr.numpy(), 2)).float()
    sr, sr_half = method.student(batch.lr), method.student(half)
    expected = {
        "ground_truth": 5 * distance(sr, batch.hr),
        "response": distance(sr, method.teacher(batch.lr)),
        "zoom_in": 2 * distance(operated, method.teacher(pieces)),
        "zoom_out": 3 * distance(sr_half, method.teacher(half)),
        "zoom_out_ground_truth": 4 * distance(sr_half, batch.lr),
    }
    assert terms_of(method, batch) == pytest.approx(expected, rel=1e-5)


def reduced(pictures: np.ndarray, scale: int) -> np.ndarray:
    """Antialiased bicubic of a = -0.5 with mirrored borders: every output weighs all inputs."""
    margin = 2 * scale
    for axis in (-2, -1):
        size = pictures.shape[axis]
        mirrored = np.pad(np.moveaxis(pictures, axis, 0), [(margin, margin), *3 * [(0, 0)]], mode="symmetric")
        centres = (np.arange(size // scale) + 0.5) * scale - 0.5
        x = np.abs(centres[:, None] - np.arange(-margin, size + margin)) / scale
        cubic = [1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2]
        weights = np.select([x <= 1, x <= 2], cubic)
        weights /= weights.sum(axis=1, keepdims=True)
        pictures = np.moveaxis(np.tensordot(weights, mirrored, 1), 0, axis)
    return pictures


@pytest.mark.parametrize(("scale", "side"), [(2, 16), (2, 19), (3, 24), (3, 32), (4, 32), (4, 47)])
def test_zoom_out(scale, side):
    lr = levels(2, 3, side, side)
    small, ground_truth = zoom_out(lr, scale)
    whole = side - side % scale
    assert torch.equal(ground_truth, lr[..., :whole, :whole])
    assert small.shape == (2, 3, side // scale, side // scale)
    np.testing.assert_allclose(small.numpy(), reduced(ground_truth.numpy(), scale), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(zoom_out(lr, scale)[0], small)


@pytest.mark.parametrize(("size", "length"), [(60, 30), (60, 20), (60, 15), (61, 7), (15, 60), (3, 2)])
def test_the_matrix_resizes_as_pictures_are_resized(picture, size, length):
    rows = picture[:size] if size <= 60 else np.pad(picture, [(0, 1), (0, 0), (0, 0)])
    product = np.tensordot(resize_matrix(size, length), rows.astype(float), 1)
    assert np.abs(product.clip(0, 255) - imresize(rows, length, rows.shape[1])).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_zoom_in(scale):
    """Every piece is drawn once, and from the same place of every picture."""
    hr = torch.arange(scale**2).view(1, 1, scale, scale).repeat(2, 1, 1, 1).repeat_interleave(5, -2)
    hr = hr.repeat_interleave(5, -1) + torch.tensor([0, 100]).view(2, 1, 1, 1)
    pieces = zoom_in(hr, scale, scale**2)
    assert pieces.shape == (2 * scale**2, 1, 5, 5)
    assert (pieces == pieces[..., :1, :1]).all()
    first, second = pieces[:, 0, 0, 0].view(-1, 2).T
    assert torch.equal(second, first + 100)
    assert sorted(first.tolist()) == list(range(scale**2))
    assert len({zoom_in(hr, scale, 1)[0, 0, 0, 0].item() for _ in range(200)}) == scale**2


def test_every_combination_of_operations_is_undone():
    picture = levels(3, 5, 5)
    drawn = torch.tensor(list(product([False, True], repeat=4))).T
    operated = operate(picture.expand(16, 3, 5, 5), drawn)
    assert len({tuple(x.flatten().tolist()) for x in operated}) == 16
    undone = operate(operated, drawn, undo=True)
    assert torch.equal(undone, picture.expand(16, 3, 5, 5))
    # In the order in which they were done, a transposition and exactly one flip would not be.
    wrong = operate(operated, drawn)
    assert sum(not torch.equal(x, picture) for x in wrong) == 4


def test_operations_by_hand():
    picture = torch.tensor([[0.0, 0.25], [0.5, 1.0]]).expand(4, 1, 2, 2)
    inverted, mirrored, upside_down, transposed = operate(picture, torch.eye(4, dtype=torch.bool))[:, 0].tolist()
    assert inverted == [[1.0, 0.75], [0.5, 0.0]]
    assert mirrored == [[0.25, 0.0], [1.0, 0.5]]
    assert upside_down == [[0.5, 1.0], [0.0, 0.25]]
    assert transposed == [[0.0, 0.5], [0.25, 1.0]]


class Leaning(nn.Module):
    """Enlarges pixels to squares, and moves the picture to the right: it knows which way is up."""

    def __init__(self, scale: int, pixels: int) -> None:
        super().__init__()
        self.scale, self.pixels = scale, pixels

    def forward(self, lr: Tensor) -> Tensor:
        return nn.functional.interpolate(lr, scale_factor=self.scale).roll(self.pixels, -1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_equivariant_student_loses_nothing(scale):
    batch = SRBatch(levels(8, 3, 8 * scale, 8 * scale), levels(8, 3, 8 * scale**2, 8 * scale**2), [""] * 8)
    for pixels, equal in ((0, True), (1, False)):
        net = Leaning(scale, pixels)
        settings = {"patches": scale**2, "probability": 0.5}
        loss = terms_of(DUKD(net, Teacher(deepcopy(net)), WEIGHTS, **settings), batch)["zoom_in"]
        assert (loss == 0) == equal


def test_draws_have_the_probability_and_are_of_each_piece():
    drawn = []

    class Watching(Leaning):
        def forward(self, lr: Tensor) -> Tensor:
            drawn.append((lr[-16:] == 1).all(dim=(1, 2, 3)))
            return super().forward(lr)

    # Of black pictures the inverted ones are white.
    batch = SRBatch(torch.zeros(16, 3, 16, 16), torch.zeros(16, 3, 32, 32), [""] * 16)
    method = DUKD(Watching(2, 0), Teacher(Leaning(2, 0)), {**WEIGHTS, **dict.fromkeys(ZOOM_OUT, 0.0)})
    torch.manual_seed(0)
    for _ in range(100):
        method(batch)
    share = torch.stack(drawn).float()
    assert share.mean().item() == pytest.approx(0.3, abs=0.03)
    assert (share.mean(dim=1) < 1).all()


def test_what_each_network_sees():
    """The teacher gets the pieces as they are, the student what the operations make of them, in two passes in all."""
    method, batch = make(patches=4, probability=1), make_batch(2)
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for name, net in (("student", method.student), ("teacher", method.teacher.net)):
        net.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
    method(batch)
    both, own_small = seen["student"]
    lr, pieces, small = seen["teacher"]
    assert torch.equal(small, own_small)
    assert torch.equal(lr, batch.lr)
    assert torch.equal(both, torch.cat([lr, (1 - pieces).rot90(2, (-2, -1)).mT]))
    cut = batch.hr.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    assert sorted(pieces.tolist()) == sorted(cut.tolist())


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kind", TEACHERS)
def test_every_teacher_at_every_scale(kind, scale):
    method, batch = make(scale, TEACHERS[kind](scale)).train(), make_batch(scale)
    members = getattr(method.teacher.net, "members", {}).values()
    nets = [method.teacher.net, *(member.net for member in members)]
    before = deepcopy([net.state_dict() for net in nets])
    torch.manual_seed(0)
    terms = method(batch)
    assert terms.keys() == WEIGHTS.keys()
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.student.parameters())
    assert set(method.parameters()) == set(method.student.parameters())
    assert all(name.startswith("student.") for name in method.state_dict())
    for net, state in zip(nets, before, strict=True):
        assert not any(module.training for module in net.modules())
        assert all(p.grad is None and not p.requires_grad for p in net.parameters())
        assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())


@pytest.mark.parametrize("term", WEIGHTS)
def test_every_term_alone_trains_the_whole_student(term):
    method = make()
    method(make_batch(2))[term].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.student.parameters())


def test_a_seed_decides_all_draws():
    method, batch = make(), make_batch(2)
    assert terms_of(method, batch, 1) == terms_of(method, batch, 1)
    zooms = {terms_of(method, batch, seed)["zoom_in"] for seed in range(8)}
    assert len(zooms) > 4
    assert terms_of(method, batch, 1)["zoom_out"] == terms_of(method, batch, 2)["zoom_out"]


def test_without_zoom_out():
    weights, batch = {**WEIGHTS, **dict.fromkeys(ZOOM_OUT, 0.0)}, make_batch(2, side=15)
    method = make(weights=weights)
    runs = []
    method.student.register_forward_hook(lambda *_: runs.append(1))
    assert terms_of(method, batch).keys() == WEIGHTS.keys() - set(ZOOM_OUT)
    assert len(runs) == 1
    assert terms_of(make(weights={**weights, "zoom_out": 1.0}), make_batch(2)).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_patches_too_small_for_zoom_out(scale):
    zoom_out(levels(1, 3, 4 * scale, 4 * scale), scale)
    with pytest.raises(MTKDError, match=f"lr_patch={4 * scale} or more.*zoom_out=0"):
        make(scale)(make_batch(scale, 4 * scale - 1))


@pytest.mark.parametrize("patches", [0, 5])
def test_as_many_pieces_as_there_are(patches):
    with pytest.raises(MTKDError, match=f"patches={patches}: at x2 .* 1 to 4"):
        make(patches=patches)(make_batch(2))


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_probabilities(probability):
    with pytest.raises(MTKDError, match=r"method\.probability"):
        make(probability=probability)


@pytest.mark.parametrize("net", [GivenPicture(), Ensemble({"a": Teacher(edsr(2)), "b": None}, Mean(2, 2))])
def test_pictures_on_disk_cannot_teach(net):
    with pytest.raises(MTKDError, match=r"must run it.*teacher\.only"):
        make(teacher=net)


def test_it_runs_on_shapes_alone():
    with torch.device("meta"):
        terms = make(3)(SRBatch(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 96, 96), [""]))
    assert {(value.device.type, value.shape) for value in terms.values()} == {("meta", ())}


def test_configuration():
    method = build(OmegaConf.load(CONF / "method" / "dukd.yaml"), student=edsr(2), teacher=Teacher(edsr(2)))
    assert (method.patches, method.probability, len(OPERATIONS)) == (1, 0.3, 4)
    assert method.weights == {
        "ground_truth": 5,
        "response": 1,
        "zoom_in": 1,
        "zoom_out": 1,
        "zoom_out_ground_truth": 5,
    }
    assert not method.pictures_suffice
