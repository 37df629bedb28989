"""Contrastive search: each token is a likely one whose state is unlike those of the tokens before it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.decode.batch import Desk, Event, Finish, Wish
from llmctl.core.decode.beam_desk import check_numbers
from llmctl.core.decode.explain import Explained
from llmctl.core.decode.rows import Rows
from llmctl.core.decode.rules import Rules
from llmctl.core.model.cache import Cache
from llmctl.core.model.memory import Memory
from llmctl.core.model.transformer import Transformer
from llmctl.spec.search import Search


class Watched(Rows):
    """Rows that keep the states of their tokens too.

    Attributes:
        states: of each row, the hidden states that its scores are made of, (T, D) float32 of length 1.
    """

    def __init__(self, *model: object, **how: object):
        super().__init__(*model, **how)
        self.states: list[Tensor] = []
        self._at = 0  # the first of the rows that are being read

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Every row reads one token: (B, V) float32, the scores of what may come next."""
        return self.read([[token] for token in tokens], last=True)

    def keep(self, places: Sequence[int]) -> None:
        """Leave these rows, in this order; one may come several times."""
        super().keep(places)
        self.states = [self.states[place] for place in places]

    def _begin(self, first: int, read: list[list[int]]) -> None:
        """Nothing: of what is copied from other rows there would be no states."""

    def _read(self, start: int, stop: int, news: list[list[int]], last: bool = True) -> Tensor:
        none = torch.empty(0, self.model.config.width, device=self.device)
        self.states += [none] * (len(self) - len(self.states))
        self._at = start
        scores = super()._read(start, stop, news, last)
        for row in range(start, stop):  # one that was read again has the states of before in front
            self.states[row] = self.states[row][-len(self.texts[row]) :]
        return scores

    def _pass(self, cache: Cache, memory: Memory | None, news: list[list[int]]) -> Tensor:
        hidden = super()._pass(cache, memory, news)
        for row, new in enumerate(news, start=self._at):
            fresh = F.normalize(hidden[row - self._at, : len(new)].float(), dim=-1)
            self.states[row] = torch.cat((self.states[row], fresh))
        return hidden


