"""Chooser: how the tokens of completions are chosen: rules and filters on the model's scores, then the draw."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.decode.explain import CANDIDATES, Explained, explained
from llmctl.core.decode.filters import Filter, closed, processors, warpers
from llmctl.core.decode.guide import Grammar
from llmctl.core.decode.line import Line
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import by_rows, drawn, likeliest
from llmctl.errors import UserError
from llmctl.spec.sample import Sampling


class Picked(NamedTuple):
    """One token that was chosen.

    Attributes:
        id: the token.
        logprob: its log-probability in nats, as the model has it before all filters; None where nobody asked.
        top: (id, logprob) of the likeliest tokens, as many as were asked for, the likeliest first.
        shown: how it was chosen, where that was asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    shown: Explained | None = None


class Chooser:
    """Chooses the tokens of completions that share their settings.

    Args:
        sampling: of the user.
        rules: of the checkpoint, with the user's words.
        vocab: V, scores in a row.
        known: ids from this on have no token and are never chosen; None: all have one.
        eos: ids that end a text.
        device: of the scores.
        guides: the grammar that texts are held to, or None.
    """

    def __init__(
        self,
        sampling: Sampling,
        rules: Rules,
        vocab: int,
        known: int | None,
        eos: frozenset[int],
        device: torch.device | str = "cpu",
        guides: Grammar | None = None,
    ):
        self.sampling, self.rules, self.eos, self.guides = sampling, rules.over(sampling), eos, guides
        self.device = torch.device(device)
        self.known = known if known is not None and known < vocab else None
        self.processors = processors(sampling, self.rules, vocab, self.known, eos, guides is not None)
        ended = [Filter("end", "", closed(eos, vocab))] if self.processors else []
        self.filters = [*self.processors, *ended, *warpers(sampling)]
        told = sampling.logprobs is not None or sampling.best_of > sampling.n
        self.tells = told or sampling.explain
        bound = [one for one in self.processors if one.name != "vocabulary"]
        self._plain = sampling.greedy and not bound and not self.tells

    def line(self, prompt: Sequence[int], key: int, limit: int, written: Sequence[int] = ()) -> Line:
        """A new completion.

        Args:
            prompt: ids before it; of an encoder-decoder, whose completions begin with `rules.start`, not looked at.
            key: `stream_key` of its random stream.
            limit: the most tokens that it may have.
            written: those that it has already.
        """
        before = tuple(self.rules.start or prompt)
        guide = None if self.guides is None else self.guides.guide()
        return Line(key, before, limit, self.rules.ngram, guide, list(written))

    @torch.inference_mode()
    def constrained(self, scores: Tensor, lines: Sequence[Line]) -> Tensor:
        """(n, V) scores, or log-probabilities, after what keeps the texts to their rules; -inf is out."""
        for filter in self.processors:
            scores = filter.apply(scores, lines)
        return scores

    @torch.inference_mode()
    def scores(self, logits: Tensor, lines: Sequence[Line]) -> Tensor:
        """(n, V) float32 scores by whose softmax tokens are drawn; if greedy, the likeliest is taken.

        Where the rules leave nothing, the text ends.

        Raises:
            UserError: they leave nothing, and no token ends a text.
        """
        if self.sampling.greedy or not by_rows(logits):
            return self._passed(logits, lines)
        return torch.cat([self._passed(row, [line]) for row, line in zip(logits.split(1), lines, strict=True)])

    def _passed(self, scores: Tensor, lines: Sequence[Line]) -> Tensor:
        for filter in self.filters:
            scores = filter.apply(scores, lines)
        return scores

    @torch.inference_mode()
    def draw(self, scores: Tensor, lines: Sequence[Line]) -> list[int]:
        """The next token of each line, whose tokens so far decide its noise.

        Raises:
            UserError: the model's scores are not numbers.
        """
        if self.sampling.greedy:
            ids = likeliest(scores)
        else:
            keys = torch.tensor([line.key for line in lines], dtype=torch.int64, device=scores.device)
            steps = torch.tensor([line.step for line in lines], dtype=torch.int64, device=scores.device)
            ids = drawn(scores, keys, steps).tolist()
        if min(ids) < 0:
            raise UserError(
                "The model's scores are not numbers (NaN).",
                "Try --dtype fp32; if that does not help, the checkpoint is broken, and llmctl verify may say where.",
            )
        return ids

    @torch.inference_mode()
    def pick(self, logits: Tensor, lines: Sequence[Line]) -> list[Picked]:
        """Choose the next token of each line from the model's scores (n, V), and write it there.

        Raises:
            UserError: the model's scores are not numbers, or the rules leave nothing and no token ends a text.
        """
        plain = logits[:, : self.known] if self._plain else self.scores(logits, lines)
        return self.take(logits, lines, self.draw(plain, lines))

    @torch.inference_mode()
    def take(self, logits: Tensor, lines: Sequence[Line], ids: Sequence[int]) -> list[Picked]:
        """Write these tokens, chosen from the model's scores (n, V), to the lines: what there is to tell of them."""
        picked = self._told(logits, lines, list(ids)) if self.tells else [Picked(token) for token in ids]
        for line, token in zip(lines, ids, strict=True):
            line.push(token)
        return picked

    def _told(self, logits: Tensor, lines: Sequence[Line], ids: list[int]) -> list[Picked]:
        """What was chosen, with log-probabilities and, if asked for, the reasons; before the tokens are written."""
        known = logits[:, : self.known].log_softmax(dim=-1)
        chosen = known.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
        count = min(self.sampling.logprobs or 0, known.shape[1])
        best = known.topk(count, dim=-1)
        tops = [
            tuple(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        reasons: Sequence[Explained | None] = [None] * len(ids)
        if self.sampling.explain:
            shown = self.sampling.logprobs or CANDIDATES
            reasons = explained(logits, lines, ids, self.filters, self.sampling.greedy, shown)
        return [Picked(*row) for row in zip(ids, chosen.tolist(), tops, reasons, strict=True)]
