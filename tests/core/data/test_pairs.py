"""Pairs from files: every form they come in, and every way in which they do not fit, with file and line."""

import gzip
import os
import threading

import pytest

from llmctl.core.data.pairs import read_pairs
from llmctl.errors import Exit, UserError
from llmctl.spec.pairs import Pairing

FAILED, UNEVEN = Exit.FAILURE, Exit.MISMATCH


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_bytes(text.encode())
        return name

    return write


def read(predictions, references=(), same=False, **fields):
    return [(pair.prediction, pair.references) for pair in read_pairs(predictions, references, Pairing(**fields), same)]


def test_text_files_go_line_by_line_blank_lines_too(write):
    said, one, two = write("said.txt", "\ufeffa\r\n\nc"), write("one", "1\n2\n3\n"), write("two", "{\nII\nIII\n")
    assert read(said, [one, two]) == [("a", ("1", "{")), ("", ("2", "II")), ("c", ("3", "III"))]
    assert [pair.where for pair in read_pairs(said, [one])] == ["said.txt:1", "said.txt:2", "said.txt:3"]


def test_records_hold_both_or_each_file_holds_its_own(write):
    both = write(
        "both.jsonl", '{"completion": "a", "reference": "1"}\n\n{"completion": "b", "references": ["2", "3"]}\n'
    )
    assert read(both) == [("a", ("1",)), ("b", ("2", "3"))]
    assert [pair.where for pair in read_pairs(both)] == ["both.jsonl:1", "both.jsonl:3"]
    deep = write("deep", '{"choices": [{"text": "a"}], "x.y": "1", "z": {"w": "2"}}\n')
    assert read(deep, pred_field="choices.0.text", ref_field=("x.y", "z.w")) == [("a", ("1", "2"))]
    assert read(write("said", "A\nB\n"), [both]) == [("A", ("1",)), ("B", ("2", "3"))]
    assert read(both, [write("text", "I\nII\n")]) == [("a", ("I",)), ("b", ("II",))]


def test_compressed_files_are_read_as_they_are(write, tmp_path):
    (tmp_path / "said.gz").write_bytes(gzip.compress(b"a\nb\n"))
    assert read("said.gz", [write("wanted", "1\n2\n")]) == [("a", ("1",)), ("b", ("2",))]


@pytest.mark.parametrize(
    "said, wanted, problem, code",
    [
        ("a\nb\nc\n", "1\n2\n", "wanted ends after 2 texts, but said:3 follows", UNEVEN),
        ("a\nb\n", "1\n2\n3\n", "said ends after 2 texts, but wanted:3 follows", UNEVEN),
        ("", "1\n", "said ends after 0 texts, but wanted:1", UNEVEN),
        ("", "", "said holds no prediction", FAILED),
        ("a\n", None, "said:1 is plain text, which has no reference", FAILED),
        ('{"completion": "a", "reference": "1"}\n{"completion": "a"\n', None, "said:2 is not JSON: Expecting", FAILED),
        ('{"completion": "a", "reference": "1"}\n[]\n', None, "said:2 is a JSON list", FAILED),
        ('{"text": "a"}\n', "1\n", "said:1 has no field 'completion', only 'text'", FAILED),
        ('{"completion": 3}\n', "1\n", "said:1 has a field 'completion' that is not a text", FAILED),
        ('{"error": "too long", "p": ""}\n', "1\n", "said:1 has no completion, but an error: too long", FAILED),
        ('{"completion": "a"}\n', None, "said:1 has no field 'reference'", FAILED),
        ('{"completion": "a", "reference": null}\n', None, "said:1 has a field 'reference' that is", FAILED),
        ('{"completion": "a"\n{"completion": "b"}\n', "1\n2\n", "said:1 begins as a JSON record does", FAILED),
        ('{"completion": "a"}\n{"a":' + "[" * 100_000 + "\n", "1\n2\n", "said:2 is not JSON: maximum", FAILED),
        ('{"completion": "a", "references": []}\n', None, "said:1 has a field 'references' that is an", FAILED),
        ('{"completion": "a", "references": ["b", 1]}\n', None, "said:1 has a field 'references' that is not", FAILED),
        ('{"completion": "\\ud800", "reference": "1"}\n', None, "said:1 has a field 'completion' that holds", FAILED),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_place(write, said, wanted, problem, code):
    paths = [write("said", said), *([] if wanted is None else [write("wanted", wanted)])]
    with pytest.raises(UserError) as refused:
        read(paths[0], paths[1:])
    assert problem in refused.value.problem and refused.value.code == code


def test_bytes_that_are_no_text_numbers_of_references_that_differ_and_stdin_twice_are_refused(write, tmp_path):
    (tmp_path / "bytes").write_bytes(b"a\n\xff\n")
    for act, problem in (
        (lambda: read("bytes", ["bytes"]), "bytes:2 is not UTF-8: byte 0xff"),
        (lambda: read(write("s", '{"completion": "", "reference": "a"}\n{"completion": "", "reference": ["a", "b"]}'),
                      same=True), "s:2 has 2 references, but s:1 has 1"),
        (lambda: read("-", ["-"]), "stdin can be read once"),
        (lambda: read("nowhere", ["bytes"]), "nowhere"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=problem):
            act()


def test_a_long_first_record_that_a_pipe_gives_in_parts_is_a_record(write, tmp_path):
    record = '{"completion": "' + "a" * 100_000 + '", "reference": "1"}\n'
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(record), daemon=True)
    writer.start()
    assert read("pipe") == [("a" * 100_000, ("1",))]
    writer.join()


def test_a_field_of_plain_text_is_refused_and_texts_may_begin_as_records_do(write):
    said, wanted = write("said.txt", '{"completion": "a"}\n'), write("wanted", "1\n")
    assert read(said, [wanted]) == [('{"completion": "a"}', ("1",))]
    assert read(write("broken", '{"a": \n'), [wanted], format="lines") == [('{"a": ', ("1",))]
    for name, flag in (("pred_field", {"pred_field": "a"}), ("ref_field", {"ref_field": ("a",)})):
        with pytest.raises(UserError, match="1 is plain text, which has no field 'a'") as refused:
            read(said, [wanted], **flag)
        assert name.replace("_", "-") in refused.value.hint
