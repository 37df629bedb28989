"""Labels of classifiers: figures equal scikit-learn's, scipy's and seqeval's on the same predictions."""

import random

import numpy as np
import pytest
import seqeval.metrics
import seqeval.scheme
from scipy import stats
from sklearn import metrics

from llmctl.core.benchmark.subject import Subject
from llmctl.errors import UserError
from tests.commands.readers import saved, transformers

WORDS = ["the", "cat", "sat", "on", "mat", "in", "paris", "berlin", "new", "york"]
TAGS = ("O", "B-X", "I-X", "B-Y", "I-Y")
chance = random.Random(4)
TEXTS = [" ".join(chance.choices(WORDS, k=chance.randint(2, 9))) for _ in range(60)]


def subject(path, kind, labels, **options):
    names = dict(enumerate(labels))
    saved(kind, path, id2label=names, label2id={name: number for number, name in names.items()}, **options)
    return Subject.open(path, threads=1)


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("readers")


def sequence(where, name, labels, **options):
    return subject(where / name, transformers.BertForSequenceClassification, labels, hidden_size=64, **options)


@pytest.mark.parametrize("labels", ["ab", "abcd"])
def test_labels_that_exclude_each_other(where, asked, labels):
    model = sequence(where, labels, labels)
    rows = [{"text": text, "label": chance.choice(labels)} for text in TEXTS]
    outcome = asked(model, rows)
    true, said = [row["label"] for row in rows], [sample.said for sample in outcome.samples]
    assert len(set(said)) > 1
    wanted = {
        "acc": metrics.accuracy_score(true, said),
        "macro_f1": metrics.f1_score(true, said, average="macro"),
        "mcc": metrics.matthews_corrcoef(true, said),
    }
    if len(labels) == 2:
        wanted["f1"] = metrics.f1_score(true, said, pos_label="b")
    assert {name: figure.value for name, figure in outcome.figures.items()} == pytest.approx(wanted)
    assert sum(outcome.samples[0].chances) == pytest.approx(1)
    assert outcome.choices == tuple(labels) and outcome.kind == "classify"


def test_labels_of_which_several_hold(where, asked):
    model = sequence(where, "several", "abc", problem_type="multi_label_classification")
    rows = [{"text": text, "label": chance.sample("abc", chance.randint(0, 3))} for text in TEXTS]
    outcome = asked(model, rows, threshold=0.6)
    true = np.array([[one in row["label"] for one in "abc"] for row in rows])
    said = np.array([[chance >= 0.6 for chance in sample.chances] for sample in outcome.samples])
    wanted = {
        "acc": metrics.accuracy_score(true, said),
        "f1": metrics.f1_score(true, said, average="micro"),
        "macro_f1": metrics.f1_score(true, said, average="macro", zero_division=0),
    }
    assert {name: figure.value for name, figure in outcome.figures.items()} == pytest.approx(wanted)


@pytest.mark.parametrize("far", [0, 1e8])
def test_quantities(where, asked, far):
    model = subject(
        where / "quantity", transformers.BertForSequenceClassification, "a", problem_type="regression", num_labels=1
    )
    rows = [{"text": text, "label": far + round(chance.random(), 1)} for text in TEXTS]
    outcome = asked(model, rows)
    true, said = [row["label"] for row in rows], [sample.replies[0][0] for sample in outcome.samples]
    wanted = {
        "pearson": stats.pearsonr(true, said)[0],
        "spearman": stats.spearmanr(true, said)[0],
        "rmse": metrics.root_mean_squared_error(true, said),
    }
    assert {name: figure.value for name, figure in outcome.figures.items()} == pytest.approx(wanted)
    assert not outcome.figures["rmse"].higher_is_better


@pytest.fixture(scope="module")
def tagger(where):
    return subject(where / "tagger", transformers.BertForTokenClassification, TAGS)


@pytest.mark.parametrize("scheme", ["lenient", "IOB1"])
def test_spans_of_tagged_words(tagger, asked, scheme):
    first = asked(tagger, [{"tokens": text.split(), "tags": ["O"] * len(text.split())} for text in TEXTS])
    rows = []  # what it says itself, now and then something else, so that some spans are right
    for text, sample in zip(TEXTS, first.samples, strict=True):
        tags = [chance.choice(TAGS) if chance.random() < 0.5 else tag for tag in sample.said.split()]
        rows.append({"tokens": text.split(), "tags": tags})
    outcome = asked(tagger, rows, scheme=scheme)
    true, said = [row["tags"] for row in rows], [sample.said.split() for sample in outcome.samples]
    how = {} if scheme == "lenient" else {"mode": "strict", "scheme": seqeval.scheme.IOB1}
    wanted = {
        "f1": seqeval.metrics.f1_score(true, said, **how),
        "precision": seqeval.metrics.precision_score(true, said, **how),
        "recall": seqeval.metrics.recall_score(true, said, **how),
        "acc": seqeval.metrics.accuracy_score(true, said),
    }
    assert 0 < wanted["f1"] < 1
    assert {name: figure.value for name, figure in outcome.figures.items()} == pytest.approx(wanted)


def test_words_beyond_the_context_are_outside_of_all_spans(tagger, asked):
    words = ["paris"] * 60
    outcome = asked(tagger, [{"tokens": words, "tags": [1] + [0] * 59}])
    said = outcome.samples[0].said.split()
    assert outcome.cut == 1 and len(said) == 60 and set(said[38:]) == {"O"}
    assert outcome.samples[0].targets[0] == "B-X"


@pytest.mark.parametrize(
    "record, wrong",
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags"),
        ({"tokens": ["a"], "tags": [9]}, "the tag 9, which is none of the model's 5"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "no list of strings 'tokens'"),
    ],
)
def test_tags_that_are_not_a_words_each_are_refused(tagger, asked, record, wrong):
    with pytest.raises(UserError, match=rf"\.jsonl:1: .*{wrong}"):
        asked(tagger, [record], kind="tag")


def test_what_a_head_has_no_use_for_is_refused(tagger, asked):
    for options in ({"shots": 1}, {"chat_template": "plain"}):
        with pytest.raises(UserError, match="is for language models"):
            asked(tagger, [{"tokens": ["a"], "tags": ["O"]}], kind="tag", **options)


def test_a_label_that_the_head_does_not_know_is_refused(where, asked):
    model = sequence(where, "two", "ab")
    with pytest.raises(UserError, match=r"\.jsonl:2: the record has the label 'c'"):
        asked(model, [{"text": "cat", "label": "a"}, {"text": "cat", "label": "c"}])
    with pytest.raises(UserError, match=r"\.jsonl:1: the record has no string 'text'"):
        asked(model, [{"words": "cat", "label": "a"}], kind="classify")
    with pytest.raises(UserError, match="no head for the task tag"):
        asked(model, [{"tokens": ["cat"], "tags": ["O"]}])
