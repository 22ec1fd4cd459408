"""Every refusal says what was got, what is allowed and what to do, and leaves nothing half-written."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from mtkd_lightning.errors import MTKDError, enough_memory

FOLDERS = ("data=folders", "data.validation_pictures=1")
NO_BENCHMARKS = "stages=[teachers,aggregation,distillation]"


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def photographs(tmp_path, picture):
    """A data root with three training pictures."""
    for i in range(3):
        (tmp_path / "root/train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(picture, i, axis=1)).save(tmp_path / f"root/train/{i}.png")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+experiment=rcan_multi_teachers"], ["rcan_multi_teachers", "rcan_multi_teacher"]),
        (["preset=papr"], ["papr", "paper", "cpu", "demo"]),
        (["traning.distillation.steps=3"], ["traning"]),
        (["method=mtkdd"], ["mtkdd", "mtkd", "scratch"]),
    ],
)
def test_what_the_configuration_does_not_have(tmp_path, overrides, expected):
    result = subprocess.run(
        [sys.executable, "-m", "mtkd_lightning", *overrides], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert all(word in result.stdout + result.stderr for word in expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+sed=1", "the configuration has no key 'sed': did you mean seed?"),
        ("+student.feature=5", "student has no key 'feature': did you mean features?"),
        ("+training.distilation.steps=5", "training has no key 'distilation': did you mean distillation?"),
        ("+method.weights.gt=1", "it takes exactly ground_truth, response"),
        ("+teacher.members.x.seed=1", "teacher.members.x has nothing to make pictures with: give weights=..."),
        ("+teacher.members.edsr.folder=a", "teacher.members.edsr has a folder of pictures and a network"),
        ("teacher.members.edsr=null", "a member is a mapping"),
        ("teacher.overlap=300", "teacher.tile=512, teacher.overlap=300"),
        ("+teacher.members.x.weights=lkdm_x2", "Did you mean lkdn_x2"),
        ("+teacher.members.x.folder=nowhere", "nowhere does not exist"),
        ("scale=5", "scale=5: allowed are 2, 3, 4"),
        ("stages=[teacher]", "stages='teacher': allowed are teachers, cache, aggregation"),
        ("existing=overwrite", "existing='overwrite': allowed are stop, remake"),
        ("training.distillation.steps=0", "steps=0 in a recipe: it must be a whole number above 0"),
        ("training.distillation.ema_decay=1", "ema_decay=1 in a recipe: it must lie in [0, 1)"),
        ("aggregator.num_heads=[3]", "num_heads must divide it"),
        ("trainer.precision=7", "trainer.precision=7: allowed are 32-true, bf16-mixed, 16-mixed"),
        ("trainer.devices=2", "takes trainer=ddp"),
        ("trainer.strategy=fsdp", "say trainer=ddp"),
        ("trainer.devices=0", "it must be a number from 1 up, or auto"),
        ("+trainer.max_steps=3", "trainer has no key 'max_steps'"),
        ("num_workers=-1", "num_workers=-1: it must be a whole number"),
        ("student.features=wide", "student.features='wide': it must be a whole number"),
        ("method.response.low_weight=true", "method.response.low_weight=True: it must be a number"),
        ("training.distillation.steps=0", "training.distillation: steps=0 in a recipe: it must be a whole number"),
        ("teacher.only=[edsr,vdsr]", "teacher.only='vdsr': allowed are edsr, swinir"),
        ("trainer.accumulate_grad_batches=3", "does not cut training.teachers.batch_size=2 into equal parts"),
        ("teacher.only=[edsr,edsr]", "teacher.only=['edsr', 'edsr']: a member is there once"),
        ("training.teachers.seed=7", "every teacher has a seed of its own, teacher.members.<name>.seed"),
        ("seed=4294967296", "seed=4294967296: it must be a whole number from 0 to 4294967295"),
        ("teacher.members.edsr.seed=1.5", "teacher.members.edsr.seed=1.5: it must be a whole number"),
        ("name=a/b", "name='a/b' cannot be that of a file"),
        ("label=a/b name=${label}", "name='a/b' cannot be that of a file"),
        ("+logger.tensorboard.foo=1", "logger.tensorboard has no key 'foo'"),
        ("training.distillation.learning_rate=null", "learning_rate=None in a recipe: it must be above 0"),
        (
            "training.distillation.optimizer.betas=[0.9,1.5]",
            "distillation.optimizer cannot be built: Invalid beta",
        ),
        ("+training.distillation.optimizer.foo=1", "training.distillation.optimizer"),
        ("trainer.precision=16-mixed trainer.accelerator=cpu", "16-mixed needs a GPU; on a CPU say bf16-mixed"),
        ("teacher.only=[]", "teacher.only=[] leaves no teacher"),
        ("+variant=two teacher.pair=null", "teacher.pair=None: two teachers teach here; name them, teacher.pair=[edsr"),
        ("+variant=two teacher.pair=[edsr]", "teacher.pair=['edsr']: two teachers"),
        ("+variant=two teacher.pair=[edsr,edsr]", "teacher.pair=['edsr', 'edsr']: two teachers"),
        (
            "+variant=one teacher.alone=null",
            "teacher.alone=null: one teacher teaches here; name it, teacher.alone=edsr",
        ),
        ("method.response.low_weight=-1", "low_weight=-1, high_weight=1.0: a weight is 0 or more"),
        ("teacher.only=edsr", "teacher.only=edsr: it must be a list such as teacher.only=[edsr]"),
        ("data=folders data.root=a data.exclude=b", "data.exclude=b: it must be a list such as data.exclude=[b]"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps=0: it must be a whole number above 0"),
        (
            "training.teachers.scheduler.warmup=500",
            "training.teachers: scheduler.warmup=500: it is a share of the steps",
        ),
        (
            "scheduler@training.teachers.scheduler=multistep training.teachers.scheduler.milestones=[9]",
            "shares of the steps",
        ),
        ("method=scratch +method.weights.response=1", "has response; it takes exactly none"),
        ("teacher.bits=12", "teacher.bits=12: allowed are 8, 16"),
        ("seed=abc", "seed='abc': it must be a whole number"),
        ("training.teachers.init_from=a.pth", "teacher.members.<name>.weights="),
        ("trainer.accelerator=abacus", "trainer.accelerator='abacus': allowed are auto, cpu, gpu"),
        ("method.response.wavelet=hare", "no wavelet 'hare'"),
        ("~teacher.members.swinir ~teacher.members.edsr", "an ensemble needs at least one member"),
        ("teacher.members.edsr.weights=missing.pth", "missing.pth: there is no such file"),
        ("training.distillation.init_from=missing.pth", "no weights file at"),
    ],
)
def test_values_that_do_not_fit(refused, tmp_path, override, expected):
    assert expected in refused(*override.split())
    assert not (tmp_path / "weights").exists()


def test_a_value_that_only_the_user_knows(refused, tmp_path):
    assert "no value for data.root: give it as data.root=..." in refused("preset=cpu", tiny=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data=folders", "data.root=nowhere"], ["nowhere/train", "data.root="]),
        (["data=div2k", "data.root=nowhere"], ["nowhere", "python -m mtkd_lightning.data name=div2k", "data.root="]),
    ],
)
def test_missing_data(refused, overrides, expected):
    written = refused(*overrides)
    assert all(word in written for word in expected), written


def test_a_folder_without_pictures(refused, tmp_path):
    (tmp_path / "root/train").mkdir(parents=True)
    (tmp_path / "root/train/notes.txt").write_text("no picture")
    written = refused(*FOLDERS, "data.root=root", NO_BENCHMARKS)
    assert "root/train" in written
    assert ".png" in written


def test_a_truncated_picture(refused, photographs):
    broken = photographs / "train/1.png"
    broken.write_bytes(broken.read_bytes()[:400])
    assert "train/1.png" in refused(*FOLDERS, NO_BENCHMARKS, f"data.root={photographs}")


def test_a_picture_smaller_than_the_patch(refused, photographs):
    written = refused(*FOLDERS, NO_BENCHMARKS, f"data.root={photographs}", "training.teachers.lr_patch=31")
    assert "lr_patch is 31" in written
    assert "30x42" in written


def test_hr_that_is_no_multiple_of_the_scale(refused, photographs, picture):
    Image.fromarray(picture[:59]).save(photographs / "train/0.png")
    written = refused(*FOLDERS, NO_BENCHMARKS, f"data.root={photographs}", "data.strict_size=true")
    assert "59x84" in written


def test_a_pair_of_sizes_that_do_not_belong_together(refused, tmp_path, picture):
    for kind, image in (("HR", picture), ("LR_bicubic/X2", picture[::2, ::3])):
        (tmp_path / "root/train" / kind).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(image).save(tmp_path / "root/train" / kind / f"{i}.png")
    written = refused(*FOLDERS, NO_BENCHMARKS, "data.root=root")
    assert "30x28" in written
    assert "30x42" in written


def test_nothing_to_evaluate_on(refused, photographs, tmp_path):
    written = refused(*FOLDERS, f"data.root={photographs}")
    assert "there is no benchmark to evaluate on" in written
    assert not (tmp_path / "weights").exists()


def test_a_picture_too_small_to_be_scored(refused, photographs, picture):
    for i in range(3):
        Image.fromarray(picture[:14]).save(photographs / f"train/{i}.png")
    written = refused(*FOLDERS, f"data.root={photographs}", "stages=[teachers]", "training.teachers.lr_patch=4")
    assert "has a side of 14 pixels; scoring needs 15" in written


def test_remake_touches_nothing_that_is_not_asked_for(refused, copy):
    before = {path: path.read_bytes() for path in (copy / "weights").iterdir()}
    written = refused("training.teachers.steps=9", "existing=remake", "stages=[aggregation]", cwd=copy)
    assert "tiny_edsr_x2.safetensors was made by another configuration" in written
    assert before == {path: path.read_bytes() for path in (copy / "weights").iterdir()}


def test_a_wavelet_too_deep_for_the_patch(refused, tmp_path):
    assert "9 levels of haar need 512x512" in refused("method.response.levels=9")
    assert not (tmp_path / "runs").exists()


def test_weights_of_another_network(refused, finished):
    weights = finished / "weights/tiny_swinir_x2.safetensors"
    written = refused(f"teacher.members.edsr.weights={weights}")
    assert "holds the weights of another network than this EDSR" in written
    assert "missing body.0.conv1.weight (4, 4, 3, 3)" in written


def test_published_weights_with_derived_tensors_fit(finished, tmp_path, job):
    """BasicSR's SwinIR files hold masks and indices beside the weights."""
    import torch

    tensors = {
        name: torch.from_numpy(x) for name, x in load_file(finished / "weights/tiny_swinir_x2.safetensors").items()
    }
    block = "layers.0.residual_group.blocks.1."
    tensors |= {
        f"{block}attn_mask": torch.zeros(4, 64, 64),
        f"{block}attn.relative_position_index": torch.zeros(64, 64),
    }
    torch.save({"params": tensors}, tmp_path / "SwinIR.pth")
    result = job(tmp_path, "teacher.members.swinir.weights=SwinIR.pth", "stages=[teachers]")
    assert result.returncode == 0, result.stdout
    assert [path.name for path in (tmp_path / "weights").glob("*.safetensors")] == ["tiny_edsr_x2.safetensors"]


