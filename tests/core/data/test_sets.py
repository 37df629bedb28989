"""Sets: records of files of every form, fields under our names, and records that say the same on one side."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.core.data.sets import Record, divided, read_sets
from llmctl.core.text.templates import open_template
from llmctl.errors import UserError
from llmctl.spec.sets import Sets

ROWS = [{"question": 'a\n"b"', "answer": "c, d"}, {"question": "é", "answer": ""}]


def written(directory, kind: str) -> str:
    import csv

    path = directory / f"rows.{kind}"
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif kind in ("csv", "tsv"):
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ROWS[0], delimiter="\t" if kind == "tsv" else ",")
            table.writeheader()
            table.writerows(ROWS)
    else:
        path.write_text(lines)
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "tsv", "parquet"])
def test_records_of_a_file_are_the_same_whatever_its_form(tmp_path, kind):
    path = written(tmp_path, kind)
    found = list(read_sets([path], Sets(map=("prompt=question", "completion=answer"))))
    assert [one.fields for one in found] == [
        {**row, "prompt": row["question"], "completion": row["answer"]} for row in ROWS
    ]
    assert all(one.source.startswith(f"{path}:") for one in found)
    assert len(list(read_sets([path, path], Sets(limit=1)))) == 2


def test_a_plain_text_is_a_record_with_a_text(tmp_path):
    (tmp_path / "a.txt").write_text("Hello.\n")
    (one,) = read_sets([str(tmp_path / "a.txt")], Sets())
    assert one.fields == {"text": "Hello.\n"}


def test_what_is_no_record_says_where_it_is(tmp_path):
    path = tmp_path / "a.jsonl"
    for text, options, wanted in (
        ('{"a": 1}\n[1]\n', {}, "line 2 is not a JSON object"),
        ('{"a": 1}\n{"a": \n', {}, "line 2 is not JSON"),
        ('{"a": 1}\n', {"map": ("text=b",)}, r"a.jsonl:1: the record has no field 'b', only 'a'"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=wanted):
            list(read_sets([str(path)], Sets(**options)))


WORDS = st.text("ab", max_size=3)


@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), max_size=30), share=st.floats(0.1, 1))
def test_records_that_say_the_same_are_never_on_both_sides(pairs, share):
    records = [Record({"id": number, "prompt": p, "completion": c}, "") for number, (p, c) in enumerate(pairs)]
    kept, out = divided(records, share)
    assert sorted(one.fields["id"] for one in kept + out) == list(range(len(pairs)))
    sides = [{(one.fields["prompt"], one.fields["completion"]) for one in side} for side in (kept, out)]
    assert not sides[0] & sides[1]
    again = divided(records[::-1], share)[0]
    assert {one.fields["id"] for one in again} == {one.fields["id"] for one in kept}
    assert share < 1 or not out


def test_about_as_many_are_held_out_as_were_asked_for():
    records = [Record({"text": f"text {number}"}, "") for number in range(2000)]
    assert 60 < len(divided(records, 0.95)[1]) < 140


def test_with_a_template_records_that_it_says_alike_are_on_one_side():
    records = [Record({"url": str(n), "article": f"text {n // 2}", "highlights": "x"}, "") for n in range(200)]
    kept, out = divided(records, 0.5, open_template("summarise"))
    assert not {one.fields["article"] for one in kept} & {one.fields["article"] for one in out}
