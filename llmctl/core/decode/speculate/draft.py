"""Drafters: what guesses the next tokens of texts: a smaller model, the text itself, or the model less some layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.line import Line
from llmctl.core.decode.rows import Rows
from llmctl.core.decode.speculate.lookup import Index
from llmctl.core.decode.speculate.reach import reach


class Guess(NamedTuple):
    """Tokens that may come next.

    Attributes:
        tokens: in their order.
        scores: of each, (V,) float32, what it was drawn from by softmax; none where it was not drawn.
    """

    tokens: list[int]
    scores: list[Tensor]


@dataclass(eq=False)
class Draft:
    """One text, as a drafter sees it.

    Attributes:
        text: all its ids; of an encoder-decoder, those of its decoder.
        count: how many tokens to guess at most.
        line: its state; a drafter leaves it as it was.
        chooser: how its tokens are chosen.
        eos: ids after which nothing is guessed.
    """

    text: Sequence[int]
    count: int
    line: Line
    chooser: Chooser
    eos: frozenset[int]


class Drafter(Protocol):
    """Guesses for texts side by side, which come and go.

    Attributes:
        own: rows that it keeps beside those of the model that is guessed for, or None.
    """

    own: Rows | None

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """Texts that begin, after those there are: what the model is given to read."""

    def keep(self, places: Sequence[int]) -> None:
        """Leave the texts at these places, in this order."""

    def guess(self, drafts: Sequence[Draft]) -> list[Guess]:
        """Guesses for each text; fewer than asked for where there are none, or the drafter's context ends."""


class LookupDrafter:
    """What followed the last tokens earlier in the text, or in what the encoder of an encoder-decoder has read.

    Source: Saxena, "Prompt Lookup Decoding", 2023; here the last place is taken, not the first, and all that was
    written is looked at.

    Args:
        both: the model has an encoder, so that prompts are not a part of the texts.
    """

    own = None

    def __init__(self, both: bool):
        self._both = both
        self._sources: list[int] = []  # tokens of each that its encoder has read
        self._indexes: list[Index] = []

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """As in Drafter."""
        for prompt in prompts:
            index = Index()
            if self._both:
                index.extend(prompt)
            self._indexes.append(index)
            self._sources.append(len(index.text))

    def keep(self, places: Sequence[int]) -> None:
        """As in Drafter."""
        self._indexes = [self._indexes[place] for place in places]
        self._sources = [self._sources[place] for place in places]

    def guess(self, drafts: Sequence[Draft]) -> list[Guess]:
        """As in Drafter."""
        made = []
        for draft, index, source in zip(drafts, self._indexes, self._sources, strict=True):
            index.extend(draft.text[len(index.text) - source :])
            made.append(Guess(ended(index.after(draft.text, draft.count), draft.eos), []))
        return made


class ModelDrafter:
    """What a smaller model would write.

    Args:
        rows: of that model, empty.
        vocab: of the model that is guessed for; that of the smaller one may be padded otherwise.
        end: places that a text may take in the smaller model; None: any number.
    """

    def __init__(self, rows: Rows, vocab: int, end: int | None = None):
        self.own = rows
        self.vocab, self.end = vocab, end
        self._places: list[int] = []  # of each row, that of its text
        self._known: list[int] = []  # of each row, how many tokens are known to be those of its text
        self._texts = 0

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """As in Drafter."""
        fit = [place for place, prompt in enumerate(prompts) if self.end is None or len(prompt) <= self.end]
        self._places += [self._texts + place for place in fit]
        self._texts += len(prompts)
        if fit:
            self.own.add([prompts[place] for place in fit])
            self._known += [0] * len(fit)

    def keep(self, places: Sequence[int]) -> None:
        """As in Drafter."""
        rows = {place: row for row, place in enumerate(self._places)}
        there = [(new, rows[old]) for new, old in enumerate(places) if old in rows]
        self._texts = len(places)
        self._leave([row for _, row in there])
        self._places = [new for new, _ in there]

    def guess(self, drafts: Sequence[Draft]) -> list[Guess]:
        """As in Drafter."""
        guesses = [Guess([], []) for _ in drafts]
        if self.end is not None:
            self._leave([row for row, place in enumerate(self._places) if len(drafts[place].text) <= self.end])
        mine = [drafts[place] for place in self._places]
        most = max((draft.count for draft in mine), default=0)
        if self.end is not None and mine:
            most = min(most, self.end + 1 - max(len(draft.text) for draft in mine))
        if most > 0:
            logits = self._caught_up(mine)
            made = chain(mine, logits, self.own.step, self.vocab, most)
            for place, guess in zip(self._places, made, strict=True):
                guesses[place] = guess
        return guesses

    def _caught_up(self, drafts: Sequence[Draft]) -> Tensor:
        """Forget guesses that were wrong and read what has come: (B, V) scores after each text."""
        common = []
        for row, (draft, known) in enumerate(zip(drafts, self._known, strict=True)):
            held, text = self.own.texts[row], draft.text
            most = min(len(held), len(text) - 1)
            while known < most and held[known] == text[known]:
                known += 1
            common.append(min(known, most))
        self.own.cut(common)
        news = [list(draft.text[known:]) for draft, known in zip(drafts, common, strict=True)]
        self._known = [len(draft.text) for draft in drafts]
        return self.own.read(news, last=True)

    def _leave(self, rows: list[int]) -> None:
        if len(rows) < len(self._places) or rows != sorted(rows):
            self.own.keep(rows)
            self._places = [self._places[row] for row in rows]
            self._known = [self._known[row] for row in rows]


