"""Verification: which guesses stay, so that a text is what the model would have written without them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmctl.core.decode.choose import Chooser, Picked
from llmctl.core.decode.line import Line
from llmctl.core.decode.sample import drawn, uniforms
from llmctl.core.decode.speculate.draft import Draft, Guess, by_chooser
from llmctl.spec.drafting import Accept

# A row's random stream has noise for one draw a step; what accepts a guess, and what draws instead of it, must not
# depend on the noise that drew the guess, so each has a stream of its own: the row's key, changed in these bits.
ACCEPTING, INSTEAD = 0x5DEECE66D1F3A7B9, 0x2545F4914F6CDD1D


def verified(logits: Tensor, drafts: Sequence[Draft], guesses: Sequence[Guess], accept: Accept) -> list[list[Picked]]:
    """The tokens that each text goes on with: the guesses up to the first that is wrong, and one more.

    They are pushed to their lines.

    Args:
        logits: (B, T, V) float32, the model's scores after each text and after each of its guesses.
        accept: "same": a guess is right if it is what the text's own random stream draws there from the model's
            scores, as without guesses; since a guess is drawn with the same noise, that is likely where the scores are
            alike. "most": right with probability min(1, p / q), which no way exceeds; what is drawn instead of a
            wrong one makes up for it, so that the tokens are distributed as the model's, but are others. Greedily
            both are the same.

    Raises:
        UserError: the model's scores are not numbers.

    Source: same: Daliri, Musco & Suresh, "Coupling without Communication and Drafter-Invariant Speculative Decoding",
    arXiv:2408.07978, section 3 (Gumbel sampling). most: Leviathan, Kalman & Matias, arXiv:2211.17192, algorithm 1.
    """
    found: list[list[Picked]] = [[] for _ in drafts]
    live = list(range(len(drafts)))
    for place in range(logits.shape[1]):
        column = logits[:, place] if len(live) == len(drafts) else logits[live, place]
        for rows, chooser in by_chooser([drafts[row].chooser for row in live]):
            scores = column if len(rows) == len(live) else column[rows]
            lines = [drafts[live[row]].line for row in rows]
            if accept == "most" and not chooser.sampling.greedy:
                taken = _most(scores, lines, chooser, [guesses[live[row]] for row in rows], place)
                picks = chooser.take(scores, lines, taken)
            else:
                picks = chooser.pick(scores, lines)
            for row, picked in zip(rows, picks, strict=True):
                found[live[row]].append(picked)
        live = [row for row in live if _goes_on(drafts[row], guesses[row].tokens[place : place + 1], found[row][-1].id)]
        if not live:
            break
    return found


def _goes_on(draft: Draft, guess: list[int], token: int) -> bool:
    """Whether what the model says after a guess is of use: the guess was right, and is not the end of the text."""
    return guess == [token] and token not in draft.eos


@torch.inference_mode()
def _most(logits: Tensor, lines: Sequence[Line], chooser: Chooser, guesses: Sequence[Guess], place: int) -> list[int]:
    """The tokens at one place by Leviathan's rule: the guess, or a draw from what p has more than q; of p without one.

    Args:
        logits: (n, V) float32 of the model.
        place: of the guess in question.
    """
    scores = chooser.scores(logits, lines)
    tokens = chooser.draw(scores, lines)
    guessed = [row for row, guess in enumerate(guesses) if len(guess.tokens) > place]
    if not guessed:
        return tokens
    ids = torch.tensor([guesses[row].tokens[place] for row in guessed], device=logits.device)[:, None]  # (m, 1)
    keys = torch.tensor([lines[row].key for row in guessed], device=logits.device)
    steps = torch.tensor([lines[row].step for row in guessed], device=logits.device)
    p = scores[guessed].softmax(dim=-1)
    if guesses[guessed[0]].scores:
        q = torch.stack([guesses[row].scores[place] for row in guessed]).softmax(dim=-1)
    else:
        q = torch.zeros_like(p).scatter_(1, ids, 1.0)  # of guesses that were not drawn
    chance = uniforms(keys ^ ACCEPTING, steps, 1)
    right = (chance * q.gather(1, ids) < p.gather(1, ids))[:, 0]
    instead = drawn(left(p, q).log(), keys ^ INSTEAD, steps)
    for row, token in zip(guessed, torch.where(right, ids[:, 0], instead).tolist(), strict=True):
        tokens[row] = token
    return tokens


def left(p: Tensor, q: Tensor) -> Tensor:
    """What a wrong guess leaves to draw from, (m, V) up to a factor: so much as p has more than q."""
    return (p - q).clamp(min=0)