class ContrastiveDesk(Desk):
    """It stands where Desk does, but each token is a likely one that adds something.

    Of the `candidates` likeliest tokens by the chooser's rules, that of the largest (1 - a) * p(token) - a * s(token)
    is taken: p its probability, s the greatest cosine of its state and that of a token before it, in the prompt too;
    of an encoder-decoder, of those that its decoder has read.

    Args:
        search: as `Search.filled` gives it; `contrastive` is a.
        rows: candidates at a time; one completion has its candidates in any case.
        model, kv_bits, rules, memory: as for Desk.

    Source: Su et al., "A Contrastive Framework for Neural Text Generation", arXiv:2202.06417, equation 5; the states
    are those after the last norm, as transformers took them.
    """

    rows: Watched

    def __init__(
        self,
        model: Transformer,
        search: Search,
        rows: int = 16,
        kv_bits: int = 0,
        rules: Rules | None = None,
        memory: int | None = None,
    ):
        self.search = search
        super().__init__(model, max(1, rows // search.candidates), kv_bits, rules, memory)
        self.rows.widest = self.most * search.candidates
        self._scores: Tensor | None = None  # (rows, V), of the tokens after each row

    def _made(self, model: Transformer, kv_bits: int) -> Watched:
        return Watched(model, kv_bits, self.start)

    def ask(self, wish: Wish) -> None:
        """Take a wish; those that came first begin first.

        Raises:
            UserError: its keys and values alone take more memory than there is.
        """
        if self.model.config.position == "learned":  # candidates for the last token are read too, and need a place
            room = self.model.config.context - self.rows.virtual - len(self.start or wish.prompt)
            wish.limit = min(wish.limit, room)
        super().ask(wish)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Have every completion go on by one token, after those that there is room for have begun.

        Raises:
            UserError: a model's scores are not numbers, or rules leave no token.
        """
        events = [Event(wish, None, "length") for wish in self._unfit()]
        fresh = self._entering()
        if fresh:
            self.rows.most = max(self._length(wish) + 1 for wish in [*self._wishes, *fresh])  # the last one is read too
            read = self.rows.add([wish.prompt for wish in fresh])
            self._scores = read if self._scores is None else torch.cat((self._scores, read))
            self._wishes += fresh
            self._lines += [wish.chooser.line(wish.prompt, wish.key, wish.limit) for wish in fresh]
        if not self._wishes:
            return events
        before, live = self._scores, []
        best, after, weighed = _chosen(self.rows, self._filtered(before), self.search)
        for place, (wish, line, row) in enumerate(zip(self._wishes, self._lines, best, strict=True)):
            token = self.rows.texts[row][-1]
            (picked,) = wish.chooser.take(before[place : place + 1], [line], [token])
            if picked.shown is not None:
                picked = picked._replace(shown=weighed[place].shown(picked.shown))
            stops = token in wish.eos or (wish.stopped is not None and wish.stopped(token)) or line.done
            finish: Finish | None = "stop" if stops else "length" if line.step >= wish.limit else None
            if finish is None:
                live.append(place)
            events.append(Event(wish, picked, finish))
        self._leave(live, [best[place] for place in live], after)
        return events

    def _filtered(self, scores: Tensor) -> Tensor:
        """Scores (B, V) after the rules of each row's chooser."""
        pairs = enumerate(zip(self._wishes, self._lines, strict=True))
        rows = [wish.chooser.scores(scores[at : at + 1], [line]) for at, (wish, line) in pairs]
        return torch.cat(rows)

    def _keep(self, live: list[int]) -> None:
        self._leave(live, live, self._scores)

    def _leave(self, live: list[int], rows: list[int], scores: Tensor) -> None:
        """Leave only these completions, which stand in these rows, with these scores (rows, V)."""
        self._wishes, self._lines = [self._wishes[p] for p in live], [self._lines[p] for p in live]
        self.rows.keep(rows)
        self._scores = scores[rows] if rows else None

    def _bytes(self, rows: int, tokens: int) -> int:
        return super()._bytes(rows * self.search.candidates, tokens + 1)


class Weighed(NamedTuple):
    """The candidates of one token.

    Attributes:
        ids: (k,) int64.
        alike: (k,) float32, the greatest cosine of the state of each and that of a token before it.
        worth: (k,) float32.
    """

    ids: Tensor
    alike: Tensor
    worth: Tensor

    def shown(self, filtered: Explained) -> Explained:
        """How the token was chosen, from what the filters did: of these alone, the one of most worth first."""
        stages = [dict(zip(filtered.candidates, stage.chances, strict=True)) for stage in filtered.stages]
        order = [at for at in self.worth.argsort(descending=True).tolist() if int(self.ids[at]) in stages[0]]
        ids = self.ids[order].tolist()
        return replace(
            filtered,
            candidates=tuple(ids),
            stages=tuple(
                replace(stage, chances=tuple(chances[id] for id in ids))
                for stage, chances in zip(filtered.stages, stages, strict=True)
            ),
            alike=tuple(self.alike[order].tolist()),
            worth=tuple(self.worth[order].tolist()),
        )


def _chosen(rows: Watched, scores: Tensor, search: Search) -> tuple[list[int], Tensor, list[Weighed]]:
    """Read each row's candidates, each in a row of its own, and choose.

    Args:
        scores: (B, V).

    Returns:
        The rows that have read the chosen ones, the scores (B * k, V) after all candidates, and those of each row.
    """
    chances, ids = scores.softmax(dim=-1).topk(min(search.candidates, scores.shape[1]), dim=-1)  # (B, k)
    check_numbers(chances[:, 0])
    count, held = ids.shape[1], rows.states
    rows.keep([row for row in range(len(ids)) for _ in range(count)])
    after = rows.step(ids.flatten().tolist())  # (B * k, V)
    fresh = torch.stack([states[-1] for states in rows.states]).view(*ids.shape, -1)  # (B, k, D)
    alike = torch.stack([(new @ states.T).amax(dim=-1) for new, states in zip(fresh, held, strict=True)])  # (B, k)
    worth = (1 - search.contrastive) * chances - search.contrastive * alike
    worth = worth.masked_fill(chances == 0, -torch.inf)  # a banned token is none, however unlike
    best = worth.argmax(dim=-1).tolist()
    return [row * count + at for row, at in enumerate(best)], after, list(map(Weighed, ids, alike, worth))
