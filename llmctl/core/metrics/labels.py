"""Figures of labelled texts and words, out of sums that add up over batches: accuracy, F1, Matthews, Pearson, spans."""

import math
from collections.abc import Sequence

OUTSIDE = "O"  # the tag of words that are in no span
_PREFIXES = frozenset("BIES")
_DASHED = frozenset("BIESLU")  # before a kind: L and U of BILOU alone are labels like any other


def single_label(sums: Sequence[float], labels: int) -> dict[str, float]:
    """accuracy, f1 (of the second of two labels, the positive one), macro_f1, matthews.

    Macro F1 is the mean over the labels that occur, as said or as found. What has no answer (nothing was found) is 0.

    Args:
        sums: 3 L numbers: of each label how often it was found where it is, how often it is, how often it was found.
        labels: L.

    Source: Matthews' coefficient of several labels: Gorodkin, "Comparing two K-category assignments by a K-category
    correlation coefficient", 2004, equation 8, which needs no whole table of confusions.
    """
    right, true, found = (list(sums[i * labels : (i + 1) * labels]) for i in range(3))
    total = sum(true)
    each = [_ratio(2 * r, t + f) for r, t, f in zip(right, true, found, strict=True)]
    seen = [one for one, t, f in zip(each, true, found, strict=True) if t + f]
    agree = sum(right) * total - sum(t * f for t, f in zip(true, found, strict=True))
    spread = (total**2 - sum(t * t for t in true)) * (total**2 - sum(f * f for f in found))
    figures = {"accuracy": _ratio(sum(right), total)}
    if labels == 2:
        figures["f1"] = each[1]
    return {**figures, "macro_f1": _ratio(sum(seen), len(seen)), "matthews": _ratio(agree, math.sqrt(max(0.0, spread)))}


def multi_label(sums: Sequence[float], labels: int) -> dict[str, float]:
    """accuracy (texts with all labels right), f1 (of all decisions together: micro), macro_f1 (mean over the labels).

    Args:
        sums: 3 L numbers as for `single_label`, then the texts with all labels right, and all texts.
        labels: L.
    """
    right, true, found = (list(sums[i * labels : (i + 1) * labels]) for i in range(3))
    each = [_ratio(2 * r, t + f) for r, t, f in zip(right, true, found, strict=True)]
    return {
        "accuracy": _ratio(sums[-2], sums[-1]),
        "f1": _ratio(2 * sum(right), sum(true) + sum(found)),
        "macro_f1": _ratio(sum(each), labels),
    }


def quantities(sums: Sequence[float], outputs: int) -> dict[str, float]:
    """pearson (the mean over the outputs) and rmse (over all of them) of quantities.

    Args:
        sums: 6 numbers for each output: how many, the sums of what is found x, of what is true y, of x x, y y, x y.
        outputs: how many quantities each text has.
    """
    each, squares, count = [], 0.0, 0.0
    for i in range(outputs):
        n, x, y, xx, yy, xy = sums[6 * i : 6 * i + 6]
        spread = (n * xx - x * x) * (n * yy - y * y)
        each.append(_ratio(n * xy - x * y, math.sqrt(max(0.0, spread))))
        squares, count = squares + xx - 2 * xy + yy, count + n
    return {"pearson": sum(each) / outputs, "rmse": math.sqrt(max(0.0, _ratio(squares, count)))}


def tags(sums: Sequence[float]) -> dict[str, float]:
    """accuracy of words, and precision, recall and f1 of spans: one counts where border and kind are right.

    Args:
        sums: words that are right, words, spans that are right, spans found, spans there are.
    """
    right, words, both, found, true = sums
    return {
        "accuracy": _ratio(right, words),
        "precision": _ratio(both, found),
        "recall": _ratio(both, true),
        "f1": _ratio(2 * both, found + true),
    }


def spans(tagged: Sequence[str]) -> set[tuple[str, int, int]]:
    """The spans in the tags of a text's words: (kind, first word, one past the last).

    B-X begins a span of X, I-X goes on with it, or begins one where there is none of X to go on with; of other
    schemes E-X ends one and S-X is one. L-X and U-X of BILOU end none: they go on as I-X does, and a span that another
    of its kind follows at once is lost; `strict_spans` reads that scheme. A tag without such a prefix is a
    kind by itself, and neighbours with it are one span. O is outside of all.

    Source: Ramshaw and Marcus, arXiv:cmp-lg/9505040, read as leniently as the scorer of CoNLL-2000 does, and seqeval
    by default.
    """
    found, kind, first, before = set(), None, 0, ""
    for place, tag in enumerate([*tagged, OUTSIDE]):
        prefix, now = _parts(tag)
        begins = now is not None and (now != kind or prefix in ("B", "S") or before in ("E", "S"))
        if kind is not None and (begins or now is None) and not (now == kind and before in ("L", "U")):
            found.add((kind, first, place))
        if begins:
            first = place
        kind, before = now, prefix
    return found


def marks_spans(labels: Sequence[str]) -> bool:
    """Whether tags mark spans, B-X and I-X and the like; else each word has a label of its own."""
    return any(_parts(label)[0] for label in labels)


def _parts(tag: str) -> tuple[str, str | None]:
    """A tag's prefix and kind; of O there is neither."""
    if tag == OUTSIDE:
        return "", None
    prefixed = tag in _PREFIXES or (tag[:1] in _DASHED and tag[1:2] == "-")
    return (tag[:1], tag[2:]) if prefixed else ("", tag)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
