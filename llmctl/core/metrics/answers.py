"""Answers: short texts against the right ones: exact match, F1 of words, and whether the right one is in them."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from llmctl.spec.benchmark import Normal

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROPPED = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, references: str | Sequence[str], normal: Normal = "squad") -> float:
    """1 where the prediction is one of the references, once all are normalised; else 0."""
    form = _form(normal)
    said = form(prediction)
    return float(any(said == form(reference) for reference in _several(references)))


def token_f1(prediction: str, references: str | Sequence[str], normal: Normal = "squad") -> float:
    """F1 of the words that the prediction shares with the reference, each as often as it is in both; of several
    references, with the nearest. Where either has no words, 1 if both have none, else 0.

    Source: Rajpurkar et al., "SQuAD", arXiv:1606.05250, section 6.1; texts without words as SQuAD 2.0's evaluation.
    """
    form = _form(normal)
    said = form(prediction).split()
    return max(_f1(said, form(reference).split()) for reference in _several(references))


def contains(prediction: str, references: str | Sequence[str], normal: Normal = "squad") -> float:
    """1 where one of the references stands in the prediction, once all are normalised; else 0.

    One of which nothing is left, such as the letter A to squad, stands only in what has nothing left.
    """
    form = _form(normal)
    said = form(prediction)
    true = map(form, _several(references))
    return float(any(one in said if one else not said for one in true))


def extracted(text: str, pattern: str | None, last: bool = False) -> str:
    """What a regular expression finds in a text: its first group, or all of it where it has none; "" for nothing."""
    if pattern is None:
        return text
    found = list(re.finditer(pattern, text))
    if not found:
        return ""
    one = found[-1 if last else 0]
    return one[0] if one.re.groups == 0 else next((part for part in one.groups() if part is not None), "")


def squad(text: str) -> str:
    """Lower case, without punctuation (ASCII), without articles, one space between words.

    Source: the evaluation script of Rajpurkar et al., arXiv:1606.05250.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROPPED)).split())


NORMAL: dict[Normal, Callable[[str], str]] = {
    "none": str,
    "strip": str.strip,
    "lower": lambda text: text.strip().lower(),
    "squad": squad,
}


def _form(normal: Normal) -> Callable[[str], str]:
    if normal not in NORMAL:
        raise ValueError(f"normal is {normal!r}, wanted {', '.join(NORMAL)}")
    return NORMAL[normal]


def _several(references: str | Sequence[str]) -> Sequence[str]:
    found = (references,) if isinstance(references, str) else references
    if not found:
        raise ValueError("there is no reference")
    return found


def _f1(said: list[str], true: list[str]) -> float:
    if not said or not true:
        return float(said == true)
    both = sum((Counter(said) & Counter(true)).values())
    return 2 * both / (len(said) + len(true))
