"""W&B is a view: absent, broken or offline, it never stops a run, and the run folder has everything."""

import itertools
import json
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from pausebench import cli
from pausebench.config.commands import COMMANDS
from pausebench.config.help import conf_dir
from pausebench.config.options import Identity
from pausebench.training import tracking

LINE = "pretrain world=count20 train.steps=6 train.batch_size=8 train.log_every=2 tracking=wandb quiet=true"


TINY = "train.steps=6 train.batch_size=8 train.log_every=2 tracking=wandb quiet=true"


@pytest.fixture(autouse=True)
def nobody_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing said yet about W&B in this process."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(tracking, "_said", set())


def finished(root: Path) -> bool:
    (run,) = (root / "pretrain").iterdir()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (run / "result.json").exists() and [row["step"] for row in rows] == [2, 4, 6]


class Recorder:
    """Stands in for the wandb module and notes what it is told."""

    def __init__(self, failing: str | None = None) -> None:
        self.failing = failing
        self.initialised: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.Settings = SimpleNamespace

    def init(self, **given: Any) -> "Recorder":
        self.initialised = given
        self._fail("init")
        return self

    def login(self, prompt: bool) -> bool:
        self._fail("login")
        return "WANDB_API_KEY" in os.environ

    def log(self, row: dict[str, Any], step: int) -> None:
        self._fail("log")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self._fail("finish")

    def _fail(self, where: str) -> None:
        if self.failing == where:
            raise RuntimeError(f"no {where} today")


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_broken_wandb_costs_one_line_and_no_run(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Recorder(failing))
    assert cli.run([*LINE.split(), f"runs={tmp_path}"]) == 0
    assert f"no {failing} today" in capsys.readouterr().err.replace("\n", " ")
    assert finished(tmp_path)


def test_an_absent_wandb_costs_one_line_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.run([*LINE.split(), f"runs={tmp_path}"]) == 0
    assert "W&B failed and is left out" in capsys.readouterr().err
    assert finished(tmp_path)


def test_a_disk_that_fills_up_costs_one_line_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder, free = Recorder(), iter([10**9, 10**9])  # enough at the start and for one row
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=next(free, 0)))
    assert cli.run([*LINE.split(), f"runs={tmp_path}"]) == 0
    assert [row["step"] for row in recorder.rows] == [2]
    assert capsys.readouterr().err.count("W&B failed and is left out") == 1
    assert finished(tmp_path)


