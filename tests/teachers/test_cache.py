import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mtkd_lightning.backbones.edsr import EDSR
from mtkd_lightning.data.batches import TrainingBatches, WholePictures
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.paired import PairedImages, find_pairs
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.inference import Tiled
from mtkd_lightning.teachers.aggregators import Mean
from mtkd_lightning.teachers.cache import Settings, TeacherCache
from mtkd_lightning.teachers.dctswin import DCTSwin
from mtkd_lightning.teachers.teacher import Ensemble
from mtkd_lightning.typing import floats

CPU = torch.device("cpu")
SETTINGS = Settings()


@pytest.fixture
def pairs(tmp_path, picture) -> PairedImages:
    for k in range(3):
        write_png(tmp_path / "hr" / f"{k}.png", np.roll(picture, 7 * k, 0)[: 48 + 2 * k])
    return PairedImages(find_pairs(tmp_path / "hr", None, 2), 2, PictureStore(tmp_path / "store"))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return EDSR(scale=2, features=4, blocks=1)


def absent() -> nn.Module:
    raise AssertionError("nothing is missing, so no network is needed")


@pytest.mark.parametrize(("bits", "levels", "dtype"), [(16, 65535, torch.uint16), (8, 255, torch.uint8)])
def test_pictures_are_the_networks_rounded(pairs, tmp_path, bits, levels, dtype):
    cache = TeacherCache(tmp_path / "cache", Settings(bits=bits), "a")
    kept = pairs.with_files([cache.make(pairs, network, CPU, "a")])
    for index in range(3):
        batch = WholePictures(kept)[index]
        assert batch.teacher_sr.dtype == dtype
        batch = floats(batch)
        with torch.no_grad():
            wanted = network()(batch.lr).clamp(0, 1)
        assert (batch.teacher_sr[:, 0] - wanted).abs().max() <= 0.5 / levels + 2e-6


def test_pictures_are_cut_with_the_window_of_the_ground_truth(pairs, tmp_path):
    cache = TeacherCache(tmp_path / "cache", SETTINGS, "a")
    kept = pairs.with_files([cache.make(pairs, network, CPU, "a")])
    batch = floats(TrainingBatches(kept, batch_size=16, lr_patch=18, seed=1, augment=False)[0])
    with torch.no_grad():
        online = network()(batch.lr).clamp(0, 1)
    # Away from the border of the patch, where it has less context than the whole picture gives.
    inside = (..., slice(12, -12), slice(12, -12))
    assert (batch.teacher_sr[:, 0][inside] - online[inside]).abs().max() < 2e-5


def test_what_is_there_is_not_made_again(pairs, tmp_path):
    cache = TeacherCache(tmp_path / "cache", SETTINGS, "a")
    files = cache.make(pairs, network, CPU, "a")
    assert cache.make(pairs, absent, CPU, "a") == files
    before = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    cache.make(pairs, network, CPU, "a")
    after = [file.stat().st_mtime_ns for file in files]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]


def test_another_maker_setting_scale_or_picture_is_another_file(pairs, tmp_path):
    def files(settings: Settings = SETTINGS, made_by: object = "a", of: PairedImages = pairs) -> list:
        return TeacherCache(tmp_path, settings, made_by).files(of)

    other_scale = PairedImages(pairs.pairs, 4, pairs.store)
    sets = [
        files(),
        files(Settings(bits=8)),
        files(Settings(self_ensemble=True)),
        files(made_by=["a"]),
        files(of=other_scale),
    ]
    assert len({file for some in sets for file in some}) == 3 * len(sets)
    assert files() == sets[0]


