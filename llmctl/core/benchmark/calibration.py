"""Calibration: whether a model is right as often as it is sure (ECE, Brier score), and right where it is surest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Binning = Literal["mass", "width"]
BINS = 10
COVERAGE = 0.1  # share of the records that selective accuracy looks at


@dataclass(frozen=True)
class Calibration:
    """What N predictions say of their own chances; all between 0 and 1, but the Brier score, which ends at 2.

    Attributes:
        ece: expected calibration error, bins of equal mass (lower is better).
        ece_width: the same, bins of equal width.
        brier: mean squared distance between the chances and the truth, summed over the choices (lower is better).
        selective_accuracy: accuracy on the tenth of the records of which the model is surest.
        coverage_area: mean of that accuracy over every share of the records, from the surest one to all.
        confidence: mean chance of what was predicted; above the accuracy the model is overconfident.
        accuracy: share of predictions, the likeliest choice each, that are right.
    """

    ece: float
    ece_width: float
    brier: float
    selective_accuracy: float
    coverage_area: float
    confidence: float
    accuracy: float


def calibration(chances: Sequence[Sequence[float]], right: Sequence[Sequence[int]]) -> Calibration:
    """Calibration of predictions over choices. The likeliest choice is the prediction; of equal ones the first.

    Args:
        chances: N rows, the chance of each choice; a row sums to 1, and rows may differ in length.
        right: of each row the numbers of the right choices, one at least.

    Raises:
        ValueError: no rows, or not as many answers as rows.
    """
    if not chances or len(chances) != len(right):
        raise ValueError(f"{len(chances)} rows of chances for {len(right)} right answers")
    predicted = [max(range(len(row)), key=row.__getitem__) for row in chances]
    confidence = np.array([row[number] for row, number in zip(chances, predicted, strict=True)], np.float64)
    hits = np.array([number in known for number, known in zip(predicted, right, strict=True)], np.float64)
    curve = coverage_curve(confidence, hits)
    return Calibration(
        ece=ece(confidence, hits, by="mass"),
        ece_width=ece(confidence, hits, by="width"),
        brier=brier(chances, right),
        selective_accuracy=float(curve[max(0, round(COVERAGE * len(curve)) - 1)]),
        coverage_area=float(curve.mean()),
        confidence=float(confidence.mean()),
        accuracy=float(hits.mean()),
    )


def ece(confidence: NDArray[np.float64], right: NDArray[np.float64], bins: int = BINS, by: Binning = "mass") -> float:
    """Expected calibration error: |accuracy - mean confidence| of each bin, weighted by the records in it.

    Args:
        confidence: (N,) chances of what was predicted.
        right: (N,) 1 where it is right, else 0.
        bins: how many; of equal mass no more than there are records.
        by: edges between bins so that each has as many records (mass), or at equal steps of 0 to 1 (width). Equal
            confidences are always in one bin, so that the order of records changes nothing.

    Source: Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599, equation 3 (width); Nguyen and
    O'Connor, arXiv:1508.05154 (mass), edges half way between neighbours as in Kumar et al., arXiv:1909.10155, and
    with 10 bins in HELM, arXiv:2211.09110, section 4.4.
    """
    place = np.searchsorted(EDGES[by](confidence, bins), confidence, side="left")
    difference = np.bincount(place, right - confidence)
    return float(np.abs(difference).sum() / len(confidence))


def _mass(confidence: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    parts = np.array_split(np.sort(confidence), min(bins, len(confidence)))
    return np.array([(left[-1] + right[0]) / 2 for left, right in pairwise(parts)])


def _width(confidence: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    return np.arange(1, bins) / bins


EDGES: dict[Binning, Callable[[NDArray[np.float64], int], NDArray[np.float64]]] = {"mass": _mass, "width": _width}


def brier(chances: Sequence[Sequence[float]], right: Sequence[Sequence[int]]) -> float:
    """Mean over N records of the squared distances of all choices' chances from 1 (the right one) or 0; 0 to 2.

    Of several right choices the first stands for all. Of two choices it is twice what scikit-learn gives, which
    looks at one of them.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950, equation 2.
    """
    total = 0.0
    for row, known in zip(chances, right, strict=True):
        total += sum((chance - (number == known[0])) ** 2 for number, chance in enumerate(row))
    return total / len(right)


def coverage_curve(confidence: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) the accuracy on the 1, 2, ... N records of which the model is surest.

    Among records of one confidence any order is as good, so each counts as their mean: what a random order gives on
    average.

    Source: El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 11, 2010.
    """
    levels, place, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    mean = np.bincount(place, right, len(levels)) / count
    ordered = np.repeat(mean, count)  # surest first
    return np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
