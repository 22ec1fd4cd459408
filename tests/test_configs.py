"""Every file in conf/ is loaded, checked and built; a file that is added is tested without a line here."""

import re
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from mtkd_lightning import catalogue
from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.config import CONF, SCALES, build, check
from mtkd_lightning.data.sources import Pictures
from mtkd_lightning.experiments import ONE_TEACHER, register
from mtkd_lightning.methods.base import Method
from mtkd_lightning.metrics.complexity import parameters
from mtkd_lightning.pipeline import Pipeline
from mtkd_lightning.recipe import Recipe
from mtkd_lightning.teachers.teacher import Ensemble, Teacher

FILES = sorted(CONF.rglob("*.yaml"))
EXPERIMENTS = register()
STAGES = ("teachers", "aggregation", "distillation")
COUNTS = re.compile(r"([\d.]+) / ([\d.]+) / ([\d.]+) M parameters")


def names(group: str) -> list[str]:
    found = [path.relative_to(CONF / group).with_suffix("").as_posix() for path in (CONF / group).rglob("*.yaml")]
    assert found, f"conf/{group} is empty"
    return sorted(found)


def configuration(*overrides: str) -> DictConfig:
    """What the main job gets, checked and resolved."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    try:
        hydra.set_config(config)
        with open_dict(config):
            del config["hydra"]
        if "root" in set(config.data):
            config.data.root = "pictures"
        check(config)
        OmegaConf.resolve(config)
    finally:
        hydra.cfg = before
    return config


@cache
def alone(group: str, name: str) -> DictConfig:
    """One file of a group, with the values that it takes from the main job open."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"+{group}@alone={name}"])
    return OmegaConf.create({key: config[key] for key in ("scale", "paths", "trainer", "alone")})


def chosen(group: str, name: str, scale: int = 4) -> DictConfig:
    config = deepcopy(alone(group, name))
    config.scale = scale
    OmegaConf.resolve(config)
    return config.alone


def stated_counts(path: Path) -> dict[int, str]:
    comment = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    found = COUNTS.search(comment)
    return dict(zip(SCALES, found.groups(), strict=True)) if found else {}


def assert_count(network: nn.Module, stated: str | None) -> None:
    if stated is not None:
        assert f"{parameters(network) / 1e6:.{len(stated.partition('.')[2])}f}" == stated


def teacher() -> Teacher:
    return Teacher(EDSR(2, 4, 1))


def test_every_group_has_a_test():
    tested = """aggregator backbone catalogue data dataset hparams_search launcher logger method optimizer paths preset
        recipe scheduler student study teacher trainer variant"""
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == set(tested.split())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_file_starts_with_a_comment(path):
    lines = path.read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @package"))
    assert re.match(r"# \w.{10}", first), first


@pytest.mark.parametrize("preset", names("preset"))
@pytest.mark.parametrize(
    ("experiment", "scale"),
    [(name, 4) for name in EXPERIMENTS if name.startswith("rcan")]
    + [(f"{student}_multi_teacher", scale) for student in ("edsr", "swinir") for scale in SCALES],
)
def test_every_experiment_with_every_preset(experiment, preset, scale):
    config = configuration(f"+experiment={experiment}", f"preset={preset}", f"scale={scale}")
    seed = config.training.distillation.seed
    assert config.name == f"{experiment}_{preset}_x{scale}_seed{seed}"
    assert config.student == chosen("student", f"{preset}/{experiment.split('_')[0]}", scale)
    assert config.student.scale == config.data.scale == config.aggregator.scale == scale
    aggregator = re.sub("_(as_released|online|x8)$", "", config.aggregator_name)
    assert (CONF / "aggregator" / f"{aggregator}.yaml").is_file()
    assert config.teacher.only is None or set(config.teacher.only) < set(config.teacher.members)


def test_experiments_are_students_times_methods_and_variants():
    students = {name.split("/")[1] for name in names("student")}
    kinds = {*names("method"), *(f"mtkd_{variant}" for variant in names("variant")), "kd_mean", "multi_teacher"}
    assert set(EXPERIMENTS) == {f"{student}_{kind}" for student in students for kind in kinds}
    assert set(ONE_TEACHER) < set(names("method"))


