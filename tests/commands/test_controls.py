"""The readers' controls from the command line, and the names of runs that use none of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from pausebench import cli
from pausebench.commands import evaluate, finetune, pretrain
from pausebench.config.commands import EvaluateConfig
from pausebench.config.groups import Placement
from pausebench.config.help import conf_dir
from pausebench.runs import lineage
from pausebench.tasks import TASKS

TINY = "train.steps=4 train.batch_size=8 train.log_every=2 train.checkpoint_every=2 tracking=off quiet=true"


def typed(line: str) -> int:
    return cli.run(line.split())


def only(root: Path, pattern: str) -> Path:
    (found,) = root.glob(pattern)
    return found


def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PausePT with open pauses and with pauses that the read-out alone sees."""
    root = tmp_path_factory.mktemp("made")
    for visibility in ("all", "readout"):
        assert typed(f"pretrain world=count20 pause_visibility={visibility} {TINY} runs={root}") == 0
    return root


def hidden_parent(root: Path) -> Path:
    every = (root / "pretrain").iterdir()
    return next(path for path in every if read(path / "manifest.json")["pause_visibility"] == "readout")


def composed(command: str, line: str) -> Any:
    cli.register_config()
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        return cli.to_config(command, compose(command, line.split()), line.split())


@pytest.mark.usefixtures("first_numerics")
@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("world=count20 pause=on train.steps=30", "count20-mini-PausePT-s0-a904e020"),
        ("world=count20 pause=off train.steps=30", "count20-mini-StdPT-s0-fb5023fa"),
        ("world=count20 pause=off pause_visibility=self train.steps=30", "count20-mini-StdPT-s0-fb5023fa"),
        (
            "model=tiny world.sequence_length=80 pause=on train.steps=5 train.batch_size=4 precision=bf16",
            "english-tiny-PausePT-s0-df783c86",
        ),
    ],
)
def test_a_pretraining_without_a_control_has_the_name_it_had(line: str, name: str) -> None:
    assert pretrain.folder_of(composed("pretrain", line)).name == name


@pytest.mark.usefixtures("first_numerics")
@pytest.mark.parametrize(
    ("line", "parent", "name"),
    [
        ("task=parity k=8 prefix=causal", "PausePT-s0-a904e020", "PausePT_PauseFT-k8-s0-1ac0d1a2"),
        ("task=parity k=8 prefix=bidirectional", "StdPT-s0-fb5023fa", "StdPT_PauseFT-k8-s0-37b9636c"),
        ("task=parity k=4 placement=prepend", "PausePT-s0-a904e020", "PausePT_PauseFT-k4-s0-b18feb44"),
        ("task=parity k=0 prefix=causal", "PausePT-s0-a904e020", "PausePT_StdFT-k0-s0-b1232f97"),
        (
            "task=parity k=0 prefix=causal shift=0 filler=end pause_visibility=self placement=prepend",
            "PausePT-s0-a904e020",
            "PausePT_StdFT-k0-s0-b1232f97",
        ),
    ],
)
def test_a_finetuning_without_a_control_has_the_name_it_had(line: str, parent: str, name: str) -> None:
    config = composed("finetune", f"{line} world=count20 train.steps=30")
    pretraining = "pause" if parent.startswith("Pause") else "std"
    planned = replace(lineage.RANDOM, name=f"count20-mini-{parent}", pretraining=pretraining)
    assert finetune.folder_of(config, planned).name == f"parity-count20-mini-{name}"


@pytest.mark.usefixtures("first_numerics")
@pytest.mark.parametrize(
    ("run", "m", "filler", "placement", "name"),
    [
        ("k4-s0-b18feb44", 0, "pause", "prepend", "k4-s0-m0-ff2f15ff"),
        ("k4-s0-b18feb44", 4, "pause", "prepend", "k4-s0-m4-2f16e0a0"),
        ("k8-s0-1ac0d1a2", 4, "end", "prepend", "k8-s0-m4-99afeaeb"),
    ],
)
def test_an_evaluation_has_the_name_it_had(run: str, m: int, filler: str, placement: str, name: str) -> None:
    before = "parity-count20-mini-PausePT_PauseFT-"
    config = EvaluateConfig(run="x", filler=filler, limit=200)
    assert evaluate.folder_of(config, before + run, Placement(placement), m).name == before + name


