"""The embedded worlds: the same on every machine, true, balanced; their tokenizer; batches by step number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pausebench.commands.pretrain import open_batches
from pausebench.config.groups import (
    AttentionKind,
    ModelConfig,
    PauseConfig,
    PauseVisibility,
    TaskConfig,
    TokenizerConfig,
    TokenizerKind,
    TrainConfig,
    WorldConfig,
)
from pausebench.config.training import FinetuneConfig, PretrainConfig
from pausebench.data.batch import ALL, Batch, Batches
from pausebench.data.batches import RowLayout, generated_batches
from pausebench.data.examples import encode
from pausebench.data.task_rows import GeneratedRows
from pausebench.data.tokenizer import WordTokenizer, pad
from pausebench.errors import BadInput
from pausebench.model.attention import AttentionMask
from pausebench.pauses import IGNORE_INDEX
from pausebench.tasks import TASKS, Example
from pausebench.worlds.counting import TEST_SEED, VALIDATION_SEED, build_world, corpus_fingerprint, task_fingerprint

COUNT_WORLDS = ["count16", "count20", "count24"]
PARITY = TaskConfig(name="parity")
MODEL = ModelConfig(name="x", n_layers=1, n_heads=1, d_model=8, d_mlp=8, max_positions=64)
WORDS = TokenizerConfig(kind=TokenizerKind.words)
Worlds = Callable[[str], WorldConfig]


def split_document(document: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The list of bits and the (key, value) facts behind it."""
    words = document.split()
    n = next(index for index, word in enumerate(words) if word not in ("0", "1"))
    return words[:n], list(zip(words[n::2], words[n + 1 :: 2], strict=True))


# The data's identity


def test_the_count_worlds_first_documents_and_rows_are_these(world_config: Worlds) -> None:
    world = build_world(world_config("count20"))
    assert world.documents(0, 0, 3) == [
        "1 1 1 1 1 1 1 1 1 1 1 0 1 1 1 1 1 0 1 1 MAJ more LAST 1 FIRST 1",
        "0 1 0 1 0 0 1 0 0 1 1 1 1 0 0 1 1 LAST 1 FIRST 0 MAJ more",
        "0 0 1 0 0 0 0 0 0 1 0 0 1 0 0 0 0 1 0 0 FIRST 0 LAST 0 MAJ less",
    ]
    assert [row["bits"] for row in world.task_rows(0, 0, 2)] == [
        "0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0",
        "0 0 0 0 0 0 0 0 1 0 0 0 1 0 1 0 1 0 1 0",
    ]
    assert [row["bits"] for row in world.task_rows(TEST_SEED, 0, 2)] == [
        "0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 1",
        "1 1 1 0 1 1 0 0 1 1 1 0 1 0 1 0 1 0 0 0",
    ]


def test_the_relay_worlds_first_rows_are_these(world_config: Worlds) -> None:
    world = build_world(world_config("relay"))
    assert world.task_rows(0, 0, 1) == [{"symbols": "a e f b h g b h h d h c f f f h e f f c h c b f"}]
    assert world.task_rows(TEST_SEED, 0, 1) == [{"symbols": "d e b e e d h b a g d c f h d e b b b h f g a e"}]


@pytest.mark.parametrize(
    ("name", "corpus", "task"),
    [
        ("count16", "205065a91e2f3cdd", "2d298d53c94f33d1"),
        ("count20", "119a27efced552db", "683886dbf33f6c09"),
        ("count24", "5232aea7367960cf", "a4985c923e1fe632"),
        ("relay", None, "197e16ef4a648e20"),
    ],
)
def test_fingerprints_are_these(world_config: Worlds, name: str, corpus: str | None, task: str) -> None:
    world = build_world(world_config(name))
    assert task_fingerprint(world, 0) == task
    if corpus is not None:
        assert corpus_fingerprint(world, 0) == corpus


