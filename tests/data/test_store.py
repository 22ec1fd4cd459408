import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mtkd_lightning
from mtkd_lightning.data.images import write_png
from mtkd_lightning.data.resize import downscale
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.errors import MTKDError

SOURCE = Path(mtkd_lightning.__file__).parents[1]

FILL = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
from pathlib import Path
from mtkd_lightning.data.store import PictureStore
store = PictureStore(sys.argv[1])
for path in sorted(Path(sys.argv[2]).iterdir()):
    store.lr(path, 2)
    print(path.name, flush=True)
"""


@pytest.fixture
def path(picture, tmp_path) -> Path:
    write_png(tmp_path / "a.png", picture)
    return tmp_path / "a.png"


@pytest.fixture
def store(tmp_path) -> PictureStore:
    return PictureStore(tmp_path / "store")


def files(store: PictureStore) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if path.is_file() and "digests" not in path.parts)


def test_picture_and_its_files(store, path, picture):
    rgb, lr = store.rgb(path), store.lr(path, 4)
    np.testing.assert_array_equal(rgb, picture)
    np.testing.assert_array_equal(lr, downscale(picture, 4))
    digest = store.digest(path)
    folder = store.root / digest[:2]
    assert files(store) == [folder / f"{digest}-bicubic-x4.npy", folder / f"{digest}.npy"]
    np.testing.assert_array_equal(np.load(folder / f"{digest}.npy", mmap_mode="r"), picture)
    assert not rgb.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        lr[0] = 0


def test_lr_is_of_the_cropped_picture(store, picture, tmp_path):
    write_png(tmp_path / "odd.png", picture[:59, :83])
    np.testing.assert_array_equal(store.lr(tmp_path / "odd.png", 4), downscale(picture[:56, :80], 4))


def test_lr_of_a_picture_smaller_than_the_scale(store, picture, tmp_path):
    write_png(tmp_path / "thin.png", picture[:3])
    with pytest.raises(MTKDError, match=r"thin\.png is 3x84, too small for x4"):
        store.lr(tmp_path / "thin.png", 4)


def test_decodes_once(store, path, picture):
    store.rgb(path)
    before = files(store)[0].stat()
    again = PictureStore(store.root).rgb(path)
    assert files(store)[0].stat().st_ino == before.st_ino
    np.testing.assert_array_equal(again, picture)


@pytest.mark.parametrize("kept", [0, 5, 60, 128, 5000])
def test_truncated_file_is_made_again(store, path, picture, kept):
    store.lr(path, 2)
    for file in files(store):
        file.write_bytes(file.read_bytes()[:kept])
    fresh = PictureStore(store.root)
    np.testing.assert_array_equal(fresh.rgb(path), picture)
    np.testing.assert_array_equal(fresh.lr(path, 2), downscale(picture, 2))
    assert len(files(store)) == 2


def test_foreign_content_is_made_again(store, path, picture):
    store.rgb(path)
    np.save(files(store)[0], picture / 255)
    np.testing.assert_array_equal(PictureStore(store.root).rgb(path), picture)


def test_changed_picture_is_another_picture(store, path, picture):
    first = store.digest(path)
    write_png(path, picture[::-1])
    assert store.digest(path) != first
    np.testing.assert_array_equal(store.rgb(path), picture[::-1])


def test_digest_is_remembered_and_damage_is_healed(store, path, tmp_path):
    digest = store.digest(path)
    (memo,) = (store.root / "digests").rglob("*/*")
    content = memo.read_bytes()
    assert content.endswith(digest.encode())
    # A memo that is believed: proof that the picture is not hashed again.
    memo.write_bytes(content[:-64] + b"0" * 64)
    assert PictureStore(store.root).digest(path) == "0" * 64
    for damage in (b"", content[:-1], content + b"0", b"\xff\0" * 50, content[:-64] + b"G" * 64):
        memo.write_bytes(damage)
        assert PictureStore(store.root).digest(path) == digest
        assert memo.read_bytes() == content
    assert store.digest(path) == digest


def test_same_content_is_stored_once(store, path, picture, tmp_path):
    write_png(tmp_path / "b.png", picture)
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(store.rgb, [path, tmp_path / "b.png"] * 10):
            np.testing.assert_array_equal(read, picture)
    assert len(files(store)) == 1


def test_travels_to_another_process(store, path, picture):
    store.rgb(path)
    data = pickle.dumps(store)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).rgb(path), picture)


def test_bad_pictures(store, tmp_path):
    with pytest.raises(MTKDError, match=r"none\.png cannot be read"):
        store.rgb(tmp_path / "none.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(MTKDError, match=r"bad\.png is not a picture"):
        store.rgb(tmp_path / "bad.png")
    assert files(store) == []


def test_unusable_folder_names_the_override(path, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(MTKDError, match=r"stored in .*taken.*MiB free.*paths\.cache="):
        PictureStore(tmp_path / "taken" / "store").rgb(path)


def test_full_disk(picture, tmp_path):
    """On a file system of 64 KiB, in a namespace of its own."""
    picture = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", picture)
    (tmp_path / "small").mkdir()
    code = f"""
import sys
sys.path.insert(0, {str(SOURCE)!r})
from pathlib import Path
from mtkd_lightning.data.store import PictureStore
from mtkd_lightning.errors import MTKDError
try:
    PictureStore("small").rgb("a.png")
except MTKDError as error:
    print(error)
print([path.name for path in Path("small").rglob("*") if path.suffix in (".npy", ".tmp")])
"""
    script = 'mount -t tmpfs -o size=64k none small && exec "$0" -c "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, code]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare command to mount a small file system with")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    message, left = done.stdout.splitlines()
    assert "stored in small: " in message
    assert "MiB free). Free some space or choose another folder with paths.cache=" in message
    assert left == "[]"


@pytest.fixture
def many(tmp_path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "many").mkdir()
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (400, 500, 3), dtype=np.uint8)).save(tmp_path / f"many/{i:02}.bmp")
    return tmp_path / "many"


def check(store: PictureStore, many: Path) -> None:
    for path in sorted(many.iterdir()):
        with Image.open(path) as image:
            picture = np.asarray(image)
        np.testing.assert_array_equal(store.rgb(path), picture)
        np.testing.assert_array_equal(store.lr(path, 2), downscale(picture, 2))


def test_killed_while_writing(store, many):
    command = [sys.executable, "-c", FILL, store.root, many]
    for pictures in (1, 3, 5):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            for _ in range(pictures):
                assert process.stdout is not None
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        whole = [np.load(file).shape for file in files(store) if file.suffix == ".npy"]
        assert set(whole) == {(400, 500, 3), (200, 250, 3)}
    check(store, many)


def test_two_processes_at_once(store, many):
    command = [sys.executable, "-c", FILL, store.root, many]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(files(store)) == 24
    assert all(file.suffix == ".npy" for file in files(store))
    check(PictureStore(store.root), many)