def test_a_task_of_another_version_has_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score by an old rule is never found under the new one."""
    config = composed("finetune", "task=parity init=random k=8")
    names = set()
    for version in (1, 2, 3):
        monkeypatch.setitem(TASKS, "parity", replace(TASKS["parity"], version=version))
        finetuned = finetune.folder_of(config, lineage.RANDOM).name
        evaluated = evaluate.folder_of(EvaluateConfig(run="x", filler="pause"), finetuned, Placement.append, 8).name
        names |= {finetuned, evaluated}
    assert len(names) == 6


def test_every_control_is_another_run() -> None:
    lines = [
        "k=8",
        "k=8 pause_visibility=readout",
        "k=8 pause_visibility=self",
        "k=8 filler=end",
        "k=0",
        "k=0 shift=8",
        "k=0 shift=9",
        "k=0 shift=8 placement=prepend",
    ]
    configs = [composed("finetune", f"task=parity init=random {line}") for line in lines]
    assert len({finetune.folder_of(config, lineage.RANDOM).name for config in configs}) == len(lines)


# Parents


def test_a_hidden_parent_is_found_by_init_alone(made: Path, tmp_path: Path) -> None:
    (tmp_path / "pretrain").symlink_to(made / "pretrain")
    assert typed(f"finetune task=parity k=2 {TINY} runs={tmp_path}") == 0, "one parent fits, though there are two"
    manifest = read(only(tmp_path, "finetune/*/manifest.json"))
    assert manifest["parent"] != hidden_parent(made).name
    assert (manifest["pause_visibility"], manifest["pretraining_visibility"]) == ("all", "all")
    hidden = hidden_parent(made)
    assert typed(f"finetune task=parity k=2 seed=1 init={hidden} {TINY} runs={tmp_path}") == 0
    manifest = read(only(tmp_path, "finetune/*-s1-*/manifest.json"))
    assert (manifest["parent"], manifest["pretraining_visibility"]) == (hidden.name, "readout")


def test_a_manifest_of_before_there_were_controls_counts_as_visible_to_all(made: Path, tmp_path: Path) -> None:
    parent = next(path for path in (made / "pretrain").iterdir() if path != hidden_parent(made))
    old = tmp_path / "pretrain" / parent.name
    old.mkdir(parents=True)
    for file in parent.iterdir():
        (old / file.name).symlink_to(file)
    manifest = read(parent / "manifest.json")
    assert manifest.pop("pause_visibility") == "all"
    (old / "manifest.json").unlink()
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert typed(f"finetune task=parity k=2 {TINY} runs={tmp_path}") == 0


def test_where_only_a_hidden_parent_exists_the_command_that_makes_the_other_is_said(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / hidden_parent(made).name).symlink_to(hidden_parent(made))
    assert typed(f"finetune task=parity k=2 {TINY} runs={tmp_path}") == 2
    assert "pausebench pretrain world=count20 model=mini pause=on" in capsys.readouterr().err


# Finetuned and evaluated


@pytest.mark.parametrize(
    ("control", "told"),
    [
        ("k=3 pause_visibility=readout", {"pause_visibility": "readout", "finetuned_filler": "<pause>", "shift": 0}),
        ("k=3 pause_visibility=self filler=end", {"pause_visibility": "self", "finetuned_filler": "<end>"}),
        ("k=3 filler=0", {"pause_visibility": "all", "finetuned_filler": "0", "shift": 0}),
        ("k=0 shift=3", {"pause_visibility": "all", "finetuned_filler": "<pause>", "shift": 3}),
        ("k=0 shift=3 placement=prepend", {"shift": 3, "placement": "prepend"}),
    ],
)
def test_an_evaluation_reads_rows_as_they_were_finetuned_and_says_so(
    control: str, told: dict[str, Any], made: Path, tmp_path: Path
) -> None:
    (tmp_path / "pretrain").symlink_to(made / "pretrain")
    assert typed(f"finetune task=parity {control} {TINY} runs={tmp_path}") == 0
    run = only(tmp_path, "finetune/*")
    assert typed(f"evaluate run={run} mt=[0,2] limit=20 runs={tmp_path} quiet=true") == 0
    manifest, result = read(run / "manifest.json"), read(only(tmp_path, "evaluate/*-m2-*/result.json"))
    assert {name: result[name] for name in told} == told
    assert result["filler"] == result["finetuned_filler"] == manifest["filler"], "as finetuned"
    for name in ("pause_visibility", "shift"):
        assert manifest[name] == result[name]
    assert manifest["variant"] == ("PausePT_StdFT" if "k=0" in control else "PausePT_PauseFT")
    assert typed(f"evaluate run={run} mt=2 limit=20 filler=pause runs={tmp_path} quiet=true") == 0
    fillers = {read(path)["filler"] for path in tmp_path.glob("evaluate/*-m2-*/result.json")}
    assert fillers == {"<pause>", result["filler"]}


def test_a_result_depends_on_who_sees_the_pauses(made: Path, tmp_path: Path) -> None:
    """One checkpoint, read three ways: the evaluation takes the visibility from the run's config."""
    (tmp_path / "pretrain").symlink_to(made / "pretrain")
    assert typed(f"finetune task=parity k=3 pause_visibility=readout {TINY} runs={tmp_path}") == 0
    run = only(tmp_path, "finetune/*")
    config, losses = (run / "config.yaml").read_text(), []
    for visibility in ("all", "readout", "self"):
        (run / "config.yaml").write_text(config.replace("pause_visibility: readout", f"pause_visibility: {visibility}"))
        assert typed(f"evaluate run={run} limit=20 runs={tmp_path} quiet=true") == 0
        folder = only(tmp_path, "evaluate/*")
        losses.append(read(folder / "result.json")["target_nll"])
        (folder / "result.json").unlink()
    assert len(set(losses)) == 3


