"""Beam search: of the texts that may follow a prompt, the likeliest few are continued side by side."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from llmctl.core.decode.choose import Picked
from llmctl.core.decode.line import Line
from llmctl.core.decode.text import TextStream
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
        picked: its tokens with their log-probabilities, where those were asked for.
    """

    ids: tuple[int, ...]
    score: float
    logprob: float
    finish: Literal["stop", "length"]
    branch: int = -1
    picked: tuple[Picked, ...] = ()


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
        picked: its tokens with their log-probabilities, where those are asked for.
        top: the likeliest tokens that may come next, with their log-probabilities; None: not asked for.
    """

    line: Line
    place: int
    score: float = 0.0
    logprob: float = 0.0
    stream: TextStream | None = None
    branch: int = -1
    picked: tuple[Picked, ...] = ()
    top: tuple[tuple[int, float], ...] | None = None

    def grown(self, one: Candidate, stream: TextStream | None, branch: int) -> "Beam":
        """The beam of this text with one more token."""
        line = self.line.copy()
        line.push(one.id)
        return Beam(line, self.place, one.score, self.logprob + one.logprob, stream, branch, self.told(one))

    def told(self, one: Candidate) -> tuple[Picked, ...]:
        """`picked` with one more token."""
        return () if self.top is None else (*self.picked, Picked(one.id, one.logprob, self.top))


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
                score = one.score / length**power
                self.ended.append(Hypothesis(ids, score, total, finish, branch, beam.told(one)))
        if not candidates and not self.ended:  # nothing may follow
            for beam in self.beams:
                score = beam.score / max(1, length - 1) ** power
                ids = tuple(beam.line.written)
                self.ended.append(Hypothesis(ids, score, beam.logprob, "stop", beam.branch, beam.picked))
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
    """The search for what follows one prompt.

    Attributes:
        groups: of beams.
        diversity: what a token loses for each beam of an earlier group that has just written it.
        tree: every branch, in the order of steps; None unless it is wanted.
    """

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

    @property
    def texts(self) -> list[Hypothesis]:
        """Those that have ended, the best first."""
        return sorted((text for group in self.groups for text in group.ended), key=lambda text: -text.score)
