"""Batches: shares of ranks, tokens that mean something, and batches made ahead."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from byte_texts import BYTE, CARRY, PLAIN, Texts, batches, prepared

from pausebench.config.groups import AttentionKind
from pausebench.config.pauses import PausePolicy
from pausebench.data.batch import Batch, Batches, Prefetched, Share
from pausebench.data.batches import EncodedExamples, RowLayout
from pausebench.errors import BadInput, RunFailed
from pausebench.pauses import IGNORE_INDEX

KINDS: list[dict[str, Any]] = [{}, {"pause": PLAIN}, {"pause": CARRY}, {"document_mask": True}]


def tensors(batch: Batch) -> list[torch.Tensor]:
    mask = batch.mask
    listed = [batch.input_ids, batch.labels, batch.text, mask.documents, mask.roles, mask.readouts]
    return [tensor for tensor in listed if tensor is not None]


def same(a: Batch, b: Batch) -> bool:
    return len(tensors(a)) == len(tensors(b)) and all(map(torch.equal, tensors(a), tensors(b)))


class TestPreparedRows:
    @pytest.mark.parametrize("options", KINDS, ids=str)
    @pytest.mark.parametrize("ranks", [2, 3])  # 3 ranks do not divide the batch
    def test_the_shares_of_all_ranks_are_the_batch_of_one(
        self, ranks: int, options: dict[str, Any], tmp_path: Path
    ) -> None:
        text = prepared(tmp_path)
        alone = batches(text, **options)
        shares = [batches(text, Share(rank, ranks), **options) for rank in range(ranks)]
        for step in (1, 2, 30):
            whole, parts = alone.batch(step), [share.batch(step) for share in shares]
            own = [part.rows(0, len(part.input_ids) - part.fillers) for part in parts]
            assert torch.equal(torch.cat([part.input_ids for part in own]), whole.input_ids)
            assert torch.equal(torch.cat([part.labels for part in own]), whole.labels)
            assert sum(part.meaningful for part in parts) == whole.meaningful
            assert sum(part.tokens for part in parts) == whole.tokens

    @pytest.mark.parametrize("options", KINDS, ids=str)
    @pytest.mark.parametrize("batch_size", [1, 4, 9])
    def test_the_rows_do_not_depend_on_the_batch_size(
        self, batch_size: int, options: dict[str, Any], tmp_path: Path
    ) -> None:
        text = prepared(tmp_path)
        reference, other = batches(text, **options), batches(text, batch_size=batch_size, **options)
        rows = torch.cat([reference.batch(step).input_ids for step in range(1, 7)])
        again = torch.cat([other.batch(step).input_ids for step in range(1, -(-36 // batch_size) + 1)])
        assert torch.equal(again[:36], rows)

    @pytest.mark.parametrize("options", KINDS, ids=str)
    def test_any_step_is_the_same_without_the_steps_before_it_also_in_later_passes(
        self, options: dict[str, Any], tmp_path: Path
    ) -> None:
        text = prepared(tmp_path)
        whole = batches(text, **options)
        for step in (1, 2, 7, 100, 41):
            assert same(batches(text, **options).batch(step), whole.batch(step))

    def test_validation_is_the_same_for_every_seed_and_training_is_not(self, tmp_path: Path) -> None:
        text = prepared(tmp_path)
        first, second = batches(text, seed=0), batches(text, seed=1)
        assert same(first.validation(9), second.validation(9))
        assert not same(first.batch(1), second.batch(1))


class TestCarry:
    @pytest.mark.parametrize("source", ["prepared", "streamed"])
    def test_no_token_of_a_pass_is_lost(self, source: str, tmp_path: Path) -> None:
        text = prepared(tmp_path) if source == "prepared" else Texts()
        plain = batches(text, pause=PLAIN, length=36, batch_size=1)
        carried = batches(text, pause=CARRY, length=40, batch_size=1)  # 36 tokens and 4 pauses
        for step in range(1, 60):
            row = carried.batch(step).input_ids[0]
            assert len(row) == 40 and int((row == BYTE.pause_id).sum()) == 4
            assert torch.equal(row[row != BYTE.pause_id], plain.batch(step).input_ids[0])

    def test_dropped_tokens_are_those_that_pauses_pushed_over_the_end(self, tmp_path: Path) -> None:
        text = prepared(tmp_path)
        row = batches(text, batch_size=1).batch(3).input_ids[0]
        real = row[row != BYTE.pause_id]
        assert len(real) < 40
        assert torch.equal(real, batches(text, pause=PLAIN, batch_size=1).batch(3).input_ids[0, : len(real)])

    def test_labels_are_the_next_real_tokens(self, tmp_path: Path) -> None:
        batch = batches(prepared(tmp_path), pause=CARRY).batch(1)
        following = torch.cat([batch.input_ids[:, 1:], torch.full((6, 1), BYTE.pause_id)], dim=1)
        expected = following.masked_fill(following == BYTE.pause_id, IGNORE_INDEX)
        assert torch.equal(batch.labels, expected)

    def test_a_row_of_nothing_but_pauses_is_refused(self) -> None:
        with pytest.raises(BadInput, match=r"pause\.trim=carry"):
            batches(Texts(), pause=CARRY, pause_fraction=1.0)


class TestMeaningful:
    def test_pauses_do_not_count(self) -> None:
        batch = batches(Texts()).batch(1)
        pauses = int((batch.input_ids == BYTE.pause_id).sum())
        assert pauses > 6 and batch.meaningful == batch.tokens - pauses

    def test_without_pauses_every_position_counts(self) -> None:
        batch = batches(Texts(), pause=PLAIN).batch(1)
        assert batch.meaningful == batch.tokens == 240

    def test_rows_that_only_fill_a_rank_up_do_not_count(self) -> None:
        shares = [batches(Texts(), Share(rank, 4)).batch(1) for rank in range(4)]
        assert [share.fillers for share in shares] == [0, 0, 0, 2]
        assert shares[3].meaningful == 0 and sum(share.meaningful for share in shares) > 0

    def test_micro_batches_together_have_as_many_as_the_batch(self) -> None:
        batch = batches(Texts()).batch(1)
        assert sum(batch.rows(start, 2).meaningful for start in (0, 2, 4)) == batch.meaningful

    @pytest.mark.parametrize("packed", [False, True])
    def test_in_finetuning_prefix_and_target_count_and_padding_and_pauses_do_not(self, packed: bool) -> None:
        layout = RowLayout(PausePolicy(k=3), AttentionKind.causal, torch.tensor([7]), 9, 0)
        examples = EncodedExamples.of([[1, 2], [3, 4, 5, 6]], [[1, 1], [2]], 0)
        batch = layout.packed_batch(examples) if packed else layout.training_batch(examples)
        # Each: its prefix, the cue, and its target without the last token, which is a label only.
        assert batch.meaningful == (2 + 1 + 1) + (4 + 1 + 0)


class TestPrefetched:
    def test_it_gives_the_same_batches_in_any_order_of_asking(self, tmp_path: Path) -> None:
        text = prepared(tmp_path)
        plain, ahead = batches(text), Prefetched(batches(text))
        for step in (1, 2, 3, 9, 10, 2, 3):
            assert same(ahead.batch(step), plain.batch(step))
            assert same(ahead.validation(5), plain.validation(5))

    def test_the_next_batch_is_made_while_the_last_one_is_used(self) -> None:
        begun = {step: threading.Event() for step in (1, 2, 3)}
        made = batches(Texts()).batch(1)

        class Recorded(Batches):
            def batch(self, step: int) -> Batch:
                begun[step].set()
                return made

        ahead = Prefetched(Recorded(lambda first, count: [], 1, lambda count: made))
        ahead.batch(1)
        assert begun[2].wait(20) and not begun[3].is_set()

    def test_an_error_appears_where_its_batch_is_asked_for(self) -> None:
        made = batches(Texts()).batch(1)

        def make(first: int, count: int) -> list[Batch]:
            if first == 2:
                raise RunFailed("the third batch")
            return [made]

        ahead = Prefetched(Batches(make, 1, lambda count: made))
        ahead.batch(1)
        ahead.batch(2)
        assert same(ahead.validation(1), made)
        with pytest.raises(RunFailed, match="the third batch"):
            ahead.batch(3)
        assert same(ahead.batch(4), made)
