"""Measures: what an evaluation reports beside the loss, as sums that add up over batches."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.metrics.labels import marks_spans, multi_label, quantities, single_label, spans, tags
from llmctl.spec.model import Problem

Figures = Callable[[list[float]], dict[str, float]]


class Measure(NamedTuple):
    """What an evaluation reports, not yet divided, so that batches add up.

    Attributes:
        total: scalar, which over `count` is the figure; or (S,), sums of which `ends` makes figures.
        count: how many are in it.
        ends: makes figures, by name, of the sums over all batches.
    """

    total: Tensor
    count: int
    ends: Figures | None = None

    def plus(self, other: "Measure") -> "Measure":
        """Both together, in float64 on the CPU."""
        return Measure(self.total.cpu().double() + other.total.cpu().double(), self.count + other.count, self.ends)

    def figures(self, name: str) -> dict[str, float]:
        """The figure, called `name`, or those that have names of their own."""
        if self.ends is not None:
            return self.ends(self.total.tolist())
        return {name: float(self.total) / max(1, self.count)}


def text_figures(scores: Tensor, labels: Tensor, problem: Problem) -> dict[str, Measure]:
    """How well the labels of texts are found.

    Args:
        scores: (B, L), before softmax or sigmoid.
        labels: as of `Batch`.
        problem: what they are; a single score of single_label is a quantity.
    """
    texts, count = scores.shape
    if problem == "regression" or (problem == "single_label" and count == 1):
        found, true = scores.cpu().double(), labels.view_as(scores).cpu().double()
        parts = (torch.ones_like(found), found, true, found * found, true * true, found * true)
        sums = torch.stack([part.sum(dim=0) for part in parts], dim=1).flatten()  # (6 L,)
        return {"quantities": Measure(sums, texts, partial(quantities, outputs=count))}
    if problem == "multi_label":
        found, true = scores >= 0, labels >= 0.5  # (B, L): those with a probability of half or more
        right = (found == true).all(dim=1).sum()
        sums = torch.cat([_counts(found & true, true, found), torch.stack([right, right.new_tensor(texts)])])
        return {"labels": Measure(sums, texts, partial(multi_label, labels=count))}
    sums = _by_label(scores.argmax(dim=-1), labels, count)
    return {"labels": Measure(sums, texts, partial(single_label, labels=count))}


def word_figures(scores: Tensor, targets: Tensor, places: Tensor, names: Sequence[str]) -> dict[str, Measure]:
    """How well the tags of words are found, and where tags mark spans, the spans.

    Args:
        scores: (N, L), of the words that are asked for, texts one after another.
        targets: (N,), their tags.
        places: (N,), a number for each text: spans end with it.
        names: of the L tags.
    """
    found, words = scores.argmax(dim=-1), len(targets)
    if not marks_spans(names):
        return {"tags": Measure(_by_label(found, targets, len(names)), words, partial(single_label, labels=len(names)))}
    right, both, said, there = int((found == targets).sum()), 0, 0, 0
    lengths = torch.unique_consecutive(places, return_counts=True)[1].tolist()
    for one, other in zip(found.cpu().split(lengths), targets.cpu().split(lengths), strict=True):
        theirs, true = (spans([names[tag] for tag in row.tolist()]) for row in (one, other))
        both, said, there = both + len(theirs & true), said + len(theirs), there + len(true)
    sums = torch.tensor([right, words, both, said, there], dtype=torch.float64)
    return {"tags": Measure(sums, words, tags)}


def _by_label(found: Tensor, true: Tensor, count: int) -> Tensor:
    """(3 L,): of each label how often it was found where it is, how often it is, and how often it was found."""
    parts = (found[found == true], true, found)
    return torch.cat([torch.bincount(part, minlength=count) for part in parts])


def _counts(*parts: Tensor) -> Tensor:
    """Of (B, L) each, the sums over the texts, one after another."""
    return torch.cat([part.sum(dim=0) for part in parts])
