"""Reading: every format gives its texts, and bad input is named with its place."""

import bz2
import gzip
import io
import json
import lzma
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.core.data.read import PIECE, READERS, WHOLE, files_of, read_texts
from llmctl.errors import UserError
from llmctl.spec.data import Reading

TEXTS = ["first", "zweiter é", "third\nwith a line", '{"odd": 1}']


def texts(*paths, **how):
    return [document.text for document in read_texts([str(path) for path in paths], Reading(**how))]


def jsonl(path, field="text"):
    path.write_text("".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(TEXTS)))
    return path


def from_stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return texts("-")


def test_json_lines_keep_their_records_and_places(tmp_path):
    found = list(read_texts([str(jsonl(tmp_path / "a.jsonl"))]))
    assert [document.text for document in found] == TEXTS
    assert found[1].record == {"id": 1, "text": TEXTS[1]}
    assert found[1].source.endswith("a.jsonl:2")


def test_another_field_holds_the_text(tmp_path):
    assert texts(jsonl(tmp_path / "a.jsonl", "body"), field="body") == TEXTS


def test_a_json_array_of_records_is_read_too(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    assert texts(tmp_path / "a.json") == TEXTS


def test_csv_and_tsv_are_read_by_column(tmp_path):
    (tmp_path / "a.csv").write_text('n,text\n1,"a, ""b""\nc"\n2,d\n')
    (tmp_path / "a.tsv").write_text("text\tn\ne\t1\n")
    assert texts(tmp_path / "a.csv", tmp_path / "a.tsv") == ['a, "b"\nc', "d", "e"]
    assert texts(tmp_path / "a.csv", field="n") == ["1", "2"]


def test_parquet_is_read_by_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS, "n": [1, 2, 3, 4]}), tmp_path / "a.parquet", row_group_size=2)
    assert texts(tmp_path / "a.parquet") == TEXTS
    (tmp_path / "noname").write_bytes((tmp_path / "a.parquet").read_bytes())
    assert texts(tmp_path / "noname") == TEXTS
    with pytest.raises(UserError, match="no column 'body', only 'text', 'n'"):
        texts(tmp_path / "a.parquet", field="body")
    with pytest.raises(UserError, match="row 1 has a 'n' that is not text"):
        texts(tmp_path / "a.parquet", field="n")
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match="not a sound parquet file"):
        texts(tmp_path / "broken.parquet")


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_compressed_files_are_read_whatever_their_name(tmp_path, module):
    plain = jsonl(tmp_path / "a.jsonl").read_bytes()
    for name in ("a.jsonl.gz", "noname"):
        (tmp_path / name).write_bytes(module.compress(plain))
        assert texts(tmp_path / name) == TEXTS