def test_weights_of_another_scale(refused, finished):
    weights = finished / "weights/tiny_edsr_x2.safetensors"
    written = refused("scale=4", f"teacher.members.edsr.weights={weights}")
    assert "scale: 4 configured, 2 in the file" in written


def test_weights_with_other_pickled_content(refused, tmp_path):
    import torch

    torch.save({"params": Image.new("RGB", (2, 2))}, tmp_path / "odd.pth")
    assert "could run code and is refused" in refused("teacher.members.edsr.weights=odd.pth")


def test_an_aggregator_of_other_members(refused, copy):
    """Same name, same network, other weights in it."""
    path = copy / "weights/tiny_edsr_x2.safetensors"
    save_file({name: -x for name, x in load_file(path).items()}, copy / "negative.safetensors")
    written = refused("teacher.members.edsr.weights=negative.safetensors", "stages=[aggregation]", cwd=copy)
    assert "tiny_edsr-swinir_x2_dctswin_repaired_tiny.safetensors was made by another configuration" in written
    assert "members: " in written


def test_an_artefact_of_another_configuration(refused, copy):
    before = {path: path.read_bytes() for path in (copy / "weights").iterdir()}
    written = refused("training.teachers.steps=9", cwd=copy)
    assert "tiny_edsr_x2.safetensors was made by another configuration" in written
    assert "recipe.steps: 6 there, 9 asked" in written
    assert "existing=remake" in written
    assert "paths.weights=" in written
    assert before == {path: path.read_bytes() for path in (copy / "weights").iterdir()}