@pytest.mark.parametrize("name", names("study"))
def test_every_study_asks_for_experiments_that_exist(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"+study={name}"], return_hydra_config=True)
    asked = [experiment.strip() for experiment in config.hydra.sweeper.params["+experiment"].split(",")]
    assert set(asked) <= set(EXPERIMENTS)
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("group", ["aggregator", "data", "logger", "method", "paths", "student", "teacher", "trainer"])
def test_every_choice_fits_the_main_job(group):
    for name in set(names(group)) - {"folder", "foreign"}:
        configuration(f"{group}={name}")


def test_every_preset_has_every_student():
    students = {name.split("_")[0] for name in EXPERIMENTS}
    assert set(names("student")) == {f"{preset}/{student}" for preset in names("preset") for student in students}


@pytest.mark.parametrize("name", sorted(set(names("backbone")) - {"foreign", "spandrel"}))
def test_backbones_and_their_counts(name):
    stated = stated_counts(CONF / "backbone" / f"{name}.yaml")
    for scale in SCALES:
        with torch.device("meta"):
            network = build(chosen("backbone", name, scale))
        assert network.scale == scale
        assert_count(network, stated.get(scale))


def test_counts_are_stated_for_published_networks():
    assert len([name for name in names("backbone") if stated_counts(CONF / "backbone" / f"{name}.yaml")]) >= 6


@pytest.mark.parametrize("name", names("aggregator"))
def test_aggregators_of_one_to_four_members(name):
    stated = stated_counts(CONF / "aggregator" / f"{name}.yaml")
    for scale in SCALES:
        node = chosen("aggregator", name, scale)
        for members in (1, 2, 3, 4):
            with torch.device("meta"):
                network = build(node, members=members)
            if members == 3:
                assert_count(network, stated.get(scale))


@pytest.mark.parametrize("name", sorted(set(names("teacher")) - {"foreign"}))
def test_teachers_are_an_ensemble(name):
    config = configuration(f"teacher={name}", "scale=3", *([] if name != "folder" else ["+teacher.members.a.folder=a"]))
    assert config.teacher.name == name
    nodes = config.teacher.members
    if any("backbone" not in node for node in nodes.values()):
        assert all(node.get("folder") or node.weights in catalogue.entries() for node in nodes.values())
        return
    with torch.device("meta"):
        members = {key: Teacher(build(node.backbone)) for key, node in nodes.items()}
        ensemble = Ensemble(members, build(config.aggregator, members=len(members)))
        assert ensemble(torch.rand(1, 3, 8, 8)).shape == (1, 3, 24, 24)
    assert list(members) == ["edsr", "swinir", "rcan"]


@pytest.mark.parametrize("name", names("method"))
def test_methods(name):
    node = chosen("method", name)
    arguments = {} if name.startswith("scratch") else {"teacher": teacher()}
    method = build(node, student=EDSR(2, 4, 1), **arguments)
    assert isinstance(method, Method)
    assert method.needs_teacher == bool(arguments)


@pytest.mark.parametrize("name", names("recipe"))
def test_recipes(name):
    node = chosen("recipe", name)
    node.update(steps=10, lr_patch=8, learning_rate=1e-3)
    recipe = build(node)
    assert isinstance(recipe, Recipe)
    assert isinstance(recipe.optimizer([nn.Parameter(torch.ones(1))], lr=1e-3), torch.optim.Optimizer)
    assert 0 <= recipe.scheduler(0.5) <= 1


