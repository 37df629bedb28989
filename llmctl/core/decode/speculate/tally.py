"""Tally: how guesses fared, and how much time they saved."""

from dataclasses import dataclass, field
from statistics import mean

FEW = 16  # passes whose time says nothing


@dataclass
class Tally:
    """Of all texts of a desk.

    Attributes:
        drafted: tokens that were guessed.
        accepted: those of them that were right.
        passes: of the model over texts, a text counted each time.
        tokens: that came of them; those that prompts give are not among them.
    """

    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    tokens: int = 0
    _plain: dict[int, list[float]] = field(default_factory=dict)  # texts -> seconds of each pass without guesses
    _spent: dict[int, float] = field(default_factory=dict)  # texts -> seconds of all passes
    _made: dict[int, int] = field(default_factory=dict)  # texts -> tokens of all passes

    def passed(self, texts: int, guessed: int, tokens: int, seconds: float) -> None:
        """Count one pass over so many texts, the time of guessing included; that of the first pass says nothing."""
        if self.passes:
            if not guessed:
                self._plain.setdefault(texts, []).append(seconds)
            self._spent[texts] = self._spent.get(texts, 0.0) + seconds
            self._made[texts] = self._made.get(texts, 0) + tokens
        self.passes += texts
        self.tokens += tokens

    @property
    def share(self) -> float:
        """Of the guesses that were right, 0 to 1."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def a_pass(self) -> float:
        """Tokens that a pass brought to a text."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def speedup(self) -> float | None:
        """How many times as fast as one token a pass the texts came: an estimate, by the passes without guesses.

        None where no pass was without guesses, or too few passes were made to tell.
        """
        if self.passes < FEW:
            return None
        alike = self._plain.keys()
        spent = sum(self._spent[texts] for texts in alike)
        plain = sum(self._made[texts] / texts * mean(self._plain[texts]) for texts in alike)
        return plain / spent if spent else None
