"""Pace: how many tokens to guess after a text, by how the guesses before fared."""

from llmctl.spec.drafting import MOST

REST = 16  # passes without guesses where they do not pay, before it is tried again
MEMORY = 0.9  # what a pass counts for a pass later
PLAIN = 2  # passes without guesses at first, to compare with: the very first reads memory that is cold
FIRST, WEIGHT = 0.7, 2.0  # the share of right guesses that is expected at first, and how many guesses that counts for
SPARE = {"cpu": 0.1, "cuda": 0.02}  # what one more token costs in a pass of the model, in passes of one token


class Pace:
    """The number of tokens to guess for one row, which depends on nothing but its own history.

    Not on the clock, above all: where sums are rounded, how many tokens are read at once can decide between two
    that are equally likely, and the same command should write the same text.

    Args:
        tokens: guess so many each time; 0: as many as pay.
        cost: of a guess, in passes of the model over one token.
        spare: of one more token in a pass of the model, in the same unit.

    Source: the expected number of tokens of a pass, and what it costs, of Leviathan, Kalman & Matias, "Fast Inference
    from Transformers via Speculative Decoding", arXiv:2211.17192, equation 1 and theorem 3.8; that checking a
    token costs something, and the share of right guesses from the last passes, are ours.
    """

    def __init__(self, tokens: int, cost: float, spare: float):
        self.tokens, self.cost, self.spare = tokens, cost, spare
        self.right, self.tried = FIRST * WEIGHT, WEIGHT
        self.rested, self.plain = 0, PLAIN

    def count(self) -> int:
        """How many tokens to guess now; 0 where guesses do not pay, and at first."""
        if self.plain:
            self.plain -= 1
            return 0
        if self.tokens:
            return self.tokens
        best = best_count(self.right / self.tried, self.cost + self.spare)
        if best:
            return best
        self.rested += 1
        if self.rested <= REST:
            return 0
        self.rested = 0
        return 1

    def told(self, guessed: int, accepted: int) -> None:
        """Learn how a pass fared: of so many guesses the first `accepted` were right, and the next, if any, wrong."""
        if guessed:
            self.right = MEMORY * self.right + accepted
            self.tried = MEMORY * self.tried + min(accepted + 1, guessed)


def expected(share: float, count: int) -> float:
    """Tokens that a pass brings where each of `count` guesses is right with this probability."""
    return count + 1.0 if share >= 1 else (1 - share ** (count + 1)) / (1 - share)


def best_count(share: float, cost: float) -> int:
    """How many guesses bring most tokens for the time that they take: 0 to MOST.

    Args:
        share: probability that a guess is right.
        cost: of guessing one and checking it, in passes of the model over one token.
    """
    return max(range(MOST + 1), key=lambda count: expected(share, count) / (1 + count * cost))