# Refused


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("shift=8", ["shift=8 with k=8 (the task's default)", "Type shift=8 k=0, or k=8 alone"]),
        ("shift=8 k=2", ["shift=8 with k=2:", "without pauses"]),
        ("shift=-1 k=0", ["shift=-1", "must not be negative"]),
        ("shift=43 k=0", ["prefix 21 + shift 43 + answer 1", "The largest shift that fits is 42"]),
        ("k=2 filler=foo", ["'foo' is not a word of this vocabulary"]),
        ("k=2 pause_visibility=none", ["pause_visibility=none", "all, readout, self"]),
    ],
)
def test_a_control_that_makes_no_sense_is_refused(
    line: str, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(f"finetune task=parity init=random {line} {TINY} runs={tmp_path}") == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    for part in said:
        assert part in error
    assert not list(tmp_path.glob("finetune/*")), "nothing was begun"


def test_a_filler_of_several_tokens_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"finetune task=squad model=tiny tokenizer=byte k=2 filler=ab init=random {TINY} runs={tmp_path}"
    assert typed(line) == 2
    assert "filler=ab is 2 tokens; allowed are pause, end, and text that is one token" in capsys.readouterr().err


def test_a_jump_stays_where_it_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(f"finetune task=parity k=0 shift=3 init=random {TINY} runs={tmp_path}") == 0
    run = only(tmp_path, "finetune/*")
    assert typed(f"evaluate run={run} placement=prepend limit=20 runs={tmp_path}") == 2
    assert "was finetuned with shift=3 placement=append" in capsys.readouterr().err
    assert typed(f"evaluate run={run} mt=43 limit=20 runs={tmp_path}") == 2
    assert "The largest mt that fits is 42" in capsys.readouterr().err


# Shown


def test_show_pictures_hidden_pauses_and_shifted_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"show task=parity world.n_task=3 examples=1 runs={tmp_path}"
    pictures = {"readout": ["#### #..", "#### .#.", "#### ###"], "self": ["#### #..", "#### .#.", "#### ..#"]}
    for visibility, expected in pictures.items():
        assert typed(f"{line} k=3 pause_visibility={visibility}") == 0
        shown = capsys.readouterr().out
        assert f", pause_visibility={visibility}" in shown
        assert [row.split(maxsplit=1)[1] for row in shown.splitlines()[-3:]] == expected
    assert typed(f"{line} k=0 shift=5 placement=prepend") == 0
    shown = capsys.readouterr().out
    assert ", shift=5" in shown.splitlines()[0]
    assert re.findall(r"^ +(\d+)  \S+ +prefix", shown, re.MULTILINE) == ["5", "6", "7", "8"]
