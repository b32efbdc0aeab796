"""What ``prepare`` says while it works: one live line on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pausebench.data.shard_writer import recorded_totals
from pausebench.results.run_folder import RunFolder

LINE_SECONDS = 10.0  # between two lines where there is no terminal


class PrepareProgress:
    """A context manager; ``update`` takes the totals so far. ``parts``: of the training split, its files."""

    def __init__(self, folder: RunFolder, parts: int, quiet: bool) -> None:
        self._folder, self._parts, self._quiet = folder, parts, quiet
        self._console = Console(stderr=True, highlight=False)
        live = self._console.is_terminal and not quiet
        self._live = Live(console=self._console, refresh_per_second=4) if live else None
        self._began: tuple[float, int, int] | None = None
        self._spoke = time.monotonic()

    def __enter__(self) -> PrepareProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, documents: int, tokens: int, done: int) -> None:
        """Documents and tokens so far, those that are not recorded yet included, and training parts that are done."""
        now = time.monotonic()
        began, tokens_before, done_before = self._began = self._began or (now, tokens, done)
        if self._live is None and (self._quiet or now - self._spoke < LINE_SECONDS):
            return
        self._spoke = now
        rate = (tokens - tokens_before) / max(now - began, 1e-9)
        line = f"{self._folder.name}  {documents:,} documents  {tokens:,} tokens  {rate:,.0f} tok/s"
        if self._parts > 1:
            line += f"  {done}/{self._parts} files"
        if done > done_before:
            seconds = int((now - began) / (done - done_before) * (self._parts - done))
            line += f"  eta {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        if self._live is not None:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True))
        else:
            self._console.print(line, soft_wrap=True, markup=False)

    def saved(self) -> str:
        """A sentence with what a next start finds."""
        shards, documents, tokens = recorded_totals(self._folder.path)
        return f"saved {shards:,} shards with {documents:,} documents and {tokens:,} tokens in {self._folder.path}."

    def done(self, result: dict[str, Any]) -> None:
        """Say what stands there now."""
        if not self._quiet:
            tokens = ", ".join(f"{split} {count:,}" for split, count in result["tokens"].items())
            line = f"done: tokens {tokens}; {result['shards']:,} shards, fingerprint {result['fingerprint']}"
            self._console.print(f"{line}, {self._folder.path}", soft_wrap=True, markup=False)
