"""The same text and rows through hub, files and the embedded world: one code after the source, so one result."""

from __future__ import annotations

import gzip
import importlib.util
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from pausebench.config.groups import Source, WorldConfig
from pausebench.data.task_rows import open_rows
from pausebench.tasks import TASKS
from pausebench.worlds.english import EnglishWorld

pytest.importorskip("datasets")
_spec = importlib.util.spec_from_file_location("hub_mirror", Path(__file__).parents[1] / "hub_mirror.py")
assert _spec is not None and _spec.loader is not None
hub_mirror = importlib.util.module_from_spec(_spec)
sys.modules["hub_mirror"] = hub_mirror
_spec.loader.exec_module(hub_mirror)

C4_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
C4_CARD = b"""---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/c4-train.*.json.gz}
  - {split: validation, path: en/c4-validation.*.json.gz}
---
"""
GSM8K_CARD = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train.jsonl.gz}
  - {split: test, path: main/test.jsonl.gz}
---
"""
MODEL = "model=tiny tokenizer=bpe tokenizer.vocab_size=400 tokenizer.train_documents=100"
SHORT = "tracking=off threads=1 quiet=true train.steps=3 train.batch_size=4 train.validation_rows=8"
TEXT_TASKS = ("squad", "gsm8k", "commonsense_qa")


def jsonl_gz(rows: list[dict[str, Any]]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)


def rows_of(dataset: str, split: str, count: int) -> list[dict[str, Any]]:
    return EnglishWorld().rows(dataset, split)[:count]


def text() -> dict[str, list[dict[str, Any]]]:
    world = EnglishWorld()
    return {
        split: [{"text": document, "url": "x"} for document in world.documents(seed, 0, 300)]
        for split, seed in (("train", 0), ("validation", 1))
    }


@pytest.fixture
def mirror() -> Any:
    """A hub that holds C4 and the three tasks at the revisions that the configuration pins."""
    with hub_mirror.HubMirror() as mirror:
        shards = {f"en/c4-{split}.00000-of-00001.json.gz": jsonl_gz(rows) for split, rows in text().items()}
        mirror.commit("datasets", "allenai/c4", {"README.md": C4_CARD, **shards}, C4_REVISION)
        for name in TEXT_TASKS:
            dataset = TASKS[name].dataset
            assert dataset is not None
            folder, card = ("main/", {"README.md": GSM8K_CARD}) if name == "gsm8k" else ("", {})
            splits = {
                f"{folder}{split}.jsonl.gz": jsonl_gz(rows_of(name, split, count))
                for split, count in ((dataset.train, 200), (dataset.test, 20))
            }
            mirror.commit("datasets", dataset.hub_id, {**card, **splits}, dataset.revision)
        yield mirror


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same rows as local files."""
    root = tmp_path / "data"
    for split, rows in text().items():
        path = root / "c4" / f"{split}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jsonl_gz(rows))
    for name in TEXT_TASKS:
        dataset = TASKS[name].dataset
        assert dataset is not None
        (root / name).mkdir()
        for split, count in ((dataset.train, 200), (dataset.test, 20)):
            (root / name / f"{split}.jsonl.gz").write_bytes(jsonl_gz(rows_of(name, split, count)))
    return root


def whole_run(source: str, runs: Path, hub: Any, home: Path) -> dict[str, Any]:
    """Pretrain, finetune and evaluate every task in one process; what each ended with."""
    lines = [f"pretrain {MODEL} {source} pause=on {SHORT} runs={runs}"]
    for name in TEXT_TASKS:
        lines.append(f"finetune task={name} k=2 {MODEL} {source} {SHORT} runs={runs}")
    code = (
        "import sys\nfrom pathlib import Path\nfrom pausebench import cli\n"
        f"for line in {lines!r}:\n    assert cli.run(line.split()) == 0, line\n"
        f"for run in sorted(Path({str(runs)!r}, 'finetune').iterdir()):\n"
        f"    assert cli.run(['evaluate', f'run={{run}}', 'runs={runs}', 'quiet=true', 'threads=1']) == 0\n"
    )
    done = hub_mirror.run_with_hub(hub, home, code, timeout=300, USE_TORCH="0")
    assert done.returncode == 0, done.stderr
    found = {}
    for path in sorted(runs.glob("*/*/result.json")):
        manifest = path.parent / "manifest.json"
        about = json.loads(manifest.read_text()) if manifest.exists() else {}
        result = json.loads(path.read_text())
        key = (path.parent.parent.name, result.get("task") or about.get("task"))
        found[key] = {
            "loss": result.get("loss"),
            "validation_loss": result.get("validation_loss"),
            "value": result.get("value"),
            "target_nll": result.get("target_nll"),
            "tokenizer": about.get("tokenizer"),
            "fingerprint": about.get("data_fingerprint") if about.get("task") else None,
        }
    return found


@pytest.mark.slow
def test_a_whole_run_from_the_hub_equals_the_one_from_files(mirror: Any, files: Path, tmp_path: Path) -> None:
    from_hub = whole_run("data=hub", tmp_path / "hub_runs", mirror, tmp_path / "home")
    from_files = whole_run(f"data=files data.root={files}", tmp_path / "file_runs", mirror, tmp_path / "home")
    assert len(from_hub) == 7  # one pretraining, three finetunings, three evaluations
    assert from_hub == from_files


