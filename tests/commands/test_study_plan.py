"""What each published result plans, and how the lists of ``reproduce`` narrow and widen it."""

import re
from pathlib import Path

import pytest

from pausebench import cli
from pausebench.config.help import choices
from pausebench.report.scores import load_studies

PAPER = ("table1", "table2", "figure3", "figure4a", "figure4b", "figure4c", "figure5", "figure6", "figure7")
NINE = {
    *("gsm8k", "squad", "commonsense_qa", "lambada", "web_questions", "natural_questions", "coqa", "piqa"),
    "hellaswag",
}


def planned(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, list[dict[str, str]]]:
    """{command: the options of each of its cells} of a dry run."""
    assert cli.run(["reproduce", *overrides, "dry_run=true"]) == 0
    cells: dict[str, list[dict[str, str]]] = {"pretrain": [], "finetune": [], "evaluate": []}
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("#"):
            continue
        _, command, *words = line.split()
        product: list[dict[str, str]] = [{}]
        for word in words:
            if word != "-m":
                key, value = word.split("=", 1)
                values = [value] if value.startswith("[") or "-m" not in words else value.split(",")
                product = [cell | {key: one} for cell in product for one in values]
        cells[command] += product
    return cells


def arms(cells: list[dict[str, str]]) -> set[tuple[str, ...]]:
    """(task, pretraining, K, placement) of finetune cells."""
    return {(c["task"], c.get("pretraining", ""), c["k"], c.get("placement", "append")) for c in cells}


def test_every_result_of_the_paper_has_a_name() -> None:
    assert set(PAPER) | {"demo"} <= set(choices("result"))


@pytest.mark.slow
def test_table_1_is_nine_tasks_four_variants_two_k_and_five_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    cells = planned(capsys, "result=table1")
    assert arms(cells["finetune"]) == {
        (task, pretraining, k, "append") for task in NINE for pretraining in ("std", "pause") for k in ("0", "10", "50")
    }
    assert {c["seed"] for c in cells["finetune"]} == {"0", "1", "2", "3", "4"}
    assert [(c["model"], c["pause"], c["seed"]) for c in cells["pretrain"]] == [("1b", "off", "0"), ("1b", "on", "0")]
    assert len(cells["finetune"]) == len(cells["evaluate"]) == 270


