"""Labels found in records, and records as examples: kinds of labels, pairs of texts, tags on first tokens, cuts."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from llmctl.core.data.batch import IGNORE
from llmctl.core.data.labelled import Labeller, labels_in
from llmctl.core.infer.encode import Encoder
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.classifier import with_classifier
from llmctl.spec.model import ModelConfig
from tests.core.variants import VARIANTS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij", *(f"##{one}" for one in "abcdefghij"), ",", "."]
SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}


def wordpiece() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", pair, [("[CLS]", 2), ("[SEP]", 3)])
    return Tokenizer(backend, SPECIAL)


def byte_level(prefix: bool = False) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {one: id for id, one in enumerate([*alphabet, "Ġa", "Ġab", "ab"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("Ġ", "a"), ("Ġa", "b"), ("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    return Tokenizer(backend, {})


def metaspace() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -3.0), *((one, -4.0) for one in "abcdefghij,."), ("▁ab", -1.0), ("ab", -2.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return Tokenizer(backend, {})


def model(base: str, task: str, names: tuple[str, ...], problem: str = "single_label") -> ModelConfig:
    return with_classifier(VARIANTS[base].resized(vocab=300), task, names, problem)


def said(*labels: object) -> list[dict]:
    return [{"text": "a", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("labels", "names", "problem"),
    [
        (["yes", "no", "yes"], ("no", "yes"), "single_label"),
        ([2, 10, 1], ("1", "2", "10"), "single_label"),
        (["2", "10"], ("2", "10"), "single_label"),  # as CSV has numbers
        ([True, False], ("false", "true"), "single_label"),
        ([0.5, 2, -1.0], ("value",), "regression"),
        (["4.5", "3"], ("value",), "regression"),
        ([[0.5, 1.0], [2.0, 0.0]], ("value_0", "value_1"), "regression"),
        ([["b", "a"], [], ["c"]], ("a", "b", "c"), "multi_label"),
        (["a", ["a", "b"]], ("a", "b"), "multi_label"),
        ([[3], [1, 10]], ("1", "3", "10"), "multi_label"),
    ],
)
def test_labels_say_which_there_are_and_what_they_mean(labels, names, problem):
    assert labels_in(said(*labels), "classify") == (names, problem)
    assert labels_in(said(*reversed(labels)), "classify") == (names, problem)


def test_what_labels_mean_can_be_said():
    assert labels_in(said(1, 2, 3), "classify", "regression") == (("value",), "regression")
    assert labels_in(said("a", "b"), "classify", "multi_label") == (("a", "b"), "multi_label")
    assert labels_in(said(0.0, 1.0), "classify", "single_label") == (("0.0", "1.0"), "single_label")


def test_tags_stay_as_they_are_o_first_then_by_kind():
    records = [{"tokens": ["a"] * 3, "tags": ["I-PER", "O", "B-LOC"]}, {"tokens": ["a"], "ner_tags": ["B-PER"]}]
    assert labels_in(records, "tag") == (("O", "B-LOC", "B-PER", "I-PER"), "single_label")
    assert labels_in([{"tokens": ["a", "b"], "tags": [2, 11]}], "tag").names == ("2", "11")


def test_a_head_that_is_there_settles_the_labels_and_names_those_it_lacks():
    known = model("bert", "classify", ("bad", "fair", "good"))
    assert labels_in(said("good", "bad"), "classify", known=known) == (known.labels, "single_label")
    assert labels_in(said(2, 0), "classify", known=known) == (known.labels, "single_label")  # by their numbers
    with pytest.raises(UserError, match="has the label 'awful', which the head does not know, and 1 more"):
        labels_in(said("awful", "good", "fine"), "classify", known=known)
    with pytest.raises(UserError, match="for single_label, not regression"):
        labels_in(said(1), "classify", "regression", known)
    ranker = model("bert", "classify", ("LABEL_0",))
    assert labels_in(said(0.5, 1), "classify", known=ranker).problem == "regression"


@pytest.mark.parametrize(
    ("records", "task", "words"),
    [
        ([{"text": "a"}], "classify", "Record 1 has none of 'label', 'labels', 'score'"),
        ([*said("a"), {"text": "a", "label": {"x": 1}}], "classify", "Record 2 has a label of type dict"),
        (said(float("nan")), "classify", "the label nan"),
        (said("a", "a"), "classify", "All records have the label a"),
        (said([], []), "classify", "No record has a label"),
        ([], "classify", "no records"),
        ([{"tokens": ["a"], "tags": "O"}], "tag", "tags that are no list"),
        (said([1.0], [1.0, 2.0]), "classify", "lists of 1, 2 quantities"),
    ],
)
def test_records_without_labels_to_learn_are_refused(records, task, words):
    with pytest.raises(UserError, match=words):
        labels_in(records, task)


def test_texts_are_read_as_classify_reads_them_and_pairs_with_their_kinds():
    config, tokenizer = model("bert", "classify", ("no", "yes")), wordpiece()
    one, pair = Labeller(tokenizer, config)(
        [{"text": "ab, c", "label": "yes"}, {"sentence": "ab", "text_pair": "c", "label": 0}]
    )
    read = Encoder(tokenizer, config)(["ab, c", ("ab", "c")])
    assert [made.example.ids.tolist() for made in (one, pair)] == [row.ids for row in read]
    assert (one.example.label, pair.example.label) == (1, 0) and not one.example.scored.any()
    assert one.example.types is None
    assert pair.example.types.tolist() == [0, 0, 0, 0, 1, 1] and (one.length, one.lost) == (6, 0)


def test_targets_are_numbers_shares_or_quantities():
    several = Labeller(wordpiece(), model("bert", "classify", ("x", "y", "z"), "multi_label"))
    found = several([{"text": "a", "labels": label} for label in (["z", "x"], [], "y", [0.5, 1.0, 0.0])])
    wanted = [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0.5, 1, 0]]
    assert [made.example.label.tolist() for made in found] == wanted
    assert found[0].example.label.dtype == np.float32
    quantity = Labeller(wordpiece(), model("bert", "classify", ("value",), "regression"))
    assert [made.example.label for made in quantity([{"text": "a", "score": one} for one in (2, "0.5")])] == [2.0, 0.5]
    assert quantity(said("much")) == ["has the label 'much', wanted a number"]


def tagged(tokenizer: Tokenizer, base: str, words: list[str], **how: object) -> tuple[list[str], list[int], int]:
    """The tokens, the words that tags stand for at each (0, 1, ... in their order), and how many are lost."""
    names = tuple(f"T{i}" for i in range(10))
    labeller = Labeller(tokenizer, model(base, "tag", names), **how)
    (made,) = labeller([{"tokens": words, "tags": list(names[: len(words)])}])
    ids = made.example.ids.tolist()
    return [tokenizer.token(id) for id in ids], made.example.label.tolist(), made.lost


def test_the_first_piece_of_each_word_has_its_tag_and_nothing_else_has():
    tokens, tags, lost = tagged(wordpiece(), "bert", ["abc", ",", "d.e", "f"])
    assert tokens == ["[CLS]", "a", "##b", "##c", ",", "d", ".", "e", "f", "[SEP]"]
    assert tags == [IGNORE, 0, IGNORE, IGNORE, 1, 2, IGNORE, IGNORE, 3, IGNORE] and not lost


@pytest.mark.parametrize("prefix", [False, True])
def test_words_of_byte_level_tokenizers_begin_with_a_space(prefix):
    tokens, tags, lost = tagged(byte_level(prefix), "gpt2", ["ab", "abc", "c", "é"])
    assert tokens == ["Ġab" if prefix else "ab", "Ġab", "c", "Ġ", "c", "Ġ", "Ã", "©"]
    assert tags == [0, 1, IGNORE, 2, IGNORE, 3, IGNORE, IGNORE] and not lost


def test_words_of_sentencepiece_begin_with_its_space():
    tokens, tags, lost = tagged(metaspace(), "t5", ["abc", ",", "ab"])
    assert tokens[:5] == ["▁ab", "c", "▁", ",", "▁ab"]
    assert tags[:5] == [0, IGNORE, 1, IGNORE, 2] and not lost


def test_words_that_no_token_stands_for_are_counted_as_lost():
    tokens, tags, lost = tagged(wordpiece(), "bert", ["a", "", "  ", "b"])
    assert tokens[1:-1] == ["a", "b"] and tags[1:-1] == [0, 3] and lost == 2


@pytest.mark.parametrize(("side", "kept"), [("right", [0, 1]), ("left", [2, 3])])
def test_long_texts_are_cut_where_that_is_asked_for_and_keep_their_frame(side, kept):
    tokens, tags, lost = tagged(wordpiece(), "bert", ["a", "b", "c", "d"], limit=4, truncate=side)
    assert (tokens[0], tokens[-1], tags[1:-1], lost) == ("[CLS]", "[SEP]", kept, 2)
    config = model("bert", "classify", ("no", "yes"))
    (made,) = Labeller(wordpiece(), config, 4)([{"text": "a b c d", "label": 0}])
    assert (made.length, len(made.example.ids)) == (6, 6)  # left to the caller
    with pytest.raises(UserError, match="special tokens alone take 3"):
        Labeller(wordpiece(), config, 3, "right")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"label": "yes"}, "has no string 'text'"),
        ({"text": "a", "text_pair": 3, "label": "yes"}, "has no string 'text_pair'"),
        ({"text": "a", "label": "perhaps"}, "has the label 'perhaps'"),
        ({"text": "a", "label": 2}, "has the label 2"),
        ({"text": "a"}, "has none of 'label'"),
    ],
)
def test_a_record_that_does_not_fit_is_told_in_its_place(record, words):
    good = {"text": "a", "label": "no"}
    found = Labeller(wordpiece(), model("bert", "classify", ("no", "yes")))([good, record, good])
    assert words in found[1] and found[0].example.label == found[2].example.label == 0


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "has 2 tokens and 1 tags"),
        ({"tokens": "a b", "tags": ["O"]}, "has no list of strings 'tokens'"),
        ({"tokens": ["a"], "tags": ["B-X"]}, "has the tag 'B-X'"),
    ],
)
def test_words_that_do_not_fit_their_tags_are_told(record, words):
    (found,) = Labeller(wordpiece(), model("bert", "tag", ("O", "B-Y")))([record])
    assert words in found


def test_an_empty_text_is_an_example_only_where_something_frames_it():
    bare = Labeller(byte_level(), model("gpt2", "classify", ("0", "1")))([{"text": "", "label": 0}])[0]
    assert not len(bare.example.ids)
    framed = Labeller(wordpiece(), model("bert", "classify", ("0", "1")))([{"text": "", "label": 0}])[0]
    assert framed.example.ids.tolist() == [2, 3]


@pytest.mark.parametrize("words, tags", [('["a", "b"]', '["O", "B-Y"]'), ("['a', 'b']", "['O', 'B-Y']")])
def test_lists_that_a_table_holds_as_text_are_lists(words, tags):
    """CSV has no lists: JSON and what pandas writes are met."""
    (listed,) = Labeller(wordpiece(), model("bert", "tag", ("O", "B-Y")))(
        [{"tokens": ["a", "b"], "tags": ["O", "B-Y"]}]
    )
    (made,) = Labeller(wordpiece(), model("bert", "tag", ("O", "B-Y")))([{"tokens": words, "tags": tags}])
    assert made.example.ids.tolist() == listed.example.ids.tolist()
    assert made.example.label.tolist() == listed.example.label.tolist()
    assert labels_in([{"text": "a", "labels": '["x", "y"]'}], "classify") == (("x", "y"), "multi_label")


def test_typed_special_tokens_are_text():
    (made,) = Labeller(wordpiece(), model("bert", "classify", ("0", "1")))([{"text": "[SEP]", "label": 0}])
    assert 3 not in made.example.ids[1:-1]