def test_wandb_is_told_the_same_numbers_offline_under_a_name_that_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    assert cli.run([*LINE.split(), f"runs={tmp_path / 'runs'}"]) == 0
    (run,) = (tmp_path / "runs" / "pretrain").iterdir()
    assert recorder.rows == [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert recorder.initialised["mode"] == "offline"
    assert recorder.initialised["id"] == run.name
    assert recorder.initialised["resume"] == "allow"


def test_tracking_off_never_imports_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.run([*LINE.replace("tracking=wandb", "tracking=off").split(), f"runs={tmp_path}"]) == 0
    assert finished(tmp_path)


def test_a_key_without_a_network_keeps_the_run_offline_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder("login")
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    for seed in (0, 1):
        assert cli.run([*LINE.split(), f"seed={seed}", f"runs={tmp_path}"]) == 0
    assert recorder.initialised["mode"] == "offline"
    assert capsys.readouterr().err.count("W&B is kept offline (RuntimeError: no login today)") == 1


@pytest.mark.parametrize(
    ("environment", "mode"),
    [({}, "offline"), ({"WANDB_API_KEY": "0"}, "online"), ({"WANDB_API_KEY": "0", "WANDB_MODE": "offline"}, "offline")],
)
def test_a_login_means_online_unless_wandb_mode_says_otherwise(
    environment: dict[str, str], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.run([*LINE.split(), f"runs={tmp_path}"]) == 0
    assert recorder.initialised["mode"] == mode


def test_wandb_itself_takes_an_empty_machine_for_not_logged_in() -> None:
    """Without credentials it answers at once, from no network."""
    assert pytest.importorskip("wandb").login(prompt=False) is False


def test_in_a_sweep_the_agents_id_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert cli.run([*LINE.split(), f"runs={tmp_path}"]) == 0
    assert "id" not in recorder.initialised


def test_a_published_figure_is_a_constant_beside_the_cells_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    monkeypatch.setattr("pausebench.training.start.reference", lambda cell: 0.559)
    assert cli.run([*LINE.split(), f"runs={tmp_path}"]) == 0
    assert [row["published_value"] for row in recorder.rows] == [0.559] * 3
    assert "1B" in recorder.initialised["config"]["published"]


@pytest.mark.parametrize(
    ("change", "compared"),
    [
        ({}, True),
        ({"mt": None}, True),
        ({"mt": 5}, False),
        ({"filler": "."}, False),
        ({"placement": "prepend"}, False),
        ({"data": "embedded"}, False),
        ({"k": 0, "mt": 0, "shift": 10, "variant": "PausePT_StdFT"}, False),
        ({"pause_visibility": "readout"}, False),
        ({"pretraining_visibility": "self"}, False),
        ({"pretraining_visibility": "all"}, True),
        ({"task": "parity"}, False),
    ],
)
def test_only_what_the_paper_measured_stands_beside_its_figure(change: dict[str, Any], compared: bool) -> None:
    cell = {"task": "squad", "variant": "PausePT_PauseFT", "k": 10, "mt": 10, "filler": "<pause>"}
    found = tracking.reference(cell | {"placement": "append", "data": "hub"} | change)
    assert found == (0.517 if compared else None)


@pytest.mark.parametrize("command", [name for name in COMMANDS if hasattr(COMMANDS[name], "tracking")])
def test_tracking_is_no_part_of_what_a_run_is(command: str) -> None:
    assert COMMANDS[command].__dataclass_fields__["tracking"].metadata["identity"] is Identity.never


def stored(file: Path) -> list[Any]:
    """The records of a .wandb file: 7 bytes of header, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole, records = file.read_bytes(), 7, b"", []
    assert content[:4] == b":W&B"
    while at < len(content):
        if 32768 - at % 32768 < 7:  # no room for another head in this block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            records.append(Record.FromString(whole))
            whole = b""
    return records


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of a tiny cell's three stages, tracked by W&B itself, offline."""
    pytest.importorskip("wandb")
    root = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        line = f"{TINY} tracking.group=study runs={root}"
        assert cli.run(["pretrain", "world=count20", *line.split()]) == 0
        assert cli.run(["finetune", "task=parity", "k=2", *line.split()]) == 0
        (run,) = (root / "finetune").iterdir()
        line = f"evaluate run={run} mt=[0,2] limit=20 tracking.group=study quiet=true runs={root}"
        assert cli.run(line.split()) == 0
    return root


def file_of(run: Path) -> Path:
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    return file


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "evaluate"])
def test_wandbs_own_file_has_group_stage_and_cell(stage: str, tracked: Path) -> None:
    for folder in (tracked / stage).iterdir():
        run = next(record.run for record in stored(file_of(folder)) if record.HasField("run"))
        config = {update.key: json.loads(update.value_json) for update in run.config.update}
        assert (run.run_group, run.job_type, run.run_id) == ("study", stage, folder.name)
        cell = {name: config[name] for name in tracking.CELL}
        assert cell["seed"] == 0
        assert cell["variant"] == ("PausePT" if stage == "pretrain" else "PausePT_PauseFT")
        assert cell["task"] == (None if stage == "pretrain" else "parity")
        if stage == "evaluate":
            result = json.loads((folder / "result.json").read_text())
            assert cell == {name: result[name] for name in tracking.CELL}


def history(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for record in stored(file_of(folder)):
        if record.HasField("history"):
            items = {
                (item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item
            }
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def test_wandbs_own_file_has_the_rows_of_metrics_jsonl(tracked: Path) -> None:
    for stage in ("pretrain", "finetune"):
        (folder,) = (tracked / stage).iterdir()
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert history(folder) == [pytest.approx(row) for row in rows]


def test_wandbs_own_file_has_the_scores_of_an_evaluation(tracked: Path) -> None:
    for folder in (tracked / "evaluate").iterdir():
        result = json.loads((folder / "result.json").read_text())
        (row,) = history(folder)
        assert {name: row[name] for name in tracking.SCORES} == {name: result[name] for name in tracking.SCORES}


def test_the_example_of_a_wandb_sweep_composes_for_every_combination() -> None:
    """The command lines that W&B's agent would start, expanded by its own code."""
    sweeps = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    sweep = yaml.safe_load((Path(__file__).parents[2] / "docs" / "wandb_sweep.yaml").read_text())
    asked = {name: given.get("values", [given.get("value")]) for name, given in sweep["parameters"].items()}
    cli.register_config()
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        for values in itertools.product(*asked.values()):
            chosen = {name: {"value": value} for name, value in zip(asked, values, strict=True)}
            known = sweeps.create_sweep_command_args({"args": chosen})
            known |= {"program": [sweep["program"]], "env": ["/usr/bin/env"]}
            words = [
                part
                for word in sweeps.create_sweep_command(sweep["command"])
                for part in (known[word[2:-1]] if word.startswith("${") else [word])
            ]
            assert words[:3] == ["/usr/bin/env", "pausebench", "finetune"]
            config = cli.to_config("finetune", compose("finetune", words[3:]), words[3:])
            assert config.tracking.enabled
            assert (config.task.name, config.pretraining.value, config.k, config.train.lr, config.seed) == values[:5]
