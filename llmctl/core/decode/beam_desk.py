"""BeamDesk: beam searches side by side: each beam is a row of the model, searches that are over leave, others enter."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmctl.core.decode.batch import Desk, Event, Wish
from llmctl.core.decode.beam import Beam, Branch, Candidate, Group, Hunt, Hypothesis
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key, uniforms
from llmctl.core.decode.text import TextStream
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.search import Search


@dataclass(eq=False)
class Quest(Wish):
    """A search that is wanted; `stopped` of a wish is not looked at, since a search tries many texts.

    Attributes:
        stream: the prompt's, where strings may end a text; None: none do.
        texts: what was found, the best first; at least one, at most as many as there are beams.
        tree: every branch, in the order of steps; () unless the sampling is to be explained.
    """

    stream: TextStream | None = None
    texts: Sequence[Hypothesis] = ()
    tree: Sequence[Branch] = field(default=(), repr=False)


class BeamDesk(Desk):
    """Searches in the making; one ends with an event that has no token, when its quest has its texts.

    With a temperature the candidates of each step are drawn, without putting back, from the distribution over all
    continuations of all beams, instead of being the best of them.

    Args:
        search: as `Search.filled` gives it.
        rows: beams at a time; one prompt has its beams in any case.
        model, kv_bits, rules, memory: as for Desk.

    Source: drawing without putting back by Gumbel noise on the sums: Kool et al., "Stochastic Beams and Where to Find
    Them", arXiv:1903.06059, section 2.3; transformers draws the same way, with `multinomial`.
    """

    def __init__(
        self,
        model: Transformer,
        search: Search,
        rows: int = 16,
        kv_bits: int = 0,
        rules: Rules | None = None,
        memory: int | None = None,
    ):
        super().__init__(model, max(1, rows // search.beams), kv_bits, rules, memory)
        self.search = search
        self.rows.widest = self.most * search.beams
        self._hunts: list[Hunt] = []  # of `_wishes`
        self._seated: list[Beam] = []  # by the rows that hold them
        self._homes: list[Hunt] = []  # the searches of the rows

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Have every search go on by one token, after those that there is room for have begun.

        Raises:
            UserError: a model's scores are not numbers.
        """
        events = []
        for quest in self._unfit():
            quest.texts = [Hypothesis((), 0.0, 0.0, "length")]
            events.append(Event(quest, None, "length"))
        scores = [self.rows.step([beam.line.written[-1] for beam in self._seated])] if self._hunts else []
        fresh = self._entering()
        if fresh:
            self.rows.most = max(map(self._length, [*self._wishes, *fresh]))
            held = len(self.rows)
            scores.append(self.rows.add([quest.prompt for quest in fresh]))
            self._wishes += fresh
            self._hunts += [self._begun(quest, held + number) for number, quest in enumerate(fresh)]
        if not scores:
            return events
        self._advance(torch.cat(scores))
        live = [place for place, hunt in enumerate(self._hunts) if hunt.open]
        for quest, hunt in zip(self._wishes, self._hunts, strict=True):
            if not hunt.open:
                quest.texts, quest.tree = hunt.texts, tuple(hunt.tree or ())
                events.append(Event(quest, None, quest.texts[0].finish))
        self._keep(live)
        return events

    def _begun(self, quest: Quest, place: int) -> Hunt:
        """The search after a prompt that stands in a row."""
        line, search = quest.chooser.line(quest.prompt, quest.key, quest.limit), self.search
        groups = [
            Group(search.group, number, quest.eos, [Beam(line, place, stream=quest.stream)])
            for number in range(search.beam_groups)
        ]
        return Hunt(groups, search.diversity, [] if quest.chooser.sampling.explain else None)

    def _advance(self, scores: Tensor) -> None:
        """Let every search go on, from scores (rows, V)."""
        choosers = {id(quest.chooser): quest.chooser for quest in self._wishes}
        for chooser in choosers.values():
            pairs = zip(self._wishes, self._hunts, strict=True)
            hunts = [(hunt, len(quest.eos)) for quest, hunt in pairs if quest.chooser is chooser]
            group = self.search.group.beams
            most = max(2, 1 + max(ends for _, ends in hunts)) * group
            spare = self.search.beams if self.search.beam_groups > 1 else 0  # what penalties may move behind others
            found = _candidates(chooser, scores, [hunt for hunt, _ in hunts], most + spare)
            for (hunt, ends), ahead in zip(hunts, found, strict=True):
                hunt.advance(ahead, max(2, 1 + ends) * group)

    def _keep(self, live: list[int]) -> None:
        """Leave only these searches.

        The first beam that goes on from a row stays in it, and the others take rows of their own search where they
        can, so that little is moved: of rows with one source, that source never.
        """
        self._wishes, self._hunts = [self._wishes[p] for p in live], [self._hunts[p] for p in live]
        beams = [(hunt, beam) for hunt in self._hunts for beam in hunt.beams]
        seats: dict[int, tuple[Hunt, Beam]] = {}
        moving = []
        for hunt, beam in beams:
            if beam.place < len(beams) and beam.place not in seats:
                seats[beam.place] = hunt, beam
            else:
                moving.append((hunt, beam))
        free = [place for place in range(len(beams)) if place not in seats]
        for hunt, beam in moving:
            own = (place for place in free if place < len(self._homes) and self._homes[place] is hunt)
            place = next(own, free[-1])
            free.remove(place)
            seats[place] = hunt, beam
        self._homes, self._seated = ([seats[place][part] for place in range(len(beams))] for part in (0, 1))
        self.rows.keep([beam.place for beam in self._seated])
        for place, beam in enumerate(self._seated):
            beam.place = place

    def _bytes(self, rows: int, tokens: int) -> int:
        return super()._bytes(rows * self.search.beams, tokens)


