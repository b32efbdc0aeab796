"""Prepared text: what is written is read back, and nothing that was altered is ever handed out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from pausebench.data.shards import (
    ENCODED_TOGETHER,
    INDEX,
    PreparedText,
    index_content,
    index_fingerprint,
    part_path,
    read_part,
    write_part,
)
from pausebench.data.tokenizer import ByteTokenizer
from pausebench.errors import BadInput, RunFailed

BYTE = ByteTokenizer()
REMEDY = "pausebench prepare corpus=mine"
DOCUMENTS = [f"document {number} " + "word " * (number * 7 % 40) for number in range(120)]


def ids(documents: Sequence[str], end: Sequence[int] = (BYTE.end_id,)) -> list[int]:
    return [token for text in documents for token in [*BYTE.encode(text), *end]]


def go_on(documents: int, tokens: int) -> None:
    """A writing that nothing stops."""


def write(
    folder: Path,
    documents: Sequence[str] = DOCUMENTS,
    part: int = 0,
    split: str = "train",
    shard_tokens: int = 1000,
    advance: Callable[[int, int], None] = go_on,
    has_ends: bool = True,
    encoded_together: int = ENCODED_TOGETHER,
) -> None:
    write_part(
        folder,
        split,
        part,
        iter(documents),
        BYTE,
        has_ends=has_ends,
        shard_tokens=shard_tokens,
        advance=advance,
        encoded_together=encoded_together,
    )


def prepared(folder: Path, *parts: Sequence[str], shard_tokens: int = 1000) -> PreparedText:
    for number, documents in enumerate(parts or (DOCUMENTS,)):
        write(folder, documents, number, shard_tokens=shard_tokens)
    return indexed(folder, max(1, len(parts)))


def indexed(folder: Path, parts: int = 1) -> PreparedText:
    shards = [shard for number in range(parts) for shard in read_part(folder, "train", number, "<u2").shards]
    content = index_content(BYTE.fingerprint, "<u2", {"train": shards})
    (folder / INDEX).write_bytes(content)
    return PreparedText(folder, index_fingerprint(content), REMEDY)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def all_rows(text: PreparedText, length: int, seed: int = 0) -> list[list[int]]:
    rows = text.rows("train", seed, length)
    listed: list[list[int]] = rows.rows(0, rows.blocks).tolist()
    return listed


class TestWriting:
    @pytest.mark.parametrize("shard_tokens", [1, 97, 1000, 10**9])
    def test_the_shards_together_hold_every_document_once_and_in_order(self, shard_tokens: int, tmp_path: Path) -> None:
        write(tmp_path, shard_tokens=shard_tokens)
        shards = read_part(tmp_path, "train", 0, "<u2").shards
        read = [token for shard in shards for token in np.fromfile(tmp_path / shard.file, "<u2").tolist()]
        assert read == ids(DOCUMENTS)

    def test_a_shard_has_at_most_its_tokens_unless_one_document_has_more(self, tmp_path: Path) -> None:
        long = "x" * 500
        write(tmp_path, ["ab", "cd", long, "e"], shard_tokens=6)
        assert [shard.tokens for shard in read_part(tmp_path, "train", 0, "<u2").shards] == [6, 501, 2]

    def test_a_record_says_which_documents_a_shard_holds(self, tmp_path: Path) -> None:
        write(tmp_path)
        shards = read_part(tmp_path, "train", 0, "<u2").shards
        for shard in shards:
            held = DOCUMENTS[shard.first_document : shard.first_document + shard.documents]
            assert np.fromfile(tmp_path / shard.file, "<u2").tolist() == ids(held)
        assert sum(shard.documents for shard in shards) == len(DOCUMENTS) and len(shards) > 3

    def test_bytes_have_no_end_token_between_their_pieces(self, tmp_path: Path) -> None:
        write(tmp_path, has_ends=False)
        shards = read_part(tmp_path, "train", 0, "<u2").shards
        assert [token for s in shards for token in np.fromfile(tmp_path / s.file, "<u2").tolist()] == ids(DOCUMENTS, ())

    @pytest.mark.parametrize("moment", range(24))
    def test_stopped_after_any_batch_of_documents_and_started_again_it_writes_the_same_bytes(
        self, moment: int, tmp_path: Path
    ) -> None:
        write(tmp_path / "whole")
        left = [moment]

        def stop(documents: int, tokens: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            write(tmp_path / "stopped", advance=stop, encoded_together=5)
        assert not read_part(tmp_path / "stopped", "train", 0, "<u2").done
        write(tmp_path / "stopped")
        assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")

    @pytest.mark.parametrize("action", ["replace", "fsync"])
    @pytest.mark.parametrize("moment", [0, 1, 2, 3, 4, 5, 6])
    def test_a_disk_that_refuses_at_any_moment_costs_only_what_was_not_recorded(
        self, action: str, moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "whole")
        with monkeypatch.context() as patched:
            real, left = getattr(os, action), [moment]

            def refuse(*arguments: object) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(28, "No space left on device")
                real(*arguments)

            patched.setattr(os, action, refuse)
            with pytest.raises(OSError, match="No space left"):
                write(tmp_path / "stopped")
        assert not list((tmp_path / "stopped").rglob("*.tmp"))
        write(tmp_path / "stopped")
        assert tree(tmp_path / "stopped") == tree(tmp_path / "whole")

    def test_what_is_recorded_is_not_tokenised_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path)
        before = tree(tmp_path)
        (tmp_path / read_part(tmp_path, "train", 0, "<u2").shards[-2].file).unlink()
        recorded = read_part(tmp_path, "train", 0, "<u2")
        encoded: list[str] = []
        real = ByteTokenizer.encode_lists
        monkeypatch.setattr(
            ByteTokenizer, "encode_lists", lambda self, texts: encoded.extend(texts) or real(self, texts)
        )
        write(tmp_path)
        assert encoded == DOCUMENTS[recorded.documents :] and tree(tmp_path) == before

    def test_a_record_that_cannot_be_read_is_written_again(self, tmp_path: Path) -> None:
        write(tmp_path)
        before = tree(tmp_path)
        part_path(tmp_path, "train", 0).write_text('{"shards": [')
        write(tmp_path)
        assert tree(tmp_path) == before


class TestReading:
    @pytest.mark.parametrize("length", [1, 7, 64, 999, 5000])
    def test_one_pass_has_every_block_of_the_stream_once(self, length: int, tmp_path: Path) -> None:
        text = prepared(tmp_path, DOCUMENTS[:50], DOCUMENTS[50:])
        stream = ids(DOCUMENTS)
        blocks = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
        assert Counter(map(tuple, all_rows(text, length))) == Counter(map(tuple, blocks))

    def test_a_row_does_not_depend_on_the_size_of_shards_or_the_number_of_parts(self, tmp_path: Path) -> None:
        rows = all_rows(prepared(tmp_path / "many", DOCUMENTS[:9], DOCUMENTS[9:], shard_tokens=10), 64)
        assert rows == all_rows(prepared(tmp_path / "one", shard_tokens=10**9), 64)

    def test_a_row_is_the_same_alone_and_among_others(self, tmp_path: Path) -> None:
        text = prepared(tmp_path)
        together = text.rows("train", 3, 50).rows(0, 400)
        for start, count in ((0, 1), (5, 17), (133, 200), (399, 1)):
            alone = text.rows("train", 3, 50).rows(start, count)
            assert torch.equal(alone, together[start : start + count])

    def test_each_pass_and_each_seed_has_its_own_order(self, tmp_path: Path) -> None:
        text = prepared(tmp_path)
        rows = text.rows("train", 0, 50)
        passes = [rows.rows(number * rows.blocks, rows.blocks).tolist() for number in range(3)]
        orders = [*passes, all_rows(text, 50, seed=1)]
        assert len({str(order) for order in orders}) == 4
        assert len({str(sorted(order)) for order in orders}) == 1

    def test_ids_above_65535_are_kept(self, tmp_path: Path) -> None:
        class Large(ByteTokenizer):
            def __init__(self) -> None:
                super().__init__()
                self.vocab_size = 200_002

            def encode_lists(self, texts: Sequence[str]) -> list[list[int]]:
                return [[ord(text[0]) * 1000, 199_999] for text in texts]

        write_part(tmp_path, "train", 0, iter("abc"), Large(), has_ends=False, shard_tokens=4, advance=go_on)
        content = index_content("x", "<u4", {"train": read_part(tmp_path, "train", 0, "<u4").shards})
        (tmp_path / INDEX).write_bytes(content)
        text = PreparedText(tmp_path, index_fingerprint(content), REMEDY)
        assert all_rows(text, 6) == [[97_000, 199_999, 98_000, 199_999, 99_000, 199_999]]

    def test_a_split_without_a_full_row_is_refused_with_the_figures(self, tmp_path: Path) -> None:
        text = prepared(tmp_path, ["ab"])
        with pytest.raises(BadInput, match="has 3 tokens, less than one row of 4"):
            text.rows("train", 0, 4)
        with pytest.raises(BadInput, match="has no split validation; it has train"):
            text.rows("validation", 0, 2)


class TestDamage:
    def test_a_flipped_byte_is_noticed_before_it_is_handed_out_and_its_shard_is_named(self, tmp_path: Path) -> None:
        prepared(tmp_path, ["x" * 20_000, "y" * 20_000], shard_tokens=21_000)
        shard = tmp_path / "train/00000-00001.bin"
        for place in (0, 16_384, shard.stat().st_size - 1):
            flip(shard, place)
            rows = indexed(tmp_path).rows("train", 0, 500)
            with pytest.raises(RunFailed) as caught:
                rows.rows(0, rows.blocks)
            for said in (str(shard), "its bytes were altered", f"Delete it and type\n  {REMEDY}"):
                assert said in str(caught.value)
            flip(shard, place)
        assert len(all_rows(indexed(tmp_path), 500)) == 80

    def test_rows_of_the_other_shards_can_still_be_read(self, tmp_path: Path) -> None:
        text = prepared(tmp_path, ["x" * 999, "y" * 999, "z" * 999], shard_tokens=1000)
        flip(tmp_path / "train/00000-00001.bin", 7)
        rows, read = text.rows("train", 0, 500), 0
        for row in range(rows.blocks):
            try:
                rows.rows(row, 1)
                read += 1
            except RunFailed:
                pass
        assert (rows.blocks, read) == (6, 4)

    @pytest.mark.parametrize("harm", ["truncated", "longer", "missing"])
    def test_a_shard_of_another_size_is_named_on_load_with_what_to_type(self, harm: str, tmp_path: Path) -> None:
        prepared(tmp_path)
        file = "train/00000-00002.bin"
        content, fingerprint = (tmp_path / file).read_bytes(), index_fingerprint((tmp_path / INDEX).read_bytes())
        if harm == "missing":
            (tmp_path / file).unlink()
        else:
            (tmp_path / file).write_bytes(content[:-1] if harm == "truncated" else content + b"x")
        with pytest.raises(BadInput) as caught:
            PreparedText(tmp_path, fingerprint, REMEDY)
        assert str(tmp_path / file) in str(caught.value)
        assert f"Delete {tmp_path}/train/00000-00002.bin and type\n  {REMEDY}" in str(caught.value)

    def test_a_damaged_shard_alone_is_made_again(self, tmp_path: Path) -> None:
        prepared(tmp_path)
        before = tree(tmp_path)
        (tmp_path / "train/00000-00001.bin").unlink()
        write(tmp_path)
        assert tree(tmp_path) == before

    def test_an_altered_index_is_named(self, tmp_path: Path) -> None:
        text = prepared(tmp_path)
        flip(tmp_path / INDEX, 40)
        with pytest.raises(BadInput, match=r"index\.json is not what was prepared"):
            PreparedText(tmp_path, text.fingerprint, REMEDY)

    def test_the_fingerprint_changes_with_one_token_and_not_with_the_day(self, tmp_path: Path) -> None:
        first = prepared(tmp_path / "a").fingerprint
        assert prepared(tmp_path / "b").fingerprint == first
        assert prepared(tmp_path / "c", ["D" + DOCUMENTS[0][1:], *DOCUMENTS[1:]]).fingerprint != first


def test_the_documents_of_a_part_are_read_once_and_as_they_are_needed(tmp_path: Path) -> None:
    taken: list[int] = []

    def documents() -> Iterator[str]:
        for number in range(400):
            taken.append(number)
            yield "text"

    def stop(documents: int, tokens: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_part(tmp_path, "train", 0, documents(), BYTE, has_ends=True, shard_tokens=10**6, advance=stop)
    assert taken == list(range(ENCODED_TOGETHER))