def test_an_ensemble_merges_the_members_pictures(pairs, tmp_path):
    members = [
        TeacherCache(tmp_path / "cache", SETTINGS, seed).make(pairs, lambda seed=seed: network(seed), CPU, "a")
        for seed in (0, 1)
    ]
    kept = pairs.with_files(members)
    merged = TeacherCache(tmp_path / "cache", SETTINGS, "both").make(
        kept, lambda: Ensemble({"a": None, "b": None}, Mean(2, 2)), CPU, "mean"
    )
    for index, file in enumerate(merged):
        pictures = floats(WholePictures(kept)[index]).teacher_sr
        found = torch.from_numpy(np.load(file).astype(np.float32) / 65535).permute(2, 0, 1)
        assert (found - pictures.mean(1)[0]).abs().max() <= 0.51 / 65535


def test_large_pictures_are_cut(pairs, tmp_path):
    settings = Settings(tile=32, overlap=8)
    (file, *_) = TeacherCache(tmp_path / "cache", settings, "a").make(pairs, network, CPU, "a")
    lr = floats(WholePictures(pairs)[0]).lr
    assert max(lr.shape) > 32
    wanted = Tiled(network(), 2, 32, 8)(lr).clamp(0, 1)[0].permute(1, 2, 0).numpy()
    assert np.abs(np.load(file) / 65535 - wanted).max() <= 0.51 / 65535


def test_self_ensembled_targets_turn_with_the_picture(tmp_path, picture):
    cache = TeacherCache(tmp_path / "cache", Settings(self_ensemble=True), "a")
    made = []
    for name, image in (("a", picture[:48, :48]), ("b", np.rot90(picture[:48, :48]).copy())):
        for kind, pixels in (("hr", image.repeat(2, 0).repeat(2, 1)), ("lr", image)):
            write_png(tmp_path / name / kind / "0.png", pixels)
        pairs = PairedImages(find_pairs(tmp_path / name / "hr", tmp_path / name / "lr", 2), 2, PictureStore(tmp_path))
        made.append(np.load(cache.make(pairs, network, CPU, "a")[0]).astype(int))
    assert np.abs(np.rot90(made[0]) - made[1]).max() <= 1