def published_like(name: str, number: int) -> dict[str, Any]:
    """A row in the hub's schema of the task, WikiHow's marks of HellaSwag among it."""
    question = f"what is number {number} of them"
    return {
        "lambada": {"text": f"they counted to {number} , and then to {number}", "domain": None},
        "lambada_openai": {"text": f'They counted {number} lamps.\n\n"To {number}'},
        "web_questions": {"url": "x", "question": f"{question}?", "answers": [f"{number}", f"no. {number}"]},
        "natural_questions": {"question": question, "answer": [f"{number}"]},
        "coqa": {
            "source": "x",
            "story": f"Story {number}.",
            "questions": ["Which?", "Why?"],
            "answers": {"input_text": [f"{number}", "unknown"], "answer_start": [6, -1], "answer_end": [8, -1]},
        },
        "piqa": {"goal": question, "sol1": f"{number}", "sol2": "none", "label": number % 2},
        "hellaswag": {
            "ind": number,
            "activity_label": "Waiting",
            "ctx_a": f"[header] How to wait [title] Count to {number}. [step] Then go on.",
            "ctx_b": "",
            "ctx": "",
            "endings": [f"It takes {number} {word}. [substeps] Rest." for word in ("days", "years", "lamps", "turns")],
            "label": f"{number % 4}",
        },
    }[name]


def test_rows_of_the_other_tasks_are_the_same_from_hub_and_files(tmp_path: Path) -> None:
    """Equal fingerprints, also where the hub's text still has the marks that local rows have lost."""
    names = ["lambada", "lambada_openai", "web_questions", "natural_questions", "coqa", "piqa", "hellaswag"]
    fractions = {"lambada_openai": 0.7}
    local: dict[str, str] = {}
    with hub_mirror.HubMirror() as mirror:
        for name in names:
            dataset = TASKS[name].dataset
            assert dataset is not None
            splits = {split: range(start, start + 60) for start, split in enumerate((dataset.train, dataset.test))}
            rows = {split: [published_like(name, n) for n in numbers] for split, numbers in splits.items() if split}
            files = [f"  - {{split: {split}, path: data/{split}.jsonl.gz}}" for split in rows]
            card = "\n".join(
                ["---", "configs:", f"- config_name: {dataset.subset or 'default'}", "  data_files:", *files]
            )
            content = {f"data/{split}.jsonl.gz": jsonl_gz(lines) for split, lines in rows.items()}
            revision = None if dataset.revision == "main" else dataset.revision
            mirror.commit("datasets", dataset.hub_id, {"README.md": f"{card}\n---\n".encode(), **content}, revision)
            folder = tmp_path / "data" / dataset.name
            folder.mkdir(parents=True)
            for split, lines in rows.items():
                local_text = "".join(json.dumps(row) + "\n" for row in lines)
                if name == "hellaswag":
                    local_text = local_text.replace("[header] ", "").replace(" [title]", ".")
                    local_text = local_text.replace("[step] ", "").replace("[substeps] ", "")
                (folder / f"{split}.jsonl").write_text(local_text)
            opened = open_rows(name, Source.files, tmp_path / "data", None, fractions.get(name))
            local[name] = opened.fingerprint(0)
        code = (
            "import json\nfrom pausebench.data.task_rows import open_rows\n"
            "from pausebench.config.groups import Source\n"
            f"names, share = {names!r}, {fractions!r}.get\n"
            "opened = {name: open_rows(name, Source.hub, None, None, share(name)) for name in names}\n"
            "print(json.dumps({name: rows.fingerprint(0) for name, rows in opened.items()}))"
        )
        done = hub_mirror.run_with_hub(mirror, tmp_path / "home", code, USE_TORCH="0")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == local
    assert len(set(local.values())) == len(names)


def test_without_a_network_the_message_offers_files_and_embedded(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    code = (
        "from pausebench import cli\nfrom pausebench.data import hub\nhub.RETRY_SECONDS = (0.0,)\n"
        "codes = [cli.run('pretrain model=tiny data=hub tokenizer=byte runs=r'.split()),\n"
        "         cli.run('finetune task=squad tokenizer=byte runs=r'.split())]\n"
        "assert codes == [2, 2], codes\n"
    )
    done = hub_mirror.run_with_hub(address, tmp_path, code, USE_TORCH="0")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for dataset in ("allenai/c4", "rajpurkar/squad"):
        message = next(line for line in done.stderr.splitlines() if dataset in line)
        assert "data=files data.root=DIR" in message
        assert "data=embedded" in message


def test_embedded_rows_and_the_same_rows_in_files_have_one_fingerprint(tmp_path: Path) -> None:
    world = WorldConfig(name="english", kind="english", sequence_length=128)
    (tmp_path / "gsm8k").mkdir()
    for split in ("train", "test"):
        rows = EnglishWorld().rows("gsm8k", split)
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    embedded = open_rows("gsm8k", Source.embedded, None, world)
    local = open_rows("gsm8k", Source.files, tmp_path)
    assert embedded.fingerprint(0) == local.fingerprint(0)
