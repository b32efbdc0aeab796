"""Local files: every format gives the same rows in order, every bad file is named with the line and what is wrong."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pausebench.data.files import Located, read_split, require_fields, split_files
from pausebench.errors import BadInput

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {
        "id": number,
        "text": f"Söde {number} 🙂 \u2028 one\u0085line",
        "answers": {"text": ["é", ""], "start": [number, -1]},
    }
    for number in range(25)
]


def json_lines(rows: Rows, **options: Any) -> bytes:
    return "".join(json.dumps(row, **options) + "\n" for row in rows).encode()


def parquet(rows: Rows) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=7)
    return bytes(sink.getvalue())


def zstd(content: bytes) -> bytes:
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return bytes(sink.getvalue())


def put(root: Path, contents: Mapping[str, bytes], dataset: str = "squad") -> Path:
    folder = root / dataset
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return root


def rows_of(root: Path, split: str = "train") -> Rows:
    return [dict(located.row) for located in read_split(root, "squad", split)]


def refusal(root: Path, split: str = "train", dataset: str = "squad") -> str:
    with pytest.raises(BadInput) as caught:
        list(read_split(root, dataset, split))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Formats

FORMATS: dict[str, Callable[[Rows], bytes]] = {
    "jsonl": json_lines,
    "jsonl.gz": lambda rows: gzip.compress(json_lines(rows)),
    "jsonl.zst": lambda rows: zstd(json_lines(rows)),
    "json": lambda rows: json.dumps(rows, indent=2).encode(),
    "parquet": parquet,
}


@pytest.mark.parametrize("extension", FORMATS)
def test_every_format_gives_the_rows_in_order(extension: str, tmp_path: Path) -> None:
    assert rows_of(put(tmp_path, {f"train.{extension}": FORMATS[extension](ROWS)})) == ROWS


@pytest.mark.parametrize("extension", FORMATS)
def test_a_split_in_several_files_is_read_in_the_order_of_their_numbers(extension: str, tmp_path: Path) -> None:
    parts = {f"train-{part:05}-of-00012.{extension}": FORMATS[extension](ROWS[2 * part :][:2]) for part in range(12)}
    others = {f"validation.{extension}": FORMATS[extension](ROWS[:1]), "README.md": b"", "train.jsonl.bak": b"{"}
    put(tmp_path, dict(reversed(parts.items())) | others)
    assert rows_of(tmp_path) == ROWS[:24]
    assert rows_of(tmp_path, "validation") == ROWS[:1]


@pytest.mark.parametrize("extension", FORMATS)
def test_a_row_is_found_again_by_the_place_that_messages_give(extension: str, tmp_path: Path) -> None:
    put(tmp_path, {f"train-{part}.{extension}": FORMATS[extension](ROWS[10 * part :][:10]) for part in range(2)})
    unit = "line" if extension.startswith("jsonl") else "row"
    places = [
        f"{tmp_path}/squad/train-{part}.{extension}, {unit} {number}" for part in (0, 1) for number in range(1, 11)
    ]
    assert [located.where for located in read_split(tmp_path, "squad", "train")] == places


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_text_is_documents_between_blank_lines(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    text = "\n\nFirst line\n  second – line\n\n \t\n\nSecond document\n\nThird, without an end"
    name = {bytes: "train.txt", gzip.compress: "train.txt.gz", zstd: "train.txt.zst"}[pack]
    put(tmp_path, {name: pack(text.encode())})
    expected = ["First line\n  second – line", "Second document", "Third, without an end"]
    assert [row["text"] for row in rows_of(tmp_path)] == expected
    lines = [located.where.rpartition(", ")[2] for located in read_split(tmp_path, "squad", "train")]
    assert lines == ["line 3", "line 8", "line 10"]


def test_line_ends_of_windows_change_no_row(tmp_path: Path) -> None:
    put(tmp_path, {"train.txt": b"one\r\n\r\ntwo\r\n", "test.jsonl": json_lines(ROWS).replace(b"\n", b"\r\n")})
    assert rows_of(tmp_path) == [{"text": "one"}, {"text": "two"}]
    assert rows_of(tmp_path, "test") == ROWS


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(max_size=3), st.text() | st.none() | st.lists(st.integers()))), plain=...)
def test_any_text_in_a_json_row_arrives(rows: Rows, plain: bool, tmp_path: Path) -> None:
    """A line ends where the file says so: the line separators that a text may hold end nothing."""
    written = "\n".join(json.dumps(row, ensure_ascii=plain) for row in rows)
    put(tmp_path, {"train.jsonl": f"{written}\n\n{{}}".encode()})
    assert rows_of(tmp_path) == [*rows, {}]


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    """A corpus need not fit in memory, and a broken line stops nobody who does not get that far."""
    put(tmp_path, {"train.jsonl": json_lines(ROWS) + b"{"})
    rows = read_split(tmp_path, "squad", "train")
    assert [dict(next(rows).row) for _ in ROWS] == ROWS
    with pytest.raises(BadInput, match="line 26 is not JSON"):
        next(rows)


def test_published_rows_are_read_whole(shared_data: Path) -> None:
    for dataset, split, count in [
        ("gsm8k", "test", 659),
        ("commonsense_qa", "validation", 610),
        ("c4", "validation", 100),
    ]:
        assert sum(1 for _ in read_split(shared_data, dataset, split)) == count


def test_zstd_in_several_frames_is_read_to_the_end(tmp_path: Path) -> None:
    put(tmp_path, {"train.jsonl.zst": zstd(json_lines(ROWS[:9])) + zstd(json_lines(ROWS[9:]))})
    assert rows_of(tmp_path) == ROWS


@pytest.mark.parametrize("harm", ["cut off", "no zstd"])
def test_broken_zstd_is_named(harm: str, tmp_path: Path) -> None:
    content = zstd(json_lines(ROWS))[:-3] if harm == "cut off" else json_lines(ROWS)
    put(tmp_path, {"train.jsonl.zst": content})
    assert f"{tmp_path}/squad/train.jsonl.zst: the zstd data is broken after line" in refusal(tmp_path)


# Folders


def test_a_missing_root_is_named_with_what_it_has_to_hold(tmp_path: Path) -> None:
    said = refusal(tmp_path / "nowhere")
    assert f"data.root={tmp_path / 'nowhere'} is no folder" in said
    assert "squad/train.jsonl.gz" in said


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"data.root={tmp_path / 'file'} is no folder" in refusal(tmp_path / "file")


def test_a_missing_dataset_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    assert refusal(tmp_path) == f"{tmp_path}/squad does not exist; data.root={tmp_path} holds no folder."
    for name in ("gsm8k", "c4"):
        put(tmp_path, {"train.jsonl": b"{}\n"}, name)
    (tmp_path / "README.md").write_text("")
    assert refusal(tmp_path) == f"{tmp_path}/squad does not exist; data.root={tmp_path} holds c4, gsm8k."


def test_a_missing_split_is_named_with_the_files_that_are_there(tmp_path: Path) -> None:
    put(tmp_path, {})
    assert "the folder holds nothing." in refusal(tmp_path)
    put(tmp_path, {"train.jsonl": b"{}\n", "validation.csv": b"a,b\n"})
    said = refusal(tmp_path, "validation")
    assert f"{tmp_path}/squad has no split validation: looked for validation.EXT and validation-*.EXT" in said
    assert "jsonl.gz, jsonl.zst, jsonl, json, parquet, txt.gz, txt.zst, txt" in said
    assert said.endswith("the folder holds train.jsonl, validation.csv.")


@pytest.mark.parametrize(
    "name", ["retrain.jsonl", "train2.jsonl", "train.old.jsonl", "train.JSONL", "train.jsonl.bz2", "train"]
)
def test_a_name_that_only_looks_like_the_split_is_not_read(name: str, tmp_path: Path) -> None:
    put(tmp_path, {name: json_lines(ROWS)})
    assert "has no split train" in refusal(tmp_path)


@pytest.mark.parametrize("split", ["tr.in", "t*", "", "train|test"])
def test_a_split_is_a_name_and_no_pattern(split: str, tmp_path: Path) -> None:
    put(tmp_path, {"train.jsonl": json_lines(ROWS)})
    assert "has no split" in refusal(tmp_path, split)


@pytest.mark.parametrize(
    "names", [("train.json", "train.jsonl"), ("train.jsonl", "train.jsonl.gz"), ("train-0.txt", "train.parquet")]
)
def test_a_split_in_two_formats_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    put(tmp_path, dict.fromkeys(names, b"{}\n"))
    said = refusal(tmp_path)
    assert f"has the split train in several formats: {', '.join(names)}. Keep one." in said


def test_a_split_that_is_there_whole_and_in_parts_is_refused(tmp_path: Path) -> None:
    """Its rows would be read twice."""
    put(tmp_path, dict.fromkeys(("train.jsonl", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"), b"{}\n"))
    said = refusal(tmp_path)
    assert "has the split train whole and in parts: train-00000-of-00002.jsonl" in said


# What cannot be read


@pytest.mark.parametrize(
    ("extension", "content"),
    [
        ("jsonl", b""),
        ("jsonl", b"\n  \n"),
        ("jsonl.gz", gzip.compress(b"", mtime=0)),
        ("jsonl.gz", b""),
        ("json", b"[]"),
        ("txt", b"\n\n"),
        ("txt.gz", gzip.compress(b"\n", mtime=0)),
    ],
)
def test_a_split_without_rows_is_refused(extension: str, content: bytes, tmp_path: Path) -> None:
    put(tmp_path, {f"train.{extension}": content})
    assert refusal(tmp_path) == f"{tmp_path}/squad/train.{extension} has no rows. Every split needs at least one."


def test_a_parquet_file_without_rows_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"text": pa.array([], pa.string())}), sink)
    put(tmp_path, {"train.parquet": bytes(sink.getvalue())})
    assert "train.parquet has no rows" in refusal(tmp_path)


def test_an_empty_part_among_others_is_no_error(tmp_path: Path) -> None:
    put(tmp_path, {"train-0.jsonl": b"", "train-1.jsonl": json_lines(ROWS)})
    assert rows_of(tmp_path) == ROWS


def test_an_empty_json_file_is_refused(tmp_path: Path) -> None:
    put(tmp_path, {"train.json": b""})
    assert "train.json, line 1 is not JSON" in refusal(tmp_path)


def test_a_gzip_file_that_breaks_off_is_refused_wherever_it_does(tmp_path: Path) -> None:
    noise = random.Random(0)
    rows = [{"text": noise.randbytes(40).hex()} for _ in range(400)]
    whole = gzip.compress(json_lines(rows))
    read = []
    for size in (2, 5, 12, 400, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 4, len(whole) - 1):
        put(tmp_path, {"train.jsonl.gz": whole[:size]})
        said = refusal(tmp_path)
        assert f"{tmp_path}/squad/train.jsonl.gz: the gzip data breaks off after line " in said
        assert "copy or download it again" in said
        read.append(int(said.partition("after line ")[2].partition(" ")[0]))
    assert read == sorted(read) and read[0] == 0 and 0 < read[4] < 400 == read[-1]


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    noise = random.Random(0)
    whole = gzip.compress(json_lines([{"text": noise.randbytes(40).hex()} for _ in range(400)]))
    for place in (*range(10, 40), len(whole) // 2, len(whole) - 6):  # in the data, in the check sum
        put(tmp_path, {"train.jsonl.gz": whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :]})
        assert "train.jsonl.gz" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.txt.gz"])
def test_a_file_that_is_no_gzip_at_all_says_how_to_name_it(name: str, tmp_path: Path) -> None:
    put(tmp_path, {name: json_lines(ROWS)})
    said = refusal(tmp_path)
    assert f"{tmp_path}/squad/{name} is no gzip file" in said
    assert "name it without .gz" in said


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "a"', "is not JSON (Expecting ',' delimiter at column 13)"),
        (b"{'text': 1}", "is not JSON (Expecting property name enclosed in double quotes at column 2)"),
        (b'{"text": "a"} {"text": "b"}', "is not JSON (Extra data at column 15)"),
        (b"text", "is not JSON (Expecting value at column 1)"),
        (b'["a"]', "is a JSON list; every line has to be an object"),
        (b'"a"', "is a JSON str"),
        (b"5", "is a JSON int"),
        (b"null", "is a JSON NoneType"),
        (rb'{"text": "a\ud83d"}', "surrogates not allowed"),
        (rb'{"text": ["\uDE42"]}', "surrogates not allowed"),
        (rb'{"\ud83d": 1}', "surrogates not allowed"),
        (b'{"n": ' + b"1" * 5000 + b"}", "cannot be read"),
        (b"[" * 200_000, "cannot be read"),
        ("ü".encode("latin1"), "byte 0 (0xfc) is not UTF-8. Convert the file, for example: iconv"),
        (b'{"text": "\xed\xa0\x80"}', "byte 10 (0xed) is not UTF-8"),
    ],
)
@pytest.mark.parametrize("extension", ["jsonl", "jsonl.gz"])
def test_a_bad_line_is_named_by_its_number(extension: str, line: bytes, says: str, tmp_path: Path) -> None:
    content = json_lines(ROWS[:2]) + b"\n" + line + b"\n" + json_lines(ROWS)  # blank lines count
    put(tmp_path, {f"train.{extension}": gzip.compress(content) if extension.endswith("gz") else content})
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path}/squad/train.{extension}, line 4")
    assert says in said


def test_a_character_written_as_two_escapes_is_read(tmp_path: Path) -> None:
    put(tmp_path, {"train.jsonl": rb'{"text": "\ud83d\ude42"}'})
    assert rows_of(tmp_path) == [{"text": "🙂"}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[\n {"a": 1},\n {"a": }\n]', "line 3 is not JSON (Expecting value at column 8)"),
        (json_lines(ROWS), "line 2 is not JSON (Extra data at column 1). For one object a line name it .jsonl."),
        (b'{"data": []}', "has to be a JSON list of objects"),
        (b'[{"a": 1}, 2]', "has to be a JSON list of objects"),
        (rb'[{"a": "\ud83d"}]', "surrogates not allowed"),
        (b'[\n{"a": "\xff"}]', "line 2: byte 7 (0xff) is not UTF-8"),
    ],
)
def test_a_bad_json_list_is_named_by_its_line(content: bytes, says: str, tmp_path: Path) -> None:
    put(tmp_path, {"train.json": content})
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path}/squad/train.json")
    assert says in said


def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path: Path) -> None:
    put(tmp_path, {"train.txt": "one\n\ntwo\nfünf\n".encode("latin1")})
    said = refusal(tmp_path)
    assert f"{tmp_path}/squad/train.txt, line 4: byte 1 (0xfc) is not UTF-8" in said


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 10, json_lines(ROWS)])
def test_a_file_that_is_no_parquet_is_refused(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    put(tmp_path, {"train.parquet": content})
    assert f"{tmp_path}/squad/train.parquet is no readable parquet file (" in refusal(tmp_path)


def test_a_parquet_file_that_breaks_off_is_refused_wherever_it_does(tmp_path: Path) -> None:
    whole = parquet(ROWS)
    for size in range(1, len(whole), len(whole) // 40):
        put(tmp_path, {"train.parquet": whole[:size]})
        assert "train.parquet is no readable parquet file" in refusal(tmp_path)


def test_a_parquet_file_with_a_damaged_byte_never_ends_in_a_traceback(tmp_path: Path) -> None:
    """Bytes that are no text among them: the format itself has no check sum unless asked for."""
    whole = parquet([{"text": f"row {number}"} for number in range(9)])
    for place in range(4, 200):
        put(tmp_path, {"train.parquet": whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]})
        try:
            list(read_split(tmp_path, "squad", "train"))
        except BadInput as error:
            assert "train.parquet" in str(error)


def test_a_folder_or_a_dangling_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    put(tmp_path, {"train-0.jsonl": json_lines(ROWS)})
    (tmp_path / "squad" / "train-1.jsonl").symlink_to(tmp_path / "gone")
    assert "train-1.jsonl cannot be read (a folder, or a link to nothing)" in refusal(tmp_path)
    (tmp_path / "squad" / "validation.jsonl.gz").mkdir()
    assert "validation.jsonl.gz cannot be read" in refusal(tmp_path, "validation")


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.json", "train.txt", "train.parquet"])
def test_a_file_that_may_not_be_read_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so that the refusal is made here."""

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    put(tmp_path, {name: b"{}\n"})
    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(gzip, "open", denied)
    if name.endswith("parquet"):
        monkeypatch.setattr(pytest.importorskip("pyarrow.parquet"), "ParquetFile", denied)
    said = refusal(tmp_path)
    assert f"{tmp_path}/squad/{name}" in said
    assert "Permission denied" in said