@pytest.mark.parametrize("name", names("optimizer"))
def test_optimizers_descend(name):
    x = nn.Parameter(torch.ones(3))
    optimizer = build(chosen("optimizer", name))([x], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        x.square().sum().backward()
        optimizer.step()
    assert (x < 1).all()


@pytest.mark.parametrize("name", names("scheduler"))
def test_schedulers_end_below_their_peak(name):
    schedule = build(chosen("scheduler", name))
    factors = [schedule(step / 100) for step in range(101)]
    assert max(factors) == 1
    assert min(factors) >= 0
    assert factors[-1] < 0.1
    peak = factors.index(1)
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("name", names("trainer"))
def test_trainers(name):
    assert isinstance(build(chosen("trainer", name), logger=False), Trainer)


@pytest.mark.parametrize("name", names("data"))
def test_data(name, dataset, tmp_path):
    node = chosen("data", name)
    node.cache = str(tmp_path)
    if "root" in set(node):
        node.root = str(dataset)
    if "validation_pictures" in set(node):
        node.validation_pictures = 1
    pictures = build(node)
    assert isinstance(pictures, Pictures)
    assert pictures.benchmarks
    if name != "benchmarks":
        assert len(pictures.validation) == 1
        assert len(pictures.train) > 1


def test_paths_hang_on_the_root():
    for name in names("paths"):
        paths = configuration(f"paths={name}", "paths.root=/there").paths
        assert all(path.startswith("/there") for path in paths.values())


def test_the_paper_halves_at_its_milestones():
    config = configuration("preset=paper")
    rates = {}
    for stage in STAGES:
        recipe = build(config.training[stage])
        rates[stage] = lambda step, recipe=recipe: recipe.learning_rate * recipe.scheduler(step / recipe.steps)
    milestones = (0, 250_000, 400_000, 450_000, 475_000)
    for stage, first in (("aggregation", 2e-4), ("distillation", 2e-5)):
        assert config.training[stage].steps == 500_000
        assert [rates[stage](step) for step in milestones] == pytest.approx([first / 2**k for k in range(5)])
        assert [rates[stage](step - 1) for step in milestones[1:]] == pytest.approx([first / 2**k for k in range(4)])
    assert [rates["teachers"](step) for step in (0, 199_999, 200_000, 299_999)] == [1e-4, 1e-4, 5e-5, 5e-5]
    assert list(build(config.training.distillation).optimizer.keywords["betas"]) == [0.9, 0.999]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Crops of photographs, laid out for every source: DIV2K's folders, train/ and benchmarks/."""
    from skimage.data import astronaut, coffee

    root = tmp_path_factory.mktemp("dataset")

    def write(folder: str, image: np.ndarray) -> None:
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / folder / f"{len(list((root / folder).iterdir())):04}.png")

    for i in range(3):
        write("DIV2K_train_HR", astronaut()[40 * i :][:96, 100:196])
        write("Flickr2K/Flickr2K_HR", astronaut()[40 * i :][:96, 200:296])
        write("train", coffee()[50 * i :][:96, 100:200])
    write("DIV2K_valid_HR", coffee()[100:164, 200:264])
    write("benchmarks/Set5/HR", coffee()[150:198, 300:360])
    return root


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    """Where the paper's jobs write; hundreds of MB, so not left for later."""
    folder = tmp_path_factory.mktemp("paper")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("student", ["edsr", "rcan", "swinir"])
def test_the_paper_takes_steps_with_its_own_networks(student, dataset, paper):
    """The full-size networks of the paper on pictures of its form; the teachers are those of the first student."""
    config = configuration(
        f"+experiment={student}_multi_teacher",
        "preset=paper",
        f"paths.root={paper}",
        "stages=[teachers,aggregation,distillation]",
        "teacher.accept_weak=true",
        *(f"training.{stage}.{value}" for stage in STAGES for value in ("steps=1", "batch_size=1", "lr_patch=8")),
    )
    config.data.root = str(dataset)

    Pipeline(config).run()

    stem = f"{student}_multi_teacher_paper_x4_seed10"
    weights = {path.stem: load_file(path) for path in (paper / "weights").glob("*.safetensors")}
    assert {"paper_edsr_x4", "paper_swinir_x4", "paper_rcan_x4", "paper_edsr-swinir-rcan_x4_dctswin", stem} <= set(
        weights
    )
    assert all(x.isfinite().all() for tensors in weights.values() for x in tensors.values())
    torch.manual_seed(10)
    before = build(config.student).state_dict()
    assert before.keys() == weights[stem].keys()
    changed = [(weights[stem][name] - x).abs().max().item() for name, x in before.items()]
    # Adam's first step is the learning rate, of which the average takes a thousandth.
    assert 1e-9 < max(changed) < 1e-6


def test_help_names_every_group_and_choice(monkeypatch, capsys):
    from mtkd_lightning.__main__ import main

    monkeypatch.setattr("sys.argv", ["mtkd_lightning", "--help"])
    main()
    shown = capsys.readouterr().out
    assert "  trainer: bf16, ddp, default\n" in shown
    assert "  student/demo: edsr, rcan, swinir\n" in shown
    assert "$" not in shown
