"""Figures of labels by hand: what sklearn and seqeval give for the same few cases."""

import pytest

from llmctl.core.metrics.labels import marks_spans, multi_label, quantities, single_label, spans, tags


def test_two_labels_have_the_f1_of_the_second():
    # true 1 1 1 0 0, found 1 1 0 0 1: of label 1 two are right, three are there, three found; of label 0 one, two, two
    found = single_label([1, 2, 2, 3, 2, 3], 2)
    assert found["accuracy"] == 3 / 5
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["matthews"] == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)  # (tp tn - fp fn) / root


def test_labels_that_never_occur_do_not_count_and_one_answer_to_all_has_no_correlation():
    # three labels: all five texts are of label 1 or 2, all found 1
    found = single_label([0, 3, 0, 0, 3, 2, 0, 5, 0], 3)
    assert found == {"accuracy": 0.6, "macro_f1": pytest.approx((6 / 8 + 0) / 2), "matthews": 0.0}


def test_labels_that_do_not_exclude_each_other_are_decisions_of_their_own():
    # texts {a, b}, {a}, {}: found {a}, {a}, {c}
    found = multi_label([2, 0, 0, 2, 1, 0, 2, 0, 1, 1, 3], 3)
    assert found == {"accuracy": 1 / 3, "f1": pytest.approx(4 / 6), "macro_f1": pytest.approx(1 / 3)}


def test_quantities_correlate_whatever_their_scale():
    # found 1 2 3, true 2 4 6, and for a second output the other way round
    one, other = [3, 6, 12, 14, 56, 28], [3, 6, 12, 14, 56, 20]
    assert quantities(one, 1) == {"pearson": pytest.approx(1), "rmse": pytest.approx((14 / 3) ** 0.5)}
    assert quantities(one + other, 2)["pearson"] == pytest.approx(0)
    assert quantities([3, 6, 6, 12, 12, 12], 1) == {"pearson": 0.0, "rmse": 0.0}  # all the same: no correlation


@pytest.mark.parametrize(
    ("tagged", "wanted"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),
        ("I-PER I-PER O I-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),  # lenient: a span may begin with I
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("B-A-B I-A-B", {("A-B", 0, 2)}),
        ("S-PER S-PER B-X E-X I-X", {("PER", 0, 1), ("PER", 1, 2), ("X", 2, 4), ("X", 4, 5)}),
        ("B-X I-X L-X U-Y U-X", {("X", 0, 3), ("Y", 3, 4), ("X", 4, 5)}),
        ("L-X U-X B-X", {("X", 2, 3)}),
        ("U L U U", {("U", 0, 1), ("L", 1, 2), ("U", 2, 4)}),
        ("O O", set()),
        ("", set()),
        ("PER PER O ORG", {("PER", 0, 2), ("ORG", 3, 4)}),
    ],
)
def test_spans_are_read_as_leniently_as_seqeval_reads_them(tagged, wanted):
    assert spans(tagged.split()) == wanted


def test_a_span_counts_where_its_border_and_kind_are_right():
    # seqeval: true PER[0,2) LOC[3,4), found PER[0,2) LOC[3,5): precision, recall and f1 are a half
    found = tags([4, 5, 1, 2, 2])
    assert found == {"accuracy": 0.8, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert tags([5, 5, 0, 0, 0]) == {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_parts_of_speech_mark_no_spans():
    assert marks_spans(["O", "B-X", "I-X"]) and not marks_spans(["NOUN", "VERB", "O", "ADJ"])
