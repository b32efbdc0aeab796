"""The command line: measure what is asked for; a JSON and a Markdown file hold what is done so far at any time."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from pausebench import __version__
from pausebench.config.help import choices
from pausebench.errors import BadInput
from pausebench.training.device import choose_device, cpu_threads, describe
from tests.benchmarks.compare import decode, finetune, memory, overhead, pauses, peak, pretrain, sweep, table
from tests.benchmarks.compare.contest import Line
from tests.benchmarks.compare.setting import Options, Setting

WORKLOADS: dict[str, Callable[[Setting], list[Line]]] = {
    "pretrain": pretrain.run,
    "pauses": pauses.run,
    "finetune": finetune.run,
    "decode": decode.run,
    "sweep": sweep.run,
    "memory": memory.run,
    "overhead": overhead.run,
}
PEERS = ("eager", "compiled", "trainer", "litgpt")
VERSIONED = ("torch", "transformers", "accelerate", "litgpt")


def main(words: Sequence[str]) -> int:
    """Exit code: 0 done, 2 bad input, 130 interrupted."""
    parser = _parser()
    given = parser.parse_args(words)
    options = Options(**{item.name: getattr(given, item.name) for item in fields(Options)})
    try:
        return _measure(options, given.out, words)
    except BadInput as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.compare", description=__doc__)
    add, least_one = parser.add_argument, _at_least_one
    add("--work", nargs="+", choices=WORKLOADS, default=tuple(WORKLOADS), help="what is measured (all)")
    add("--peers", nargs="+", choices=PEERS, default=PEERS, help="beside whom; trainer is transformers' (all)")
    add("--model", choices=choices("model"), default="130m")
    add("--data", metavar="DIR", help="squad, gsm8k, c4 and gpt2-tokenizer in this folder (generated English)")
    add("--tokenizer", choices=("gpt2", "bpe", "byte"), help="gpt2 with --data, else bpe")
    add("--vocab-size", type=least_one, default=50258, help="the model's, where the tokenizer's is smaller (GPT-2's)")
    add("--batch-size", type=least_one, help="rows of a step or decoded together (4; finetuning 16, decoding the best)")
    add("--sequence-length", type=least_one, help="tokens in a pretraining row (512, and 2048 for memory)")
    add("--k", type=int, default=10, help="pauses in finetuning and decoding")
    add("--rows", type=least_one, default=64, help="rows decoded")
    add("--new-tokens", type=least_one, help="tokens decoded for every row (64 for gsm8k, 16 for squad)")
    add("--steps", type=least_one, default=2, help="optimizer steps of one timing")
    add("--repeats", type=least_one, default=3, help="rounds; every side works once in each")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    add("--compile", choices=("on", "off"), default="on", help="torch.compile on our side, as long runs have it")
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=least_one, help="CPU threads (torch's choice)")
    add("--out", type=Path, default=Path("runs/benchmarks/compare.json"), help="a Markdown table is written beside it")
    return parser


def _at_least_one(word: str) -> int:
    if int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word}: must be at least 1")
    return int(word)


def _measure(options: Options, out: Path, words: Sequence[str]) -> int:
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as scratch, cpu_threads(options.threads):
        setting = Setting(options, choose_device(options.device), Path(scratch))
        tokens = (options.batch_size or 4) * (options.sequence_length or 512)
        reached = peak.measure(setting.device, setting.dtype, setting.model, tokens, setting.tokenizer.vocab_size)
        code = 0
        try:
            for name in options.work:
                print(f"{name} ...", flush=True)
                lines += WORKLOADS[name](setting)
                _write(out, setting, reached, lines, words)
        except KeyboardInterrupt:
            print(f"stopped in {name}: {len(lines)} comparisons are in {out}", file=sys.stderr)
            code = 130
        found = _write(out, setting, reached, lines, words)
    print(table.markdown(found), f"{out} and {out.with_suffix('.md').name}", sep="\n")
    return code


def _write(out: Path, setting: Setting, reached: peak.Peak, lines: list[Line], words: Sequence[str]) -> dict[str, Any]:
    """What is known so far, as JSON and as Markdown beside it."""
    found = {
        "command": shlex.join(["python", "-m", "tests.benchmarks.compare", *words]),
        "machine": {
            "device": describe(setting.device),
            "cpu": _cpu(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
        "versions": {"pausebench": __version__, "python": platform.python_version(), **_versions()},
        "peak": {**reached._asdict(), "dtype": str(setting.dtype).removeprefix("torch.")},
        "vocab_size": setting.tokenizer.vocab_size,
        "repeats": setting.options.repeats,
        "steps": setting.options.steps,
        "lines": [line.as_json(reached.flops) for line in lines],
        "notes": setting.notes,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1))
    out.with_suffix(".md").write_text(table.markdown(found))
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    """The processor's name, if the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
