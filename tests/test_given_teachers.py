"""Teachers that are not trained here: pictures on disk, weights from elsewhere, and the check that they can teach."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mtkd_lightning.data.batches import TrainingBatches, WholePictures
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.paired import PairedImages, find_pairs
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.typing import floats

FOLDER_MEMBER = ["~teacher.members.swinir", "data=folders", "data.root=pictures", "data.validation_pictures=1"]


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Four photographs to train on and a benchmark, with what two teachers made of them: HR itself and its half."""
    from skimage.data import chelsea

    root = tmp_path / "pictures"
    for k in range(5):
        folder, name = ("train", f"p{k}") if k < 4 else ("benchmarks/Set1/HR", "p4")
        cut = chelsea()[20 * k : 20 * k + 64, 30 * k : 30 * k + 72]
        write_png(root / folder / f"{name}.png", cut)
        kind = "" if k < 4 else "Set1/"
        write_png(tmp_path / "same" / f"{kind}{name}.png", cut)
        write_png(tmp_path / "half" / f"{kind}{name}x2.png", cut // 2)
    return root


@pytest.fixture
def paired(pictures, tmp_path) -> PairedImages:
    pairs = PairedImages(find_pairs(pictures / "train", None, 2), 2, PictureStore(tmp_path / "store"))
    return pairs.with_teachers([tmp_path / "same", tmp_path / "half"])


def test_teachers_pictures_are_cut_like_the_ground_truth(paired):
    batches = TrainingBatches(paired, batch_size=8, lr_patch=8, seed=3)
    for step in range(3):
        batch = batches[step]
        assert batch.teacher_sr.shape == (8, 2, 3, 16, 16)
        assert torch.equal(batch.teacher_sr[:, 0], batch.hr)
        assert torch.equal(batch.teacher_sr[:, 1], batch.hr // 2)
    whole = WholePictures(paired)[1]
    assert torch.equal(whole.teacher_sr[:, 0], whole.hr)


def test_sixteen_bits_are_kept(paired, tmp_path):
    import cv2

    level = np.full((64, 72, 3), 12345, np.uint16)
    cv2.imwrite(str(tmp_path / "same" / "p2.png"), level)
    batch = WholePictures(paired)[2]
    assert batch.teacher_sr.dtype == torch.uint16
    made = floats(batch).teacher_sr
    assert torch.allclose(made[:, 0], torch.tensor(12345 / 65535), atol=1e-7)
    assert torch.allclose(made[:, 1], (batch.hr // 2) / 255, atol=1e-7)


def test_a_teachers_picture_of_another_size(paired, tmp_path):
    write_png(tmp_path / "half" / "p1x2.png", np.zeros((62, 72, 3), np.uint8))
    with pytest.raises(MTKDError, match=r"p1x2\.png is 62x72, but 2 times the LR .* is 64x72"):
        paired.prepare()


def test_a_missing_picture_of_a_teacher(paired, tmp_path):
    (tmp_path / "same" / "p3.png").unlink()
    with pytest.raises(MTKDError, match=r"1 of 4 pictures have no teacher's picture in .*same: p3"):
        paired.with_teachers([tmp_path / "same"])


def test_a_folder_beside_a_network_teaches(pictures, tmp_path, job):
    """Stage 1 and 2 with a mixed ensemble; the folder that holds the ground truth scores without an error."""
    arguments = [*FOLDER_MEMBER, f"+teacher.members.same.folder={tmp_path / 'same'}"]
    result = job(tmp_path, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "weights/tiny_edsr-same_x2_dctswin_repaired_tiny.json").read_text())
    assert [name for name, _ in record["config"]["members"]] == ["edsr", "same"]
    assert "teacher same: inf dB" in result.stdout
    table = (tmp_path / "runs/tiny/results.csv").read_text()
    assert "Set1,teacher same,2,inf,1.0" in table
    assert "aggregator" in table
    # Other pictures are another teacher.
    write_png(tmp_path / "same" / "p0.png", np.zeros((64, 72, 3), np.uint8))
    again = job(tmp_path, *arguments)
    assert again.returncode == 1
    assert "was made by another configuration" in again.stdout


def test_without_pictures_of_a_benchmark_it_is_scored_without_them(pictures, tmp_path, job):
    (tmp_path / "same/Set1").rename(tmp_path / "elsewhere")
    result = job(tmp_path, *FOLDER_MEMBER, f"+teacher.members.same.folder={tmp_path / 'same'}")
    assert result.returncode == 0, result.stdout + result.stderr
    table = (tmp_path / "runs/tiny/results.csv").read_text()
    assert "teacher edsr" in table
    assert "student" in table
    assert "teacher same" not in table
    assert "aggregator" not in table


def test_a_teacher_below_bicubic_is_refused(pictures, tmp_path, refused):
    written = refused(
        *FOLDER_MEMBER,
        "~teacher.members.edsr",
        f"+teacher.members.half.folder={tmp_path / 'half'}",
        "teacher.accept_weak=false",
    )
    assert "teacher half scores" in written
    assert "nothing can be learnt from it" in written
    assert "teacher.accept_weak=true" in written
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("cache", ["true", "false"])
def test_an_aggregator_that_does_harm_is_said(pictures, tmp_path, job, cache):
    """Its only member is the ground truth itself, of which the released one has to learn all."""
    result = job(
        tmp_path,
        *(*FOLDER_MEMBER, "~teacher.members.edsr", f"+teacher.members.same.folder={tmp_path / 'same'}"),
        *("+variant=dctswin", f"teacher.cache={cache}", "stages=[aggregation,distillation]"),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "on a few validation pictures, mean of its members inf dB." in result.stdout
    assert "aggregator dctswin_repaired_tiny_as_released is behind the mean of its members" in result.stdout
    assert "aggregator=mean" in result.stdout


def test_the_compact_trio_teaches(shared, pictures, tmp_path, job, monkeypatch):
    """Real weights, by their names in the catalogue, from a local mirror."""
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", str(shared / "weights"))
    monkeypatch.setenv("MTKD_LIGHTNING_CACHE", str(tmp_path / "cache"))
    result = job(
        tmp_path,
        *("~teacher.members.edsr", "~teacher.members.swinir"),
        *("data=folders", "data.root=pictures", "data.validation_pictures=1"),
        *(f"+teacher.members.{name}.weights={name}_x2" for name in ("smfanet_plus_df2k", "lkdn", "dctlsa")),
        "teacher.accept_weak=false",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "teacher dctlsa: " in result.stdout
    assert "aggregator dctswin_repaired_tiny: " in result.stdout
    assert "is behind the mean" not in result.stdout
    assert (tmp_path / "weights/tiny_smfanet_plus_df2k-lkdn-dctlsa_x2_dctswin_repaired_tiny.safetensors").is_file()


def test_weights_of_another_scale(shared, refused):
    written = refused(f"+teacher.members.x.weights={shared / 'weights/lkdn_x4.pth'}")
    assert "enlarge x4, but scale=2" in written


def test_other_pictures_of_a_folder_are_merged_anew(pictures, tmp_path, job):
    """Also where those of the training set are the same."""
    arguments = [*FOLDER_MEMBER, f"+teacher.members.same.folder={tmp_path / 'same'}", "aggregator=mean"]
    arguments += ["stages=[teachers,distillation]"]
    result = job(tmp_path, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    (held_out,) = re.findall(r"^  validation: (\w+)$", result.stdout, re.MULTILINE)
    shutil.copy(tmp_path / f"half/{held_out}x2.png", tmp_path / f"same/{held_out}.png")
    assert job(tmp_path, *arguments, "name=again", "teacher.accept_weak=true").returncode == 0
    records = [json.loads((tmp_path / f"weights/{name}.json").read_text()) for name in ("tiny", "again")]
    assert records[0]["sha256"] == records[1]["sha256"]
    to_teacher = [record["metrics"]["val/psnr_to_teacher"] for record in records]
    assert abs(to_teacher[0] - to_teacher[1]) > 0.5


def test_pictures_of_a_folder_are_kept_like_others(pictures, tmp_path, job):
    result = job(tmp_path, *FOLDER_MEMBER, f"+teacher.members.same.folder={tmp_path / 'same'}", "aggregator=mean")
    assert result.returncode == 0, result.stdout + result.stderr
    kept = next((tmp_path / "runs/tiny/pictures").glob("*/*"))
    assert {path.stem for path in kept.iterdir()} >= {"HR", "bicubic", "student", "teacher edsr"}