def test_a_fingerprint_changes_with_the_seed(world_config: Worlds) -> None:
    world = build_world(world_config("count20"))
    assert corpus_fingerprint(world, 0) != corpus_fingerprint(world, 1)
    assert task_fingerprint(world, 0) != task_fingerprint(world, 1)


@pytest.mark.parametrize("name", [*COUNT_WORLDS, "relay"])
def test_a_row_does_not_depend_on_the_rows_made_with_it(world_config: Worlds, name: str) -> None:
    world = build_world(world_config(name))
    rows = world.task_rows(3, 0, 40)
    assert [world.task_rows(3, index, 1)[0] for index in range(40)] == rows
    assert world.task_rows(3, 17, 5) == rows[17:22]
    if name != "relay":
        assert world.documents(3, 17, 5) == world.documents(3, 0, 40)[17:22]


# Documents


@pytest.mark.parametrize("name", COUNT_WORLDS)
def test_every_fact_is_true_of_its_list_and_stated_once(world_config: Worlds, name: str) -> None:
    config = world_config(name)
    for document in build_world(config).documents(1, 0, 500):
        bits, facts = split_document(document)
        ones = bits.count("1")
        truth = {
            "MAJ": "more" if ones > len(bits) - ones else "less",
            "FIRST": bits[0],
            "LAST": bits[-1],
            "CNT": f"n{ones}",
        }
        assert sorted(key for key, _ in facts) == sorted(config.facts)
        assert all(value == truth[key] for key, value in facts)


@pytest.mark.parametrize("name", COUNT_WORLDS)
def test_list_lengths_are_uniform_between_their_limits(world_config: Worlds, name: str) -> None:
    config = world_config(name)
    lengths = Counter(len(split_document(text)[0]) for text in build_world(config).documents(0, 0, 3000))
    assert sorted(lengths) == list(range(config.n_min, config.n_max + 1))
    assert stats.chisquare(list(lengths.values())).pvalue > 1e-3


def test_facts_stand_in_every_order_equally_often(world_config: Worlds) -> None:
    documents = build_world(world_config("count20")).documents(0, 0, 3000)
    orders = Counter(tuple(key for key, _ in split_document(text)[1]) for text in documents)
    assert len(orders) == 6
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3


def test_the_order_of_facts_tells_nothing_about_the_list(world_config: Worlds) -> None:
    parsed = [split_document(text) for text in build_world(world_config("count20")).documents(0, 0, 4000)]
    table = Counter((facts[0][0], 2 * bits.count("1") > len(bits)) for bits, facts in parsed)
    counts = [[table[key, more] for more in (False, True)] for key in ("MAJ", "FIRST", "LAST")]
    assert stats.chi2_contingency(counts).pvalue > 1e-3


@pytest.mark.parametrize("name", COUNT_WORLDS)
def test_the_questions_of_parity_and_mod3_never_occur_in_pretraining(world_config: Worlds, name: str) -> None:
    words = {word for text in build_world(world_config(name)).documents(0, 0, 2000) for word in text.split()}
    assert not words & {"PAR", "M3", "even", "odd", "rest0", "rest1", "rest2"}


def test_relay_has_no_text_and_says_what_to_type(world_config: Worlds) -> None:
    with pytest.raises(BadInput, match="finetune task=relay"):
        build_world(world_config("relay")).documents(0, 0, 1)


# Task rows


@pytest.mark.parametrize("name", COUNT_WORLDS)
def test_the_number_of_ones_in_a_tasks_list_is_uniform(world_config: Worlds, name: str) -> None:
    config = world_config(name)
    ones = Counter(row["bits"].count("1") for row in build_world(config).task_rows(0, 0, 5000))
    assert sorted(ones) == list(range(config.n_task + 1))
    assert stats.chisquare(list(ones.values())).pvalue > 1e-3


