"""What holds for every file of conf/method, with every kind of teacher it takes; a new one needs no line here."""

import importlib
import inspect
from collections.abc import Iterable
from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from lightning.pytorch import seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import mtkd_lightning.methods
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.rcan import RCAN
from mtkd_lightning.backbones.swinir import SwinIR
from mtkd_lightning.config import CONF, build
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.methods.aggregation import Aggregation
from mtkd_lightning.methods.base import Method
from mtkd_lightning.teachers.dctswin import DCTSwin
from mtkd_lightning.teachers.teacher import Ensemble, GivenPicture, Teacher
from mtkd_lightning.typing import SRBatch

SCALE = 2
NAMES = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


@cache
def configured(name: str) -> DictConfig:
    """A method's node as the main job has it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"method={name}", f"scale={SCALE}"])
    return OmegaConf.create({"method": OmegaConf.to_container(config.method, resolve=True)}).method


def make_student() -> nn.Module:
    return EDSR(scale=SCALE, features=4, blocks=3)


def make_teacher(kind: str) -> Teacher | None:
    """Of another architecture than the student; its stochastic depth would show in train mode."""
    swinir = SwinIR(SCALE, 6, [2, 2], [2, 2], window_size=4, upsampler="pixelshuffledirect", drop_path_rate=0.5)
    if kind == "ensemble":
        merger = DCTSwin(SCALE, 2, embed_dim=4, depths=[2], num_heads=[2], drop_path_rate=0.5, features=4)
        rcan = RCAN(SCALE, features=6, groups=2, blocks=1, reduction=2)
        return Teacher(Ensemble({"swinir": Teacher(swinir), "rcan": Teacher(rcan)}, merger))
    network, given = Teacher(swinir), Teacher(GivenPicture())
    return {"network": network, "network, kept picture": network, "given picture": given, "none": None}[kind]


def make(name: str, kind: str, weights: dict[str, float] | None = None, seed: int = 1) -> Method:
    """Build a method as the pipeline does: seed, student, teacher, method."""
    torch.manual_seed(seed)
    student, teacher, node = make_student(), make_teacher(kind), configured(name).copy()
    if weights is not None:
        node.weights = weights
    return build(node, student=student, **({} if teacher is None else {"teacher": teacher}))


@cache
def kinds(name: str) -> list[str]:
    """Teachers that a method is tried with; whether it may refuse an ensemble is a test of its own."""
    kind = get_class(configured(name)._target_)
    if not kind.needs_teacher:
        return ["none"]
    found = ["network"]
    try:
        make(name, "ensemble")
    except MTKDError:
        pass
    else:
        found.append("ensemble")
    return [*found, "given picture" if kind.pictures_suffice else "network, kept picture"]


CASES = [pytest.param(name, kind, id=f"{name}-{kind}") for name in NAMES for kind in kinds(name)]
every = pytest.mark.parametrize(("name", "kind"), CASES)


@pytest.fixture
def batch(kind) -> SRBatch:
    return make_batch(kind)


def make_batch(kind: str, device: str = "cpu") -> SRBatch:
    generator = None if device == "meta" else torch.Generator().manual_seed(5)
    lr, hr, given = (
        torch.rand(shape, generator=generator, device=device)
        for shape in ((2, 3, 16, 16), (2, 3, 32, 32), (2, 1, 3, 32, 32))
    )
    return SRBatch(lr, hr, ["a", "b"], given if "picture" in kind else None)


def terms_of(method: Method, batch: SRBatch, seed: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return method(batch)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {term: value.item() for term, value in terms.items()}


def teacher_nets(method: Method) -> list[nn.Module]:
    """The teacher, and those that hide in an ensemble."""
    if method.teacher is None:
        return []
    net = method.teacher.net
    return [net, *(member.net for member in net.members.values())] if isinstance(net, Ensemble) else [net]


def tensors(nets: list[nn.Module]) -> list[Tensor]:
    return [x for net in nets for x in (*net.parameters(), *net.buffers())]


def copies(some: Iterable[Tensor]) -> list[Tensor]:
    return [x.detach().clone() for x in some]


def equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> list[bool]:
    return [torch.equal(x, y) for x, y in zip(some, others, strict=True)]


def test_every_class_has_a_file():
    """All but what others build upon, and stage 1, which is no choice of the user's."""
    (folder,) = mtkd_lightning.methods.__path__
    found = set()
    for path in (CONF.parent / folder).glob("*.py"):
        module = importlib.import_module(f"mtkd_lightning.methods.{path.stem}")
        found |= {
            kind
            for _, kind in inspect.getmembers(module, inspect.isclass)
            if issubclass(kind, Method) and not inspect.isabstract(kind)
        }
    built_upon = {parent for kind in found for parent in kind.__mro__[1:]}
    assert found - built_upon - {Aggregation} <= {get_class(configured(name)._target_) for name in NAMES} <= found


@pytest.mark.parametrize("name", [name for name in NAMES if kinds(name) == ["network"]])
def test_who_takes_one_network_alone_says_what_to_do(name):
    assert not get_class(configured(name)._target_).pictures_suffice
    with pytest.raises(MTKDError, match=r"teacher\.only"):
        make(name, "ensemble")


