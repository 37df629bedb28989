"""Beam search: of the texts that may follow a prompt, the likeliest few are continued side by side."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.line import Line
from llmctl.core.decode.rows import Rows
from llmctl.core.decode.sample import stream_key, uniforms
from llmctl.core.decode.text import TextStream
from llmctl.errors import UserError
from llmctl.spec.search import Search

Fate = Literal["kept", "ended", "dropped"]


class Hypothesis(NamedTuple):
    """A text that has ended.

    Attributes:
        ids: its tokens, the one that ended it included.
        score: the sum of its tokens' log-probabilities, after penalties, divided by their number to the power of
            the length penalty.
        logprob: the sum of its tokens' log-probabilities as the model gives them.
        finish: what ended it.
        branch: of its last token in the tree; -1 without a tree.
    """

    ids: tuple[int, ...]
    score: float
    logprob: float
    finish: Literal["stop", "length"]
    branch: int = -1


class Branch(NamedTuple):
    """A token that was thought of: a node of the tree of a search.

    Attributes:
        step: which token of the text it would be, from 0.
        group: of beams.
        parent: the branch before it, -1 for the prompt.
        id: the token.
        logprob: of the token, as the model gives it.
        score: the sum for its text, after penalties.
        fate: "kept": a beam went on from here; "ended": a text ended here; "dropped": there were better ones.
    """

    step: int
    group: int
    parent: int
    id: int
    logprob: float
    score: float
    fate: Fate


class Found(NamedTuple):
    """What was found for one prompt.

    Attributes:
        row: number of the prompt.
        texts: the best first; at least one, at most as many as there are beams.
        tree: every branch, in the order of steps; empty unless asked for.
    """

    row: int
    texts: list[Hypothesis]
    tree: list[Branch]


class Candidate(NamedTuple):
    """A beam with one more token.

    Attributes:
        score: sum for the text.
        place: of the beam in its group.
        id: the token.
        logprob: of the token, as the model gives it.
    """

    score: float
    place: int
    id: int
    logprob: float


@dataclass(eq=False)
class Beam:
    """A text that may go on.

    Attributes:
        place: of the row that holds it.
        score: the sum of its tokens' log-probabilities after penalties.
        logprob: the same as the model gives them.
        stream: its text so far, where a string may end it.
        branch: of its last token in the tree.
    """

    line: Line
    place: int
    score: float = 0.0
    logprob: float = 0.0
    stream: TextStream | None = None
    branch: int = -1

    def grown(self, one: Candidate, stream: TextStream | None, branch: int) -> "Beam":
        """The beam of this text with one more token."""
        line = self.line.copy()
        line.push(one.id)
        return Beam(line, self.place, one.score, self.logprob + one.logprob, stream, branch)


@dataclass(eq=False)
class Group:
    """Beams that compete with each other, and the best texts that have ended among them.

    Attributes:
        search: beams of this group, penalties, when it stops.
        number: of the group.
        eos: ids that end a text.
        beams: those that go on; at first one, the prompt.
        ended: the best first, at most as many as beams were asked for.
        closed: nothing more is looked for.
    """

    search: Search
    number: int
    eos: frozenset[int]
    beams: list[Beam]
    ended: list[Hypothesis] = field(default_factory=list)
    closed: bool = False

    def advance(self, candidates: Sequence[Candidate], tree: list[Branch] | None) -> None:
        """Let texts end or go on by one token.

        The first `beams` candidates may end here; those behind them may only take their places among the beams.

        Args:
            candidates: the best first, or as they were drawn; none is impossible.
            tree: gets their branches.

        Source: the rules of transformers' beam search (its vectorised one, of version 4.50 and later), so that
        settings and results carry over. It fills beams that there are too few continuations for with impossible
        ones, which can end and count; here there are fewer beams then.
        """
        width, power = self.search.beams, self.search.length_penalty
        length, limit = self.beams[0].line.step + 1, self.beams[0].line.limit
        going: list[tuple[Candidate, TextStream | None, int]] = []
        for rank, one in enumerate(candidates):
            beam = self.beams[one.place]
            stopped, stream = self._ends(beam, one)
            over = stopped or length == limit
            branch = -1
            if tree is not None:
                branch = len(tree)
                fate: Fate = "dropped" if over and rank >= width else "ended" if over else "kept"
                tree.append(Branch(length - 1, self.number, beam.branch, one.id, one.logprob, one.score, fate))
            if not over:
                going.append((one, stream, branch))
            elif rank < width:
                ids, total = (*beam.line.written, one.id), beam.logprob + one.logprob
                finish = "stop" if stopped else "length"
                self.ended.append(Hypothesis(ids, one.score / length**power, total, finish, branch))
        if not candidates and not self.ended:  # nothing may follow
            for beam in self.beams:
                score = beam.score / max(1, length - 1) ** power
                self.ended.append(Hypothesis(tuple(beam.line.written), score, beam.logprob, "stop", beam.branch))
        going.sort(key=lambda kept: -kept[0].score)
        if tree is not None:
            for _, _, branch in going[width:]:
                tree[branch] = tree[branch]._replace(fate="dropped")
        self.beams = [self.beams[one.place].grown(one, *rest) for one, *rest in going[:width]]
        self.ended = sorted(self.ended, key=lambda text: -text.score)[:width]
        self.closed = not self.beams or self._settled(length, limit)

    def _ends(self, beam: Beam, one: Candidate) -> tuple[bool, TextStream | None]:
        """Whether a token ends its text, and the text with it."""
        if one.id in self.eos:
            return True, None
        if beam.line.guide is not None and beam.grown(one, None, -1).line.done:
            return True, None
        if beam.stream is None:
            return False, None
        stream = beam.stream.copy()
        stream.push(one.id)
        return stream.stopped, stream

    def _settled(self, length: int, limit: int) -> bool:
        """Whether enough texts have ended, and the best beam would not beat the worst of them."""
        if len(self.ended) < self.search.beams:
            return False
        if self.search.early_stopping == "true":
            return True
        power = self.search.length_penalty
        reach = limit if self.search.early_stopping == "never" and power > 0 else length
        return self.beams[0].score / reach**power <= self.ended[-1].score


@dataclass(eq=False)
class Hunt:
    """The search for what follows one prompt."""

    row: int
    groups: list[Group]
    diversity: float
    tree: list[Branch] | None

    @property
    def open(self) -> list[Group]:
        """Groups that still look."""
        return [group for group in self.groups if not group.closed]

    @property
    def beams(self) -> list[Beam]:
        """Those of all groups that still look, in order."""
        return [beam for group in self.open for beam in group.beams]

    def advance(self, ahead: Sequence[Sequence[Candidate]], most: int) -> None:
        """Go on by one token, group after group.

        Args:
            ahead: of each open group, candidates, in order.
            most: candidates that a group looks at.

        Source: diverse beam search: Vijayakumar et al., "Diverse Beam Search", arXiv:1610.02424, algorithm 1, with
        the Hamming diversity of section 3; as in transformers, the penalty stays in the sums of the texts.
        """
        written: Counter[int] = Counter()
        for group, candidates in zip(self.open, ahead, strict=True):
            if written:
                told = [one._replace(score=one.score - self.diversity * written[one.id]) for one in candidates]
                candidates = sorted(told, key=lambda one: -one.score)
            group.advance(candidates[:most], self.tree)
            written.update(beam.line.written[-1] for beam in group.beams)

    def found(self) -> Found:
        """The result."""
        texts = sorted((text for group in self.groups for text in group.ended), key=lambda text: -text.score)
        return Found(self.row, texts, self.tree or [])


@torch.inference_mode()
def beam_search(
    rows: Rows,
    chooser: Chooser,
    search: Search,
    prompts: Sequence[Sequence[int]],
    lines: Sequence[Line],
    eos: frozenset[int],
    most: int = 16,
    streams: Sequence[TextStream] | None = None,
    explained: bool = False,
) -> Iterator[Found]:
    """Search what follows each prompt, several prompts at a time; a prompt's result comes when it is there.

    With a temperature the candidates of each step are drawn, without putting back, from the distribution over all
    continuations of all beams, instead of being the best of them.

    Args:
        rows: empty; holds a row for each beam meanwhile.
        chooser: its rules and penalties hold for each beam; of its filters only those of a sampling one.
        search: as `Search.filled` gives it.
        prompts: ids of each; of an encoder-decoder, what its encoder reads.
        lines: `chooser.line` of each prompt.
        eos: ids that end a text.
        most: rows at a time; one prompt has its beams in any case.
        streams: of each prompt, its text, where strings may end it; None: none do.
        explained: keep the tree.

    Raises:
        UserError: the model's scores are not numbers.

    Source: drawing without putting back by Gumbel noise on the sums: Kool et al., "Stochastic Beams and Where to Find
    Them", arXiv:1903.06059, section 2.3; transformers draws the same way, with `multinomial`.
    """
    waiting, hunts = deque(range(len(prompts))), list[Hunt]()
    scores: Tensor | None = None  # (rows, V) of the tokens after each row
    while waiting or hunts:
        new: list[int] = []
        while waiting and (len(hunts) + len(new) + 1) * search.beams <= max(most, search.beams):
            row = waiting.popleft()
            if lines[row].limit == 0:
                yield Found(row, [Hypothesis((), 0.0, 0.0, "length")], [])
            else:
                new.append(row)
        if new:
            held = len(rows)
            read = rows.add([prompts[row] for row in new])
            scores = read if scores is None else torch.cat((scores, read))
            for place, row in enumerate(new, start=held):
                stream = None if streams is None else streams[row]
                groups = [
                    Group(search.group, number, eos, [Beam(lines[row], place, stream=stream)])
                    for number in range(search.beam_groups)
                ]
                hunts.append(Hunt(row, groups, search.diversity, [] if explained else None))
        if not hunts:
            continue
        size = max(2, 1 + len(eos)) * search.group.beams
        spare = search.beams if search.beam_groups > 1 else 0  # as many as penalties may move behind others
        for hunt, ahead in zip(hunts, _candidates(chooser, scores, hunts, size + spare), strict=True):
            hunt.advance(ahead, size)
        done = [hunt for hunt in hunts if not hunt.open]
        hunts = [hunt for hunt in hunts if hunt.open]
        beams = [beam for hunt in hunts for beam in hunt.beams]
        rows.keep([beam.place for beam in beams])
        scores = None
        if beams:
            scores = rows.step([beam.line.written[-1] for beam in beams])
            for place, beam in enumerate(beams):
                beam.place = place
        yield from (hunt.found() for hunt in done)


def _candidates(chooser: Chooser, scores: Tensor, hunts: Sequence[Hunt], most: int) -> list[list[list[Candidate]]]:
    """Of each open group of each hunt, the best continuations of its beams, `most` where there are so many."""
    groups = [group for hunt in hunts for group in hunt.open]
    beams = [beam for group in groups for beam in group.beams]
    places = [beam.place for beam in beams]
    if places != list(range(len(scores))):  # at first the groups of a prompt share its row
        scores = scores[torch.tensor(places, device=scores.device)]
    lines = [beam.line for beam in beams]
    known = scores.log_softmax(dim=-1)  # (B, V)
    sums = chooser.constrained(known, lines)
    if not chooser.sampling.greedy:
        left = chooser.scores(known, lines)  # may be moved as a whole, which is nothing to a row alone
        sums = (sums / chooser.sampling.temperature).masked_fill(left == -torch.inf, -torch.inf)
    sums = sums + torch.tensor([beam.score for beam in beams], device=sums.device)[:, None]
    order = sums
    if not chooser.sampling.greedy:
        slots = [group.number * group.search.beams + at for group in groups for at in range(len(group.beams))]
        keys = [stream_key(line.key, slot, 0) for line, slot in zip(lines, slots, strict=True)]
        steps = [line.step for line in lines]
        made = (torch.tensor(numbers, device=sums.device) for numbers in (keys, steps))
        noise = uniforms(*made, sums.shape[1])
        order = sums.to(noise.dtype) - torch.log(-torch.log(noise))
    best, ids = order.topk(min(most, order.shape[1]), dim=-1)  # (B, most)
    check_numbers(best[:, 0])
    tables = [one.tolist() for one in (best, sums.gather(1, ids), ids, known.gather(1, ids))]
    columns = zip(*tables, strict=True)

    def ranked(group: Group) -> list[Candidate]:
        found = [
            (rank, Candidate(score, place, token, logprob))
            for place, _ in enumerate(group.beams)
            for rank, score, token, logprob in zip(*next(columns), strict=True)
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
