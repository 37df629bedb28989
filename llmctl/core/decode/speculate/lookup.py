"""Lookup: guesses that what followed the last tokens earlier in the text follows them again."""

from collections.abc import Sequence

RUN = 3  # tokens that are looked for; then fewer, down to one


class Index:
    """Where each short run of tokens of a growing text came last."""

    def __init__(self, run: int = RUN):
        self.run = run
        self.text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # a run -> the place of the token that followed it last

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in more tokens."""
        for token in tokens:
            end = len(self.text)
            for size in range(1, min(self.run, end) + 1):
                self._after[tuple(self.text[end - size :])] = end
            self.text.append(token)

    def after(self, tail: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that followed where the longest run that ends `tail` came last; [] if none came.

        Where they reach the end of the text, they go on with themselves: a text that repeats itself is a loop.
        """
        for size in range(min(self.run, len(tail)), 0, -1):
            place = self._after.get(tuple(tail[len(tail) - size :]))
            if place is not None:
                period = len(self.text) - place
                return [self.text[place + step % period] for step in range(count)]
        return []
