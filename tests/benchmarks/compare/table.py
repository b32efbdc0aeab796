"""What was measured, as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = ("work", "beside", "unit", "ours", "theirs", "ratio", "MFU", "target", "")


def cells(line: dict[str, Any]) -> list[str]:
    """A line of the JSON as a table shows it, without what was done."""
    mfu = "/".join(f"{100 * line[name]:.1f}" for name in ("mfu_ours", "mfu_theirs") if name in line)
    remarks = [] if line.get("same_loss", True) else ["first losses differ"]
    return [
        line["work"],
        "; ".join([line["peer"], *remarks]),
        line["unit"],
        amount(line["ours"]),
        amount(line["theirs"]),
        f"{line['ratio']:.3f} ({line['ratio_low']:.2f}-{line['ratio_high']:.2f})",
        f"{mfu} %" if mfu else "",
        f"{'≤' if line['lower_is_better'] else '≥'} {line['target']:g}",
        "met" if line["met"] else "missed",
    ]


def described(lines: Sequence[dict[str, Any]]) -> list[str]:
    """What each workload does, and what a peer does otherwise."""
    what = [f"{line['work']}: {line['what']}" for line in lines]
    return list(dict.fromkeys([*what, *(f"{line['peer']}: {line['note']}" for line in lines if "note" in line)]))


def markdown(found: dict[str, Any]) -> str:
    """Where and how it was measured, the table, and what was left out."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *(cells(line) for line in found["lines"])]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    remarks = "\n".join(f"- {line}" for line in [*described(found["lines"]), *found["notes"]])
    return "\n\n".join([f"    {found['command']}", about(found), table, remarks]) + "\n"


def about(found: dict[str, Any]) -> str:
    """Machine, versions and peak in two lines."""
    machine, peak = found["machine"], found["peak"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    shape = " x ".join(map(str, peak["shape"]))
    sheet = f", data sheet {peak['data_sheet'] / 1e12:,.0f}" if peak["data_sheet"] else ""
    return (
        f"{machine['device']} ({machine['cpu']}, {machine['threads']} threads); {versions}.\n"
        f"Peak of {peak['dtype']} matrix products, measured: {peak['flops'] / 1e12:.3g} TFLOP/s ({shape}){sheet}. "
        f"Medians of {found['repeats']} rounds; ratios ours / theirs within a round, lowest and highest behind; MFU of "
        "ours/theirs."
    )


def amount(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
