"""Texts written with and without guesses."""

from collections.abc import Sequence

from llmctl.core.decode.batch import Desk, Event, Wish
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key
from llmctl.spec.sample import Sampling

PROMPTS = [[5, 9, 3], [7], [11, 250, 30, 4, 8, 120, 77, 2], [7, 1, 100, 9], [5, 9, 3], list(range(40, 60))]


def wishes_of(
    desk: Desk,
    sampling: Sampling,
    eos: frozenset[int] = frozenset(),
    prompts: Sequence[Sequence[int]] = PROMPTS,
    rules: Rules | None = None,
    known: int | None = 288,
    limits: Sequence[int] | None = None,
    stopped=None,
    guides=None,
) -> list[Wish]:
    """Ask a desk for a completion of each prompt, their limits unequal."""
    chooser = Chooser(sampling, rules or Rules(), desk.model.config.vocab, known, eos, guides=guides)
    limits = limits or [sampling.max_tokens - 3 * (row % 3) for row in range(len(prompts))]
    wishes = [
        Wish(prompt, chooser, stream_key(0, row, 0), limit, eos, stopped)
        for row, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    for wish in wishes:
        desk.ask(wish)
    return wishes


def told(desk: Desk) -> dict[int, list[Event]]:
    """What comes of each wish, by its id, until the desk is empty."""
    events: dict[int, list[Event]] = {}
    while desk.busy:
        for event in desk.step():
            mine = events.setdefault(id(event.wish), [])
            assert not mine or mine[-1].finish is None, "a text goes on after its end"
            mine.append(event)
    return events


def written(desk: Desk, sampling: Sampling, **how: object) -> list[tuple[list[int], str]]:
    """The ids of each text and how it ended."""
    wishes = wishes_of(desk, sampling, **how)
    events = told(desk)
    return [([one.picked.id for one in events[id(wish)] if one.picked], events[id(wish)][-1].finish) for wish in wishes]