@every
def test_terms_are_finite_scalars_of_known_names(name, kind, batch):
    method = make(name, kind)
    terms = method(batch)
    assert set(terms) == set(method.terms or {"ground_truth"})
    assert all(value.shape == () and value.dtype == torch.float32 for value in terms.values())
    assert all(value.isfinite() for value in terms.values())
    assert all((value > 0) == (method.weights.get(name, 1) > 0) for name, value in terms.items())


@pytest.mark.parametrize("name", [name for name in NAMES if "network, kept picture" in kinds(name)])
def test_the_response_is_to_the_kept_picture(name):
    """Of whole photographs, the same for all methods, though the teacher runs, too."""
    batch = make_batch("network, kept picture")
    method = make(name, "network, kept picture", dict.fromkeys(configured(name).weights, 1.0))
    expected = (method.student(batch.lr) - batch.teacher_sr[:, 0]).abs().mean().item()
    assert terms_of(method, batch)["response"].item() == pytest.approx(expected)
    without = terms_of(method, batch._replace(teacher_sr=None))["response"].item()
    assert without != pytest.approx(expected, rel=1e-2)


@every
def test_a_weight_multiplies_its_term_alone(name, kind, batch):
    before = make(name, kind)
    expected = values(terms_of(before, batch))
    for term in before.terms:
        doubled = make(name, kind, {**before.weights, term: 2 * before.weights[term]})
        assert values(terms_of(doubled, batch)) == pytest.approx({**expected, term: 2 * expected[term]}, rel=1e-5)


@every
def test_one_step_changes_all_that_learns_and_nothing_of_the_teacher(name, kind, batch):
    method = make(name, kind).train()
    names, before = [name for name, _ in method.named_parameters()], copies(method.parameters())
    teacher_before = copies(tensors(teacher_nets(method)))
    optimizer = torch.optim.Adam(method.parameters(), 1e-2)
    total(terms_of(method, batch)).backward()
    optimizer.step()
    stuck = equal(method.parameters(), before)
    assert not [name for name, unchanged in zip(names, stuck, strict=True) if unchanged]
    assert all(equal(tensors(teacher_nets(method)), teacher_before))
    assert all(p.grad is None and not p.requires_grad for net in teacher_nets(method) for p in net.parameters())


@every
def test_the_teacher_is_no_part_of_the_method(name, kind, batch):
    method = make(name, kind)
    method.train().requires_grad_(True)
    nets = teacher_nets(method)
    assert not any(module.training for net in nets for module in net.modules())
    assert not any(p.requires_grad for net in nets for p in net.parameters())
    state, student = method.state_dict(), {f"student.{key}" for key in method.student.state_dict()}
    own = {x.data_ptr() for x in (*method.parameters(), *state.values())}
    assert not own & {x.data_ptr() for x in tensors(nets)}
    # What is not the student's are adapters, which learn.
    assert student <= state.keys() <= student | {name for name, _ in method.named_parameters()}


@every
def test_its_state_is_all_that_it_learns(name, kind, batch):
    method = make(name, kind)
    other = make(name, kind, seed=2)
    other.teacher = method.teacher
    assert values(terms_of(other, batch)) != values(terms_of(method, batch))
    other.load_state_dict(method.state_dict(), strict=True)
    assert values(terms_of(other, batch)) == values(terms_of(method, batch))


@every
def test_losses_are_float32_under_autocast(name, kind, batch):
    method = make(name, kind).train()
    expected = values(terms_of(method, batch))
    with torch.autocast("cpu", torch.bfloat16):
        terms = terms_of(method, batch)
    assert {value.dtype for value in terms.values()} == {torch.float32}
    assert values(terms) == pytest.approx(expected, rel=0.05)
    total(terms).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())


@every
def test_it_runs_on_shapes_alone(name, kind):
    with torch.device("meta"):
        method = make(name, kind)
        terms = method(make_batch(kind, "meta"))
    moved = make(name, kind).to("meta")(make_batch(kind, "meta"))
    assert {value.device.type for value in (*terms.values(), *moved.values())} == {"meta"}
    assert {value.shape for value in terms.values()} == {torch.Size(())}
    assert set(moved) == set(terms)


@every
def test_a_seed_gives_the_same_terms(name, kind, batch):
    method = make(name, kind).train()
    assert values(terms_of(method, batch)) == values(terms_of(method, batch))
    assert values(terms_of(make(name, kind), batch)) == values(terms_of(make(name, kind), batch))


@every
def test_all_start_from_the_same_student(name, kind, batch):
    seed_everything(3, verbose=False)
    expected = make_student().state_dict()
    method = make(name, kind, seed=3)
    method(batch)
    assert method.student.state_dict().keys() == expected.keys()
    assert all(equal(method.student.state_dict().values(), expected.values()))


@every
def test_weights_that_do_not_fit_are_refused(name, kind):
    fit = make(name, kind).weights
    for weights in ({**fit, "grund_truth": 1.0}, *({**fit, term: -1.0} for term in fit), *([{}] if fit else [])):
        with pytest.raises(MTKDError, match=r"method\.weights"):
            make(name, kind, weights)
