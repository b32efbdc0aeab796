"""``pausebench prepare``: killed anywhere and started again, with any number of workers, it writes the same bytes."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pausebench import cli
from pausebench.data.tokenizer import BpeTokenizer, ByteTokenizer

_spec = importlib.util.spec_from_file_location("hub_mirror", Path(__file__).parents[1] / "hub_mirror.py")
assert _spec is not None and _spec.loader is not None
hub_mirror = importlib.util.module_from_spec(_spec)
sys.modules["hub_mirror"] = hub_mirror
_spec.loader.exec_module(hub_mirror)

BYTE = ByteTokenizer()
WORDS = random.Random(0)
FILES = {  # of very different sizes, one empty
    f"train-{number}": [
        f"file {number} document {document} " + "word " * WORDS.randrange(60) for document in range(documents)
    ]
    for number, documents in enumerate((900, 0, 300, 40))
} | {"validation": [f"validation {number}" for number in range(50)]}
SHARD_TOKENS = 9000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus ``mine``: four training files and one of validation."""
    data = tmp_path_factory.mktemp("data")
    folder = data / "mine"
    folder.mkdir(parents=True)
    for name, documents in FILES.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8", compresslevel=1) as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    return data


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run root in which ``mine`` was prepared by one worker without interruption."""
    runs = tmp_path_factory.mktemp("whole")
    prepare(root, runs, "workers=1")
    return runs


@pytest.fixture
def own_root(root: Path, tmp_path: Path) -> Path:
    """A copy of ``root`` that may be changed."""
    return Path(shutil.copytree(root, tmp_path / "data"))


@pytest.fixture
def own_whole(whole: Path, tmp_path: Path) -> Path:
    """A copy of ``whole`` that may be changed."""
    return Path(shutil.copytree(whole, tmp_path / "whole"))


def line(root: Path, runs: Path, *words: str, command: str = "prepare") -> list[str]:
    """The words of a command line on the corpus ``mine``."""
    source = ["data=files", f"data.root={root}", "corpus=text", "corpus.name=mine", "tokenizer=byte"]
    return [command, *source, f"runs={runs}", *words]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def prepare(root: Path, runs: Path, *words: str, code: int = 0) -> str:
    """Run the command here; what it said."""
    said = io.StringIO()
    with redirect_stderr(said):
        ended = cli.run(line(root, runs, f"shard_tokens={SHARD_TOKENS}", *words))
    assert ended == code, said.getvalue()
    return said.getvalue()


def start(root: Path, runs: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    argv = [sys.executable, "-m", "pausebench", *line(root, runs, f"shard_tokens={SHARD_TOKENS}", *words)]
    return subprocess.Popen(argv, env=environment(), stderr=subprocess.PIPE, text=True, **options)


def folder(runs: Path) -> Path:
    (found,) = (runs / "prepare").iterdir()
    return found


def tree(runs: Path) -> dict[str, bytes]:
    """Every file but the config, which says how many workers there were."""
    return {
        str(path.relative_to(folder(runs))): path.read_bytes()
        for path in folder(runs).rglob("*")
        if path.is_file() and path.name != "config.yaml"
    }


def documents(runs: Path, split: str) -> list[str]:
    """The texts that the shards hold."""
    index = json.loads((folder(runs) / "index.json").read_text())
    ids = [i for shard in index["splits"][split] for i in np.fromfile(folder(runs) / shard["file"], "<u2").tolist()]
    texts: list[list[int]] = [[]]
    for token in ids:
        if token == BYTE.end_id:
            texts.append([])
        else:
            texts[-1].append(token)
    assert texts.pop() == []
    return [BYTE.decode(text) for text in texts]


def wait_for_shards(process: subprocess.Popen[str], runs: Path, count: int) -> None:
    """Until so many shards have their names, or the process is done."""
    while process.poll() is None and len(list(runs.glob("prepare/*/*/*.bin"))) < count:
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_killed_at_several_moments_and_started_again_it_writes_what_an_uninterrupted_run_writes(
    root: Path, whole: Path, tmp_path: Path
) -> None:
    moments = random.Random(1)
    recorded = 0
    for _ in range(4):
        process = start(root, tmp_path, f"workers={moments.choice((1, 2))}")
        wait_for_shards(process, tmp_path, recorded + moments.randrange(1, 3))
        time.sleep(moments.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        recorded = len(list(tmp_path.glob("prepare/*/*/*.bin")))
    prepare(root, tmp_path, "workers=2")
    assert tree(tmp_path) == tree(whole)


def test_two_workers_write_what_one_writes(root: Path, whole: Path, tmp_path: Path) -> None:
    prepare(root, tmp_path, "workers=2")
    assert tree(tmp_path) == tree(whole)


def test_no_document_is_lost_or_doubled_and_their_order_is_that_of_the_files(whole: Path) -> None:
    training = [text for name in sorted(FILES) if name.startswith("train") for text in FILES[name]]
    assert documents(whole, "train") == training
    assert documents(whole, "validation") == FILES["validation"]
    result = json.loads((folder(whole) / "result.json").read_text())
    assert result["documents"] == {"train": 1240, "validation": 50} and result["shards"] > 10


def test_ctrl_c_says_what_was_saved_and_the_workers_end(root: Path, tmp_path: Path) -> None:
    process = start(root, tmp_path, "workers=2")
    wait_for_shards(process, tmp_path, 2)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130, said
    shards = sum(len(json.loads(path.read_text())["shards"]) for path in folder(tmp_path).glob("*/*.json"))
    assert f"Ctrl-C: saved {shards} shards with " in said
    assert "Type the same command to resume from there." in said
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    assert not (folder(tmp_path) / "lock.json").exists() and not list(tmp_path.rglob("*.tmp"))


def test_a_killed_worker_is_said_and_the_next_start_goes_on(root: Path, whole: Path, tmp_path: Path) -> None:
    process = start(root, tmp_path, "workers=2")
    wait_for_shards(process, tmp_path, 1)
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == 1 and "a worker was killed" in said and "Type the same command to resume" in said
    prepare(root, tmp_path, "workers=2")
    assert tree(tmp_path) == tree(whole)


def test_a_full_disk_gives_one_message_and_leaves_what_was_recorded(root: Path, whole: Path, tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # a full shard has 18,000 bytes, validation's fewer

    process = start(root, tmp_path, "workers=1", preexec_fn=limited)
    said = process.communicate()[1]
    assert process.returncode == 1
    assert "could not be written (File too large). What was saved before is intact." in said
    assert "Traceback" not in said
    assert list(folder(tmp_path).glob("validation/*.bin")) and not list(tmp_path.rglob("*.tmp"))
    prepare(root, tmp_path, "workers=1")
    assert tree(tmp_path) == tree(whole)


def test_a_finished_folder_is_left_alone(root: Path, whole: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in folder(whole).rglob("*.bin")}
    prepare(root, whole, "workers=1")
    assert {path: path.stat().st_mtime_ns for path in folder(whole).rglob("*.bin")} == times


def test_a_deleted_shard_is_made_again(root: Path, own_whole: Path) -> None:
    before = tree(own_whole)
    next(folder(own_whole).glob("train/00000-00001.bin")).unlink()
    (folder(own_whole) / "index.json").unlink()
    prepare(root, own_whole, "workers=1")
    assert tree(own_whole) == before


def test_another_source_and_another_size_of_shards_are_refused(own_root: Path, whole: Path) -> None:
    said = prepare(own_root, whole, "shard_tokens=77", code=2)
    assert f"shard_tokens=77: {folder(whole)} was begun with 9000." in said
    with gzip.open(own_root / "mine" / "train-1.jsonl.gz", "wt") as file:
        file.write('{"text": "one more"}\n')
    said = prepare(own_root, whole, code=2)
    assert "was begun from other files" in said and f"or delete {folder(whole)}" in said


def test_a_broken_row_is_named_and_what_was_recorded_stays(own_root: Path, tmp_path: Path) -> None:
    with gzip.open(own_root / "mine" / "train-3.jsonl.gz", "at") as file:
        file.write('{"no text": 1}\n')
    said = prepare(own_root, tmp_path, "workers=1", code=2)
    assert "train-3.jsonl.gz, line 41: field text is missing" in said
    assert len(list(folder(tmp_path).glob("train/00000-*.bin"))) > 2


def test_of_some_files_alone_there_is_a_folder_of_its_own(root: Path, whole: Path, tmp_path: Path) -> None:
    prepare(root, tmp_path, "workers=1", "corpus.files=1")
    assert documents(tmp_path, "train") == FILES["train-0"]
    assert documents(tmp_path, "validation") == FILES["validation"]
    assert folder(tmp_path).name != folder(whole).name


def test_generated_text_is_not_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["prepare", "data=embedded", "tokenizer=byte", f"runs={tmp_path}"]) == 2
    assert "generated text has no end and is not prepared" in capsys.readouterr().err


@pytest.mark.slow
class TestHub:
    """allenai/c4's shape: a subset whose splits are several gzip files."""

    def files(self) -> dict[str, bytes]:
        return {
            f"en/{split}.0000{number}.json.gz": gzip.compress(
                "".join(
                    json.dumps({"text": f"{split} {number} {row}", "url": "u", "timestamp": "2019"}) + "\n"
                    for row in range(30)
                ).encode()
            )
            for split, count in (("c4-train", 3), ("c4-validation", 1))
            for number in range(count)
        }

    def run(self, mirror: Any, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
        source = ["data=hub", "corpus=text", "corpus.name=mine", "corpus.hub_id=allenai/c4", "tokenizer=byte"]
        given = [*source, f"corpus.revision={mirror.sha('allenai/c4')}", f"runs={home / 'runs'}", *words]
        argv = [sys.executable, "-m", "pausebench", "prepare", *given]
        ended: subprocess.CompletedProcess[str] = hub_mirror.run_with_hub(mirror, home, argv)
        return ended

    def test_every_file_is_read_once_and_in_order(self, tmp_path: Path) -> None:
        with hub_mirror.HubMirror(datasets={"allenai/c4": self.files()}) as mirror:
            ended = self.run(mirror, tmp_path, "workers=2")
        assert ended.returncode == 0, ended.stderr
        assert documents(tmp_path / "runs", "train") == [f"c4-train {n} {row}" for n in range(3) for row in range(30)]
        assert documents(tmp_path / "runs", "validation") == [f"c4-validation 0 {row}" for row in range(30)]

    def test_files_that_are_not_wanted_are_not_downloaded(self, tmp_path: Path) -> None:
        with hub_mirror.HubMirror(datasets={"allenai/c4": self.files()}) as mirror:
            ended = self.run(mirror, tmp_path, "workers=1", "corpus.files=2")
            read = Counter(request.path.rpartition("/")[2] for request in mirror.requests if request.method == "GET")
        assert ended.returncode == 0, ended.stderr
        assert read["c4-train.00001.json.gz"] and not read["c4-train.00002.json.gz"]
        assert len(documents(tmp_path / "runs", "train")) == 60


def test_the_c4_sample_comes_back_from_its_shards_character_for_character(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    words = ["data=files", f"data.root={shared_data}", "corpus=c4", "tokenizer=gpt2", f"runs={tmp_path}", "workers=2"]
    assert cli.run(["prepare", *words, "shard_tokens=100000"]) == 0
    tokenizer = BpeTokenizer(*(shared_data / "gpt2-tokenizer" / name for name in ("vocab.json", "merges.txt")))
    shards = json.loads((folder(tmp_path) / "index.json").read_text())["splits"]["train"]
    ids = np.concatenate([np.fromfile(folder(tmp_path) / shard["file"], "<u2") for shard in shards])
    texts = [
        tokenizer.decode(part[:-1].tolist()) for part in np.split(ids, np.flatnonzero(ids == tokenizer.end_id) + 1)[:-1]
    ]
    with gzip.open(shared_data / "c4" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        assert texts == [json.loads(row)["text"] for row in file]
