"""Entities by hand: tags to spans, words of several tokens, offsets in characters."""

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from llmctl.core.infer.classify import entities, labelled
from llmctl.core.infer.encode import Row
from llmctl.spec.model import ModelConfig

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "NOUN")


def row_of(text, pair=None):
    """Words split in letters: each but the first goes on with its word."""
    letters = sorted(set(text + (pair or "")) - {" "})
    vocab = {
        "[CLS]": 0,
        "[UNK]": 1,
        **{piece: n for n, piece in enumerate([*letters, *map("##{}".format, letters)], 2)},
    }
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A", "[CLS] $A $B", [("[CLS]", 0)])
    return Row(backend.encode(text, pair))


def scored(tags):
    """Scores (T, L) whose best are these (tag, score)."""
    scores = torch.zeros(len(tags), len(LABELS))
    for place, (tag, score) in enumerate(tags):
        scores[place, LABELS.index(tag)] = score
    return scores


def spans(text, tags, **how):
    found = entities(text, row_of(text), scored([("B-LOC", 1.0), *tags]), LABELS, **how)  # [CLS] is in no entity
    return [(one["entity"], one["text"], one["start"], pytest.approx(one["score"])) for one in found]


def test_b_begins_i_goes_on_and_o_ends():
    tags = [("B-PER", 0.8), ("I-PER", 0.6), ("B-PER", 0.5), ("O", 0.9), ("I-PER", 0.7), ("I-LOC", 0.4)]
    assert spans("a b c d e f", tags) == [
        ("PER", "a b", 0, 0.7),
        ("PER", "c", 4, 0.5),
        ("PER", "e", 8, 0.7),
        ("LOC", "f", 10, 0.4),
    ]


def test_plain_tags_join_their_neighbours():
    assert spans("a b c", [("NOUN", 0.5), ("NOUN", 0.7), ("O", 1.0)]) == [("NOUN", "a b", 0, 0.6)]


def test_a_word_is_tagged_by_its_first_token_or_token_by_token():
    tags = [("B-PER", 0.8), ("O", 0.9), ("B-LOC", 0.9), ("I-PER", 0.4), ("O", 0.9)]
    assert spans("éab cd", tags) == [("PER", "éab cd", 0, 0.6)]
    assert spans("éab cd", tags, words=False) == [("PER", "é", 0, 0.8), ("LOC", "b", 2, 0.9), ("PER", "c", 4, 0.4)]


def test_the_second_text_of_a_pair_has_no_entities():
    found = entities("a", row_of("a", "b"), scored([("O", 1), ("B-PER", 1), ("B-LOC", 1)]), LABELS)
    assert [one["text"] for one in found] == ["a"]


def test_labels_that_do_not_exclude_each_other_are_listed():
    shape = {"vocab": 8, "width": 16, "layers": 1, "heads": 2, "ff": 16, "context": 16}
    config = ModelConfig(**shape, kind="encoder", classifier="sequence", labels=("x", "y"), problem="multi_label")
    made = labelled(torch.tensor([0.5, 0.75]), config, 0.6)
    assert made == {"label": "y", "score": 0.75, "scores": {"x": 0.5, "y": 0.75}, "labels": ["y"]}
