"""Contrastive search: each token is a likely one whose state is unlike those of the tokens before it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.decode.batch import Finish
from llmctl.core.decode.beam import check_numbers
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.line import Line
from llmctl.core.decode.rows import Rows
from llmctl.core.model.cache import Cache
from llmctl.core.model.memory import Memory
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


@torch.inference_mode()
def contrastive_search(
    rows: Watched,
    chooser: Chooser,
    search: Search,
    prompts: Sequence[Sequence[int]],
    lines: Sequence[Line],
    eos: frozenset[int],
    most: int = 16,
    stopped: Callable[[int, int], bool] | None = None,
) -> Iterator[tuple[int, int | None, Finish | None]]:
    """Continue prompts, several at a time.

    Each token is, of the `candidates` likeliest, the one of the largest (1 - a) * p(token) - a * s(token): p by the
    chooser's rules, s the greatest cosine of its state and that of a token before it, in the prompt too; of an
    encoder-decoder, of those that its decoder has read.

    Args:
        rows: empty; holds a row for each candidate meanwhile.
        search: as `Search.filled` gives it; `contrastive` is a.
        prompts: ids of each; of an encoder-decoder, what its encoder reads.
        lines: `chooser.line` of each prompt.
        eos: ids that end a text.
        most: rows at a time; one prompt has its candidates in any case.
        stopped: told (number of the prompt, id) of each new token that is not in `eos`; True ends the text.

    Returns:
        Number of a prompt, its next token, and what ends it, if it ends; the token is None if there is none.

    Raises:
        UserError: the model's scores are not numbers.

    Source: Su et al., "A Contrastive Framework for Neural Text Generation", arXiv:2202.06417, equation 5; the states
    are those after the last norm, as in transformers.
    """
    waiting, live = deque(range(len(prompts))), list[int]()
    scores: Tensor | None = None  # (rows, V), of the tokens after each of `live`
    while waiting or live:
        new: list[int] = []
        while waiting and (len(live) + len(new) + 1) * search.candidates <= max(most, search.candidates):
            row = waiting.popleft()
            if lines[row].limit > 0:
                new.append(row)
            else:
                yield row, None, "length"
        if new:
            read = rows.add([prompts[row] for row in new])
            scores = read if scores is None else torch.cat((scores, read))
            live += new
        if not live:
            continue
        tokens, places, after = _chosen(rows, chooser.scores(scores, [lines[row] for row in live]), search)
        events: list[tuple[int, int | None, Finish | None]] = []
        for row, token in zip(live, tokens, strict=True):
            lines[row].push(token)
            stops = token in eos or (stopped is not None and stopped(row, token)) or lines[row].done
            finish: Finish | None = "stop" if stops else "length" if lines[row].step == lines[row].limit else None
            events.append((row, token, finish))
        on = [at for at, (*_, finish) in enumerate(events) if finish is None]
        live, scores = [live[at] for at in on], after[[places[at] for at in on]] if on else None
        rows.keep([places[at] for at in on])
        yield from events


def _chosen(rows: Watched, scores: Tensor, search: Search) -> tuple[list[int], list[int], Tensor]:
    """The next token of each row; each candidate is read in a row of its own, which are left.

    Args:
        scores: (B, V).

    Returns:
        The tokens, the row that each was read in, and the scores (B * k, V) after all candidates.
    """
    chances, ids = scores.softmax(dim=-1).topk(min(search.candidates, scores.shape[1]), dim=-1)  # (B, k)
    check_numbers(chances[:, 0])
    count, held = ids.shape[1], rows.states
    rows.keep([row for row in range(len(ids)) for _ in range(count)])
    after = rows.step(ids.flatten().tolist())  # (B * k, V)
    fresh = torch.stack([states[-1] for states in rows.states]).view(*ids.shape, -1)  # (B, k, D)
    alike = torch.stack([(new @ states.T).amax(dim=-1) for new, states in zip(fresh, held, strict=True)])  # (B, k)
    worth = (1 - search.contrastive) * chances - search.contrastive * alike
    best = worth.masked_fill(chances == 0, -torch.inf).argmax(dim=-1)  # a banned token is none, however unlike
    tokens = ids.gather(1, best[:, None])[:, 0].tolist()
    return tokens, [row * count + at for row, at in enumerate(best.tolist())], after