def _candidates(chooser: Chooser, scores: Tensor, hunts: Sequence[Hunt], most: int) -> list[list[list[Candidate]]]:
    """Of each open group of each hunt, the best continuations of its beams, `most` where there are so many."""
    slots = {beam: group.number * group.search.beams + at for hunt in hunts for group in hunt.open
             for at, beam in enumerate(group.beams)}  # fmt: skip
    beams = sorted(slots, key=lambda beam: beam.place)
    places = [beam.place for beam in beams]
    if places != list(range(len(scores))):  # at first the groups of a prompt share its row
        scores = scores[torch.tensor(places, device=scores.device)]
    lines = [beam.line for beam in beams]
    known = scores.log_softmax(dim=-1)  # (B, V)
    if chooser.sampling.logprobs is not None:
        likely = known[:, : chooser.known].topk(min(chooser.sampling.logprobs, known.shape[1]), dim=-1)
        for beam, *pair in zip(beams, likely.indices.tolist(), likely.values.tolist(), strict=True):
            beam.top = tuple(zip(*pair, strict=True))
    sums = chooser.constrained(known, lines)
    if not chooser.sampling.greedy:
        left = chooser.scores(known, lines)  # may be moved as a whole, which is nothing to a row alone
        sums = (sums / chooser.sampling.temperature).masked_fill(left == -torch.inf, -torch.inf)
    sums = sums + torch.tensor([beam.score for beam in beams], device=sums.device)[:, None]
    order = sums
    if not chooser.sampling.greedy:
        keys = [stream_key(beam.line.key, slots[beam], 0) for beam in beams]
        steps = [line.step for line in lines]
        made = (torch.tensor(numbers, device=sums.device) for numbers in (keys, steps))
        noise = uniforms(*made, sums.shape[1])
        order = sums.to(noise.dtype) - torch.log(-torch.log(noise))
    best, ids = order.topk(min(most, order.shape[1]), dim=-1)  # (B, most)
    check_numbers(best[:, 0])
    tables = [one.tolist() for one in (best, sums.gather(1, ids), ids, known.gather(1, ids))]
    columns = dict(zip(beams, zip(*tables, strict=True), strict=True))

    def ranked(group: Group) -> list[Candidate]:
        found = [
            (rank, Candidate(score, place, token, logprob))
            for place, beam in enumerate(group.beams)
            for rank, score, token, logprob in zip(*columns[beam], strict=True)
            if score > -torch.inf
        ]
        return [one for _, one in sorted(found, key=lambda pair: -pair[0])[:most]]

    return [[ranked(group) for group in hunt.open] for hunt in hunts]


def check_numbers(best: Tensor) -> None:
    """Check that scores are numbers, by the best of each row: NaN counts as better than any.

    Raises:
        UserError: they are not.
    """
    if bool(best.isnan().any()):
        raise UserError(
            "The model's scores are not numbers (NaN).",
            "Try --dtype fp32; if that does not help, the checkpoint is broken, and llmctl verify may say where.",
        )
