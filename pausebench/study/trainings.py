"""Which models the panels of ``conf/result`` train, narrowed or widened by the options of ``reproduce``.

Seeds come later (``study.plan``), and so do the study's arms: one training gives an arm for each M and filler.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pausebench.config.commands import ReproduceConfig
from pausebench.errors import BadInput
from pausebench.study.study import CONTROLS

# What a panel of conf/result may be; the report draws each kind in its own way.
KINDS = ("bottleneck", "variants", "k_curve", "m_curve", "filler", "placement")
SWEEPS_M = ("m_curve", "filler")  # the kinds in which M is not K
OTHER_K = 10  # of a task that a list of K by task does not name

# Shares of K at which M is tried where the study lists none for that K. With K = 10 they give the paper's own grid
# (Figure 4c): 0, 1, 2, 5, 8, 10, 12, 15, 20.
SHARES_OF_K = (0, 0.1, 0.2, 0.5, 0.8, 1, 1.2, 1.5, 2)


@dataclass(frozen=True)
class Training:
    """One way to train on one task, and every way to score the model.

    finetune, pretrain: overrides of its commands beside those that the other fields say. mt: every M it is scored with,
    each with every one of ``fillers``; None is M = K. control: the name of the control it belongs to, "" for the
    paper's own. control_k: the K whose positions or FLOPs a control without pauses matches. matched: the override that
    makes it so. It comes last, so it wins over whatever the user overrides.
    """

    task: str
    world: str | None
    pretraining: str
    k: int
    placement: str = "append"
    finetune: tuple[str, ...] = ()
    pretrain: tuple[str, ...] = ()
    fillers: tuple[str, ...] = ("pause",)
    mt: tuple[int, ...] | None = None
    control: str = ""
    control_k: int = 0
    matched: str = ""

    @property
    def deeper(self) -> tuple[str, ...]:
        """The part of ``matched`` that the parent has to share: its layers."""
        return (self.matched,) if self.matched.startswith("model.") else ()


HIDDEN = ("pause_visibility=readout",)


def source_of_controls(config: ReproduceConfig) -> Mapping[str, Any]:
    """The panel whose tasks and K the controls take: the primary one. Raises ``BadInput`` where there is none."""
    primary = config.result["primary"]
    if primary is None:
        raise BadInput(
            f"controls={config.controls}: result={config.result['name']} finetunes without pauses. "
            "Type them with result=table1."
        )
    panel: Mapping[str, Any] = config.result["panels"][primary["panel"]]
    return panel


def of_controls(config: ReproduceConfig, source: Mapping[str, Any]) -> list[Training]:
    """Each of ``controls=`` beside StdPT_StdFT and PausePT_PauseFT, for the grid of the panel ``source``.

    Raises ``BadInput`` for an unknown control.
    """
    for control in config.control_list:
        if control not in CONTROLS:
            raise BadInput(f"controls={control}: allowed are {', '.join(CONTROLS)}. For example controls=[shifted].")
    found = []
    # A control differs from the panel in one thing, so that it takes over whatever else the panel sets.
    own, parents = tuple(source.get("overrides", [])), tuple(source.get("pretrain_overrides", []))
    for task, world in itertools.product(tasks_of(source, config), source.get("world", [None])):
        counts = [k for k in pause_counts(source, config, task, "pause") if k]
        base = Training(task, world, "std", 0, finetune=own, pretrain=parents)
        # The two ends that every control is read against. The primary panel has them too; they are run once.
        found += [base, *(replace(base, pretraining="pause", k=k) for k in counts)]
        for control in config.control_list:
            named = replace(base, control=control)
            paused = [replace(named, pretraining="pause", k=k) for k in counts]
            # Hidden pauses cost the same computation and carry nothing: what is left of the effect is not in them.
            if control == "hidden_pretraining":
                found += [replace(training, pretrain=(*training.pretrain, *HIDDEN)) for training in paused]
            elif control == "hidden_finetuning":
                found += [replace(training, finetune=(*training.finetune, *HIDDEN)) for training in paused]
            elif control == "hidden":
                both = [replace(training, pretrain=(*training.pretrain, *HIDDEN)) for training in paused]
                found += [replace(training, finetune=(*training.finetune, *HIDDEN)) for training in both]
            # One pause is a marker of where the answer begins, with next to no computation of its own.
            elif control == "one_pause":
                found += [replace(named, pretraining=pretraining, k=1) for pretraining in ("std", "pause")]
            # Pauses also move the answer to later positions. Here only the positions move.
            elif control == "shifted":
                found += [
                    replace(named, pretraining=pretraining, finetune=(*named.finetune, f"shift={k}"), control_k=k)
                    for pretraining in ("std", "pause")
                    for k in counts
                ]
            elif control == "filler":
                found += [replace(named, k=k, finetune=(*named.finetune, "filler=.")) for k in counts]
            else:
                found += [replace(named, control_k=k) for k in counts]
    return found


def of_panel(name: str, panel: Mapping[str, Any], config: ReproduceConfig) -> list[Training]:
    """What a panel trains. Raises ``BadInput`` for an unknown kind."""
    kind = panel["kind"]
    if kind not in KINDS:
        raise BadInput(f"panel {name} has kind={kind}; allowed are {', '.join(KINDS)}.")
    found = []
    for task, world, pretraining in itertools.product(
        tasks_of(panel, config), panel.get("world", [None]), panel["pretraining"]
    ):
        for k in pause_counts(panel, config, task, pretraining):
            # Without pauses there is nothing to place.
            for placement in panel.get("placement", ["append"]) if k else ["append"]:
                training = Training(
                    task,
                    world,
                    pretraining,
                    k,
                    placement,
                    finetune=tuple(panel.get("overrides", [])),
                    pretrain=tuple(panel.get("pretrain_overrides", [])),
                    fillers=tuple(panel.get("filler", ["pause"])),
                    mt=_inference_counts(panel, config, k),
                )
                found.append(training)
    return found


def tasks_of(panel: Mapping[str, Any], config: ReproduceConfig) -> list[str]:
    """``task=``, or the panel's own; the instrument check keeps its own."""
    return list(panel["task"]) if panel["kind"] == "bottleneck" else config.task_list or list(panel["task"])


