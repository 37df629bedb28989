"""Options of examples: weights of files, shares, and the task that fields speak of."""

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.sets import Sets, Weighted, shares, task_of


def test_a_weight_follows_the_last_colon_unless_a_file_is_called_so(tmp_path):
    assert Weighted.parse("a.jsonl") == ("a.jsonl", None)
    assert Weighted.parse("a.jsonl:2") == ("a.jsonl", 2.0)
    assert Weighted.parse("-:0.5") == ("-", 0.5)
    assert Weighted.parse("a:b.jsonl") == ("a:b.jsonl", None)
    assert Weighted.parse("hf:name:20231101") == ("hf:name:20231101", None)
    assert Weighted.parse("hf:name::train:3") == ("hf:name::train", 3.0)
    (tmp_path / "a:2").touch()
    assert Weighted.parse(str(tmp_path / "a:2")).weight is None
    for text in ("a:0", "a:-1", "a:nan", "a:inf"):
        with pytest.raises(UserError, match="wanted more than 0"):
            Weighted.parse(text)


def test_files_share_the_examples_by_size_or_where_one_has_a_weight_by_weight():
    plain, heavy = Weighted("a"), Weighted("b", 3.0)
    assert shares([plain, plain], [10, 30]) == [0.25, 0.75]
    assert shares([plain, heavy], [1000, 1]) == [0.25, 0.75]
    assert shares([plain, heavy], [0, 1]) == [0, 1]
    with pytest.raises(UserError, match="no examples"):
        shares([plain], [0])


def test_values_out_of_range_are_told_together():
    with pytest.raises(UserError, match=r"--limit is 0.*--split is 0.*--max-length is 1") as found:
        Sets(limit=0, split=0, max_length=1)
    assert found.value.code == Exit.USAGE
    for pair in ("a", "=b", "a="):
        with pytest.raises(UserError, match="wanted OURS=THEIRS"):
            Sets(map=(pair,))
    assert Sets(map=("a=b", " c = d.e ")).mapping == {"a": "b", "c": "d.e"}
    assert Sets().trained == 0.95 and Sets(eval="x.jsonl").trained == 1


def test_the_task_is_what_the_fields_are_about_or_else_what_the_model_does():
    assert task_of("decoder", False, ("prompt", "completion")) == "lm"
    assert task_of("encoder-decoder", False, ("prompt", "completion")) == "seq2seq"
    assert task_of("decoder", False, ("text", "label")) == "classify"
    assert task_of("encoder", False, ("text", "labels")) == "classify"
    assert task_of("encoder", False, ("tokens", "ner_tags")) == "tag"
    assert task_of("decoder", False, ("messages", "label")) == "lm"
    assert task_of("decoder", False, ("text", "label"), "sentiment") == "lm"
    assert task_of("decoder", False, ("text",)) == "lm"
    with pytest.raises(UserError, match="does not write") as found:
        task_of("encoder", False, ("text",))
    assert found.value.code == Exit.MISMATCH
