"""Rows and files from the Hugging Face hub: ``load_split``, ``stream_file``, ``download``.

Invariant: rows are those of the revision that was asked for, in the order of its files, or there is an error.
Code from a repository never runs; HF_HOME, HF_ENDPOINT and HF_TOKEN work as usual.
"""

from __future__ import annotations

import glob
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pausebench.errors import BadInput

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset

T = TypeVar("T")

# Seven seconds in all: a restart of a proxy passes in that time, and a user without a network waits no longer.
RETRY_SECONDS: tuple[float, ...] = (1.0, 2.0, 4.0)
_TIMEOUT_SECONDS = 10.0  # for one request; a stalled connection otherwise hangs for the system's minutes
# Asked again: timeouts, too many requests, and the failures of a server or of a proxy before it.
_PASSING_STATUSES = (408, 429, 500, 502, 503, 504)
# By name: the http library beneath changed twice (requests, httpx, httpx2), the names of its errors hardly did.
_PASSING_ERRORS = {"TransportError", "ConnectionError", "TimeoutError", "LocalEntryNotFoundError"}


def load_split(hub_id: str, subset: str | None, revision: str, split: str) -> Iterator[dict[str, Any]]:
    """Rows of a dataset's split, in order; downloaded once, then read from the library's cache without any network.

    Raises BadInput where the hub, the dataset, its revision, subset or split cannot be had.
    """
    repo = _dataset(hub_id, revision)

    def prepared() -> DatasetBuilder:
        builder = _builder(repo, subset)
        builder.download_and_prepare()
        return builder

    # What was prepared before is opened without asking the hub: a sweep of hundreds of cells must not depend on it.
    builder = _cached(repo, subset) or repo.fetch(prepared)
    repo.require_split(split, builder.info.splits or {})
    try:
        return iter(builder.as_dataset(split))
    except Exception as error:
        raise BadInput(f"{repo.explain(error)} (Delete {builder.cache_dir} to download it again.)") from error


def split_files(hub_id: str, subset: str | None, revision: str, split: str) -> list[str]:
    """The names of a split's files, in order; none is downloaded. Raises as ``stream_file``."""
    return _stream(hub_id, subset, revision, split)[2]


def stream_file(hub_id: str, subset: str | None, revision: str, split: str, number: int) -> Iterator[dict[str, Any]]:
    """Rows of one of a split's files, in order, fetched while they are read; none is stored.

    The library's JSON reader rewrites a field that holds nothing but dates (C4's timestamp); other text stays as it is.

    Raises BadInput where the hub, the dataset, its revision, subset or split cannot be had, at once or while reading.
    """
    repo, dataset, names = _stream(hub_id, subset, revision, split)
    taken = 0
    try:
        # A file of a split is a shard of the library, in the same order (``_stream`` compares their numbers).
        for row in dataset.shard(len(names), number):
            taken += 1
            yield row
    except Exception as error:
        raise BadInput(f"{repo.explain(error)} (After {taken} rows of {names[number]}.)") from error


@lru_cache(maxsize=4)  # a worker that reads one file after the other lists them once
def _stream(hub_id: str, subset: str | None, revision: str, split: str) -> tuple[_Repo, IterableDataset, list[str]]:
    repo = _dataset(hub_id, revision)

    def opened() -> tuple[DatasetBuilder, dict[str, IterableDataset]]:
        builder = _builder(repo, subset)
        return builder, builder.as_streaming_dataset()

    builder, splits = repo.fetch(opened)
    repo.require_split(split, splits)
    # The library does not promise one shard a file; where the numbers differ the names mean nothing.
    files = [str(url).rpartition("/")[2] for url in (builder.config.data_files or {}).get(split, [])]
    parts = splits[split].num_shards
    return repo, splits[split], files if len(files) == parts else [f"part {number}" for number in range(parts)]


