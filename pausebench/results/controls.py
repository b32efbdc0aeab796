"""The controls: what each takes away, and how far it stands from the full method and from the baseline.

Invariant: a control is compared within its own setting, with the references of its own panel or else of the table.
"""

from __future__ import annotations

from pausebench.results.analysis import baseline, full_label
from pausebench.results.layouts import (
    Group,
    Line,
    Sheet,
    difference_text,
    flops,
    interval_text,
    metric_title,
    ours_text,
)
from pausebench.results.statistics import paired_comparison
from pausebench.results.study import Panel, Scores, Setting, Study

REFERENCES = ("PausePT_PauseFT", "StdPT_StdFT")
CONTROLS = {
    "hidden_pretraining": "pauses hidden in pretraining from every position but themselves and the read-out",
    "hidden_finetuning": "pauses hidden so in finetuning and at inference",
    "hidden": "pauses hidden in both",
    "one_pause": "K = 1",
    "shifted": "no pauses, the answer's positions moved on by K",
    "filler": "the text . in the pauses' places, in finetuning and at inference",
    "layers": "no pauses, more layers, pretrained with them, at equal inference FLOPs",
    "steps": "no pauses, more finetuning steps at equal training FLOPs",
}


def controls_sheet(study: Study, panel: Panel) -> Sheet:
    """Every control of every task, and how far it is from the full method and from the baseline."""
    columns = ("mean ± deviation (n)", "− PausePT_PauseFT", "− StdPT_StdFT", "FLOPs an answer")
    groups = []
    for setting in panel.settings():
        arms = with_references(study, panel, setting)
        lines = []
        for scores in arms:
            against = [next((arm for arm in arms if is_reference(arm, name)), None) for name in REFERENCES]
            cells = [ours_text(scores, setting, None), *(_against(scores, other) for other in against)]
            lines.append(Line(full_label(scores.arm), (*cells, flops(scores.inference_flops))))
        metric, _ = panel.metrics(setting)
        groups.append(Group(metric_title(setting, metric, False), tuple(lines)))
    seen = dict.fromkeys(cell.arm.control for cell in panel.cells if cell.arm.control)
    told = "; ".join(f"{name}: {CONTROLS[name]}" for name in seen if name in CONTROLS)
    notes = (
        "Differences are control − reference, paired over seeds, with their 95 % interval; their corrected p-values "
        "are among the secondary comparisons.",
        told,
    )
    return Sheet(f"{panel.title}: controls", "arm", columns, tuple(groups), notes)


def is_reference(scores: Scores, variant: str) -> bool:
    """Whether an arm is the paper's own variant, evaluated as it was finetuned."""
    arm = scores.arm
    return arm.variant == variant and not arm.control and arm.mt == arm.k and arm.filler in ("", "<pause>")


def with_references(study: Study, panel: Panel, setting: Setting) -> list[Scores]:
    """The full method and the baseline, from this panel or another of the study, and then the controls."""
    arms = panel.scores(setting)
    rest = [scores for scores in arms if not any(is_reference(scores, name) for name in REFERENCES)]
    counts = [scores.arm.k for scores in rest if scores.arm.k]
    usual = max(counts, key=counts.count) if counts else 0
    found = []
    for variant in REFERENCES:
        others = [scores for other in study.of_kind("variants") for scores in other.scores(setting)]
        fitting = [scores for scores in (*arms, *others) if is_reference(scores, variant)]
        fitting = [scores for scores in fitting if scores.arm.k in (0, usual)] or fitting
        found += fitting[:1]
    if not any(is_reference(scores, "StdPT_StdFT") for scores in found):
        plain = baseline(study, panel, setting)
        found += [plain] if plain else []
    return [*found, *rest]


def _against(scores: Scores, other: Scores | None) -> str:
    if other is None or other.names == scores.names:
        return "-"
    c = paired_comparison(scores.values, other.values)
    return f"{difference_text(c)} {interval_text(c)}".removesuffix(" -")
