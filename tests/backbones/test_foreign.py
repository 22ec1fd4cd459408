"""Networks that are not ours: what is promised of every backbone, from a module that knows nothing of it."""

import copy
import importlib.util
import json
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from torch import Tensor, nn

from mtkd_lightning.artifacts import load_into
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.backbones.foreign import Foreign, spandrel
from mtkd_lightning.config import CONF, check
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import file_sha256
from mtkd_lightning.inference import Tiled
from mtkd_lightning.teachers.teacher import Teacher

THEIRS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, upscale, width=6):
        super().__init__()
        depth = int(torch.linspace(1, 2, 2)[1].item())  # looks at a value, as drop path rates are made
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential()
        for _ in range(depth):
            self.body.extend([nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
        self.tail = nn.Sequential(nn.Conv2d(width, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))

    def forward(self, x):
        x = self.head(x)
        return self.tail(self.body(x) + x)
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A module outside of the package, as a user has one."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.spec_from_file_location("theirs", tmp_path / "theirs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return module


class Windows(nn.Module):
    """Takes whole windows of 4, in -1..1, and works on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 5, 1)
        self.mix = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Sequential(nn.Conv2d(5, 12, 1), nn.PixelShuffle(2))
        self.unused = nn.Identity()
        self.halve = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        if h % 4 or w % 4:
            raise ValueError("whole windows only")
        x = self.embed(x)
        self.halve(x)
        tokens = self.norm(self.mix(self.norm(x.flatten(2).transpose(1, 2))))
        return self.out(x + tokens.transpose(1, 2).reshape(x.shape))


def windows(**options) -> Foreign:
    torch.manual_seed(0)
    return Foreign(Windows(), 2, size_multiple=4, **options).eval()


def test_its_picture_is_the_networks_own(theirs):
    network = theirs.Net(3).eval()
    lr = torch.rand(2, 3, 9, 14)
    with torch.no_grad():
        assert torch.equal(Foreign(network, 3)(lr), network(lr))
        ours = Foreign(network, 3, image_range=255.0, mean=[0.4, 0.5, 0.6])(lr)
        mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
        assert torch.allclose(ours, network(255 * (lr - mean)) / 255 + mean, atol=1e-6)
        assert (ours - network(lr)).abs().max() > 1e-3


def test_one_of_ours_as_if_it_were_theirs():
    torch.manual_seed(0)
    edsr = EDSR(2, features=6, blocks=2)
    foreign = Foreign(edsr, 2, taps={"block1": "body.1", "shallow": "conv_first", "block0": "body.0"})
    assert list(foreign.tap_channels.items()) == [("shallow", 6), ("block0", 6), ("block1", 6)]
    lr = torch.rand(2, 3, 5, 7)
    sr, features = foreign.forward_features(lr, ["block1", "shallow"])
    own_sr, own = edsr.forward_features(lr, ["block1", "shallow"])
    assert torch.equal(sr, own_sr)
    assert list(features) == ["block1", "shallow"]
    assert all(torch.equal(features[tap], own[tap]) for tap in own)


def test_features_outlive_what_changes_their_modules_output(theirs):
    network = theirs.Net(2).eval()
    foreign = Foreign(network, 2, taps={"before": "body.1"})
    lr = torch.rand(1, 3, 6, 6)
    sr, features = foreign.forward_features(lr, ["before"])
    assert torch.equal(features["before"], network.body[:2](network.head(lr)))
    assert features["before"].min() < 0
    assert torch.equal(sr, network(lr))
    (features["before"].square().mean() + sr.mean()).backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 8), (9, 2)])
def test_any_size_in_whole_windows(size):
    foreign = windows(taps={"deep": "mix", "shallow": "embed"}, image_range=2.0, mean=[0.5] * 3)
    sr, features = foreign.forward_features(torch.rand(2, 3, *size), foreign.tap_channels)
    assert sr.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert {tap: tuple(x.shape) for tap, x in features.items()} == dict.fromkeys(("shallow", "deep"), (2, 5, *size))


def test_tokens_become_a_map():
    foreign = windows(taps={"deep": "mix", "shallow": "embed"})
    network = foreign.network
    _, features = foreign.forward_features(torch.rand(1, 3, 4, 8), ["deep", "shallow"])
    pixel = features["shallow"][0, :, 1, 6]
    assert torch.allclose(features["deep"][0, :, 1, 6], network.mix(network.norm(pixel)), atol=1e-6)


def test_it_listens_only_when_asked(theirs):
    network = theirs.Net(2)
    foreign = Foreign(network, 2, taps={"a": "head"})

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in network.modules())

    assert hooks() == 0
    foreign.forward_features(torch.rand(1, 3, 4, 4), ["a"])
    assert hooks() == 0
    with pytest.raises(RuntimeError):
        foreign.forward_features(torch.rand(1, 4, 4, 4), ["a"])
    assert hooks() == 0


def test_building_it_changes_nothing(theirs):
    network = theirs.Net(2)
    network.body[1].eval()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    Foreign(network, 2, taps={"a": "head"})
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert network.training
    assert not network.body[1].training


def test_its_tensors_have_their_own_names(theirs):
    network = theirs.Net(2)
    foreign = Foreign(network, 2, mean=[0.1] * 3)
    assert foreign.state_dict().keys() == network.state_dict().keys()
    other = Foreign(partial(theirs.Net, 2), 2)
    load_into(other, foreign.state_dict(), "a file")
    assert all(torch.equal(x, foreign.state_dict()[name]) for name, x in other.state_dict().items())
    with pytest.raises(MTKDError, match=r"missing head.bias \(6,\)\n  unexpected neck.bias \(6,\)"):
        load_into(other, {name.replace("head.b", "neck.b"): x for name, x in foreign.state_dict().items()}, "a file")


def test_as_part_of_a_larger_module(theirs):
    """As a checkpoint of a training holds it."""
    larger, other = (nn.ModuleDict({"student": Foreign(partial(theirs.Net, 2), 2)}) for _ in range(2))
    state = larger.state_dict()
    assert "student.head.weight" in state
    other.load_state_dict(state)
    assert all(torch.equal(x, state[name]) for name, x in other.state_dict().items())
    with pytest.raises(RuntimeError, match=r"head\.bias"):
        other.load_state_dict({name: x for name, x in state.items() if "head.bias" not in name})
    lr = torch.rand(1, 3, 6, 6)
    assert torch.equal(copy.deepcopy(other)["student"](lr), larger["student"](lr))


def test_it_can_be_built_on_shapes_alone(theirs):
    with torch.device("meta"):
        with pytest.raises(RuntimeError, match="meta"):
            theirs.Net(2)
        foreign = Foreign(partial(theirs.Net, 2), 2, taps={"a": "body"})
        assert foreign(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)
        given = Foreign(nn.Upsample(scale_factor=2), 2)
    assert {x.device.type for x in (*foreign.parameters(), *foreign.buffers())} == {"meta"}
    assert foreign.tap_channels == {"a": 6}
    assert given(torch.rand(1, 3, 4, 4)).shape == (1, 3, 8, 8)


def test_as_a_teacher_in_tiles(theirs):
    teacher = Teacher(Foreign(theirs.Net(2), 2))
    assert not teacher.net.network.training
    lr = torch.rand(1, 3, 70, 40)
    assert torch.allclose(Tiled(teacher.net, 2, 64, 24)(lr), teacher(lr), atol=1e-6)
    assert Tiled(windows(), 2, 64, 24)(lr).shape == (1, 3, 140, 80)


def test_weights_of_another_range(theirs):
    foreign = Foreign(theirs.Net(2), 2)
    weights = foreign.state_dict()
    weights["tail.0.bias"] = weights["tail.0.bias"] + 128
    message = "Net makes a picture of mean 128 from one of mean 0.5, in 0..1.*image_range"
    with pytest.raises(MTKDError, match=message):
        load_into(foreign, weights, "a file")
    load_into(Foreign(theirs.Net(2), 2, image_range=255.0), weights, "a file")


class Fails(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Foreign(Windows(), 2), "Windows fails on a picture .*whole windows only.*set size_multiple"),
        (
            lambda: Foreign(Windows(), 3, size_multiple=4),
            r"makes \(1, 3, 40, 48\) .* scale=3 asks for \(1, 3, 60, 72\)",
        ),
        (lambda: Foreign(Fails(1), 1), "Fails makes a tuple of a picture"),
        (lambda: Foreign(Fails, 1), r"the network Fails cannot be built: TypeError: .*missing 1 required .*'size'"),
        (
            lambda: Foreign(partial(Fails, sise=3), 1),
            "cannot be built: TypeError: .*unexpected keyword argument 'sise'",
        ),
        (lambda: Foreign(dict, 1), "dict makes a dict; network must be a torch.nn.Module, or make one"),
        (lambda: windows(taps={"a": "imbed"}), "tap a: Windows has no module 'imbed'; it has embed"),
        (lambda: windows(taps={"a": "qqqq"}), "it has embed, mix, norm, out, unused, halve"),
        (lambda: windows(taps={"a": "norm"}), "tap a: norm of Windows runs more than once"),
        (lambda: windows(taps={"a": "unused"}), "tap a: unused of Windows does not run"),
        (lambda: windows(taps={"a": "halve"}), r"tap a: halve of Windows puts out \(1, 5, 10, 12\) for .* \(20, 24\)"),
        (
            lambda: windows(taps={"a": "mix"}).forward_features(torch.rand(1, 3, 4, 4), ["b"]),
            "has no tap 'b'; it has a",
        ),
        (lambda: windows().reconstruct(torch.rand(1, 5, 4, 4), torch.rand(1, 3, 4, 4)), "cannot begin from a feature"),
    ],
)
def test_errors(build, message):
    with pytest.raises(MTKDError, match=message):
        build()


def configured(*overrides: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        # These come from Hydra's own configuration, which is not there.
        check(
            compose("config", ["name=foreign", "study_name=a", "aggregator_name=tiny", "method_name=mtkd", *overrides])
        )


NETWORK = "teacher.members.foreign.backbone.network"
COMPLETE = [f"{NETWORK}._target_=theirs.Net", f"+{NETWORK}.upscale=4", "teacher.members.foreign.weights=theirs.pth"]


def test_what_a_configuration_has_to_say():
    configured("teacher=foreign", *COMPLETE, "+teacher.members.foreign.backbone.taps.deep=body")
    with pytest.raises(MTKDError, match=rf"no value for {NETWORK}._target_, teacher.members.foreign.weights"):
        configured("teacher=foreign")
    with pytest.raises(MTKDError, match=r"has no key 'window': .* size_multiple"):
        configured("teacher=foreign", *COMPLETE, "+teacher.members.foreign.backbone.window=8")
    with pytest.raises(MTKDError, match=r"no value for teacher.members.hat.backbone.file"):
        configured("+backbone@teacher.members.hat.backbone=spandrel")


def test_a_wrong_import_path(refused):
    overrides = ["+backbone@teacher.members.foreign.backbone=foreign", f"{NETWORK}._target_=nowhere.Net"]
    written = refused(*overrides)
    assert "teacher.members.foreign.backbone cannot be built" in written
    assert "nowhere.Net" in written


def test_the_main_job_with_a_foreign_teacher_and_a_foreign_student(theirs, tmp_path, command):
    weights = theirs.Net(2).state_dict()
    torch.save({"params": weights}, tmp_path / "theirs.pth")
    leave_out = ("student.", "teacher.members.swinir")
    arguments = [word for word in command() if not word.startswith(leave_out)]
    arguments += [
        "~teacher.members.swinir",
        "+backbone@teacher.members.foreign.backbone=foreign",
        f"{NETWORK}._target_=theirs.Net",
        f"+{NETWORK}.upscale=2",
        "+teacher.members.foreign.backbone.taps.deep=body",
        "+teacher.members.foreign.weights=theirs.pth",
        "backbone@student=foreign",
        "student.network._target_=theirs.Net",
        "+student.network.upscale=2",
        "+student.network.width=4",
    ]

    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "teacher foreign" in result.stdout
    made = {path.stem for path in (tmp_path / "weights").glob("*.json")}
    aggregator = "tiny_edsr-foreign_x2_dctswin_repaired_tiny"
    assert made == {"tiny", "tiny_edsr_x2", aggregator}
    record = json.loads((tmp_path / "weights" / f"{aggregator}.json").read_text())
    assert record["config"]["members"][1][:2] == ["foreign", file_sha256(tmp_path / "theirs.pth")]
    student = load_file(tmp_path / "weights" / "tiny.safetensors")
    assert student.keys() == weights.keys()
    assert student["head.weight"].shape == (4, 3, 3, 3)


@pytest.mark.skipif(importlib.util.find_spec("spandrel") is not None, reason="spandrel is installed")
def test_without_spandrel():
    with pytest.raises(MTKDError, match=r"net.pth is to be read by spandrel.*pip install 'mtkd-lightning\[spandrel\]'"):
        spandrel("net.pth", 2)


def test_a_network_of_spandrel(shared):
    pytest.importorskip("spandrel", reason="needs spandrel, which brings torchvision: not in the development set")
    file = shared / "weights" / "dctlsa_x2.pt"
    foreign = spandrel(str(file), 2, taps={"shallow": "fea_conv"})
    assert foreign.tap_channels == {"shallow": 55}
    golden = load_file(shared / "golden" / "pretrained_dctlsa_x2.safetensors")
    with torch.no_grad():
        assert torch.allclose(foreign.eval()(golden["input"]), golden["output"], atol=1e-4)
    with pytest.raises(MTKDError, match="of scale 2, not 3"):
        spandrel(str(file), 3)
    with pytest.raises(MTKDError, match="spandrel cannot read"):
        spandrel(str(Path(__file__)), 2)