def test_zstd_is_read_across_frames(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    lines = jsonl(tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "b.jsonl.zst").write_bytes(b"".join(zstandard.compress(line) for line in lines))
    assert texts(tmp_path / "b.jsonl.zst") == TEXTS


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_a_compressed_file_that_is_cut_short_is_an_error(tmp_path, module):
    data = module.compress(b"some words that repeat " * 4000)
    (tmp_path / "a.txt.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged or cut short"):
        texts(tmp_path / "a.txt.gz")


def test_stdin_is_read_as_what_it_holds(tmp_path, monkeypatch):
    plain = jsonl(tmp_path / "a.jsonl").read_bytes()
    assert from_stdin(monkeypatch, plain) == TEXTS
    assert from_stdin(monkeypatch, gzip.compress(plain)) == TEXTS
    assert from_stdin(monkeypatch, b"{ not json\n") == ["{ not json\n"]
    assert from_stdin(monkeypatch, "plain é\n".encode()) == ["plain é\n"]


def test_a_directory_gives_its_text_files_by_name(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("z")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert texts(tmp_path) == ["a", "z"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="has no text files"):
        files_of([str(empty)])


def test_a_short_text_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "code.py").write_text("x = 1\n\n\ny = 2\n")
    assert texts(tmp_path / "a.txt", tmp_path / "code.py") == ["one\n\ntwo\n", "x = 1\n\n\ny = 2\n"]


@pytest.mark.parametrize("blank", ["\n", " \n", "\r\n"])
def test_a_long_text_is_cut_after_blank_lines(tmp_path, blank):
    paragraph = "A line of prose, é.\n" * 20 + blank
    whole = paragraph * 500
    (tmp_path / "a.txt").write_text(whole, newline="")
    pieces = texts(tmp_path / "a.txt")
    assert "".join(pieces) == whole
    assert len(pieces) > 10
    assert all(piece.endswith(blank) and PIECE < len(piece) < PIECE + 2 * len(paragraph) for piece in pieces[:-1])


def test_a_long_text_without_blank_lines_is_cut_between_lines_and_one_without_lines_anywhere(tmp_path):
    for whole in ("A line é.\n" * 30_000, "é" * 300_000):
        (tmp_path / "a.txt").write_text(whole)
        pieces = texts(tmp_path / "a.txt")
        assert "".join(pieces) == whole
        assert max(map(len, pieces)) <= 2 * WHOLE
    assert all(document.source.rpartition(":")[2].isdigit() for document in read_texts([str(tmp_path / "a.txt")]))


def test_the_place_of_a_piece_is_its_first_line(tmp_path):
    lines = [f"line {n}\n" if n % 50 else "\n" for n in range(1, 20_001)]
    (tmp_path / "a.txt").write_text("".join(lines))
    for document in read_texts([str(tmp_path / "a.txt")]):
        first = int(document.source.rpartition(":")[2])
        assert document.text.startswith(lines[first - 1])


def test_documents_can_be_lines_or_whole_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\r\nthree\n" + "x" * 100_000)
    assert texts(tmp_path / "a.txt", documents="line")[:3] == ["one", "two", "three"]
    assert len(texts(tmp_path / "a.txt", documents="file")) == 1


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_a_text_is_read_as_it_was_written(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(b"x" + text.encode())
    assert texts(tmp_path / "a.txt") == ["x" + text]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert texts(tmp_path / "a.txt") == ["hello"]


def test_utf16_is_refused_with_a_way_out(tmp_path):
    (tmp_path / "a.txt").write_text("hello", encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16") as caught:
        texts(tmp_path / "a.txt")
    assert "iconv" in caught.value.hint


@pytest.mark.parametrize("before", [3, 30_000, 300_000])
def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path, before):
    (tmp_path / "a.txt").write_bytes(b"fine\n" * before + b"bad \xff byte\n" + b"fine\n" * 3000)
    with pytest.raises(UserError, match=rf"a\.txt line {before + 1}: byte 0xff is not UTF-8"):
        texts(tmp_path / "a.txt", documents="line")
    assert "bad \ufffd byte" in texts(tmp_path / "a.txt", documents="line", errors="replace")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "\xff"}', "line 2 is not UTF-8: byte 0xff at offset 10"),
        (b'{"text": ', "line 2 is not JSON"),
        (b'{"text": "\\ud800"}', "line 2 is not JSON"),
        (b"[1]", "line 2 is not a JSON object"),
        (b'"text"', "line 2 is not a JSON object"),
        (b"3", "line 2 is not a JSON object"),
        (b'{"body": "x", "n": 1}', "line 2 has no field 'text', only 'body', 'n'"),
        (b"{}", "line 2 has no field 'text', only none"),
        (b'{"text": 7}', "line 2 has a field 'text' that is not text"),
        (b'{"text": null}', "line 2 has a field 'text' that is not text"),
    ],
)
def test_a_bad_record_is_named_or_answered_in_its_place(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b'\n\n{"text": "end"}\n')
    with pytest.raises(UserError, match=words.replace("[", r"\[")):
        texts(tmp_path / "a.jsonl")
    found = list(read_texts([str(tmp_path / "a.jsonl")], go_on=True))
    assert [document.text for document in found] == ["good", "", "end"]
    assert found[1].error.startswith(words)
    assert (found[0].error, found[2].source[-1]) == (None, "4")


def test_bytes_that_are_not_utf8_in_json_are_replaced_when_asked(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\xffb"}\n')
    assert texts(tmp_path / "a.jsonl", errors="replace") == ["a\ufffdb"]


def test_bad_csv_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("n,text\n1,a\n2\n")
    with pytest.raises(UserError, match="line 3 ends before column 'text'"):
        texts(tmp_path / "a.csv")
    with pytest.raises(UserError, match="has no column 'body', only 'n', 'text'"):
        texts(tmp_path / "a.csv", field="body")
    (tmp_path / "b.csv").write_bytes(b"text\nfine\nb\xffd\n")
    with pytest.raises(UserError, match=r"b\.csv line 3: byte 0xff is not UTF-8"):
        texts(tmp_path / "b.csv")


def test_empty_documents_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": " \\n"}\n\n{"text": "x"}\n')
    (tmp_path / "empty.txt").write_text("")
    assert texts(tmp_path / "empty.txt", tmp_path / "a.jsonl") == ["x"]


def test_a_limit_counts_documents_of_all_files(tmp_path):
    path = jsonl(tmp_path / "a.jsonl")
    assert texts(path, path, limit=6) == TEXTS + TEXTS[:2]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.txt does not exist"):
        texts(tmp_path / "nowhere.txt")
    with pytest.raises(UserError) as caught:
        texts("someone/dataset")
    assert caught.value.hint == "A data set of the hub is hf:someone/dataset."


def test_a_data_set_is_read_through_datasets(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data" / "train.jsonl")
    assert texts(f"hf:{tmp_path / 'data'}", limit=3) == TEXTS[:3]
    with pytest.raises(UserError, match="has no text in 'body'"):
        texts(f"hf:{tmp_path / 'data'}", field="body")
    with pytest.raises(UserError, match="cannot be loaded"):
        texts(f"hf:{tmp_path / 'data'}::nosuchsplit")


def test_every_format_has_a_reader():
    assert READERS.keys() == {"text", "jsonl", "csv", "tsv", "parquet"}
