"""What a tired user types: each mistake ends with the documented exit code and a message that says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pausebench import cli
from pausebench.config.commands import COMMANDS
from pausebench.config.help import choices, conf_dir, option_names
from pausebench.config.recipes import generated_groups
from pausebench.tasks import PAPER_TASKS

TINY_PRETRAIN = "train.steps=4 train.batch_size=8 train.log_every=2 train.checkpoint_every=2 tracking=off"
TINY_FINETUNE = f"{TINY_PRETRAIN} k=2"


def typed(line: str) -> int:
    return cli.run(line.split())


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with one pretrained and one finetuned run."""
    root = tmp_path_factory.mktemp("made")
    assert typed(f"pretrain world=count20 pause=on {TINY_PRETRAIN} runs={root} quiet=true") == 0
    assert typed(f"finetune task=parity {TINY_FINETUNE} runs={root} quiet=true") == 0
    return root


def finetuned(root: Path) -> Path:
    return next((root / "finetune").iterdir())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", ["a command is missing", "pretrain, finetune, evaluate, reproduce, report"]),
        ("pretain", ["'pretain' is no command", "Did you mean: pausebench pretrain?"]),
        ("finetune", ["task= is missing", "parity"]),
        (
            "finetune task=party",
            [
                "task=party",
                "allowed are commonsense_qa, coqa, gsm8k, hellaswag, lambada, lambada_openai, majority, mod3,",
                "Did you mean task=parity?",
            ],
        ),
        ("finetune task=parity kk=3", ["kk is no option of pausebench finetune", "Did you mean k?"]),
        ("finetune task=parity k=-1", ["k=-1", "must not be negative", "k=0"]),
        ("finetune task=parity k=ten", ["k=ten", "Integer"]),
        ("finetune task=parity k=0,10", ["k=0,10", "-m", "k=[0,10]"]),
        ("finetune task=parity pause=off k=3", ["pause=off means k=0"]),
        ("finetune task=parity placement=middle", ["placement=middle", "append, prepend"]),
        ("finetune task=relay world=count20", ["task=relay has no rows in world=count20", "allowed are relay"]),
        ("pretrain pause_fraction=1.5", ["pause_fraction=1.5", "above 0 and at most 1"]),
        ("pretrain world=count20 pause_fraction=0.001", ["inserts no pause at all", "smallest fraction"]),
        ("pretrain pause=maybe", ["pause=maybe", "off, on"]),
        ("pretrain model=huge", ["model=huge", "mini"]),
        ("pretrain train.steps=0", ["train.steps=0", "at least 1"]),
        ("pretrain train.lr=", ["train.lr=", "Float"]),
        ("pretrain world=count20 sequence_length=100", ["sequence_length=100", "64 positions"]),
        ("pretrain world=relay", ["no text to pretrain on"]),
        ("pretrain foo", ["OPTION=VALUE"]),
        ("pretrain data=disk", ["data=disk", "embedded, files, hub"]),
        ("pretrain data=files", ["data.root", "squad/train.jsonl.gz"]),
        ("pretrain data=files data.root=/nowhere tokenizer=byte", ["data.root=/nowhere is no folder", "c4/train"]),
        ("pretrain data=files data.root=.", ["gpt2-tokenizer/vocab.json does not exist", "tokenizer=bpe"]),
        ("pretrain model=tiny tokenizer=words", ["tokenizer=words with world=english", "gpt2, bpe and byte"]),
        ("pretrain world=count20 tokenizer=byte", ["tokenizer=byte with world=count20", "allowed here is words"]),
        ("pretrain model=tiny tokenizer.vocab_size=10", ["tokenizer.vocab_size=10", "300 to 65536"]),
        ("pretrain world=english", ["world=english with data=hub", "type data=embedded"]),
        ("pretrain model=tiny corpus=c4", ["corpus=c4 with data=embedded", "data=files or data=hub"]),
        ("pretrain corpus=corpus_standin tokenizer=byte", ["corpus_standin has no place on the hub"]),
        ("finetune task=squad data=embedded world=count20 tokenizer=words", ["no rows in world=count20", "english"]),
        ("finetune task=parity data=hub tokenizer=byte", ["task=parity has no rows in data=hub", "data=embedded"]),
        ("finetune task=squad data=files data.root=. tokenizer=byte", ["squad does not exist"]),
        ("pretrain world=count20 device=cuda", ["device=cuda", "device=cpu"]),
        ("evaluate", ["run= is missing", "pausebench evaluate run="]),
        ("evaluate run=nope", ["nope is no finetune run"]),
        ("reproduce result=nope", ["result=nope", "allowed are demo, figure3"]),
        ("reproduce result=demo seeds=0", ["seeds=0", "seeds=3 or seeds=[0,1]"]),
        ("report", ["holds no study"]),
        ("report study=demo", ["study=demo has no plan", "pausebench reproduce result=demo"]),
    ],
)
def test_a_mistake_ends_with_exit_code_2_and_says_what_to_type(
    line: str, said: list[str], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.split()
    extra = [f"runs={runs}"] if words and words[0] in COMMANDS else []
    assert cli.run([*words, *extra]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) <= 12
    for part in said:
        assert part in captured.err
    assert not list(runs.glob("*/*/result.json"))


def test_rows_longer_than_the_model_are_refused_with_the_largest_k_that_fits(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(f"finetune task=parity k=43 runs={made}") == 2
    assert "The largest k that fits is 42" in capsys.readouterr().err


def test_rows_longer_than_the_pretrained_length_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(f"finetune task=parity k=8 length_limit=pretrained runs={made}") == 2
    error = capsys.readouterr().err
    assert "was pretrained with 28" in error
    assert "The largest k that fits is 6" in error


def test_a_missing_parent_is_answered_with_the_command_that_makes_it(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(f"finetune task=parity pretraining=std seed=3 runs={runs} {TINY_FINETUNE}") == 2
    command = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("  pausebench pretrain"))
    assert typed(f"{command.removeprefix('  pausebench ')} {TINY_PRETRAIN} quiet=true") == 0
    assert typed(f"finetune task=parity pretraining=std seed=3 runs={runs} {TINY_FINETUNE} quiet=true") == 0


def test_several_fitting_parents_are_listed_with_the_init_that_chooses(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in (4, 5):
        assert typed(f"pretrain world=count20 {TINY_PRETRAIN} train.steps={steps} runs={runs} quiet=true") == 0
    assert typed(f"finetune task=parity {TINY_FINETUNE} runs={runs}") == 2
    choices_given = [line.strip() for line in capsys.readouterr().err.splitlines() if line.startswith("  init=")]
    assert len(choices_given) == 2
    assert typed(f"finetune task=parity {TINY_FINETUNE} runs={runs} {choices_given[0]} quiet=true") == 0


def test_a_checkpoint_of_another_model_or_vocabulary_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = next((made / "pretrain").iterdir())
    assert typed(f"finetune task=parity model=tiny init={parent} runs={made}") == 2
    assert "n_layers 2 there, 4 here" in capsys.readouterr().err
    assert typed(f"finetune task=relay model=mini init={parent} runs={made}") == 2
    assert "tokenizer" in capsys.readouterr().err


def test_an_unfinished_or_foreign_run_is_no_parent(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(f"evaluate run={next((made / 'pretrain').iterdir())} runs={made}") == 2
    assert "is a pretrain run; a finetune run is needed" in capsys.readouterr().err
    assert typed(f"finetune task=parity init={finetuned(made)} runs={made}") == 2
    assert "is a finetune run; a pretrain run is needed" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["cp", "-r", made, tmp_path / "copy"], check=True)
    run = finetuned(tmp_path / "copy")
    newest = max((run / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    assert typed(f"evaluate run={run} runs={tmp_path / 'copy'}") == 2
    assert f"{newest} is damaged" in capsys.readouterr().err


def test_changed_data_is_refused_with_the_override_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["cp", "-r", made, tmp_path / "copy"], check=True)
    for command, line in (("pretrain", "pretrain world=count20"), ("finetune", "finetune task=parity k=2")):
        run = next((tmp_path / "copy" / command).iterdir())
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps(manifest | {"data_fingerprint": "0" * 16}))
        again = f"{line} {TINY_PRETRAIN} runs={tmp_path / 'copy'}"
        assert typed(again) == 2
        assert "data.allow_changed=true" in capsys.readouterr().err
        assert typed(f"{again} data.allow_changed=true") == 0
    assert typed(f"evaluate run={run} runs={tmp_path / 'copy'}") == 2
    assert "allow_changed=true" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["abc", "-1", "[1,x]", "[]", "[2,2]", "1.5", "true"])
def test_a_bad_number_of_inference_pauses_is_refused(
    given: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(f"evaluate run={finetuned(made)} mt={given} runs={made}") == 2
    assert "mt=" in capsys.readouterr().err


def test_an_unknown_filler_is_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(f"evaluate run={finetuned(made)} filler=foo runs={made}") == 2
    assert "'foo' is not a word of this vocabulary; allowed are 0 1" in capsys.readouterr().err


def test_every_m_has_its_own_result_and_a_list_can_grow(made: Path) -> None:
    for line in ("mt=[0,3]", "mt=3", "mt=[3,5]"):
        assert typed(f"evaluate run={finetuned(made)} {line} runs={made} quiet=true") == 0
    found = [json.loads(path.read_text())["mt"] for path in (made / "evaluate").glob("*/result.json")]
    assert sorted(found) == [0, 3, 5]


def test_a_sweep_with_one_bad_cell_starts_none(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(f"pretrain -m world=count20 seed=0,1,-1 {TINY_PRETRAIN} runs={runs}") == 2
    assert "seed=-1" in capsys.readouterr().err
    assert not runs.exists()


def test_a_sweep_runs_every_cell_and_lists_the_failed_ones(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(f"pretrain -m world=count20 seed=0,1 {TINY_PRETRAIN} runs={runs} quiet=true") == 0
    sweep = f"finetune -m task=parity seed=0,1,2 {TINY_FINETUNE} runs={runs} quiet=true"
    assert typed(sweep) == 1  # seed 2 has no parent
    error = capsys.readouterr().err
    assert "seed=2" in error
    assert "2 of 3 cells are done" in error
    assert len(list((runs / "finetune").glob("*/result.json"))) == 2


def test_the_same_command_twice_is_already_done(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finetuned(made) / "result.json").stat().st_mtime_ns
    assert typed(f"finetune task=parity {TINY_FINETUNE} runs={made}") == 0
    assert "already done" in capsys.readouterr().err
    assert (finetuned(made) / "result.json").stat().st_mtime_ns == before


def test_settings_that_do_not_change_the_result_do_not_change_the_name(made: Path) -> None:
    line = f"finetune task=parity {TINY_FINETUNE} runs={made} quiet=true"
    assert typed(f"{line} threads=1 train.micro_batch_size=3 train.log_every=1 device=cpu placement=append") == 0
    assert len(list((made / "finetune").iterdir())) == 1


def test_pause_off_says_the_same_as_k_0(runs: Path) -> None:
    tiny = f"{TINY_PRETRAIN} runs={runs} quiet=true init=random"
    assert typed(f"finetune task=parity pause=off {tiny}") == 0
    assert typed(f"finetune task=parity k=0 placement=prepend {tiny}") == 0
    assert len(list((runs / "finetune").iterdir())) == 1


def test_a_second_process_on_a_run_folder_names_the_first(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pausebench.runs.folder import RunFolder

    tiny = f"{TINY_PRETRAIN} seed=7 runs={made}"
    assert typed(f"pretrain world=count20 {tiny} quiet=true") == 0
    run = next(path for path in (made / "pretrain").iterdir() if "-s7-" in path.name)
    (run / "result.json").unlink()
    child = os.fork()
    if child == 0:
        with RunFolder(made, "pretrain", run.name).locked():
            os.kill(os.getpid(), 19)  # stopped, alive, and never released
        os._exit(0)
    try:
        os.waitpid(child, os.WUNTRACED)
        assert typed(f"pretrain world=count20 {tiny}") == 2
        assert f"in use by process {child}" in capsys.readouterr().err
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert typed(f"pretrain world=count20 {tiny} quiet=true") == 0  # the owner is gone: its lock is void


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_instant_and_complete(command: str | None) -> None:
    arguments = [command, "--help"] if command else ["--help"]
    code = (
        "import sys, contextlib, io\n"
        "from pausebench import cli\n"
        "text = io.StringIO()\n"
        f"with contextlib.redirect_stdout(text):\n    assert cli.run({arguments!r}) == 0\n"
        "assert 'torch' not in sys.modules and 'hydra' not in sys.modules\n"
        "print(text.getvalue())\n"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    if command is None:
        assert all(name in text for name in COMMANDS)
    else:
        assert text.count(f"  pausebench {command}") >= 2  # two examples
        assert all(name in text for name in option_names(command))


@pytest.mark.parametrize(
    "file", sorted(str(path.relative_to(conf_dir())) for path in conf_dir().rglob("*.yaml")), ids=str
)
def test_every_configuration_file_composes(file: str) -> None:
    group, name = str(Path(file).parent), Path(file).stem
    line = {
        "data": ["pretrain", f"data={name}", "data.root=."],
        "corpus": ["pretrain", f"corpus={name}", "data=files", "data.root=.", "corpus.name=x"],
        "world": ["pretrain", f"world={name}", "data=embedded"],
        "tokenizer": ["pretrain", f"tokenizer={name}", *(["world=count20"] if name == "words" else [])],
        "result": ["reproduce", f"result={name}"],
    }.get(group, ["pretrain", f"{group}={name}"])
    if group == ".":
        task, study = ["task=parity"], ["result=demo"]
        needed = {"finetune": task, "show": task, "reproduce": study, "plan": study}
        line = [name, *needed.get(name, [])] if name in COMMANDS else ["pretrain"]
    composes(line)


@pytest.mark.parametrize("choice", sorted(generated_groups()), ids="/".join)
def test_every_task_and_every_recipe_composes_and_its_numbers_stand_in_the_config(choice: tuple[str, str]) -> None:
    group, name = choice
    model, _, rest = name.partition("_")
    line = {
        "task": ["finetune", f"task={name}"],
        "recipe/finetune": ["finetune", f"task={rest}", f"model={model}"],
        "recipe/pretrain": ["pretrain", f"world={rest}", f"model={model}"],
        "recipe/text": ["pretrain", f"model={name}"],
    }[group]
    config = composes(line)
    for option, value in generated_groups()[choice].get("train", {}).items():
        assert value is None or getattr(config.train, option) == value, option


def composes(line: list[str]) -> Any:
    """The checked config of a command line."""
    from hydra import compose, initialize_config_dir

    cli.register_config()
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        composed = compose(line[0], [*line[1:], *(["run=x"] if line[0] == "evaluate" else [])])
        return cli.to_config(line[0], composed, line[1:])


@pytest.mark.parametrize("model", ["1b", "130m"])
def test_every_number_of_tables_3_and_4_stands_in_the_composed_config(model: str) -> None:
    """Learning rate, warm-up steps, steps and batch size, as the paper prints them; K = 10 where none is given."""
    published = {
        "1b": {
            "squad": (1.0e-4, 100, 10000, 256),
            "gsm8k": (1.0e-4, 200, 20000, 16),
            "hellaswag": (5.0e-6, 100, 1000, 16),
            "piqa": (1.0e-6, 50, 600, 32),
            "coqa": (5.0e-5, 75, 3500, 16),
            "commonsense_qa": (5.0e-5, 100, 4000, 16),
            "lambada": (5.0e-5, 40, 2800, 16),
            "web_questions": (5.0e-4, 200, 2000, 16),
            "natural_questions": (1.0e-4, 100, 5000, 256),
        },
        "130m": {
            "squad": (1.0e-4, 400, 40000, 16),
            "gsm8k": (1.0e-4, 75, 7500, 16),
            "commonsense_qa": (5.0e-5, 100, 6000, 16),
            "lambada": (5.0e-5, 40, 1400, 16),
            "web_questions": (5.0e-4, 200, 2000, 16),
            "natural_questions": (5.0e-4, 100, 5000, 256),
            "coqa": (1.0e-4, 75, 3500, 16),
            "piqa": (1.0e-6, 50, 600, 32),
            "hellaswag": (1.0e-6, 100, 1000, 16),
        },
    }[model]
    assert set(published) == {task.name for task in PAPER_TASKS}
    for task, numbers in [*published.items(), ("lambada_openai", published["lambada"])]:
        config = composes(["finetune", f"task={task}", f"model={model}"])
        train = config.train
        assert (train.lr, train.warmup_steps, train.steps, train.batch_size) == numbers, task
        assert (config.task.name, config.resolved().k) == (task, 10)


def test_examples_of_the_help_name_existing_choices() -> None:
    assert "parity" in choices("task")
    assert {"demo", "miniature"} <= set(choices("result"))
