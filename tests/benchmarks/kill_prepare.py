"""kill -9 of `pausebench prepare` and its workers at random moments: are the shards those of a run that nobody touched?

    python tests/benchmarks/kill_prepare.py data.root=DIR [kills=8] [seed=0] [workers=2]

Prepares DIR's corpus_standin with GPT-2's tokenizer in shards of 2,000,000 tokens, once without a kill and once with;
every file but the manifest, which names its folder, has to have the same bytes, and the documents counted are the same.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pausebench.runs.folder import read_json


def start(root: str, runs: Path, workers: int) -> subprocess.Popen[bytes]:
    words = ["data=files", f"data.root={root}", "corpus=corpus_standin", "tokenizer=gpt2", f"workers={workers}"]
    command = [sys.executable, "-m", "pausebench", "prepare", *words, "shard_tokens=2000000", f"runs={runs}"]
    return subprocess.Popen([*command, "quiet=true"], start_new_session=True)


def content(runs: Path) -> dict[str, bytes]:
    (folder,) = (runs / "prepare").iterdir()
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("manifest.json", "config.yaml")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def main(root: str, kills: int, seed: int, workers: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place, "whole"), Path(place, "killed")
        began = time.monotonic()
        assert start(root, whole, workers).wait() == 0
        seconds = time.monotonic() - began
        moments = []
        for _ in range(kills):
            job = start(root, killed, workers)
            moments.append(round(draw.uniform(0.1, 0.3) * seconds, 1))
            try:
                job.wait(timeout=moments[-1])
                moments[-1] = 0.0  # it was done before
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
        assert start(root, killed, workers).wait() == 0
        same = content(killed) == content(whole)
        (folder,) = (whole / "prepare").iterdir()
        print(f"killed after {moments} s of {seconds:.0f} s: {'equal' if same else 'NOT EQUAL'}")
        print({name: read_json(folder / "result.json")[name] for name in ("documents", "tokens")})
    sys.exit(not same)


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    main(
        given["data.root"],
        *(int(given.get(name, default)) for name, default in (("kills", "8"), ("seed", "0"), ("workers", "2"))),
    )