def test_a_checkpoint_of_another_configuration(refused, killed_job, tmp_path):
    killed_job(
        tmp_path,
        "stages=[teachers]",
        "training.teachers.steps=500",
        when=tmp_path / "runs/tiny_edsr_x2/last.ckpt",
    )
    written = refused("stages=[teachers]", "training.teachers.steps=600")
    assert "runs/tiny_edsr_x2/last.ckpt was made by another configuration" in written
    assert "recipe.steps: 500 there, 600 asked" in written


def test_an_artefact_that_was_changed(refused, copy):
    path = copy / "weights/tiny_edsr_x2.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    for stem in ("tiny_edsr-swinir_x2_dctswin_repaired_tiny", "tiny"):
        (copy / "weights" / f"{stem}.json").unlink()
    assert "sha256 differs" in refused(cwd=copy)


def test_a_stage_whose_input_is_missing(refused, tmp_path):
    written = refused("stages=[aggregation]")
    assert "weights/tiny_edsr_x2.safetensors is not there yet; add teachers to stages=[...]" in written
    assert not (tmp_path / "weights").exists()


def test_a_report_without_an_evaluation(refused):
    assert "add evaluation to stages" in refused("stages=[report]")


def test_a_loss_that_is_not_finite(refused, tmp_path):
    written = refused(
        "training.teachers.learning_rate=1e36", "training.teachers.steps=200", "trainer.log_every_n_steps=5"
    )
    assert "not finite" in written
    assert "Lower the recipe's learning_rate" in written
    assert not (tmp_path / "weights").exists()