def test_bits_of_a_list_share_one_probability_drawn_for_the_list(world_config: Worlds) -> None:
    """Two bits of a list agree with probability 2/3, wherever they stand: their correlation is 1/3."""
    bits = [row["bits"] for row in build_world(world_config("count20")).task_rows(0, 0, 5000)]
    table = torch.tensor([[int(bit) for bit in row.split()] for row in bits], dtype=torch.float64)
    pairs = torch.corrcoef(table.T)[*torch.triu_indices(20, 20, offset=1)]
    assert float((pairs - 1 / 3).abs().max()) < 0.06
    assert float(table.mean()) == pytest.approx(0.5, abs=0.02)


def test_relays_symbols_are_equally_likely_and_independent(world_config: Worlds) -> None:
    rows = [row["symbols"].split() for row in build_world(world_config("relay")).task_rows(0, 0, 2000)]
    assert {len(row) for row in rows} == {24}
    assert stats.chisquare(list(Counter(symbol for row in rows for symbol in row).values())).pvalue > 1e-3
    pairs = Counter(pair for row in rows for pair in pairwise(row))
    assert len(pairs) == 64
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-3


def test_no_users_seed_reads_the_test_or_validation_rows(world_config: Worlds) -> None:
    assert TEST_SEED != VALIDATION_SEED
    for seed in (TEST_SEED, VALIDATION_SEED):
        with pytest.raises(BadInput, match="seed"):
            PretrainConfig(model=MODEL, world=world_config("count20"), tokenizer=WORDS, seed=seed)
        with pytest.raises(BadInput, match="seed"):
            FinetuneConfig(task=PARITY, model=MODEL, world=world_config("count20"), tokenizer=WORDS, seed=seed)
    world = build_world(world_config("relay"))  # 8 ** 24 strings: none comes twice by chance
    splits = [
        {row["symbols"] for row in world.task_rows(seed, 0, 500)}
        for seed in (0, 1, 2**31 - 1, TEST_SEED, VALIDATION_SEED)
    ]
    assert len(set().union(*splits)) == 5 * 500


# Tokenizer


def test_the_count_worlds_have_64_tokens_with_end_and_pause_last(world_config: Worlds) -> None:
    for name in COUNT_WORLDS:
        tokenizer = build_world(world_config(name)).tokenizer
        assert tokenizer.vocab_size == 64 == len(set(tokenizer.words)) + 2
        assert (tokenizer.end_id, tokenizer.pause_id) == (62, 63)
        assert [tokenizer.spelling(index) for index in (0, 62, 63)] == ["0", "<end>", "<pause>"]


@given(st.lists(st.sampled_from(["a", "b", "="]), min_size=1, max_size=20))
def test_text_comes_back_from_its_ids(words: list[str]) -> None:
    tokenizer = WordTokenizer(["a", "b", "="])
    text = " ".join(words)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= index < tokenizer.end_id for index in ids)


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=6).map(" ".join), min_size=1, max_size=6))
def test_texts_encoded_together_equal_texts_encoded_alone(texts: list[str]) -> None:
    tokenizer = WordTokenizer(["a", "b"])
    ids, lengths = pad(tokenizer.encode_lists(texts), tokenizer.end_id)
    for row, length, text in zip(ids.tolist(), lengths.tolist(), texts, strict=True):
        assert row[:length] == tokenizer.encode(text) == [tokenizer.words.index(word) for word in text.split()]
        assert set(row[length:]) <= {tokenizer.end_id}


@pytest.mark.parametrize("text", ["a maybe b", "<pause>", "a <pause>", "<end>", "A", "ab"])
def test_an_unknown_word_is_refused_and_special_tokens_cannot_be_spelled(text: str) -> None:
    tokenizer = WordTokenizer(["a", "b"])
    unknown = next(word for word in text.split() if word not in ("a", "b"))
    with pytest.raises(BadInput, match=unknown):
        tokenizer.encode(text)