def pause_counts(panel: Mapping[str, Any], config: ReproduceConfig, task: str, pretraining: str) -> list[int]:
    """``k=`` beside the K = 0 that the panel's comparisons need, or the panel's own.

    A panel's ``k`` is a list, or K by task (and pretraining) where each has one of its own, as in Table 2.
    """
    own, given = panel["k"], config.k_list
    if isinstance(own, Mapping):
        one = own.get(task, OTHER_K)
        listed = given or [one[pretraining] if isinstance(one, Mapping) else one]
        return list(dict.fromkeys([0, *listed] if pretraining == "std" else [k for k in listed if k]))
    if given is None or panel["kind"] in ("bottleneck", "filler"):
        return list(own)
    # Only the pauses are replaced: without its K = 0 the panel would have nothing to compare them with.
    needed = [k for k in own if k == 0]
    return list(dict.fromkeys([*needed, *given]))


def _inference_counts(panel: Mapping[str, Any], config: ReproduceConfig, k: int) -> tuple[int, ...] | None:
    """``mt=``, or the panel's own: a list, or lists by K; None is M = K."""
    if panel["kind"] not in SWEEPS_M:
        return None
    own = panel["mt"]
    if config.mt_list is not None:
        return tuple(dict.fromkeys([0, *config.mt_list] if panel["kind"] == "filler" else config.mt_list))
    if not isinstance(own, Mapping):
        return tuple(own)
    # A K that the paper did not sweep gets the same shares of K as its own grid.
    return tuple(own[k]) if k in own else tuple(dict.fromkeys(round(share * k) for share in SHARES_OF_K))


def refuse_unused(panels: Sequence[Mapping[str, Any]], config: ReproduceConfig) -> None:
    """Raise ``BadInput`` for a list that would silently do nothing, because no panel of the study reads it."""
    name, kinds = config.result["name"], {panel["kind"] for panel in panels}
    if config.mt_list is not None and not kinds & set(SWEEPS_M):
        raise BadInput(
            f"mt={config.mt}: result={name} evaluates every model with M = K. Sweep K with k=[...], "
            "or M with result=figure4c or result=figure4a."
        )
    if config.k_list is not None and kinds <= {"bottleneck", "filler"}:
        raise BadInput(f"k={config.k}: result={name} finetunes without pauses. Its pauses at inference are mt=[...].")
    if config.task_list is not None and kinds <= {"bottleneck"}:
        raise BadInput(f"task={config.task_list}: result={name} has no other task than its own.")


def typed_lists(config: ReproduceConfig) -> list[str]:
    """The lists that were given, as they are typed."""
    lists = {"task": config.tasks, "k": config.k, "mt": config.mt, "controls": config.controls}
    return [f"{name}={given}".replace(", ", ",").replace("'", "") for name, given in lists.items() if given is not None]
