"""Filters: what changes a step's scores before a token is chosen, in the order of transformers' processors.

Each takes scores (n, V) float32 and the n lines that they are of, and returns scores of the same shape, with -inf for
what may not come. A filter that has nothing to do at a step returns the scores that it was given.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.decode.line import Line, completing
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import OFF, WARPERS, penalise
from llmctl.errors import UserError
from llmctl.spec.sample import Sampling

Apply = Callable[[Tensor, Sequence[Line]], Tensor]


class Filter(NamedTuple):
    """One step on the way from a model's scores to those that a token is chosen by.

    Attributes:
        name: as the option is called: "top_p"; "rules" and "guide" where there is none.
        setting: its value, for people; "" where it has none.
        apply: scores and lines to scores.
    """

    name: str
    setting: str
    apply: Apply


def processors(
    sampling: Sampling, rules: Rules, vocab: int, known: int | None, eos: frozenset[int], guided: bool
) -> list[Filter]:
    """What keeps a text to its rules, whether tokens are then sampled, searched or taken greedily.

    Args:
        rules: the checkpoint's with the user's (`Rules.over`).
        vocab: V, scores in a row.
        known: ids from this on have no token; None: all have one.
        eos: ids that end a text.
        guided: lines have a guide.
    """
    ends = sorted(token for token in eos if token < vocab)
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    candidates = [
        (known is not None and known < vocab, "vocabulary", "", _unknown(known)),
        (rules.bias, "logit_bias", "", _bias(rules.bias)),
        (
            sampling.repetition_penalty != 1,
            "repetition_penalty",
            f"{sampling.repetition_penalty:g}",
            _repetition(sampling.repetition_penalty),
        ),
        (presence, "presence_penalty", f"{presence:g}", _written(presence, 0.0)),
        (frequency, "frequency_penalty", f"{frequency:g}", _written(0.0, frequency)),
        (rules.ngram, "no_repeat_ngram", str(rules.ngram), _repeating),
        (rules.never_after, "bad_word", "", _runs(rules.never_after)),
        (rules.least and ends, "min_tokens", str(rules.least), _least(rules.least, ends)),
        (rules.never, "bad_word", "", _never(rules.never)),
        (rules.never_first, "first_tokens", "", _first_not(rules)),
        (rules.wanted, "forced_word", "", _wanted(rules.wanted, ends)),
        (guided, "guide", "", _guided),
        (rules.first is not None or rules.last, "forced", "", _forced(rules)),
    ]
    return [Filter(name, setting, apply) for used, name, setting, apply in candidates if used]


def warpers(sampling: Sampling) -> list[Filter]:
    """What shapes the distribution that tokens are drawn from; nothing when it is greedy."""
    if sampling.greedy:
        return []
    used = [(name, value) for name in WARPERS if (value := getattr(sampling, name)) != OFF[name]]
    return [
        Filter(name, f"{value:g}", lambda scores, _, warp=WARPERS[name], value=value: warp(scores, value))
        for name, value in used
    ]


def closed(eos: frozenset[int], vocab: int) -> Apply:
    """The last of the rules: where they leave nothing, the text ends.

    Raises (what it returns):
        UserError: nothing ends a text.
    """
    ends = sorted(token for token in eos if token < vocab)

    def apply(scores: Tensor, lines: Sequence[Line]) -> Tensor:
        rows = (scores.amax(dim=-1) == -torch.inf).nonzero()[:, 0].tolist()
        if rows and not ends:
            raise UserError("The rules leave no token that may come next.", "Ask for less of them at a time.")
        for row in rows:
            scores = _only(scores, row, ends)
        return scores

    return apply


def without(scores: Tensor, found: Sequence[Iterable[int]]) -> Tensor:
    """Scores with these ids of each row at -inf."""
    places = [(row, token) for row, ids in enumerate(found) for token in ids]
    if not places:
        return scores
    rows, tokens = torch.tensor(places, device=scores.device).T
    return scores.index_put((rows, tokens), torch.full_like(rows, -torch.inf, dtype=scores.dtype))


def _unknown(known: int | None) -> Apply:
    def apply(scores: Tensor, lines: Sequence[Line]) -> Tensor:
        scores = scores.clone()
        scores[:, known:] = -torch.inf
        return scores

    return apply


def _bias(bias: Sequence[tuple[tuple[int, ...], float]]) -> Apply:
    """Of one token at all times, of several for the last where the text ends with the others."""
    singles = [(run[0], value) for run, value in bias if len(run) == 1]
    longer = {run: value for run, value in bias if len(run) > 1}

    def apply(scores: Tensor, lines: Sequence[Line]) -> Tensor:
        found = [(row, token, value) for token, value in singles for row in range(len(lines))]
        for row, line in enumerate(lines):
            found += [(row, run[-1], value) for run, value in longer.items() if completing(line, [run])]
        if not found:
            return scores
        rows, tokens = torch.tensor([place[:2] for place in found], device=scores.device).T
        values = torch.tensor([value for *_, value in found], device=scores.device, dtype=scores.dtype)
        return scores.index_put((rows, tokens), values, accumulate=True)

    return apply


def _repetition(penalty: float) -> Apply:
    def apply(scores: Tensor, lines: Sequence[Line]) -> Tensor:
        rows, tokens = _places([line.seen for line in lines], scores.device)
        return scores.index_put(
            (rows, tokens), penalise(scores[rows, tokens], torch.ones_like(rows, dtype=torch.bool), penalty)
        )

    return apply


def _written(presence: float, frequency: float) -> Apply:
    """What is taken off the score of a token for having been written, and for each time; the prompt does not count.

    Source: OpenAI's guide to its API, "frequency and presence penalties":
    mu[j] -= c[j] * frequency + (c[j] > 0) * presence.
    """

    def apply(scores: Tensor, lines: Sequence[Line]) -> Tensor:
        counts = [{token: count for token, count in line.seen.items() if count} for line in lines]
        if not any(counts):
            return scores
        rows, tokens = _places(counts, scores.device)
        taken = [presence + frequency * count for row in counts for count in row.values()]
        return scores.index_put((rows, tokens), -torch.tensor(taken, device=scores.device), accumulate=True)

    return apply


def _places(found: Sequence[Iterable[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of these ids, (m,) int64 each."""
    rows = [row for row, ids in enumerate(found) for _ in ids]
    tokens = [token for ids in found for token in ids]
    return torch.tensor(rows, device=device, dtype=torch.int64), torch.tensor(tokens, device=device, dtype=torch.int64)


