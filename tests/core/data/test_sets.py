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


def test_columns_without_names_are_called_by_their_numbers(tmp_path):
    """SST as it is handed out: the first line is a record, which was taken for the names of the columns."""
    for first in "012":  # a label that might be the number of a column
        (tmp_path / "sst.tsv").write_text(f"a dull film\t{first}\na fine film\t1\n")
        found = [one.fields for one in read_sets([str(tmp_path / "sst.tsv")], Sets(map=("text=1", "label=2")))]
        assert [(one["text"], one["label"]) for one in found] == [("a dull film", first), ("a fine film", "1")]
    (tmp_path / "pandas.csv").write_text("0,1\nwell,5\n")
    (one,) = read_sets([str(tmp_path / "pandas.csv")], Sets(map=("text=0", "label=1")))
    assert (one.fields["text"], one.fields["label"]) == ("well", "5")
    (tmp_path / "named.csv").write_text("sentence,label\nwell,1\n")
    (one,) = read_sets([str(tmp_path / "named.csv")], Sets(map=("text=sentence", "label=2")))  # the line has names
    assert (one.fields["text"], one.fields["label"]) == ("well", "1")


def test_a_quote_in_tsv_that_nothing_closes_does_not_swallow_the_lines_after_it(tmp_path):
    """GLUE's files have quotes as they were said; what pandas writes has them around fields, over lines too."""
    rows = [
        'text\tlabel\n"one" day\t0\n',
        '"open\t1\n',
        'he said "go\t0\n',
        '"closed ""here"""\t1\n',
        '"two\nlines"\t0\n',
    ]
    (tmp_path / "a.tsv").write_text("".join(rows))
    found = [one.fields for one in read_sets([str(tmp_path / "a.tsv")], Sets())]
    said = ['"one" day', '"open', 'he said "go', 'closed "here"', "two\nlines"]
    assert [(one["text"], one["label"]) for one in found] == list(zip(said, "01010", strict=True))


def test_a_row_with_more_cells_than_columns_is_an_error_not_half_a_text(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nfine,1\ngood, but long,0\n")
    with pytest.raises(UserError, match=r"a\.csv line 3 has more cells than there are columns: 'text', 'label'"):
        list(read_sets([str(tmp_path / "a.csv")], Sets()))


def test_a_field_that_is_null_is_not_there(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": null, "prompt": "a", "completion": "b"}\n')
    (one,) = read_sets([str(tmp_path / "a.jsonl")], Sets())
    assert one.fields == {"prompt": "a", "completion": "b"}
