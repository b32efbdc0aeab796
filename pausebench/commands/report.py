"""``pausebench report``: tables and a page from the run folders alone; imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from pausebench.config import ReportConfig
from pausebench.results.page import write_report
from pausebench.results.tables import print_report


def run(config: ReportConfig) -> dict[str, Any]:
    """Write the page, print the tables."""
    runs = Path(config.runs)
    page = write_report(runs, config.study)
    print_report(runs, config.study, Console(highlight=False))
    return {"names": [str(page)]}
