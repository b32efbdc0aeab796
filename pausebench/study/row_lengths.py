"""How long the rows of a study are, and how large its vocabulary, without the network and without writing anything.

Measured where rows can be read here, and taken from a table of published rows where they come from the hub.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from statistics import fmean
from typing import Any

from pausebench.config.groups import LengthLimit, Source, TokenizerKind
from pausebench.config.training import FinetuneConfig, PretrainConfig, TrainingConfig
from pausebench.data.examples import encode, fit
from pausebench.data.task_rows import DatasetRows, GeneratedRows, open_task
from pausebench.data.tokenizer import Tokenizer
from pausebench.data.vocabulary import open_tokenizer
from pausebench.errors import BadInput
from pausebench.study import cost
from pausebench.study.cost import RowLengths

GPT2_VOCABULARY = 50_258  # GPT-2's 50,257 and <pause>
SAMPLED_ROWS = 256  # of a split, evenly over it


def vocabulary(config: TrainingConfig) -> int:
    """Entries of a config's vocabulary, ``<pause>`` included; of a trained one the most it may have."""
    settings = config.tokenizer
    if settings.kind is TokenizerKind.gpt2:
        return GPT2_VOCABULARY
    if settings.kind is TokenizerKind.bpe:
        assert settings.vocab_size is not None
        return settings.vocab_size
    return _tokenizer(config).vocab_size


def row_lengths(config: FinetuneConfig, limit: int) -> RowLengths:
    """Mean lengths of a task's rows in at most ``limit`` positions: of a sample of rows, or the table's for the hub.

    Raises ``BadInput`` for a task of the hub that the table lacks.
    """
    if config.data.source is not Source.hub:
        return _measured(open_task(config.task, config.text), _tokenizer(config), limit - config.longest)
    found = cost.typical_lengths(config.task.name, limit, config.longest)
    if found is None:
        raise BadInput(
            f"task={config.task.name}: how long its rows are on the hub is not known here. "
            "Read local ones: data=files data.root=DIR."
        )
    share = config.task.train_fraction
    return found if share is None else replace(found, test_rows=round((1 - share) * found.test_rows))


@lru_cache(maxsize=64)
def _measured(rows: GeneratedRows | DatasetRows, tokenizer: Tokenizer, room: int) -> RowLengths:
    """Of rows of a source that needs no network. room: positions for everything but the pauses."""
    task, tests = rows.task, rows.test()
    training = rows.sample() if isinstance(rows, GeneratedRows) else rows.training_side
    cue = len(tokenizer.encode(task.cue))
    train, test = (encode(split[:: max(1, len(split) // SAMPLED_ROWS)], task, tokenizer) for split in (training, tests))
    answers = [candidate for example in test for candidate in example.candidates or (example.target,)]
    trained = [fit(example, room - cue - len(example.target)).prefixes[0] for example in train]
    longest = [max(map(len, example.candidates), default=task.answer_tokens or room // 8) for example in test]
    read = [fit(example, room - cue - answer).prefixes for example, answer in zip(test, longest, strict=True)]
    return RowLengths(
        train_prefix=fmean(map(len, trained)),
        train_target=fmean(len(example.target) for example in train),
        test_prefix=fmean(len(prefix) for prefixes in read for prefix in prefixes),
        answer=fmean(map(len, answers)),
        test_rows=len(tests),
        candidates=round(fmean(len(example.candidates) for example in test)),
        readings=fmean(map(len, read)),
        cue=cue,
    )


def _tokenizer(config: TrainingConfig) -> Tokenizer:
    """The config's tokenizer. One that would have to be trained is made outside the run root: a plan writes nothing."""
    settings = config.tokenizer
    key = (settings, config.data.source, config.data.root, config.text.name)
    if key not in _TOKENIZERS:
        with tempfile.TemporaryDirectory() as folder:
            _TOKENIZERS[key] = open_tokenizer(config.text, folder)
    return _TOKENIZERS[key]


_TOKENIZERS: dict[Any, Tokenizer] = {}


def length_limit(config: FinetuneConfig, parents: Sequence[TrainingConfig | None]) -> int:
    """The most positions a row may have."""
    lengths = [p.sequence_length for p in parents if isinstance(p, PretrainConfig) and p.sequence_length is not None]
    if config.length_limit is LengthLimit.pretrained and lengths:
        return min(*lengths, config.model.max_positions)
    return config.model.max_positions
