import io
import json
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir

from mtkd_lightning.config import CONF
from mtkd_lightning.data.datasets import Request, read_request
from mtkd_lightning.data.images import read_rgb, write_png
from mtkd_lightning.data.prepare import Preparation
from mtkd_lightning.data.resize import downscale
from mtkd_lightning.data.sources import df2k, div2k, flickr2k
from mtkd_lightning.errors import MTKDError
from mtkd_lightning.files import file_sha256

COUNTS = {"train": 4, "valid": 2, "flickr2k": 3}


def png(picture: np.ndarray, tmp_path: Path) -> bytes:
    write_png(tmp_path / "one.png", picture)
    return (tmp_path / "one.png").read_bytes()


def zip_of(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def tar_of(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def pictures(picture, tmp_path) -> list[bytes]:
    """PNG files of 25x26 pixels, no multiple of a scale, each another."""
    return [png(picture[i : i + 25, i : i + 26], tmp_path) for i in range(9)]


@pytest.fixture
def served(pictures, tmp_path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """A folder with small archives named and laid out like the published ones, and its address."""
    for name in ("MIRROR", "OFFLINE"):
        monkeypatch.delenv(f"MTKD_LIGHTNING_{name}", raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    zip_of(folder / "DIV2K_train_HR.zip", {f"DIV2K_train_HR/{i:04}.png": pictures[i] for i in range(4)})
    zip_of(folder / "DIV2K_valid_HR.zip", {f"DIV2K_valid_HR/080{i}.png": pictures[i] for i in (4, 5)})
    tar_of(folder / "Flickr2K.tar", {f"Flickr2K/Flickr2K_HR/00000{i}.png": pictures[i] for i in (6, 7, 8)})

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def overrides(served, tmp_path) -> Callable[..., list[str]]:
    """The command line of a data set whose archives are the served ones."""
    _, url = served

    def of(name: str, *more: str) -> list[str]:
        changed = [f"name={name}", f"root={tmp_path}/root", f"cache={tmp_path}/cache"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            sets = compose("prepare", [f"name={name}"]).datasets[name].sets
        for key, pictures in sets.items():
            place = f"datasets.{name}.sets.{key}"
            changed.append(f"{place}.pictures={COUNTS[key]}")
            published = {"archive": pictures.archive}
            published |= {f"lr_archives.{scale}": archive for scale, archive in pictures.lr_archives.items()}
            for path, archive in published.items():
                changed.append(f"{place}.{path}.url={url}/{archive.url.rpartition('/')[2]}")
                changed += [f"{place}.{path}.{what}=null" for what in ("sha256", "bytes") if what in archive]
        return [*changed, *more]

    return of


@pytest.fixture
def prepare(overrides) -> Callable[..., Request]:
    """Get a data set in this process."""

    def run(name: str, *more: str) -> Request:
        request = asked(*overrides(name, *more))
        Preparation(request).run()
        return request

    return run


def asked(*overrides: str) -> Request:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return read_request(compose("prepare", list(overrides)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_div2k(prepare, served, tmp_path, caplog):
    caplog.set_level("INFO")
    root = prepare("div2k", "scales=[2,4]").root

    manifest = json.loads((root / "manifest.json").read_text())
    archive = served[0] / "DIV2K_train_HR.zip"
    url = f"{served[1]}/DIV2K_train_HR.zip"
    assert manifest["archives"][url] == {"sha256": file_sha256(archive), "bytes": archive.stat().st_size}
    assert "academic research only" in manifest["licences"]["div2k"]
    assert manifest["tool"]["versions"]["mtkd-lightning"]
    folders = manifest["folders"]
    assert {name: (folder["from"], len(folder["pictures"])) for name, folder in folders.items()} == {
        "DIV2K_train_HR": (url, 4),
        "DIV2K_train_LR_bicubic/X2": ("made of DIV2K_train_HR, bicubic x2", 4),
        "DIV2K_train_LR_bicubic/X4": ("made of DIV2K_train_HR, bicubic x4", 4),
        "DIV2K_valid_HR": (f"{served[1]}/DIV2K_valid_HR.zip", 2),
        "DIV2K_valid_LR_bicubic/X2": ("made of DIV2K_valid_HR, bicubic x2", 2),
        "DIV2K_valid_LR_bicubic/X4": ("made of DIV2K_valid_HR, bicubic x4", 2),
    }
    for name, folder in folders.items():
        for picture, record in folder["pictures"].items():
            height, width, _ = read_rgb(root / name / picture).shape
            sha256 = file_sha256(root / name / picture)
            assert record == {"sha256": sha256, "width": width, "height": height}
    hr, lr = (read_rgb(root / name) for name in ("DIV2K_train_HR/0002.png", "DIV2K_train_LR_bicubic/X4/0002x4.png"))
    np.testing.assert_array_equal(lr, downscale(hr[:24, :24], 4))
    assert not list((root / "archives").glob("*.zip"))
    assert not list(root.rglob("*.partial"))

    mapped = files(tmp_path / "cache")
    training = div2k(root, 4, tmp_path / "cache", validation_pictures=2)
    assert [len(training.train.prepare()), len(training.validation.prepare())] == [4, 2]
    assert files(tmp_path / "cache") == mapped  # the first training has nothing left to do

    before = files(root)
    for path in served[0].iterdir():
        path.unlink()
    prepare("div2k", "scales=[2,4]")
    assert files(root) == before
    assert "DIV2K_train_LR_bicubic/X2: 4 pictures, as recorded." in caplog.text


def test_df2k_adds_flickr2k_to_a_div2k_that_is_there(prepare, tmp_path, caplog):
    caplog.set_level("INFO")
    prepare("div2k", "map=false")
    assert not list((tmp_path / "cache").rglob("*.npy"))
    root = prepare("df2k", "keep_archives=true").root
    assert "DIV2K_train_HR: 4 pictures, as recorded." in caplog.text
    assert [path.name for path in (root / "archives").iterdir() if path.suffix in (".zip", ".tar")] == ["Flickr2K.tar"]
    assert json.loads((root / "manifest.json").read_text())["licences"].keys() == {"div2k", "df2k"}
    mapped = files(tmp_path / "cache")
    both = df2k(root, 4, tmp_path / "cache")
    assert [pair.name for pair in both.train.pairs] == ["0000", "0001", "0002", "0003", "000006", "000007", "000008"]
    assert all(pair.lr for pair in (*both.train.pairs, *both.validation.pairs))
    alone = flickr2k(root, 4, tmp_path / "cache", validation_pictures=1)
    assert [pair.name for pair in alone.train.pairs] == ["000006", "000008"]
    assert [pair.name for pair in alone.validation.pairs] == ["000007"]
    for images in (both.train, both.validation, alone.validation):
        images.prepare()
    assert files(tmp_path / "cache") == mapped


def test_a_folder_inside_that_is_named_otherwise(prepare, served, pictures):
    zip_of(served[0] / "copy.zip", {f"Flickr2K/{i}.png": pictures[i] for i in range(3)})
    place = "datasets.flickr2k.sets.flickr2k.archive"
    url = f"{served[1]}/copy.zip"
    root = prepare("flickr2k", f"{place}.url={url}", f"{place}.inside=Flickr2K").root
    assert len(list((root / "Flickr2K/Flickr2K_HR").glob("*.png"))) == 3


def test_downloaded_lr_is_that_which_is_made(prepare, served, tmp_path):
    root = prepare("div2k").root
    made = {name: content for name, content in files(root).items() if "LR_bicubic/" in name}
    for part in ("train", "valid"):
        lr = {name: content for name, content in made.items() if part in name}
        zip_of(served[0] / f"DIV2K_{part}_LR_bicubic_X4.zip", lr)
    root = prepare("div2k", "lr=download", f"root={tmp_path}/other").root
    assert {name: content for name, content in files(root).items() if "LR_bicubic/" in name} == made
    folders = json.loads((root / "manifest.json").read_text())["folders"]
    assert folders["DIV2K_valid_LR_bicubic/X4"]["from"] == f"{served[1]}/DIV2K_valid_LR_bicubic_X4.zip"


def test_pictures_that_were_unpacked_by_hand_are_taken(prepare, served, tmp_path):
    with zipfile.ZipFile(served[0] / "DIV2K_train_HR.zip") as archive:
        archive.extractall(tmp_path / "root")
    (served[0] / "DIV2K_train_HR.zip").unlink()
    root = prepare("div2k").root
    assert json.loads((root / "manifest.json").read_text())["folders"]["DIV2K_train_HR"]["from"] == "found there"


def test_what_has_changed_is_said_and_made_anew(prepare, pictures):
    root = prepare("div2k").root
    before = (root / "manifest.json").read_bytes()
    hr = root / "DIV2K_train_HR"
    (hr / "0000.png").unlink()
    (hr / "0001.png").write_bytes(pictures[8])
    (hr / "more.png").write_bytes(pictures[8])
    expected = r"1 missing \(0000.png\); 1 new \(more.png\); 1 changed \(0001.png\). Remove .*DIV2K_train_HR and run"
    with pytest.raises(MTKDError, match=expected):
        prepare("div2k")
    assert (root / "manifest.json").read_bytes() == before
    for path in hr.iterdir():
        path.unlink()
    hr.rmdir()
    prepare("div2k")
    assert (root / "manifest.json").read_bytes() == before


def test_a_damaged_picture_in_a_sound_archive(prepare, served, pictures, tmp_path):
    content = [pictures[0], pictures[1], pictures[2][:200], pictures[3]]
    zip_of(served[0] / "DIV2K_train_HR.zip", {f"DIV2K_train_HR/{i}.png": content[i] for i in range(4)})
    with pytest.raises(MTKDError, match=r"2\.png is damaged or cut short .* remove .*DIV2K_train_HR and .*archives"):
        prepare("div2k")
    assert "pictures" not in json.loads((tmp_path / "root/manifest.json").read_text())["folders"]["DIV2K_train_HR"]


def test_another_number_of_pictures(prepare, tmp_path):
    place = "datasets.div2k.sets.train.pictures"
    with pytest.raises(MTKDError, match="has 4 pictures in DIV2K_train_HR/ where 5 should be"):
        prepare("div2k", f"{place}=5")
    assert not (tmp_path / "root/DIV2K_train_HR").exists()
    prepare("div2k")
    manifest = tmp_path / "root/manifest.json"
    manifest.unlink()
    with pytest.raises(MTKDError, match="DIV2K_train_HR holds 4 pictures where 5 should be"):
        prepare("div2k", f"{place}=5")


def test_the_wrong_archive(prepare, served, tmp_path):
    with pytest.raises(MTKDError, match="its sha256 is"):
        prepare("div2k", f"datasets.div2k.sets.train.archive.sha256={'0' * 64}")
    assert not (tmp_path / "root/DIV2K_train_HR").exists()


def test_a_disk_that_is_too_small_is_found_before_the_download(prepare, tmp_path):
    with pytest.raises(MTKDError, match=r"needs 2000000000\.00 GB .*root=\.\.\."):
        prepare("div2k", "datasets.div2k.sets.train.archive.bytes=1000000000000000000")
    assert not (tmp_path / "root/archives").exists()


def test_a_manifest_that_cannot_be_read(prepare, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root/manifest.json").write_text("{")
    with pytest.raises(MTKDError, match=r"manifest\.json cannot be read"):
        prepare("div2k")


def test_a_root_that_cannot_be_written(prepare, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MTKDError, match=r"root=\.\.\."):
        prepare("div2k", f"root={tmp_path}/file/root")


def test_the_command_goes_on_when_killed_and_waits_for_another(overrides, served, pictures, tmp_path):
    """Killed while it unpacks and while it makes LR; the third one waits, then does what is left."""
    many = {f"DIV2K_train_HR/{i:03}.png": pictures[i % 9] for i in range(600)}
    zip_of(served[0] / "DIV2K_train_HR.zip", many)
    command = [sys.executable, "-m", "mtkd_lightning.data", *overrides("div2k")]
    command += ["datasets.div2k.sets.train.pictures=600", "scales=[2]"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    start = partial(subprocess.Popen, command, cwd=tmp_path, **pipe)
    root = tmp_path / "root"
    kept = {}
    for name in ("DIV2K_train_HR/003.png", "DIV2K_train_LR_bicubic/X2/003x2.png"):
        folder = (root / name).parent
        unfinished = folder.with_name(f".{folder.name}.partial") / Path(name).name
        with start() as process:
            while not unfinished.exists():
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        assert not folder.exists()
        kept[name] = unfinished.stat().st_ino

    with FileLock(root / ".lock"):
        process = start()
        waiting = process.stdout.readline()
    written, _ = process.communicate(timeout=60)
    assert "Another run is preparing" in waiting
    assert process.returncode == 0, written
    assert "unpacking DIV2K_train_HR.zip" not in written
    assert "Ready: train with data=div2k" in written
    assert {name: (root / name).stat().st_ino for name in kept} == kept
    assert not list(root.rglob("*.tmp"))
    assert {path.name for path in tmp_path.iterdir()} == {"served", "root", "cache", "one.png"}
    folders = json.loads((root / "manifest.json").read_text())["folders"]
    assert {name: len(folder["pictures"]) for name, folder in folders.items()} == {
        "DIV2K_train_HR": 600,
        "DIV2K_train_LR_bicubic/X2": 600,
        "DIV2K_valid_HR": 2,
        "DIV2K_valid_LR_bicubic/X2": 2,
    }


def test_an_error_of_the_configuration_comes_before_torch(tmp_path):
    code = "import sys, mtkd_lightning.data.__main__ as m; print('torch' in sys.modules); m.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "name=div3k"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "False",
        "Error: name=div3k: allowed are name=div2k, name=flickr2k, name=df2k",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("name=???", "no data set is named: allowed are name=div2k"),
        ("+typo=1", "Key 'typo' not in"),
        ("+datasets.div2k.sets.train.archive.md5=1", "Key 'md5' not in 'Archive'"),
        ("map=perhaps", "map: Value 'perhaps' is not a valid bool"),
        ("scales=[5]", "scales=[5]: allowed are lists of 2, 3, 4"),
        ("scales=[]", "scales=[]: allowed"),
        ("lr=both", "lr=both: allowed are make, download"),
        ("lr=download ~datasets.div2k.sets.valid.lr_archives.x4", "valid has no LR archive for x4"),
    ],
)
def test_values_that_do_not_fit(override, expected):
    with pytest.raises(MTKDError) as error:
        asked("name=div2k", *override.split())
    assert expected in str(error.value)


@pytest.mark.parametrize(("name", "counts"), [("div2k", [800, 100]), ("flickr2k", [2650]), ("df2k", [800, 100, 2650])])
def test_every_data_set_fits_its_source(name, counts):
    request = asked(f"name={name}", "paths.root=/there", "lr=download", "scales=[2,3,4]")
    assert [pictures.pictures for pictures in request.dataset.sets.values()] == counts
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert str(request.root) == compose("config", [f"data={name}", "paths.root=/there"]).data.root
    for pictures in request.dataset.sets.values():
        for archive in (pictures.archive, *pictures.lr_archives.values()):
            assert archive.url.startswith("https://")
            assert (archive.sha256 is None) == (archive.bytes is None) == ("Flickr2K" in archive.url)


def test_every_data_set_can_be_named():
    assert {path.stem for path in (CONF / "dataset").glob("*.yaml")} == set(asked("name=div2k").datasets)