@pytest.mark.slow
def test_figures_3_and_5_are_table_1_again_at_their_own_size(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("seeds=1", "task=[squad,piqa]")
    table = planned(capsys, "result=table1", *few)
    assert planned(capsys, "result=figure3", *few) == table
    other = planned(capsys, "result=figure5", *few)
    assert {c["model"] for c in other["finetune"]} == {"130m"}
    assert arms(other["finetune"]) == arms(table["finetune"])


def test_table_2_takes_the_k_of_each_task_and_pretraining(capsys: pytest.CaptureFixture[str]) -> None:
    cells = planned(capsys, "result=table2", "seeds=1", "task=[lambada,squad]")
    assert arms(cells["finetune"]) == {
        ("squad", "std", "0", "append"),
        *(("squad", p, "50", place) for p in ("std", "pause") for place in ("append", "prepend")),
        ("lambada", "std", "0", "append"),
        *(("lambada", "std", "50", place) for place in ("append", "prepend")),
        *(("lambada", "pause", "10", place) for place in ("append", "prepend")),
    }


def test_figure_4a_appends_full_stops_to_a_model_that_never_paused(capsys: pytest.CaptureFixture[str]) -> None:
    cells = planned(capsys, "result=figure4a", "model=tiny", "task=squad", "seeds=2")
    assert arms(cells["finetune"]) == {("squad", "std", "0", "append")}
    assert len(cells["pretrain"]) == 1
    assert sorted((c.get("filler", "pause"), c["mt"]) for c in cells["evaluate"]) == [
        *[(".", "[10,50]")] * 2,
        *[("pause", "[0]")] * 2,
    ]


def test_the_published_grids_of_m_follow_k(capsys: pytest.CaptureFixture[str]) -> None:
    cells = planned(capsys, "result=figure7", "seeds=1", "task=squad", "k=[4,10,50]")
    grids = {c["mt"] for c in cells["evaluate"]}
    assert grids == {
        "[0]",
        "[0,1,2,3,4,5,6,8]",
        "[0,1,2,5,8,10,12,15,20]",
        "[0,2,5,10,25,40,50,60,75,100]",
    }


def test_lists_narrow_and_widen_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    cells = planned(capsys, "result=figure4c", "model=tiny", "task=[squad,coqa]", "k=3", "mt=[0,3]", "seeds=[7]")
    assert {(c["task"], c["k"], c["seed"]) for c in cells["finetune"]} == {
        (task, k, "7") for task in ("squad", "coqa") for k in ("0", "3")
    }
    assert {c["mt"] for c in cells["evaluate"]} == {"[0]", "[0,3]"}


def test_results_share_their_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """What Figure 4c needs of Table 1's grid has the same run folders, so it is not run again."""
    few = ("model=tiny", "task=gsm8k", "seeds=1")
    table = planned(capsys, "result=table1", *few)
    curve = planned(capsys, "result=figure4c", *few)
    assert {c["run"] for c in curve["evaluate"]} < {c["run"] for c in table["evaluate"]}


def test_a_parent_seed_that_follows_the_seed_still_does(capsys: pytest.CaptureFixture[str]) -> None:
    cells = planned(capsys, "result=demo", "task=[parity]", "k=[8]", "seeds=[3,4]")
    assert {c["seed"] for c in cells["pretrain"]} >= {"3", "4"}
    names = {c["run"].rsplit("-", 1)[0][-2:] for c in cells["evaluate"] if "parity" in c["run"]}
    assert {"s3", "s4"} <= names


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["result=table1", "mt=3"], "evaluates every model with M = K"),
        (["result=figure4a", "k=3"], "finetunes without pauses"),
        (["result=table1", "k=many"], "k=many: must be a number from 0 upwards"),
        (["result=table1", "k=[]"], r"k=\[\]: must be a number"),
        (["result=figure4c", "mt=-1"], "mt=-1: must be a number"),
        (["result=table1", "task=sqaud"], "Did you mean task=squad"),
        (["result=table1", "task=[]"], "must be a task or a list of tasks"),
        (
            ["result=table1", "task=squad", "seeds=1", "controls=[hiden]"],
            "controls=hiden: allowed are hidden_pretraining",
        ),
        (
            ["result=table1", "task=squad", "seeds=1", "controls=hiden"],
            "controls=hiden: allowed are hidden_pretraining",
        ),
        (["result=table1", "task=squad,gsm8k"], r"task=squad,gsm8k: .* or task=\[squad,gsm8k\]"),
        (["result=figure4a", "controls=[shifted]"], "finetunes without pauses"),
        (["result=table3"], "allowed are demo, figure3"),
    ],
)
def test_what_cannot_be_meant_is_refused(capsys: pytest.CaptureFixture[str], overrides: list[str], words: str) -> None:
    assert cli.run(["reproduce", *overrides, "dry_run=true"]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_overrides_of_the_finetuning_leave_its_parents_alone(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("result=table1", "model=tiny", "task=squad", "seeds=1")
    usual, shorter = planned(capsys, *few), planned(capsys, *few, 'finetune_overrides=["train.steps=5"]')
    assert shorter["pretrain"] == usual["pretrain"]
    assert {c["train.steps"] for c in shorter["finetune"]} == {"5"}
    assert not {c["run"] for c in shorter["evaluate"]} & {c["run"] for c in usual["evaluate"]}


def test_each_control_changes_what_it_says_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("result=table1", "model=tiny", "task=squad", "seeds=1", "k=10")
    every = "hidden_pretraining,hidden_finetuning,hidden,one_pause,shifted,filler,layers,steps"
    usual, cells = planned(capsys, *few), planned(capsys, *few, f"controls=[{every}]")
    plain = {"pause", "seed", "model", "data", "tokenizer", "tokenizer.vocab_size", "precision"}
    added = [{k: v for k, v in c.items() if k not in plain - {"pause"}} for c in cells["pretrain"]]
    assert [c for c in added if len(c) > 1] == [
        {"pause": "on", "pause_visibility": "readout"},
        {"pause": "off", "model.n_layers": "5"},
    ]
    more = [c for c in cells["finetune"] if c not in usual["finetune"]]
    shown = ("pretraining", "k", "pause_visibility", "shift", "filler", "model.n_layers")
    hidden_parents = [c for c in more if "PausePT" in c.get("init", "")]
    assert [c.get("pause_visibility") for c in hidden_parents] == [None, "readout"]
    assert [tuple(c.get(name) for name in shown) for c in more if "init" not in c and "train.steps" not in c] == [
        ("std", "1", None, None, None, None),
        ("pause", "1", None, None, None, None),
        ("pause", "10", "readout", None, None, None),
        ("std", "0", None, "10", None, None),
        ("pause", "0", None, "10", None, None),
        ("std", "10", None, None, ".", None),
    ]
    (deeper,) = (c for c in more if "StdPT" in c.get("init", ""))
    assert (deeper["k"], deeper["model.n_layers"]) == ("0", "5")
    (longer,) = (c for c in more if "train.steps" in c)
    assert longer["k"] == "0" and 800 < int(longer["train.steps"]) < 1200


def test_matched_steps_follow_the_steps_that_the_user_chose(capsys: pytest.CaptureFixture[str]) -> None:
    few = ("result=table1", "model=tiny", "task=squad", "seeds=1", "k=50", "controls=[steps]")
    cells = planned(capsys, *few, 'finetune_overrides=["train.steps=10"]')
    steps = [int(c["train.steps"]) for c in cells["finetune"]]
    assert steps.count(10) == 4 and [count for count in steps if 15 < count < 40]


@pytest.mark.slow
def test_controls_of_two_k_stay_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Positions shifted by 4 and by 8 are both K = 0; the report must not take them for seeds of one arm."""
    study = ("result=demo", "task=[parity]", "k=[4,8]", "mt=[8]", "seeds=1", "controls=[shifted]", f"runs={tmp_path}")
    tiny = 'overrides=["train.steps=2","train.batch_size=4"]'
    assert cli.run(["reproduce", *study, tiny, "limit=4", "hydra/launcher=basic"]) == 0
    capsys.readouterr()
    setting, *_ = load_studies(tmp_path)[0].settings_of("controls")
    shifted = [scores for scores in setting.arms if scores.arm.control]
    assert sorted((s.arm.pretraining, s.arm.control_k, len(s.cells)) for s in shifted) == [
        ("pause", 4, 1),
        ("pause", 8, 1),
        ("std", 4, 1),
        ("std", 8, 1),
    ]