def test_too_little_space_is_said_before_anything_is_made(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(
        MTKDError, match=r"need .* GB, and .* paths\.cache=\.\.\., .* teacher\.bits=8, .*teacher\.cache=false"
    ):
        TeacherCache(tmp_path / "cache", SETTINGS, "a").make(pairs, absent, CPU, "a")
    assert not list((tmp_path / "cache").rglob("*.npy"))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_aggregator_is_cut_at_its_windows(tmp_path, scale):
    """Tiles that are out of step with its pixel unshuffle or its windows would change the picture everywhere."""
    from skimage.data import chelsea

    side = scale * 60
    write_png(tmp_path / "hr" / "0.png", chelsea()[:side, :side])
    pairs = PairedImages(find_pairs(tmp_path / "hr", None, scale), scale, PictureStore(tmp_path / "store"))
    torch.manual_seed(0)
    merger = DCTSwin(scale, 1, embed_dim=8, depths=[2], num_heads=[2], drop_path_rate=0.0, features=8).eval()
    kept = pairs.with_files([[tmp_path / "member.npy"]])
    np.save(tmp_path / "member.npy", chelsea()[:side, :side])
    made = [
        np.load(
            TeacherCache(tmp_path / "cache", Settings(tile=tile, overlap=4), "a").make(
                kept, lambda: Ensemble({"a": None}, merger), CPU, "a"
            )[0]
        ).astype(float)
        for tile in (512, 12)
    ]
    assert np.abs(made[0] - made[1]).mean() / 257 < 0.05


def test_settings_that_do_not_fit():
    with pytest.raises(MTKDError, match="kept in 16 bits or in 8"):
        Settings(bits=12)
    with pytest.raises(MTKDError, match=r"teacher\.tile=64, teacher\.overlap=32"):
        Settings(tile=64, overlap=32)


def test_a_damaged_picture_is_named(pairs, tmp_path):
    cache = TeacherCache(tmp_path / "cache", SETTINGS, "a")
    files = cache.make(pairs, network, CPU, "a")
    files[0].write_bytes(b"half")
    kept = pairs.with_files([files])
    with pytest.raises(MTKDError, match=r"cannot be read .*: delete it, and it is made again"):
        WholePictures(kept)[0]


def test_kept_and_online_are_two_experiments(finished, tmp_path, job):
    """Both train; a second student finds the pictures."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    again = job(folder, "name=second", "seed=1", "stages=[distillation]")
    assert again.returncode == 0, again.stdout
    assert "making" not in again.stdout
    online = job(folder, "teacher.cache=false")
    assert online.returncode == 1
    assert "teacher_pictures" in online.stdout
    apart = job(folder, "teacher.cache=false", f"paths.weights={tmp_path / 'w'}", f"paths.runs={tmp_path / 'r'}")
    assert apart.returncode == 0, apart.stdout


def test_the_cache_alone(finished, tmp_path, job):
    """Pictures of the members, and the merged ones where the aggregator is there."""
    folder = shutil.copytree(finished, tmp_path / "copy")
    before = {path: path.read_bytes() for path in (folder / "cache/teachers").rglob("*.npy")}
    assert len(before) == 3 * 5
    shutil.rmtree(folder / "cache" / "teachers")
    (aggregator,) = (folder / "weights").glob("*_dctswin_repaired_tiny.json")
    aggregator.rename(tmp_path / "aside")
    assert job(folder, "stages=[cache]").returncode == 0
    assert len(list((folder / "cache/teachers").rglob("*.npy"))) == 2 * 5
    (tmp_path / "aside").rename(aggregator)
    assert job(folder, "stages=[cache]").returncode == 0
    assert before == {path: path.read_bytes() for path in (folder / "cache/teachers").rglob("*.npy")}


SHARE = """
import sys, time
from pathlib import Path
import torch
from mtkd_lightning.data.paired import PairedImages, find_pairs
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.teachers.cache import Settings, TeacherCache

class Slow(torch.nn.Module):
    def forward(self, lr):
        print("made", flush=True)
        time.sleep(float(sys.argv[1]))
        return torch.nn.functional.interpolate(lr, scale_factor=2)

pairs = PairedImages(find_pairs("hr", None, 2), 2, PictureStore(Path("store")))
TeacherCache(Path("cache"), Settings(), "a").make(pairs, Slow, torch.device("cpu"), "a")
"""


@pytest.fixture
def many(tmp_path, picture) -> Path:
    for k in range(12):
        write_png(tmp_path / "hr" / f"{k}.png", np.roll(picture, 7 * k, 0)[:16, :16])
    return tmp_path


@pytest.fixture
def share(many) -> Iterator[Callable[[float], subprocess.Popen]]:
    """Start a process that makes the pictures' cache, so many seconds a picture."""
    started = []

    def start(seconds: float) -> subprocess.Popen:
        command = [sys.executable, "-c", SHARE, str(seconds)]
        started.append(subprocess.Popen(command, cwd=many, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_processes_share_the_work(many, share):
    made = [process.communicate(timeout=120)[0].count("made") for process in [share(0.3) for _ in range(2)]]
    assert sum(made) == 12
    assert len(list((many / "cache").rglob("*.npy"))) == 12
    assert not list((many / "cache").rglob("*.lock"))


def test_a_killed_process_lets_go_of_its_picture(many, share):
    dying = share(60)
    assert dying.stdout.readline() == "made\n"
    other = share(0)
    # A picture's lock goes after the picture is there.
    while len(list((many / "cache").rglob("*.npy"))) < 11 or len(list((many / "cache").rglob("*.lock"))) > 1:
        assert other.poll() is None
    assert other.poll() is None  # it waits for the last
    (folder,) = (many / "cache").iterdir()
    (left,) = folder.glob("*.lock")
    (folder / f".{left.stem}.npy.0.tmp").write_text("half")
    dying.kill()
    dying.communicate()
    assert other.communicate(timeout=120)[0].count("made") == 12
    assert share(0).communicate(timeout=120)[0] == ""
    assert len(list(folder.glob("*.npy"))) == 12