def _repeating(scores: Tensor, lines: Sequence[Line]) -> Tensor:
    return without(scores, [line.repeating() for line in lines])


def _runs(runs: Sequence[tuple[int, ...]]) -> Apply:
    return lambda scores, lines: without(scores, [completing(line, runs) for line in lines])


def _least(least: int, ends: list[int]) -> Apply:
    return lambda scores, lines: without(scores, [ends if line.step < least else () for line in lines])


def _never(tokens: Sequence[int]) -> Apply:
    banned = torch.tensor(sorted(set(tokens)))
    return lambda scores, lines: scores.index_fill(1, banned.to(scores.device), -torch.inf)


def _first_not(rules: Rules) -> Apply:
    begin = int(rules.first is not None)
    return lambda scores, lines: without(scores, [rules.never_first if line.step == begin else () for line in lines])


def _wanted(words: Sequence[Sequence[tuple[int, ...]]], ends: list[int]) -> Apply:
    """Each word is written before the text ends: where it would end, or where the limit leaves no more room.

    Where a text may end, the chance of its end goes to the beginning of the first word that is missing, so that all
    others are as likely as before. A word that has begun in the end's place is finished.
    """

    def apply(scores: Tensor, lines: Sequence[Line]) -> Tensor:
        for row, line in enumerate(lines):
            start, run = line.owed or (0, ())
            if line.step - start < len(run):
                scores = _only(scores, row, [run[line.step - start]])
                continue
            missing = [word for word in words if not any(_holds(line.written, run) for run in word)]
            if not missing:
                continue
            first = missing[0][0]
            if line.limit - line.step <= sum(len(word[0]) for word in missing):
                scores, line.offer = _only(scores, row, first[:1]), first
            elif ends:
                scores = scores.clone()
                end, own = scores[row, ends].logsumexp(0), scores[row, first[0]]
                line.offer = first if end >= own else ()
                scores[row, ends] = -torch.inf
                scores[row, first[0]] = torch.logaddexp(own, end)
        return scores

    return apply


def _holds(ids: Sequence[int], run: tuple[int, ...]) -> bool:
    return any(tuple(ids[at : at + len(run)]) == run for at in range(len(ids) - len(run) + 1))


def _guided(scores: Tensor, lines: Sequence[Line]) -> Tensor:
    scores = scores.clone()
    for row, line in enumerate(lines):
        if line.guide is not None:
            allowed = torch.from_numpy(line.guide.allowed(scores.shape[1])).to(scores.device)
            scores[row].masked_fill_(~allowed, -torch.inf)
    return scores


def _forced(rules: Rules) -> Apply:
    def apply(scores: Tensor, lines: Sequence[Line]) -> Tensor:
        for row, line in enumerate(lines):
            if rules.last and line.step + 1 == line.limit:
                scores = _only(scores, row, rules.last)
            elif rules.first is not None and line.step == 0:
                scores = _only(scores, row, [rules.first])
        return scores

    return apply


def _only(scores: Tensor, row: int, tokens: Sequence[int]) -> Tensor:
    """Scores that leave a row nothing but these tokens, all alike."""
    kept = torch.full_like(scores[row], -math.inf)
    kept[list(tokens)] = 0.0
    return scores.index_copy(0, torch.tensor([row], device=scores.device), kept[None])
