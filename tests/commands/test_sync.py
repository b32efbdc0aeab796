"""Offline W&B runs are uploaded once, run folder by run folder, or the user is told what to type."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from pausebench import cli
from pausebench.commands import sync
from pausebench.runs.folder import RunFolder
from pausebench.training import tracking

pytest.importorskip("wandb")
NOWHERE = "http://127.0.0.1:9"  # where nobody answers


@pytest.fixture(autouse=True)
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(tracking, "server_url", lambda wandb: NOWHERE)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three run folders: one started twice, one plain, one already uploaded."""
    for stage, name, starts, uploaded in (
        ("finetune", "a", 2, False),
        ("evaluate", "b", 1, False),
        ("evaluate", "c", 1, True),
    ):
        for start in range(starts):
            folder = tmp_path / "runs" / stage / name / "wandb" / f"offline-run-2026010{start + 1}_000000-{name}"
            folder.mkdir(parents=True)
            (folder / f"run-{name}.wandb").write_bytes(b":W&B")
            if uploaded:
                (folder / f"run-{name}.wandb.synced").touch()
    return tmp_path / "runs"


class Server:
    """Stands in for ``wandb sync``: notes the directories it is given and marks them, but for those it refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: str = "") -> None:
        self.calls: list[list[str]] = []
        self.refuses = refuses
        monkeypatch.setattr(sync, "upload", self.upload)
        monkeypatch.setattr(tracking, "logged_in", lambda url: True)
        monkeypatch.setattr(tracking, "unreachable", lambda url: None)

    def upload(self, directories: Sequence[Path]) -> str:
        self.calls.append([directory.parents[1].name for directory in directories])
        for directory in directories:
            (file,) = directory.glob("*.wandb")
            if directory.parents[1].name != self.refuses:
                file.with_name(f"{file.name}.synced").touch()
        return "  permission denied"


def test_every_run_folder_is_uploaded_once_and_never_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch)
    assert cli.run(["sync", f"runs={runs}"]) == 0
    assert server.calls == [["b"], ["a", "a"]]
    assert cli.run(["sync", f"runs={runs}"]) == 0
    assert len(server.calls) == 2


def test_a_refused_upload_ends_with_1_and_the_next_call_goes_on_there(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Server(monkeypatch, refuses="a")
    assert cli.run(["sync", f"runs={runs}"]) == 1
    assert "permission denied" in (said := capsys.readouterr().err)
    assert "1 of 2 run folders were" in said
    server = Server(monkeypatch)
    assert cli.run(["sync", f"runs={runs}"]) == 0
    assert server.calls == [["a", "a"]]


def test_a_run_in_use_is_left_for_later(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(monkeypatch)
    with RunFolder(runs, "finetune", "a").locked():
        assert cli.run(["sync", f"runs={runs}"]) == 0
    assert server.calls == [["b"]]
    assert "still running" in capsys.readouterr().err


def test_dry_run_lists_and_uploads_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(monkeypatch)
    assert cli.run(["sync", f"runs={runs}", "dry_run=true"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{runs}/evaluate/b",
        f"{runs}/finetune/a",
        f"{runs}/finetune/a",
    ]
    assert server.calls == []


def test_without_a_login_the_user_is_told_to_log_in(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["sync", f"runs={runs}"]) == 2
    assert "wandb login" in capsys.readouterr().err


def test_without_a_network_nothing_is_marked(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert cli.run(["sync", f"runs={runs}"]) == 2
    assert f"{NOWHERE} cannot be reached" in capsys.readouterr().err
    assert len(list(runs.rglob("*.synced"))) == 1


def test_wandbs_own_refusal_is_passed_on(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``wandb sync`` itself, without a key: what it says is shown, and what it did not upload stays unmarked."""
    monkeypatch.setattr(tracking, "logged_in", lambda url: True)
    monkeypatch.setattr(tracking, "unreachable", lambda url: None)
    assert cli.run(["sync", f"runs={runs}"]) == 1
    assert "No API key configured" in capsys.readouterr().err
    assert len(list(runs.rglob("*.synced"))) == 1


def test_nothing_to_upload_needs_no_login(tmp_path: Path) -> None:
    assert cli.run(["sync", f"runs={tmp_path}"]) == 0