class SkipDrafter:
    """What the model would write without some of its layers: it reads on in the model's own rows, and takes it back.

    What those layers have kept of a text is what the whole model made of it, so there is nothing to catch up with.

    Source: Zhang et al., "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding",
    arXiv:2309.08168; layers are left out whole here.

    Args:
        rows: of the model; each holds all of its text but the last token.
        skipped: those layers.
    """

    own = None

    def __init__(self, rows: Rows, skipped: frozenset[int]):
        self.rows, self.skipped = rows, skipped

    def add(self, prompts: Sequence[Sequence[int]]) -> None:
        """Nothing: the model reads them."""

    def keep(self, places: Sequence[int]) -> None:
        """Nothing: they are the model's rows."""

    def guess(self, drafts: Sequence[Draft]) -> list[Guess]:
        """As in Drafter."""
        lengths = [len(text) for text in self.rows.texts]
        most = min(max(draft.count for draft in drafts), reach(self.rows.model.config, self.rows.virtual, lengths))
        if most <= 0:
            return [Guess([], []) for _ in drafts]
        self.rows.skip(self.skipped)
        try:
            logits = self.rows.step([draft.text[-1] for draft in drafts])
            made = chain(drafts, logits, self.rows.step, logits.shape[-1], most)
        finally:
            self.rows.skip(frozenset())
        self.rows.cut(lengths)
        return made


def chain(
    drafts: Sequence[Draft], logits: Tensor, step: Callable[[Sequence[int]], Tensor], vocab: int, most: int
) -> list[Guess]:
    """Guesses one after another: each is drawn as the model's own token there would be, of the drafter's scores.

    Args:
        logits: (B, V) float32 after each text.
        step: reads one token in each row and gives the scores after it.
        vocab: of the model that is guessed for.
        most: no more guesses than this, whatever the drafts say.
    """
    guesses = [Guess([], []) for _ in drafts]
    starts = [draft.line.step for draft in drafts]
    tokens = [draft.text[-1] for draft in drafts]  # read again in rows that have ended; nobody looks at what comes
    live = [place for place, draft in enumerate(drafts) if draft.count > 0]
    for number in range(most):
        scores = fitted(logits if len(live) == len(drafts) else logits[live], vocab)
        for places, chooser in by_chooser([drafts[place].chooser for place in live]):
            lines = [drafts[live[place]].line for place in places]
            shaped = chooser.scores(scores if len(places) == len(live) else scores[places], lines)
            for at, (place, token) in enumerate(zip(places, chooser.draw(shaped, lines), strict=True)):
                guesses[live[place]].tokens.append(token)
                guesses[live[place]].scores.append(shaped[at])
                lines[at].push(token)
                tokens[live[place]] = token
        live = [p for p in live if drafts[p].count > number + 1 and guesses[p].tokens[-1] not in drafts[p].eos]
        if not live or number + 1 == most:
            break
        logits = step(tokens)
    for draft, start in zip(drafts, starts, strict=True):
        draft.line.cut(start)
    return guesses


def by_chooser(choosers: Sequence[Chooser]) -> list[tuple[list[int], Chooser]]:
    """The places of each chooser."""
    found: dict[int, tuple[list[int], Chooser]] = {}
    for place, chooser in enumerate(choosers):
        found.setdefault(id(chooser), ([], chooser))[0].append(place)
    return list(found.values())


def fitted(logits: Tensor, vocab: int) -> Tensor:
    """(B, any) to (B, vocab): a table that is padded with rows for no token may be longer or shorter."""
    missing = vocab - logits.shape[-1]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[:, :vocab]


def ended(tokens: list[int], eos: frozenset[int]) -> list[int]:
    """The tokens up to the first that ends a text."""
    for place, token in enumerate(tokens):
        if token in eos:
            return tokens[: place + 1]
    return tokens
