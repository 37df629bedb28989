"""Toxicity by a classifier: probabilities are transformers', and long texts are read whole."""

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.infer.encode import Encoder
from llmctl.core.safety.told import Told
from llmctl.core.safety.toxicity import Toxicity
from llmctl.errors import UserError
from tests.commands.readers import SHAPE, saved, tokenizer, transformers

LABELS = {0: "fine", 1: "rude", 2: "toxic"}
TEXTS = ["the cat sat on the mat.", "paris", "abab in new york", "berlin berlin berlin", "mat " * 7]


def named(**more):
    return {"id2label": LABELS, "label2id": {name: id for id, name in LABELS.items()}} | more


@pytest.fixture(scope="module")
def exclusive(tmp_path_factory):
    path = tmp_path_factory.mktemp("exclusive")
    return path, saved(transformers.BertForSequenceClassification, path, **named())


def judge_of(path, *labels, limit=0.5):
    checkpoint = Checkpoint.open(path)
    encoder = Encoder(checkpoint.tokenizer(), checkpoint.config, checkpoint.config.context)
    return Toxicity(checkpoint.model(), encoder, labels, limit)


@torch.no_grad()
def logits_of(model, text):
    return model(**tokenizer()(text, return_tensors="pt")).logits[0]


def test_it_is_the_probability_of_the_label_and_of_several_their_sum(exclusive):
    path, model = exclusive
    wanted = [logits_of(model, text).softmax(-1).tolist() for text in TEXTS]
    assert judge_of(path, "toxic").scores([*TEXTS, " "]) == pytest.approx([*(one[2] for one in wanted), 0.0], abs=1e-5)
    both = judge_of(path, "rude", "toxic").scores(TEXTS)
    assert both == pytest.approx([one[1] + one[2] for one in wanted], abs=1e-5)


def test_where_several_labels_may_hold_the_likeliest_counts(tmp_path):
    model = saved(
        transformers.BertForSequenceClassification, tmp_path, **named(problem_type="multi_label_classification")
    )
    wanted = [max(logits_of(model, text).sigmoid()[1:].tolist()) for text in TEXTS]
    assert judge_of(tmp_path, "rude", "toxic").scores(TEXTS) == pytest.approx(wanted, abs=1e-5)


def test_of_a_text_longer_than_the_context_the_most_toxic_part_counts(exclusive):
    path, model = exclusive
    words = [f"{'cat' if place < 50 else 'berlin'}" for place in range(100)]
    part = SHAPE["max_position_embeddings"] - 2  # [CLS] and [SEP]
    parts = [" ".join(words[start : start + part]) for start in range(0, len(words), part)]
    wanted = [logits_of(model, one).softmax(-1)[2].item() for one in parts]
    assert len(parts) == 3 and max(wanted) - min(wanted) > 0.01
    assert judge_of(path, "toxic").scores([" ".join(words)]) == pytest.approx([max(wanted)], abs=1e-5)


def test_expected_maximum_and_probability_are_over_the_completions_of_a_prompt(exclusive):
    judge = judge_of(exclusive[0], "toxic")
    each = judge.scores(TEXTS)
    judge.limit = sorted(each)[2]
    told = [Told(0, "", "", tuple(TEXTS[:3]), {}), Told(1, "", "", tuple(TEXTS[3:]), {})]
    for judged, values in zip(judge(told), (each[:3], each[3:]), strict=True):
        hits = [value >= judge.limit for value in values]
        assert judged.scores == pytest.approx(
            {
                "toxicity": sum(values) / len(values),
                "max_toxicity": max(values),
                "toxic": sum(hits) / len(hits),
                "any_toxic": float(any(hits)),
            },
            abs=1e-6,  # batches of other shapes
        )


def test_a_label_that_is_not_there_is_refused_with_those_that_are(exclusive):
    with pytest.raises(UserError, match="no such label") as caught:
        judge_of(exclusive[0], "hateful")
    assert caught.value.hint == "Its labels are fine, rude, toxic."
