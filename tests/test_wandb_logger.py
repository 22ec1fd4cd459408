"""W&B when it fails: a server that is away, or refuses the key, or stops; a training goes on."""

import http.server
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.utilities import rank_zero_only

from mtkd_lightning.artifacts import Artifact
from mtkd_lightning.loggers import Names
from mtkd_lightning.wandb_logger import Wandb


class Refusing(http.server.BaseHTTPRequestHandler):
    """Takes no key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b'{"errors": [{"message": "user is not logged in"}]}')

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def session(tmp_path, monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    """W&B as in a process of its own."""
    wandb.teardown()
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield monkeypatch
    wandb.teardown()


def logger(folder: Path, mode: str = "online", *, anew: bool = True) -> Wandb:
    names = Names("a net", "study", "distillation", ("tag" * 40,), {"weights": {"gt": 0.1}})
    settings = {"dir": str(folder), "project": "p", "entity": None, "artifacts": True}
    return Wandb(names, folder / "runs/net", settings, mode, anew=anew)


def kept(folder: Path) -> list[str]:
    found = [path for path in sorted((folder / "wandb").glob("*run-*")) if not path.is_symlink()]
    return [path.name.partition("run-")[0] + "run" for path in found]


def said(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """By us; W&B has its own file for what it says."""
    ours = (record for record in caplog.records if record.name == "mtkd_lightning.wandb_logger")
    return [record.getMessage() for record in ours if record.levelno >= level]


@pytest.mark.parametrize("server", ["away", "refusing"])
def test_a_server_that_cannot_be_used_means_offline(server, refusing, session, tmp_path, caplog):
    session.setenv("WANDB_BASE_URL", refusing if server == "refusing" else "http://127.0.0.1:9")
    caplog.set_level(logging.INFO)
    start = time.perf_counter()
    run = logger(tmp_path)
    run.log_metrics({"val/psnr": 30.0}, 1)
    run.finish(failed=False)
    assert time.perf_counter() - start < 20
    assert kept(tmp_path) == ["offline-run"]
    (warning,) = said(caplog, logging.WARNING)
    assert "cannot be used (" in warning
    assert warning.endswith("a net is kept offline.")
    assert "is kept in" in said(caplog)[-1]


def test_a_folder_that_cannot_be_written_to_ends_w_and_b_alone(session, tmp_path, caplog):
    (tmp_path / "wandb").write_text("no folder")
    run = logger(tmp_path, "offline")
    run.log_metrics({"val/psnr": 30.0}, 1)
    run.log_summary({"a": 1})
    run.finish(failed=False)
    assert [line[:23] for line in said(caplog)] == ["W&B cannot be used (Fil"]


def test_what_w_and_b_does_not_take_is_said_once(session, tmp_path, caplog):
    run = logger(tmp_path, "offline")
    run.log_metrics({"val/psnr": 30.0}, 1)
    part = Artifact(tmp_path / "net.safetensors", {})
    for _ in range(2):
        run.log_lineage("student", part, [])
    run.log_metrics({"val/psnr": 31.0}, 2)
    run.finish(failed=False)
    assert ["did not take the lineage" in line for line in said(caplog, logging.WARNING)] == [True]


def test_weights_are_uploaded_if_asked_and_there(session, tmp_path):
    run = logger(tmp_path, "offline")
    weights = tmp_path / "net.safetensors"
    weights.write_bytes(b"weights")
    there = run._artifact("student", Artifact(weights, {"sha256": "1"}))
    assert list(there.manifest.entries) == ["net.safetensors"]
    folder = run._artifact("teacher", Artifact(tmp_path / "a b", {"sha256": "2"}))
    assert list(folder.manifest.entries) == ["sha256"]
    assert folder.name == "a_b"
    assert run._artifact("teacher", Artifact(tmp_path / "c", {"sha256": "2"})).digest == folder.digest
    assert run._experiment is None  # nothing was begun


def test_a_run_is_gone_on_with_or_begun_anew(session, tmp_path):
    def opened(anew: bool) -> str:
        run = logger(tmp_path, "offline", anew=anew)
        run.log_metrics({"a": 1.0}, 1)
        assert wandb.run is None  # others of this process are their own
        found = run.version
        run.finish(failed=True)
        return str(found)

    first = opened(True)
    assert opened(False) == first
    assert opened(True) != first
    assert kept(tmp_path) == ["offline-run"] * 3


def test_other_ranks_have_no_run(session, tmp_path):
    session.setattr(rank_zero_only, "rank", 1)
    run = logger(tmp_path, "offline")
    assert run.experiment is not None  # which Lightning asks for on every rank
    run.log_metrics({"a": 1.0}, 1)
    run.log_summary({"a": 1})
    run.log_lineage("student", Artifact(tmp_path / "net", {"sha256": "0"}), [])
    run.finish(failed=False)
    assert not list(tmp_path.iterdir())