@pytest.mark.parametrize(
    ("example", "name"), [(Example("", "b", ("b",)), "question"), (Example("a", " ", ("",)), "target")]
)
def test_an_empty_question_or_target_is_refused_with_its_row(example: Example, name: str) -> None:
    with pytest.raises(BadInput, match=f"row 1 has an empty {name}"):
        encode([Example("a", "b", ("b",)), example], TASKS["parity"], WordTokenizer(["a", "b"]))


# Batches


def test_pretraining_whose_pauses_all_see_needs_no_mask(world_config: Worlds) -> None:
    for pause in (True, False):
        mask = pretraining(world_config("count20"), pause=PauseConfig(enabled=pause)).batch(1).mask
        assert mask == AttentionMask(AttentionKind.causal) and mask.dense() is None


@pytest.mark.parametrize("visibility", [PauseVisibility.readout, PauseVisibility.self])
def test_a_hidden_pause_of_pretraining_is_seen_by_nobody_but_its_runs_last(
    world_config: Worlds, visibility: PauseVisibility
) -> None:
    """The rest of the batch is that of visible pauses; a run's last pause is the one that predicts."""
    batches = pretraining(world_config("count20"), pause_visibility=visibility, pause_fraction=0.4)
    batch, plain = batches.batch(3), pretraining(world_config("count20"), pause_fraction=0.4).batch(3)
    assert torch.equal(batch.input_ids, plain.input_ids) and torch.equal(batch.labels, plain.labels)
    dense, pause_id = batch.mask.dense(), build_world(world_config("count20")).tokenizer.pause_id
    assert dense is not None and batches.validation(5).mask.visibility is visibility
    longest = 0
    for row, ids in enumerate(batch.input_ids.tolist()):
        for key, token in enumerate(ids):
            seen_by = set(range(key, len(ids)))
            if token == pause_id:
                end = next((t for t in range(key, len(ids)) if ids[t] != pause_id), len(ids)) - 1
                longest = max(longest, end - key + 1)
                seen_by = {key, end} if visibility is PauseVisibility.readout else {key}
            assert set(dense[row, 0, :, key].nonzero()[:, 0].tolist()) == seen_by
    assert longest > 2, "runs of several pauses were there"


def test_standard_pretraining_has_no_pauses_to_hide(world_config: Worlds) -> None:
    hidden = {"pause": PauseConfig(enabled=False), "pause_visibility": PauseVisibility.self}
    assert pretraining(world_config("count20"), **hidden).batch(1).mask == AttentionMask(AttentionKind.causal)


def pretraining(world: WorldConfig, **options: Any) -> Batches:
    options = {"train": TrainConfig(batch_size=64)} | options
    config = PretrainConfig(model=MODEL, world=world, tokenizer=WORDS, **options).resolved()
    return open_batches(config, build_world(world), build_world(world).tokenizer, ALL)


def finetuning(world: WorldConfig, **options: Any) -> Batches:
    options = {"train": TrainConfig(batch_size=64), "k": 3} | options
    config = FinetuneConfig(task=PARITY, model=MODEL, world=world, tokenizer=WORDS, **options).resolved()
    rows = GeneratedRows(TASKS["parity"], world)
    layout = RowLayout.of(config.policy, config.prefix, rows.task, rows.world.tokenizer)
    return generated_batches(rows, layout, config.seed, config.train.batch_size)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.input_ids, b.input_ids) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_a_run_that_starts_at_a_later_step_reads_the_same_batches(
    make: Callable[..., Batches], world_config: Worlds
) -> None:
    world = world_config("count20")
    from_the_start = make(world)
    batches = {step: from_the_start.batch(step) for step in range(1, 70)}
    for step in (1, 2, 32, 33, 64, 65, 69):  # rows are made 32 steps at a time
        assert same(make(world).batch(step), batches[step])
    assert same(from_the_start.batch(5), batches[5]), "going back"
    assert len({tuple(batch.input_ids.flatten().tolist()) for batch in batches.values()}) == 69


