"""What tests share: one thread, the same hypothesis examples each time, small decoders, worlds, published rows."""

from __future__ import annotations

import dataclasses
import getpass
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from omegaconf import OmegaConf

from pausebench.config.groups import ModelConfig, WorldConfig
from pausebench.model import fast
from pausebench.model.decoder import Decoder
from pausebench.model.fast import FastDecoder
from pausebench.model.tuning import TUNING, Tuning
from pausebench.runs import folder, slurm

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

# torch's cache of compiled code does not ask which instructions a process may use.
CACHE = f"pausebench-inductor-{getpass.getuser()}-{torch.backends.cpu.get_cpu_capability()}"
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / CACHE))

# Weights larger than a trained model's: a token that can be seen then moves every state that sees it.
SMALL_MODEL = ModelConfig(
    name="small test model",
    n_layers=2,
    n_heads=2,
    d_model=16,
    d_mlp=32,
    max_positions=160,
    embedding_std=0.5,
    linear_gain=1.0,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def first_numerics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are named as under the first numerics version, so that tests can pin names for good."""
    monkeypatch.setattr(folder, "NUMERICS_VERSION", 1)


@pytest.fixture
def tuning() -> Tuning:
    """How the decoders of ``make_decoder`` compute; a test file that wants other ways has a fixture of this name."""
    return TUNING


@pytest.fixture
def make_decoder(tuning: Tuning) -> Callable[..., FastDecoder]:
    """``make_decoder(vocab_size, seed, field=value, ...)``: a random float32 decoder as training has it, fields of its
    config replaced."""

    def make(vocab_size: int = 16, seed: int = 0, tuning: Tuning = tuning, **changes: Any) -> FastDecoder:
        model = fast.use(Decoder(dataclasses.replace(SMALL_MODEL, **changes), vocab_size), tuning)
        model.initialize(seed)
        return model.eval()

    return make


@pytest.fixture
def model(make_decoder: Callable[..., FastDecoder]) -> FastDecoder:
    """A decoder of 16 tokens, 14 the end and 15 the pause, whose greedy answers differ in words and in length."""
    return make_decoder(16, seed=10, embedding_std=0.2, linear_gain=3.0)


@pytest.fixture
def world_config() -> Callable[[str], WorldConfig]:
    """``world_config("count20")``: conf/world/count20.yaml."""
    folder = Path(__file__).parents[1] / "conf" / "world"
    return lambda name: WorldConfig(**OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml").world))


@pytest.fixture
def queue(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``queue(mine=LINES, theirs=LINES, fails=False)``: what a stand-in for Slurm's squeue lists (slurm._squeue)."""
    folder = tmp_path_factory.mktemp("slurm")
    programs = {"squeue": f'. {folder}/rc; case "$*" in *--user=*) cat {folder}/mine;; *) cat {folder}/theirs;; esac'}
    programs["scontrol"] = "echo 'ClusterName             = here'"
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    def change(mine: str = "", theirs: str = "", fails: bool = False) -> None:
        for name, content in (("mine", mine), ("theirs", theirs), ("rc", "exit 1" if fails else "")):
            (folder / name).write_text(content)

    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "ASK_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "_answers", {})
    slurm._cluster.cache_clear()
    change()
    yield change
    slurm._cluster.cache_clear()


@pytest.fixture
def shared_data() -> Path:
    """The folder of published rows, ``name/split.jsonl.gz``: PAUSEBENCH_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("PAUSEBENCH_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no published rows in {folder}: set PAUSEBENCH_DATA to a folder with name/split.jsonl.gz")
    return folder
