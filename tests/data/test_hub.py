"""Rows from the hub: what was put into a mirror arrives, in order, and every failure says what to type."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")
pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

# By its path: tests are no package, and their folder is on nobody's path.
_spec = importlib.util.spec_from_file_location("hub_mirror", Path(__file__).parents[1] / "hub_mirror.py")
assert _spec is not None and _spec.loader is not None
hub_mirror = importlib.util.module_from_spec(_spec)
sys.modules["hub_mirror"] = hub_mirror
_spec.loader.exec_module(hub_mirror)
HubMirror, run_with_hub = hub_mirror.HubMirror, hub_mirror.run_with_hub

Row = dict[str, Any]
GSM8K, SQUAD, C4, GPT2 = "openai/gsm8k", "rajpurkar/squad", "allenai/c4", "openai-community/gpt2"
NOWHERE = "0" * 40

GSM8K_TRAIN = [{"question": f"{i} + {i}?", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(60)]
GSM8K_TEST = [{"question": "1 + 1?", "answer": "#### 2"}]
SOCRATIC = [{"question": "Who asks?", "answer": "#### 0"}]
SQUAD_TRAIN = [
    {"id": f"{i:03}", "context": f"Söde {i} – é", "question": "?", "answers": {"text": [f"é{i}"], "answer_start": [i]}}
    for i in range(40)
]
C4_SHARDS = [
    [{"text": f"shard {shard} row {i}\n", "url": f"https://example.org/{shard}/{i}"} for i in range(200)]
    for shard in range(2)
]
MODEL = {"vocab.json": b'{"a": 0}', "merges.txt": b"#version: 0.2\n"}

GSM8K_CARD = """---
configs:
- config_name: main
  default: true
  data_files:
  - {split: train, path: main/train-*}
  - {split: test, path: main/test-*}
- config_name: socratic
  data_files:
  - {split: train, path: socratic/train-*}
---
"""
C4_CARD = """---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/c4-train.*.json.gz}
- config_name: sv
  data_files:
  - {split: train, path: sv/c4-train.*.json.gz}
---
"""


def jsonl_gz(rows: list[Row]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def parquet(rows: list[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.fixture
def mirror() -> Iterator[Any]:
    gsm8k = {
        "README.md": GSM8K_CARD.encode(),
        "main/train-00000-of-00002.parquet": parquet(GSM8K_TRAIN[:25]),
        "main/train-00001-of-00002.parquet": parquet(GSM8K_TRAIN[25:]),
        "main/test-00000-of-00001.parquet": parquet(GSM8K_TEST),
        "socratic/train-00000-of-00001.parquet": parquet(SOCRATIC),
    }
    squad = {"train.jsonl.gz": jsonl_gz(SQUAD_TRAIN), "validation.jsonl.gz": jsonl_gz(SQUAD_TRAIN[:2])}
    c4 = {f"en/c4-train.0000{i}-of-00002.json.gz": jsonl_gz(rows) for i, rows in enumerate(C4_SHARDS)}
    datasets = {GSM8K: gsm8k, SQUAD: squad, C4: {"README.md": C4_CARD.encode(), **c4}, "meta/locked": squad}
    datasets["empty/empty"] = {"README.md": b"nothing here\n"}
    with HubMirror(datasets, {GPT2: MODEL}, moved={"old/squad": SQUAD}, gated=["meta/locked"]) as mirror:
        yield mirror


CLIENT = """
import itertools, json, sys, traceback
from pausebench.data import hub
hub.RETRY_SECONDS = (0.05, 0.1)
answers = []
for name, arguments, count in json.loads(sys.argv[1]):
    try:
        found = getattr(hub, name)(*arguments)
        found = [path.read_text() for path in found] if name == "download" else itertools.islice(found, count)
        answers.append(list(found))
    except Exception as error:
        answers.append({"type": type(error).__name__, "exit": getattr(error, "exit_code", None), "message": str(error)})