@pytest.mark.parametrize("make", [pretraining, finetuning])
@pytest.mark.parametrize("batch_size", [1, 48, 5000])
def test_the_order_of_rows_does_not_depend_on_the_batch_size(
    make: Callable[..., Batches], batch_size: int, world_config: Worlds
) -> None:
    world = world_config("count16")
    reference, other = make(world), make(world, train=TrainConfig(batch_size=batch_size))
    rows = torch.cat([reference.batch(step).input_ids for step in range(1, 35)])  # into the second block of rows
    steps = -(-len(rows) // batch_size)
    assert torch.equal(torch.cat([other.batch(step).input_ids for step in range(1, steps + 1)])[: len(rows)], rows)


@pytest.mark.parametrize("make", [pretraining, finetuning])
def test_another_seed_reads_other_rows_and_the_same_validation_rows(
    make: Callable[..., Batches], world_config: Worlds
) -> None:
    world = world_config("count20")
    first, second = make(world, seed=0), make(world, seed=1)
    assert not torch.equal(first.batch(1).input_ids, second.batch(1).input_ids)
    assert same(first.validation(50), second.validation(50))


def test_a_document_is_padded_with_end_tokens_of_which_the_first_alone_is_a_target(world_config: Worlds) -> None:
    config = world_config("count20")
    world = build_world(config)
    batch = pretraining(config, pause=PauseConfig(enabled=False)).batch(1)
    end = world.tokenizer.end_id
    assert batch.input_ids.shape == (64, config.sequence_length)
    for text, ids, labels in zip(
        world.documents(0, 0, 64), batch.input_ids.tolist(), batch.labels.tolist(), strict=True
    ):
        document = world.tokenizer.encode(text)
        padding = config.sequence_length - len(document)
        assert ids == document + [end] * padding
        assert labels == [*document[1:], end] + [IGNORE_INDEX] * padding


def test_pretraining_with_pauses_reads_the_same_documents_with_pauses_between(world_config: Worlds) -> None:
    world = world_config("count20")
    plain = pretraining(world, pause=PauseConfig(enabled=False)).batch(2)
    paused = pretraining(world).batch(2)
    assert paused.input_ids.shape == plain.input_ids.shape
    surviving = (paused.input_ids == 63).sum(dim=1)
    assert 0 <= int(surviving.min()) <= int(surviving.max()) == 3  # round(.1 * 28)
    assert float(surviving.double().mean()) > 2
    assert not (plain.input_ids == 63).any()
    assert not (paused.labels == 63).any()
    for row, with_pauses in zip(plain.input_ids, paused.input_ids, strict=True):
        real = with_pauses[with_pauses != 63]
        assert torch.equal(real, row[: len(real)])


@pytest.mark.parametrize("name", COUNT_WORLDS)
def test_a_fraction_that_inserts_no_pause_is_refused_and_the_one_named_instead_works(
    world_config: Worlds, name: str
) -> None:
    with pytest.raises(BadInput, match="inserts no pause") as refusal:
        pretraining(world_config(name), pause_fraction=0.001)
    smallest = float(str(refusal.value).rstrip(".").rpartition(" ")[2])
    batch = pretraining(world_config(name), pause_fraction=smallest).batch(1)
    assert (batch.input_ids == 63).any()


def test_finetuning_reads_the_tasks_rows_in_order_with_k_pauses(world_config: Worlds) -> None:
    config = world_config("count16")
    world = build_world(config)
    batch = finetuning(config, k=2).batch(2)
    examples = [TASKS["parity"].to_example(row) for row in world.task_rows(0, 64, 64)]
    for example, ids, labels in zip(examples, batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        assert ids == [*world.tokenizer.encode(example.prefix), 63, 63]
        assert labels == [IGNORE_INDEX] * 18 + world.tokenizer.encode(example.target)