def download(hub_id: str, revision: str, *names: str) -> list[Path]:
    """Single files of a model's repository, as paths in the library's cache; no network once they are there.

    Raises BadInput where the hub, the repository, its revision or a file cannot be had.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    _quiet()
    instead = f"tokenizer.path=DIR for a local folder with {', '.join(names)}, or tokenizer=bpe"
    # A look at the disk, no request: nodes of a cluster often have no network.
    cached = [try_to_load_from_cache(hub_id, name, revision=revision) for name in names]
    paths = [path for path in cached if isinstance(path, str)]
    if len(paths) < len(names):
        repo = _Repo("model", hub_id, revision, instead)
        paths = repo.fetch(lambda: [hf_hub_download(hub_id, name, revision=revision) for name in names])
    return [Path(path) for path in paths]


class _Repo(NamedTuple):
    """A repository at a revision. kind: "dataset" or "model".

    instead: what to type where the hub does not help. choice: what chooses another repository or revision.
    """

    kind: str
    id: str
    revision: str
    instead: str
    choice: str = ""

    def fetch(self, action: Callable[[], T]) -> T:
        """``action()``, which reads the hub: repeated where a failure may pass, explained where it will not."""
        import datasets
        from huggingface_hub import HfApi, constants

        if datasets.config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE:
            raise BadInput(
                f"data=hub: {self.id} at revision {self.revision} was not downloaded before, and HF_HUB_OFFLINE or "
                f"HF_DATASETS_OFFLINE forbids it now. Unset the variable, or type {self.instead}."
            )
        for wait in (*RETRY_SECONDS, None):
            try:
                # One plain request first: without a network ``datasets`` tries for 23 s and then drops the cause.
                # What comes after a good answer is left to the libraries' own retries.
                try:
                    HfApi().repo_info(self.id, revision=self.revision, repo_type=self.kind, timeout=_TIMEOUT_SECONDS)
                except json.JSONDecodeError:  # a login page of a hotel or a proxy answers 200, too
                    raise ConnectionError("what answers there is not the hub: a proxy, or a login page") from None
                return action()
            except BadInput:
                raise
            except Exception as error:
                if wait is None or not _Failure(error).may_pass:
                    raise BadInput(self.explain(error)) from error
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def explain(self, error: BaseException) -> str:
        """What went wrong and what to type, in one to three lines."""
        from huggingface_hub.constants import ENDPOINT

        failure = _Failure(error)
        page = f"{ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"
        # The most common case first: no network, or the hub is down.
        if failure.may_pass:
            return (
                f"data=hub: cannot reach {ENDPOINT} for {self.id} ({failure.reason}). Type {self.instead}; "
                "what was downloaded before is used with HF_HUB_OFFLINE=1."
            )
        if failure.names & {"GatedRepoError"} or "is a gated dataset" in failure.text:
            what = f"is gated. Accept its terms at {page}, then type hf auth login (or set HF_TOKEN)"
        elif failure.names & {"RevisionNotFoundError"} or "Revision '" in failure.text:
            what = f"does not exist, the repository does: see {page}/commits/main{self.choice}"
        elif failure.names & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
            what = f"is not on {ENDPOINT}: moved, deleted, or private (then type hf auth login){self.choice}"
        else:
            what = f"could not be read ({failure.reason}): see {page}"
        return f"data=hub: {self.kind} {self.id} at revision {self.revision} {what}. Or type {self.instead}."

    def require_split(self, split: str, splits: Iterable[str]) -> None:
        if split not in splits:
            raise BadInput(
                f"data=hub: {self.id} at revision {self.revision} has no split {split!r}; "
                f"its splits: {', '.join(map(str, splits))}. Choose one of these, or type {self.instead}."
            )


def _dataset(hub_id: str, revision: str) -> _Repo:
    # Private, but the one rule for ids that the hub itself enforces.
    from huggingface_hub.utils._validators import validate_repo_id

    _quiet()
    layout = f"{hub_id.rpartition('/')[2]}/train.jsonl.gz"
    instead = f"data=files data.root=DIR for local files (layout {layout}), or data=embedded for generated text"
    choice = "; for a corpus, corpus.hub_id, corpus.subset and corpus.revision choose another"
    try:
        validate_repo_id(hub_id)
    except ValueError:
        raise BadInput(f"data=hub: {hub_id!r} names no dataset. Type corpus.hub_id=OWNER/NAME, or {instead}.") from None
    return _Repo("dataset", hub_id, revision, instead, choice)


def _builder(repo: _Repo, subset: str | None) -> DatasetBuilder:
    """The library's builder of a subset: the subset's files are listed, none is downloaded."""
    from datasets import load_dataset_builder

    try:
        # hf:// because a local folder of that name would be read otherwise.
        builder = load_dataset_builder(f"hf://datasets/{repo.id}", subset, revision=repo.revision)
    except ValueError as error:
        subsets = re.search(r"(?:Available|available configs): \[(.*)\]", str(error))
        if subsets is None:
            raise
        allowed = subsets[1].replace("'", "")
        lacks = f"has no subset {subset!r}" if subset else "has several subsets and none was chosen"
        raise BadInput(
            f"data=hub: {repo.id} at revision {repo.revision} {lacks}; its subsets: {allowed}. "
            f"Type corpus.subset={allowed.split(', ')[0]}, or {repo.instead}."
        ) from error
    # The check behind the invariant: the library may have fallen back on another revision in its cache.
    if re.fullmatch("[0-9a-f]{40}", repo.revision) and builder.hash != repo.revision:
        raise ConnectionError(f"interrupted, and the cache holds another revision, {builder.hash}")
    return builder


def _cached(repo: _Repo, subset: str | None) -> DatasetBuilder | None:
    """The builder of a subset that was prepared before, at this very revision."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    # The layout of the cache of datasets; a change of theirs only means that rows are downloaded again.
    *owner, name = repo.id.split("/")
    folder = Path(config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(name)]))
    subset = subset or _default_subset(repo)
    found = list(folder.glob(f"{glob.escape(subset)}/*/{glob.escape(repo.revision)}/dataset_info.json"))
    if not found:
        return None
    version = found[0].parts[-3]
    return Cache(repo_id=repo.id, dataset_name=name, config_name=subset, version=version, hash=repo.revision)