print(json.dumps(answers))
"""


def ask(hub: Any, home: Path, *calls: tuple[Any, ...], **environment: str) -> list[Any]:
    """The answers to (function, arguments[, rows to take]), all from one new process; it may print nothing else."""
    padded = [(*call, None)[:3] for call in calls]
    environment["USE_TORCH"] = "0"  # datasets would import it to stream, for seconds
    done = run_with_hub(hub, home, [sys.executable, "-c", CLIENT, json.dumps(padded)], **environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"the libraries' bars and warnings must not reach the terminal: {done.stderr}"
    answers = json.loads(done.stdout)
    assert len(answers) == len(calls)
    return list(answers)


def assert_explained(answer: Any, *texts: str) -> None:
    assert isinstance(answer, dict), f"rows where an error was due: {answer}"
    assert (answer["type"], answer["exit"]) == ("BadInput", 2), answer
    assert answer["message"].startswith("data=hub: ") and "\n" not in answer["message"]
    for text in texts:
        assert text in answer["message"], answer["message"]


def test_rows_arrive_as_published_and_later_without_the_hub(mirror: Any, tmp_path: Path) -> None:
    gsm8k, squad, gpt2 = mirror.sha(GSM8K), mirror.sha(SQUAD), mirror.sha(GPT2, "models")
    wanted = [
        ("load_split", [GSM8K, "main", gsm8k, "train"]),
        ("load_split", [GSM8K, None, gsm8k, "test"]),
        ("load_split", [SQUAD, None, squad, "train"]),
        ("load_split", [SQUAD, None, squad, "validation"]),
        ("download", [GPT2, gpt2, "vocab.json", "merges.txt"]),
    ]
    published = [GSM8K_TRAIN, GSM8K_TEST, SQUAD_TRAIN, SQUAD_TRAIN[:2], [text.decode() for text in MODEL.values()]]
    # A folder that has the dataset's name, where the command is run, is not the dataset.
    (tmp_path / SQUAD).mkdir(parents=True)
    (tmp_path / SQUAD / "train.jsonl").write_text('{"id": "local"}\n')
    assert ask(mirror, tmp_path, *wanted) == published
    mirror.forget()
    missing = ("load_split", [C4, "en", NOWHERE, "train"])
    *rows, forbidden = ask(mirror, tmp_path, *wanted, missing, HF_DATASETS_OFFLINE="1")
    assert rows == published and mirror.requests == []
    assert_explained(forbidden, "was not downloaded before", "HF_DATASETS_OFFLINE")
    mirror.stop()
    (torn,) = tmp_path.rglob("squad-validation.arrow")
    torn.write_bytes(b"")
    *rows, other_subset, other_split, other_revision, streamed, file = ask(
        mirror,
        tmp_path,
        *wanted,
        ("load_split", [GSM8K, "socratic", gsm8k, "train"]),
        ("load_split", [GSM8K, "main", gsm8k, "dev"]),
        ("load_split", [GSM8K, "main", NOWHERE, "train"]),
        ("stream_file", [C4, "en", mirror.sha(C4), "train", 0]),
        ("download", [GPT2, gpt2, "config.json"]),
        HF_HUB_OFFLINE="1",
    )
    assert_explained(rows.pop(3), SQUAD, "could not be read", f"Delete {torn.parent} to download it again")
    assert rows == published[:3] + published[4:]
    assert_explained(other_split, "has no split 'dev'; its splits: train, test.")
    assert_explained(other_revision, GSM8K, NOWHERE, "was not downloaded before", "HF_HUB_OFFLINE", "data=files")
    assert_explained(other_subset, "was not downloaded before", "layout gsm8k/train.jsonl.gz", "data=embedded")
    assert_explained(streamed, "allenai/c4", "was not downloaded before", "Unset the variable")
    assert_explained(file, GPT2, "was not downloaded before", "tokenizer.path=DIR", "tokenizer=bpe")


def test_a_stream_reads_no_further_than_it_is_followed(mirror: Any, tmp_path: Path) -> None:
    call = ("stream_file", [C4, "en", mirror.sha(C4), "train", 0])
    assert ask(mirror, tmp_path, (*call, 3)) == [C4_SHARDS[0][:3]]
    fetched = [request.path for request in mirror.requests if request.path.endswith(".gz") and request.method == "GET"]
    assert any("00000-of-00002" in path for path in fetched)
    assert not any("00001-of-00002" in path for path in fetched)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".arrow", ".gz")], "a stream stores no rows"
    gated = ("load_split", ["meta/locked", None, mirror.sha("meta/locked"), "validation"])
    calls = [(name, [*arguments[:-1], number]) for name, arguments in [call] for number in (0, 1)]
    *rows, opened = ask(mirror, tmp_path / "whole", *calls, gated, HF_TOKEN="hf_" + "x" * 34)
    assert rows == C4_SHARDS
    assert opened == SQUAD_TRAIN[:2], "a token opens a gated dataset"


def test_a_revision_is_never_replaced_by_another(mirror: Any, tmp_path: Path) -> None:
    """``datasets`` itself answers the second request with the first revision's rows (huggingface/datasets 7928)."""
    first, changed = mirror.sha(SQUAD), [{"id": "changed"}]
    second = mirror.commit("datasets", SQUAD, {"train.jsonl.gz": jsonl_gz(changed)})
    assert ask(mirror, tmp_path, ("load_split", [SQUAD, None, first, "train"])) == [SQUAD_TRAIN]
    mirror.fail(0, 0, 403)  # after two good answers one that the libraries do not ask for again
    mirror.forget()
    calls = [("load_split", [SQUAD, None, revision, "train"]) for revision in (second, first)]
    assert ask(mirror, tmp_path, *calls) == [changed, SQUAD_TRAIN]
    assert not any(first in request.path for request in mirror.requests), "what is there is not asked for again"


