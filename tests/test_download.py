import hashlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mtkd_lightning import download
from mtkd_lightning.download import fetch
from mtkd_lightning.errors import MTKDError

CONTENT = os.urandom(300_000)
SOURCE = Path(download.__file__).parents[1]
SCRIPT = """
import logging, sys
from pathlib import Path
from mtkd_lightning.download import fetch
from mtkd_lightning.errors import MTKDError
logging.basicConfig(level=logging.INFO)
try:
    print(fetch(sys.argv[1], Path(sys.argv[2])))
except MTKDError as error:
    print(error)
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Reply:
    """How the server departs from what it should do, for one request."""

    status: int | None = None
    cut: int | None = None  # bytes after which the connection ends
    wait: threading.Event | None = None  # waited for at the cut, before the rest
    ranges: bool = True
    if_range: bool = True
    shift: int = 0  # of the range that is sent
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        files: Server = self.server
        files.asked.append((self.path, dict(self.headers)))
        reply = files.replies.pop(0) if files.replies else files.usual
        content, versions = files.content, files.versions
        if reply.status is not None:
            self.send_response(reply.status)
            self._end({**reply.headers, "Content-Length": "4"})
            self.wfile.write(b"no!\n")
            return
        start, wanted = 0, self.headers.get("Range")
        same = not reply.if_range or self.headers.get("If-Range") in versions.values()
        if wanted and reply.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + reply.shift
            if start >= len(content):
                self.send_response(416)
                self._end({"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        length = {"Content-Length": str(len(content) - start)} if reply.length else {}
        self._end(versions | length | reply.headers)
        self.wfile.write(content[start : start + reply.cut if reply.cut is not None else None])
        if reply.wait:
            self.wfile.flush()
            reply.wait.wait(20)
            self.wfile.write(content[start + reply.cut :])

    def _end(self, headers: dict[str, str]) -> None:
        for item in headers.items():
            self.send_header(*item)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.versions = {"ETag": '"first"', "Last-Modified": "Tue, 01 Feb 2022 00:00:00 GMT"}
        self.replies: list[Reply] = []
        self.usual = Reply()
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/net.pth"

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.asked]

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no news."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "weights" / "net_x4.pth"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.001)
    for name in ("MIRROR", "OFFLINE", "CACHE"):
        monkeypatch.delenv(f"MTKD_LIGHTNING_{name}", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def names(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")}


def test_a_file_comes_once(server, path):
    wanted = sha256(CONTENT)
    assert fetch(server.url, path, sha256=wanted.upper()) == wanted
    assert path.read_bytes() == CONTENT
    assert names(path) == {"net_x4.pth"}
    assert fetch(server.url, path, sha256=wanted) == wanted
    assert fetch(server.url, path, sha256=wanted[:8]) == wanted
    assert len(server.asked) == 1
    assert server.asked[0][1]["User-Agent"].startswith("mtkd-lightning/")


@pytest.mark.parametrize("digits", [0, 8, 63])
def test_a_digest_that_is_not_known_whole_is_recorded(server, path, digits, caplog):
    caplog.set_level(logging.INFO)
    wanted = sha256(CONTENT)
    known = wanted[:digits] or None
    assert fetch(server.url, path, sha256=known) == wanted
    assert path.with_name("net_x4.pth.sha256").read_text() == f"{wanted}  net_x4.pth\n"
    published = f"only the first {digits} digits of it are" if digits else "none is"
    assert f"recorded beside it, for {published} published" in caplog.text

    path.write_bytes(b"changed")
    assert fetch(server.url, path, sha256=known) == wanted
    assert path.read_bytes() == CONTENT
    assert f"has sha256 {sha256(b'changed')}, not {wanted}: fetching it again" in caplog.text

    path.unlink()
    server.content = b"renewed"
    server.versions["ETag"] = '"second"'
    with pytest.raises(MTKDError, match=rf"to accept another, delete {path}\.sha256"):
        fetch(server.url, path, sha256=known)
    assert names(path) == {"net_x4.pth.sha256"}
    path.with_name("net_x4.pth.sha256").unlink()
    if not known:
        assert fetch(server.url, path) == sha256(b"renewed")


def test_a_file_put_there_by_hand_is_taken(server, path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert fetch(server.url, path, sha256=sha256(CONTENT)[:8]) == sha256(CONTENT)
    assert names(path) == {"net_x4.pth", "net_x4.pth.sha256"}
    assert not server.asked


def test_a_record_gives_way_to_what_is_published(server, path):
    path.parent.mkdir()
    path.with_name("net_x4.pth.sha256").write_text("0" * 64 + "  net_x4.pth\n")
    assert fetch(server.url, path, sha256=sha256(CONTENT)[:8]) == sha256(CONTENT)
    assert path.with_name("net_x4.pth.sha256").read_text().startswith(sha256(CONTENT))


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 65])
def test_a_digest_must_be_one(path, digest):
    with pytest.raises(MTKDError, match="give its 64 hexadecimal digits or the first 8 or more"):
        fetch("https://example.org/net.pth", path, sha256=digest)


def test_a_cut_connection_is_resumed(server, path, caplog):
    server.replies = [Reply(cut=100_000), Reply(cut=50_000)]
    assert fetch(server.url, path) == sha256(CONTENT)
    assert server.ranges() == [None, "bytes=100000-", "bytes=150000-"]
    assert [headers.get("If-Range") for _, headers in server.asked] == [None, '"first"', '"first"']
    assert "the connection was cut; going on at 0.1 MB" in caplog.text


def test_any_number_of_cuts_that_bring_something(server, path):
    server.replies = [Reply(cut=20_000)] * 3 * download.TRIES
    with pytest.raises(MTKDError):
        fetch(server.url, path, sha256="0" * 64)  # through, but another file
    assert len(server.asked) == 3 * download.TRIES
    assert fetch(server.url, path) == sha256(CONTENT)


def test_cuts_at_the_same_place_end_it(server, path):
    server.usual = Reply(cut=100_000, ranges=False)
    with pytest.raises(MTKDError, match=f"the connection was cut; given up after {download.TRIES} tries"):
        fetch(server.url, path)
    assert len(server.asked) == download.TRIES
    assert path.with_name("net_x4.pth.part").read_bytes() == CONTENT[:100_000]
    server.usual = Reply()
    assert fetch(server.url, path) == sha256(CONTENT)
    assert server.ranges()[-1] == "bytes=100000-"
    assert names(path) == {"net_x4.pth", "net_x4.pth.sha256"}


def test_a_server_without_ranges(server, path):
    server.replies = [Reply(cut=100_000), Reply(ranges=False)]
    assert fetch(server.url, path) == sha256(CONTENT)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("if_range", [True, False])
def test_a_file_that_changes_on_the_server_is_not_mixed(server, path, if_range):
    server.replies = [Reply(cut=100_000)]
    server.usual = Reply(status=404)
    with pytest.raises(MTKDError, match="HTTP 404"):
        fetch(server.url, path)
    server.content = os.urandom(200_000)
    server.versions = {"ETag": '"second"'}
    server.usual = Reply(if_range=if_range)
    assert fetch(server.url, path) == sha256(server.content)
    assert server.ranges()[2:] == ["bytes=100000-"] + [None] * (not if_range)


def test_another_range_than_asked_for(server, path):
    server.replies = [Reply(cut=100_000), Reply(shift=-10)]
    assert fetch(server.url, path) == sha256(CONTENT)
    assert server.ranges() == [None, "bytes=100000-", None]


def test_a_range_that_cannot_be_satisfied(server, path):
    server.replies = [Reply(cut=100_000), Reply(status=404)]
    with pytest.raises(MTKDError):
        fetch(server.url, path)
    server.content = CONTENT[:50_000]
    assert fetch(server.url, path) == sha256(server.content)
    assert server.ranges()[2:] == ["bytes=100000-", None]


@pytest.mark.parametrize(
    ("versions", "condition"),
    [
        ({"ETag": 'W/"weak"', "Last-Modified": "Tue, 01 Feb 2022 00:00:00 GMT"}, "Tue, 01 Feb 2022 00:00:00 GMT"),
        ({"ETag": 'W/"weak"'}, None),
        ({}, None),
    ],
)
def test_what_cannot_be_told_apart_is_not_resumed(server, path, versions, condition):
    server.versions = versions
    server.replies = [Reply(cut=100_000)]
    assert fetch(server.url, path) == sha256(CONTENT)
    assert server.asked[1][1].get("If-Range") == condition
    assert server.ranges()[1] == ("bytes=100000-" if condition else None)


def test_a_partial_file_of_another_url_is_not_resumed(server, path):
    server.replies = [Reply(cut=100_000), Reply(status=404)]
    with pytest.raises(MTKDError):
        fetch(server.url, path)
    assert fetch(f"{server.url}?other", path) == sha256(CONTENT)
    assert server.ranges()[-1] is None


@pytest.mark.parametrize("note", ['{"url": ', None])
def test_a_partial_file_of_unknown_origin_is_not_resumed(server, path, note):
    path.parent.mkdir()
    path.with_name("net_x4.pth.part").write_bytes(b"x" * 400_000)
    if note:
        path.with_name("net_x4.pth.part.json").write_text(note)
    assert fetch(server.url, path) == sha256(CONTENT)
    assert server.ranges() == [None]


def test_a_complete_partial_file_is_not_asked_for_again(server, path):
    path.parent.mkdir()
    path.with_name("net_x4.pth.part").write_bytes(CONTENT)
    note = {"url": server.url, "version": '"first"', "size": len(CONTENT)}
    path.with_name("net_x4.pth.part.json").write_text(json.dumps(note))
    assert fetch(server.url, path, sha256=sha256(CONTENT)) == sha256(CONTENT)
    assert names(path) == {"net_x4.pth"}
    assert not server.asked


def test_waits_double_and_heed_the_server(server, path, monkeypatch):
    waits = []
    monkeypatch.setattr(download, "WAIT", 1.0)
    monkeypatch.setattr(download.time, "sleep", waits.append)
    server.replies = [Reply(503), Reply(502), Reply(429, headers={"Retry-After": "30"}), Reply(503)]
    assert fetch(server.url, path) == sha256(CONTENT)
    assert waits == [1, 2, 30, 8]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(server, path, status):
    server.usual = Reply(status)
    with pytest.raises(MTKDError) as error:
        fetch(server.url, path)
    assert f"{server.url}: HTTP {status}, " in str(error.value)
    assert f"Put the file at {path}" in str(error.value)
    assert len(server.asked) == 1
    assert names(path) == set()


def test_the_wrong_content_is_removed(server, path):
    wanted = "0" * 64
    with pytest.raises(MTKDError, match=f"its sha256 is {sha256(CONTENT)}; wanted is {wanted}"):
        fetch(server.url, path, sha256=wanted)
    assert names(path) == set()


def test_the_wrong_content_leaves_the_old_file(server, path):
    path.parent.mkdir()
    path.write_bytes(b"old")
    with pytest.raises(MTKDError, match="removed what came"):
        fetch(server.url, path, sha256="0" * 64)
    assert path.read_bytes() == b"old"


def test_redirects_are_followed(server, path):
    other = f"http://localhost:{server.server_port}/other.pth"
    moved = Reply(302, headers={"Location": other})
    server.replies = [moved, Reply(cut=100_000), moved]
    assert fetch(server.url, path) == sha256(CONTENT)
    assert [asked for asked, _ in server.asked] == ["/net.pth", "/other.pth"] * 2
    assert server.ranges()[3] == "bytes=100000-"


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/net.pth", "data:,net"])
def test_redirects_away_from_http_are_not_followed(server, path, target):
    server.usual = Reply(302, headers={"Location": target})
    with pytest.raises(MTKDError, match="HTTP 302"):
        fetch(server.url, path)
    assert len(server.asked) == 1
    assert names(path) == set()


def test_a_circle_of_redirects_ends(server, path):
    server.usual = Reply(302, headers={"Location": server.url})
    with pytest.raises(MTKDError, match="infinite loop"):
        fetch(server.url, path)


def test_nobody_answers(server, path):
    with Server() as gone:
        url = gone.url
    with pytest.raises(MTKDError, match=f"refused; given up after {download.TRIES} tries"):
        fetch(url, path)


def test_a_silent_server(server, path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 2.0)
    silence = threading.Event()
    server.replies = [Reply(cut=100_000, wait=silence)]
    try:
        assert fetch(server.url, path) == sha256(CONTENT)
    finally:
        silence.set()
    assert server.ranges() == [None, "bytes=65536-"]


@pytest.mark.parametrize("rest", ["[::1/net.pth", "127.0.0.1:port/net.pth", "127.0.0.1/a net.pth", "127.0.0.1/größe"])
def test_no_url(path, rest):
    with pytest.raises(MTKDError, match=r"cannot get net_x4\.pth") as error:
        fetch(f"http://{rest}", path)
    assert "given up" not in str(error.value)


def test_a_scheme_that_is_not_read(path):
    with pytest.raises(MTKDError, match="only https://, http://, file:// and local paths can be read"):
        fetch("ftp://example.org/net.pth", path)


def test_without_a_length(server, path):
    server.usual = Reply(length=False)
    assert fetch(server.url, path) == sha256(CONTENT)


def test_a_proxy_is_used(server, path, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    assert fetch("http://weights.invalid/net.pth", path) == sha256(CONTENT)
    assert server.asked[0][0] == "http://weights.invalid/net.pth"


@pytest.mark.parametrize("how", ["url", "path"])
def test_local_files(tmp_path, path, how):
    local = tmp_path / "a folder" / "größe 100%.pth"
    local.parent.mkdir()
    local.write_bytes(CONTENT)
    place = local.as_uri() if how == "url" else str(local)
    assert fetch(place, path) == sha256(CONTENT)
    assert local.read_bytes() == path.read_bytes() == CONTENT
    local.unlink()
    path.unlink()
    with pytest.raises(MTKDError, match="No such file") as error:
        fetch(place, path)
    assert "given up" not in str(error.value)


def test_a_mirror_is_asked_first(server, path, tmp_path, monkeypatch, caplog):
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", str(mirror))
    wanted = sha256(CONTENT)

    assert fetch(server.url, path, sha256=wanted) == wanted
    assert "No such file" in caplog.text
    assert len(server.asked) == 1

    path.unlink()
    (mirror / path.name).write_bytes(b"another")
    assert fetch(server.url, path, sha256=wanted) == wanted
    assert f"its sha256 is {sha256(b'another')}" in caplog.text
    assert len(server.asked) == 2

    path.unlink()
    (mirror / path.name).write_bytes(CONTENT)
    assert fetch(server.url, path, sha256=wanted) == wanted
    assert len(server.asked) == 2
    assert names(path) == {"net_x4.pth"}


def test_a_mirror_on_the_network(server, path, monkeypatch):
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", server.url.replace("/net.pth", "/mirror/"))
    assert fetch("https://weights.invalid/net.pth", path.with_name("net 4.pth")) == sha256(CONTENT)
    assert server.asked[0][0] == "/mirror/net%204.pth"


def test_both_sources_are_named_when_both_fail(server, path, monkeypatch):
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", server.url.replace("/net.pth", "/mirror"))
    server.usual = Reply(404)
    with pytest.raises(MTKDError, match=r"(?s)/mirror/net_x4.pth: HTTP 404, .*/net.pth: HTTP 404, "):
        fetch(server.url, path)


def test_offline(server, path, tmp_path, monkeypatch):
    monkeypatch.setenv("MTKD_LIGHTNING_OFFLINE", "1")
    with pytest.raises(MTKDError) as error:
        fetch(server.url, path)
    assert all(text in str(error.value) for text in (server.url, str(path), "unset MTKD_LIGHTNING_OFFLINE"))
    (tmp_path / path.name).write_bytes(CONTENT)
    monkeypatch.setenv("MTKD_LIGHTNING_MIRROR", str(tmp_path))
    assert fetch(server.url, path) == sha256(CONTENT)
    monkeypatch.delenv("MTKD_LIGHTNING_MIRROR")
    assert fetch(server.url, path) == sha256(CONTENT)
    assert not server.asked
    monkeypatch.setenv("MTKD_LIGHTNING_OFFLINE", "0")
    assert fetch(server.url, path.with_name("other")) == sha256(CONTENT)


def test_a_folder_that_cannot_be(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MTKDError, match=r"cannot write .*file/net\.pth"):
        fetch(server.url, tmp_path / "file" / "net.pth")


def test_a_bar_in_a_terminal(server, path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    server.replies = [Reply(cut=150_000)]
    fetch(server.url, path)
    assert "net.pth:   0%" in terminal.getvalue()
    assert "net.pth:  50%" in terminal.getvalue()
    assert "/300k [" in terminal.getvalue()


def test_lines_elsewhere(server, path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    fetch(server.url, path)
    assert f"Downloading {server.url}, 0.3 MB" in caplog.text
    assert "of 0.3 MB" not in caplog.text
    monkeypatch.setattr(download, "REPORT", 0)
    fetch(server.url, path.with_name("again"))
    assert f"{server.url}: 0.1 of 0.3 MB" in caplog.text


def started(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_download_is_resumed(server, path):
    silence = threading.Event()
    server.replies = [Reply(cut=200_000, wait=silence)]
    part = path.with_name("net_x4.pth.part")
    with started(server.url, path) as process:
        while not part.exists() or part.stat().st_size < 100_000:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    silence.set()
    have = part.stat().st_size
    assert fetch(server.url, path) == sha256(CONTENT)
    assert server.ranges() == [None, f"bytes={have}-"]
    assert names(path) == {"net_x4.pth", "net_x4.pth.sha256"}


def test_of_two_processes_one_downloads(server, path):
    silence = threading.Event()
    server.replies = [Reply(cut=200_000, wait=silence)]
    with started(server.url, path) as first:
        while not server.asked:
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.01)
        with started(server.url, path) as second:
            assert "Waiting for another process" in second.stderr.readline()
            silence.set()
            results = [process.communicate(timeout=20)[0].strip() for process in (first, second)]
    assert results == [sha256(CONTENT)] * 2
    assert len(server.asked) == 1


def test_a_full_disk(server, tmp_path):
    """A disk of 128 KiB in a name space of its own: too small with and without a length to check, then enlarged."""
    (tmp_path / "small").mkdir()
    (tmp_path / "fetch.py").write_text(SCRIPT)
    lines = f"""
        mount -t tmpfs -o size=128k none small
        "$0" fetch.py {server.url} small/net.pth 2>/dev/null
        "$0" fetch.py {server.url} small/net.pth 2>/dev/null
        stat -c %s small/net.pth.part
        mount -o remount,size=1m small
        "$0" fetch.py {server.url} small/net.pth 2>/dev/null
    """
    server.replies = [Reply(), Reply(length=False)]
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-ec", lines, sys.executable],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no unshare command to mount a small file system with")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    early, full, size, digest = done.stdout.splitlines()
    assert early.startswith("no space for small/net.pth: 0.3 MB are to come, 0.1 MB are free. Free some space")
    assert full.startswith("no space for small/net.pth: the disk is full, 0.0 MB are free. Free some space")
    assert int(size) > 65536
    assert server.ranges() == [None, None, f"bytes={size}-"]
    assert digest == sha256(CONTENT)
