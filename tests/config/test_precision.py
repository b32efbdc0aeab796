"""What ``precision=auto`` takes on which device, and that a study takes one for all its cells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pausebench import cli
from pausebench.commands import reproduce
from pausebench.config.arithmetic import bfloat16_on, precision_line, resolved_precision
from pausebench.config.groups import ModelConfig, Precision

ZEN4 = frozenset(["fma", "avx2", "avx512f", "avx512_bf16"])
SAPPHIRE_RAPIDS = frozenset(["avx512_bf16", "amx_bf16", "amx_tile"])
ZEN3 = frozenset(["fma", "avx2"])
SKYLAKE = frozenset(["avx2", "avx512f", "avx512bw", "avx512_vnni"])
GRAVITON3 = frozenset(["fp", "asimd", "sve", "bf16", "i8mm"])
WIDE = ModelConfig(name="wide", n_layers=1, n_heads=1, d_model=64, d_mlp=64, max_positions=8)
NARROW = ModelConfig(name="narrow", n_layers=1, n_heads=1, d_model=32, d_mlp=64, max_positions=8)


@pytest.mark.parametrize(
    ("flags", "environ", "fast"),
    [
        (ZEN4, {}, True),
        (SAPPHIRE_RAPIDS, {}, True),
        (GRAVITON3, {}, True),
        (ZEN3, {}, False),
        (SKYLAKE, {}, False),
        (frozenset[str](), {}, False),
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
        (ZEN4, {"DNNL_MAX_CPU_ISA": "avx512_core"}, False),
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True),
        (ZEN4, {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, True),
        (ZEN4, {"ATEN_CPU_CAPABILITY": "default"}, True),
    ],
)
def test_a_cpu_is_asked_for_bfloat16_kernels(flags: frozenset[str], environ: dict[str, str], fast: bool) -> None:
    assert bfloat16_on("cpu", flags, environ, gpu=False).fast is fast
    assert bfloat16_on("auto", flags, environ, gpu=False).fast is fast


def test_a_gpu_is_fast_unless_the_cpu_is_asked_for() -> None:
    assert bfloat16_on("auto", ZEN3, {}, gpu=True).fast
    assert bfloat16_on("cuda", ZEN3, {}, gpu=False).fast
    assert not bfloat16_on("cpu", ZEN3, {}, gpu=True).fast


def test_auto_leaves_narrow_models_and_typed_precisions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved_precision(Precision.auto, NARROW, "cuda") is Precision.fp32
    assert resolved_precision(Precision.auto, WIDE, "cuda") is Precision.bf16
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert resolved_precision(Precision.auto, WIDE, "cpu") is Precision.fp32
    assert resolved_precision(Precision.bf16, WIDE, "cpu") is Precision.bf16
    assert "many times faster" in (precision_line(Precision.bf16, WIDE, "cpu") or "")
    assert "training in float32" in (precision_line(Precision.fp32, WIDE, "cpu") or "")
    assert precision_line(Precision.fp32, NARROW, "cpu") is None


TEXT = "reproduce result=text task=squad seeds=1 dry_run=true"


def commands(capsys: pytest.CaptureFixture[str], root: Path) -> list[str]:
    assert cli.run([*TEXT.split(), f"runs={root}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    return [line for line in lines if not line.startswith("pausebench evaluate")]


def test_a_study_fixes_the_precision_of_all_its_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    found = commands(capsys, tmp_path)
    assert found and all(" precision=fp32 " in line for line in found)


def test_a_study_that_changes_machines_keeps_its_precision(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(reproduce, "study_name", lambda config: "text")
    (tmp_path / "reproduce" / "text").mkdir(parents=True)
    for recorded in ("bf16", "fp32"):
        (tmp_path / "reproduce" / "text" / "plan.json").write_text(json.dumps({"precision": recorded}))
        assert all(f" precision={recorded} " in line for line in commands(capsys, tmp_path))