def test_a_training_that_breaks_down_is_said(job, tmp_path):
    recipe = ("steps=60", "validate_every=5", "learning_rate=1")
    settings = (f"training.distillation.{setting}" for setting in recipe)
    result = job(tmp_path, "method=scratch", "stages=[distillation]", *settings)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"step \d+: validation PSNR fell to [\d.]+ dB, it had been [\d.]+", result.stdout)
    assert "gradient_clip_val=1" in result.stdout


@pytest.mark.parametrize(
    "stages", ["[teachers,cache]", "[teachers,aggregation]", "[teachers,aggregation,distillation]"]
)
def test_too_little_space_for_the_teachers_pictures_is_said_before_anything_is_trained(
    refused, tmp_path, monkeypatch, stages
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    written = refused(f"stages={stages}")
    assert "the teachers' pictures need" in written
    assert "teacher.bits=8" in written
    assert not (tmp_path / "weights").exists()


def test_what_there_is_no_memory_for():
    with (
        pytest.raises(MTKDError, match=r"^there is not enough memory: take less \(.*allocate"),
        enough_memory("take less"),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="invalid for input of size"), enough_memory("take less"):
        torch.zeros(3).view(2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_processes_without_a_gpu_of_their_own(refused, tmp_path):
    written = refused("trainer=ddp", "trainer.devices=2", "trainer.accelerator=gpu")
    assert re.search(r"process \d on this machine has no GPU of its own: it sees 0", written)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of a chosen size")
def test_a_full_disk(refused, tmp_path, finished):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no permission to mount a small file system")
    try:
        paths = f"paths.cache={finished / 'cache'}", f"paths.runs={small}", f"paths.weights={small}/weights"
        written = refused(*paths, "teacher.members.edsr.backbone.features=16", "stages=[teachers]")
        assert "no space left to write" in written
        assert "paths.root=" in written
        assert not list(small.rglob("*.tmp"))
        assert not list(small.rglob("*.safetensors"))
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("override", ["student.features=wide", "student.fetures=4", "training.distillation.steps=0"])
def test_the_configuration_is_refused_before_anything_heavy_is_imported(override, tmp_path):
    code = (
        "import sys\nfrom mtkd_lightning.__main__ import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 1\n"
        "assert not {'torch', 'lightning', 'numpy'} & sys.modules.keys()"
    )
    result = subprocess.run([sys.executable, "-c", code, override], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
