"""``pausebench report``: tables and a page from the run folders alone; imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from pausebench.config.commands import ReportConfig
from pausebench.report.page import read_runs, write_page
from pausebench.report.terminal import print_studies


def run(config: ReportConfig) -> dict[str, Any]:
    """Read the runs once, write the page and its exports, print the tables."""
    runs = Path(config.runs)
    studies, others = read_runs(runs, config.study)
    page = write_page(runs, studies, others)
    print_studies(runs, studies, others, Console(highlight=False))
    return {"names": [str(page)]}