def test_what_the_hub_refuses_is_explained(mirror: Any, tmp_path: Path) -> None:
    gsm8k, page = mirror.sha(GSM8K), f"{mirror.endpoint}/datasets"
    moved, *refused, model, revision, file = ask(
        mirror,
        tmp_path,
        ("load_split", ["old/squad", None, mirror.sha(SQUAD), "train"]),
        ("load_split", ["no/such", None, NOWHERE, "train"]),
        ("stream_file", ["no/such", None, NOWHERE, "train", 0]),
        ("load_split", [GSM8K, "main", NOWHERE, "train"]),
        ("load_split", ["meta/locked", None, mirror.sha("meta/locked"), "train"]),
        ("load_split", [GSM8K, "algebra", gsm8k, "train"]),
        ("stream_file", [C4, None, mirror.sha(C4), "train", 0]),
        ("load_split", [GSM8K, "main", gsm8k, "dev"]),
        ("stream_file", [C4, "en", mirror.sha(C4), "dev", 0]),
        ("load_split", ["empty/empty", None, mirror.sha("empty/empty"), "train"]),
        ("load_split", ["not/an/id", None, NOWHERE, "train"]),
        ("download", ["no/such", NOWHERE, "vocab.json"]),
        ("download", [GPT2, NOWHERE, "vocab.json"]),
        ("download", [GPT2, mirror.sha(GPT2, "models"), "vocab.json", "tokens.txt"]),
    )
    assert moved == SQUAD_TRAIN, "the hub leads a renamed repository's old name to the new one"
    unknown, unknown_stream, gone, gated, subset, no_subset, split, stream_split, empty, no_id = refused
    for answer in (unknown, unknown_stream):
        assert_explained(
            answer,
            "dataset no/such at revision 000",
            "moved, deleted, or private (then type hf auth login)",
            "corpus.hub_id",
        )
    assert_explained(
        gone, f"{GSM8K} at revision {NOWHERE} does not exist", f"{page}/{GSM8K}/commits/main", "data=files"
    )
    assert_explained(gated, "meta/locked", "is gated", f"{page}/meta/locked", "hf auth login", "HF_TOKEN")
    assert_explained(subset, "has no subset 'algebra'; its subsets: main, socratic. Type corpus.subset=main")
    assert_explained(no_subset, "has several subsets", "en, sv", "Type corpus.subset=en")
    assert_explained(split, "has no split 'dev'; its splits: train, test. ", "data=embedded")
    assert_explained(stream_split, "has no split 'dev'; its splits: train. ")
    assert_explained(empty, "empty/empty", "could not be read", "contain any data files", f"{page}/empty/empty")
    assert_explained(no_id, "'not/an/id' names no dataset. Type corpus.hub_id=OWNER/NAME, or data=files")
    assert_explained(
        model, "model no/such", "moved, deleted, or private (then type hf auth login)", "tokenizer.path=DIR"
    )
    assert_explained(revision, f"model {GPT2} at revision {NOWHERE} does not exist", "tokenizer=bpe")
    assert_explained(file, f"model {GPT2}", "could not be read (HTTP 404)", "tokenizer.path=DIR")


def test_what_may_pass_is_tried_again(mirror: Any, tmp_path: Path) -> None:
    mirror.fail(503, 503, 503, 200, 200, 200, 503, 503)  # three attempts, three, and the third one succeeds
    call = ("load_split", [GSM8K, "main", mirror.sha(GSM8K), "train"])
    overloaded, login_page, rows = ask(mirror, tmp_path, call, call, call)
    assert_explained(overloaded, f"cannot reach {mirror.endpoint} for {GSM8K} (HTTP 503)")
    assert_explained(login_page, "not the hub", "login page")
    assert rows == GSM8K_TRAIN


def test_without_a_network(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"  # bound, and nobody listens: connections are refused
        dataset, stream, model = ask(
            closed,
            tmp_path,
            ("load_split", [SQUAD, None, NOWHERE, "train"]),
            ("stream_file", [C4, "en", NOWHERE, "train", 0]),
            ("download", [GPT2, NOWHERE, "vocab.json", "merges.txt"]),
        )
    assert_explained(dataset, f"cannot reach {closed} for {SQUAD} (Connection refused)", "layout squad/train.jsonl.gz")
    assert_explained(dataset, "data=files data.root=DIR", "data=embedded", "HF_HUB_OFFLINE=1")
    assert_explained(stream, f"cannot reach {closed} for {C4} (Connection refused)", "layout c4/train.jsonl.gz")
    assert_explained(model, f"cannot reach {closed} for {GPT2} (Connection refused)", "vocab.json, merges.txt")