def _default_subset(repo: _Repo) -> str:
    """The subset that None stands for, by the README in the cache: the one marked so, the only one, or "default"."""
    from huggingface_hub import DatasetCard, try_to_load_from_cache

    readme = try_to_load_from_cache(repo.id, "README.md", repo_type="dataset", revision=repo.revision)
    card = DatasetCard.load(readme).data.to_dict() if isinstance(readme, str) else {}
    for listed in (card.get("configs") or [], card.get("dataset_info") or []):
        listed = listed if isinstance(listed, list) else [listed]
        entries = {str(entry.get("config_name", "default")): entry for entry in listed}
        for name, entry in entries.items():
            if len(entries) == 1 or name == "default" or entry.get("default"):
                return name
    return "default"


def _quiet() -> None:
    """Neither bars nor warnings of the libraries, unless their environment variables ask for them."""
    import datasets
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    for variable, silence in {
        "HF_DATASETS_DISABLE_PROGRESS_BARS": datasets.disable_progress_bars,
        "HF_HUB_DISABLE_PROGRESS_BARS": disable_progress_bars,
        "DATASETS_VERBOSITY": datasets.logging.set_verbosity_error,
        "HF_HUB_VERBOSITY": logging.set_verbosity_error,
    }.items():
        if variable not in os.environ:
            silence()


class _Failure:
    """What an error of the libraries says, with all of its causes.

    may_pass: another attempt may succeed, because the hub was not reached or is overloaded. reason: the hub's status,
    or the first line of the innermost cause.
    """

    def __init__(self, error: BaseException) -> None:
        # The libraries wrap errors several times, and what a user can act on is mostly the innermost.
        links = [error]
        while cause := links[-1].__cause__ or (None if links[-1].__suppress_context__ else links[-1].__context__):
            links.append(cause)
        responses = [response for link in links if (response := getattr(link, "response", None)) is not None]
        self.names = {kind.__name__ for link in links for kind in type(link).__mro__}
        self.text = " ".join(map(str, links))
        if responses:
            status = responses[0].status_code
            self.may_pass, self.reason = status in _PASSING_STATUSES, f"HTTP {status}"
        else:
            self.may_pass = bool(self.names & _PASSING_ERRORS) or "LocalEntryNotFoundError" in self.text
            first_line = (str(links[-1]).strip() or type(links[-1]).__name__).splitlines()[0]
            self.reason = re.sub(r"^\[Errno -?\d+\] ", "", first_line)
