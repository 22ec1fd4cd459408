"""The manual: it builds, and the commands and programs in it work.

A command stands in an ``sh`` fence, a program in a ``python`` one. Comments stand behind ``#``. What cannot run here
has ``<!-- needs: ... -->`` on the line before its fence: its keys are checked all the same. The slow tests run all
others, a page in order, in a folder with the pictures, photographs and networks that pages may name, and cut their
trainings short.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from PIL import Image

from examples import put_examples
from mtkd_lightning import experiments
from mtkd_lightning.config import CONF, check, check_keys
from mtkd_lightning.data.datasets import read_request
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.sweep import need_plugins
from mtkd_lightning.sweep_plan import planned, refuse_collisions

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "experiments/compact_x4/README.md")
PAGES = [*(ROOT / name for name in READMES), *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {"network", "a GPU", "several GPUs", "SLURM", "a Ray cluster", "a W&B account", "DIV2K"}
FENCE = re.compile(
    r"^(?:<!-- needs: (?P<needs>[^>]*) -->\n)?(?P<indent> *)```(?P<kind>sh|python)\n(?P<text>.*?)^(?P=indent)```$",
    flags=re.MULTILINE | re.DOTALL,
)

CONFIGS = {"data": "prepare"} | {
    verb: verb for verb in ("evaluate", "compare", "report", "dashboard", "upscale", "export")
}
# Not run: these change the environment or the checkout, or run for long. CI runs setup, lint and test, this file docs,
# tests/test_demo.py what demo runs, tests/test_doctor.py what doctor runs; the others are for people alone.
LEFT_OUT = re.compile(r"make (?!help)|pip install|\. |\S*pre-commit|git ")


@dataclass(frozen=True)
class Piece:
    """A command, or a program in Python.

    Attributes:
        line: of the page.
        needs: what it needs that is not here.
    """

    page: Path
    line: int
    kind: str
    text: str
    needs: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line} {self.text.partition(chr(10))[0][:60]}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def pieces(page: Path) -> Iterator[Piece]:
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        content, line = dedent(fence["text"]), text[: fence.start("text")].count("\n") + 1
        if fence["kind"] == "python":
            yield Piece(page, line, "python", content, fence["needs"])
            continue
        for command in re.finditer(r"(?:.*\\\n)*.+", content):
            if joined := re.sub(r"(^|\s)#(\s.*)?$", "", command[0].replace("\\\n", " "), flags=re.MULTILINE).strip():
                yield Piece(page, line + content[: command.start()].count("\n"), "sh", joined, fence["needs"])


ALL = [piece for page in PAGES for piece in pieces(page)]
COMMANDS = [piece for piece in ALL if piece.kind == "sh"]


@pytest.fixture(scope="module")
def conf(tmp_path_factory) -> Iterator[Path]:
    """The configurations, with those of the worked examples."""
    folder = tmp_path_factory.mktemp("manual")
    shutil.copytree(CONF, folder / "conf")
    (folder / "src/mtkd_lightning/backbones").mkdir(parents=True)
    (folder / "src/mtkd_lightning/methods").mkdir()
    put_examples(ROOT / "CONTRIBUTING.md", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "CONF", folder / "conf")
        experiments.register()
        yield folder / "conf"
    experiments.register()


def test_there_are_commands_and_programs():
    assert len({piece.page for piece in COMMANDS}) > 10
    assert len(COMMANDS) > 50
    assert any(piece.kind == "python" for piece in ALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_fences_and_markers_are_in_order(page):
    text = page.read_text(encoding="utf-8")
    markers = re.findall(r"^ *<!-- needs: *(.*?) *-->", text, flags=re.MULTILINE)
    assert set(markers) <= NEEDS
    assert len(markers) == sum(fence["needs"] is not None for fence in FENCE.finditer(text)), "one has no fence below"
    assert not re.findall(r"^ {4,}(?:\$ )?(?:python -m|make) .*", FENCE.sub("", text), flags=re.MULTILINE), "no fence"
    assert not re.findall(r"^```(?:bash|shell|console|py)$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("piece", COMMANDS, ids=str)
def test_the_shell_and_what_it_starts_know_a_command(piece, conf):
    subprocess.run(["bash", "-n", "-c", piece.text], check=True)
    words = piece.words
    while re.match(r"[A-Z_]+=", words[0]):
        variable = words.pop(0).partition("=")[0]
        assert any(variable in path.read_text() for path in (ROOT / "src").rglob("*.py")), f"{variable} is not read"
    match words:
        case ["make", *targets]:
            assert {word for word in targets if "=" not in word} <= make_targets()
        case ["python", "-m", "pip", *rest] | ["pip", *rest]:
            extras = set(re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*?)\]", " ".join(rest)))))
            assert (
                extras
                <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
            )
        case ["python", "-m", "mtkd_lightning.doctor"] | ["python", "-m", "mtkd_lightning.doctor", "--root", _]:
            pass
        case ["python", "-m", module, *arguments] if module.startswith("mtkd_lightning"):
            compose(conf, module.removeprefix("mtkd_lightning").lstrip("."), arguments)
        case ["python", "experiments/compact_x4/teachers.py" as script, *arguments]:
            assert (ROOT / script).is_file()
            compose(conf, "", ["+study=compact_x4", *arguments])
        case ["python", ("experiments/compact_x4/bands.py" | "experiments/compact_x4/gradients.py") as script, _]:
            assert (ROOT / script).is_file()
        case ["srun" | "torchrun", *rest]:
            assert piece.needs in ("SLURM", "several GPUs")
            at = rest.index("mtkd_lightning")
            assert rest[at - 1] == "-m"
            compose(conf, "", rest[at + 1 :])
        case ["tensorboard", "--logdir", "runs"] | [".", ".venv/bin/activate"] | [".venv/bin/pre-commit", "install"]:
            pass
        case ["wandb", "login" | "sync", *_]:
            assert piece.needs == "a W&B account"
        case ["git", "clone", *_] | ["sbatch" | "ray", *_]:
            assert piece.needs is not None
        case _:
            pytest.fail(f"what is {words[0]}? Commands of the manual are those that this test knows")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def compose(conf: Path, verb: str, arguments: list[str]) -> None:
    """Compose a configuration and check it, as the command does before it loads anything heavy.

    Raises:
        MTKDError: as there; HydraException: an unknown key or option.
    """
    flags = {"-m", "--multirun", "--cfg", "job", "--help"}
    overrides = [argument for argument in arguments if argument not in flags]
    try:
        need_plugins(arguments)
    except MTKDError as missing:
        pytest.skip(str(missing))
    hydra = HydraConfig.instance()
    before = hydra.cfg
    name = CONFIGS[verb] if verb else "config"
    with initialize_config_dir(str(conf), version_base="1.3"):
        load = GlobalHydra.instance().config_loader().load_configuration
        try:
            config = load(name, overrides, RunMode.MULTIRUN, validate_sweep_overrides=False)
            if not verb and ("-m" in arguments or config.hydra.mode == RunMode.MULTIRUN):
                refuse_collisions(config, planned(config)[:4])  # the others differ from these in values alone
                return
            config = load(name, overrides, RunMode.RUN)
            hydra.set_config(config)
            with open_dict(config):
                del config["hydra"]
            if verb == "data":
                read_request(config)
            elif verb:
                check_keys(config, name)
            else:
                check(config)
                OmegaConf.resolve(config)
        finally:
            hydra.cfg = before


GROUPS = OmegaConf.load(ROOT / "docs" / "reference.yaml").groups


@pytest.mark.parametrize("choice", [choice for group in GROUPS.values() for choice in group.chosen])
def test_the_reference_says_how_to_choose(choice, conf):
    verb = {"weights": "evaluate", "name": "data"}.get(choice.partition("=")[0], "")
    compose(conf, verb, choice.split())


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("", ["+experiment=edsr_kd", "method.wieght=1"]),
        ("", ["-m", "+experiment=edsr_kd", "seed=0,1", "training.distilation.steps=2"]),
        ("upscale", ["weights=lkdn_x4", "input=photos", "ouput=enlarged"]),
        ("data", ["name=div3k"]),
    ],
)
def test_a_wrong_command_would_be_found(conf, verb, arguments):
    with pytest.raises(Exception, match=r"wieght|distilation|ouput|div3k"):
        compose(conf, verb, arguments)


def test_the_manual_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "-f", ROOT / "mkdocs.yml", "-d", tmp_path]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert "reference/configuration/method.html" in pages
    assert "Charbonnier" in pages["how-to/method.html"]
    fetched = [
        re.findall(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="(?:https?:)?//[^"]*', x) for x in pages.values()
    ]
    assert not any(fetched), "a page takes something from the network"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """What pages may name, in a folder, and the environment in which their commands run: code with short trainings."""
    from skimage.data import astronaut, chelsea, coffee

    code = tmp_path_factory.mktemp("code")
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, code / folder, ignore=shutil.ignore_patterns("__pycache__"))
    put_examples(ROOT / "CONTRIBUTING.md", code)
    cut = {"steps": 4, "batch_size": 4, "lr_patch": 8, "validate_every": 4, "checkpoint_every": 2}
    for path in (code / "conf" / "preset").glob("*.yaml"):
        text = re.sub(
            r"\b(\w+): \d+", lambda found: f"{found[1]}: {cut.get(found[1], found[0].split()[1])}", path.read_text()
        )
        path.write_text(text)
    config = code / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("accept_weak: false", "accept_weak: true"))

    folder = tmp_path_factory.mktemp("prepared")
    for i in range(12):
        save(coffee()[20 * i :][:96, 40 * i :][:, :112], folder / f"pictures/train/{i}.png")
    for i in range(2):
        save(astronaut()[80 * i :][:96, 180:280], folder / f"pictures/benchmarks/Set5/HR/{i}.png")
    save(chelsea()[100:160, 120:204], folder / "photos/cat.jpg")
    save(astronaut()[:60, 180:260], folder / "photos/people/astronaut.png")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "MTKD_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(code / "src"),
        "HOME": str(folder),  # where no key for W&B is
        "MTKD_LIGHTNING_OFFLINE": "1",
    }
    run("python -m mtkd_lightning +experiment=rcan_multi_teacher", folder, env)
    run("python -m mtkd_lightning.export weights=rcan_multi_teacher_demo_x4_seed0 output=exported", folder, env)
    (folder / "exported/rcan_multi_teacher_demo_x4_seed0.safetensors").rename(folder / "student.safetensors")
    shutil.rmtree(folder / "exported")
    return folder, env


def save(picture, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def run(command: str, folder: Path, env: dict[str, str]) -> None:
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=env,
        timeout=900,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}"


def shortened(command: str) -> str:
    """A command with what ends it sooner, where the configuration does not."""
    if command.startswith("tensorboard"):
        return f"{command} --inspect"  # it would serve until it is stopped
    steps = re.findall(r"training\.\w+\.steps=", command)
    trials = ["hydra.sweeper.n_trials=2"] if "hparams_search" in command else []
    return " ".join([command, *(f"{key}4" for key in steps), *trials])


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", sorted({piece.page for piece in ALL}), ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_what_a_page_says_runs(page, prepared, tmp_path):
    folder, env = prepared
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for piece in pieces(page):
        if piece.needs or LEFT_OUT.match(piece.text):
            continue
        if piece.kind == "python":
            (tmp_path / "program.py").write_text(piece.text)
            run("python program.py", tmp_path, env)
        elif piece.text == "make help":
            run(piece.text, ROOT, env)
        else:
            run(shortened(piece.text), tmp_path, env)
