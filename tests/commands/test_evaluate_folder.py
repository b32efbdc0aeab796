"""An evaluation's folder: a result in another precision stands beside the exact one, whose name stays."""

from __future__ import annotations

from typing import Any

import pytest

from pausebench.commands.evaluate import folder_of
from pausebench.config.commands import EvaluateConfig
from pausebench.config.groups import Arithmetic, Placement


@pytest.mark.usefixtures("first_numerics")
def test_the_precision_is_part_of_the_name_only_where_it_is_not_exact() -> None:
    def name(**options: Any) -> str:
        config = EvaluateConfig(run="x", filler="pause", **options)
        return folder_of(config, "squad-PausePT_PauseFT-k10-s0-12345678", Placement.append, 10).name

    assert name() == name(precision=Arithmetic.exact) == "squad-PausePT_PauseFT-k10-s0-m10-79dd07bd"
    assert len({name(precision=precision) for precision in Arithmetic}) == 3