@pytest.mark.parametrize("folder", ["", "squad"])
def test_a_folder_that_may_not_be_listed_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    if folder:
        put(tmp_path, {"train.jsonl": b"{}\n"})
    monkeypatch.setattr(Path, "iterdir", denied)
    assert refusal(tmp_path) == f"{tmp_path / folder} cannot be read (Permission denied)."


# Fields

SQUAD_ROW = {"id": "56be", "context": "", "answers": {"text": ["a"], "answer_start": None}, "n": 0, "no": False}


@pytest.mark.parametrize("fields", [(), ("id",), ("id", "answers.text"), ("context", "n", "no"), ("answers",)])
def test_fields_that_are_there_are_enough_even_when_empty(fields: tuple[str, ...]) -> None:
    assert require_fields(Located(SQUAD_ROW, "somewhere"), fields) is SQUAD_ROW


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("question", "field question is missing; the row has id, context, answers, n, no."),
        ("answers.texts", "field answers.texts is missing"),
        ("answers.text.0", "field answers.text.0 is missing"),
        ("id.text", "field id.text is missing"),
        ("answers.answer_start", "field answers.answer_start is null; it needs a value."),
    ],
)
def test_a_missing_or_null_field_is_named_with_file_and_line(field: str, says: str, tmp_path: Path) -> None:
    put(tmp_path, {"train.jsonl": json_lines([{"id": "", "question": ""}, SQUAD_ROW])})
    *_, located = read_split(tmp_path, "squad", "train")
    with pytest.raises(BadInput) as caught:
        require_fields(located, ("id", field))
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"{tmp_path}/squad/train.jsonl, line 2: {says}")


def test_a_null_where_fields_are_expected_is_a_missing_field() -> None:
    with pytest.raises(BadInput, match=r"row 7: field answers\.text is missing; the row has answers\."):
        require_fields(Located({"answers": None}, "row 7"), ("answers.text",))


def test_the_files_of_a_split_are_listed_without_being_read(tmp_path: Path) -> None:
    put(tmp_path, {"train-1.jsonl": b"{", "train-0.jsonl": b"{", "validation.jsonl": b"{"})
    assert [path.name for path in split_files(tmp_path, "squad", "train")] == ["train-0.jsonl", "train-1.jsonl"]
