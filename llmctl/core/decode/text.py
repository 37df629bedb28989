"""TextStream: the text of one completion while its tokens arrive, in whole characters, up to the first stop string."""

import copy
from collections.abc import Sequence

from llmctl.core.text.tokenizer import Tokenizer


class TextStream:
    """Turns tokens into text that will not be taken back.

    Args:
        tokenizer: of the model.
        prompt: the prompt's ids; the completion continues their text, so a word's leading space is kept.
        stops: strings that end the completion; the text ends before the first one that is completed.
        special: show special tokens, which are left out otherwise.

    Attributes:
        text: what was given out so far.
        stopped: True once a stop string came.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int] = (), stops: Sequence[str] = (), special: bool = False
    ):
        self._detokenizer = tokenizer.stream(skip_special=not special)
        told = sum(len(self._detokenizer.push(token)) for token in prompt)
        self._prompt = tokenizer.decode(list(prompt), skip_special=not special)[told:]  # it comes with the first text
        self._stops = tuple(stops)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token makes final: often one word, sometimes none, sometimes several."""
        return self._give(self._detokenizer.push(token), last=False)

    def finish(self) -> str:
        """The rest, when no more tokens come: characters cut in half as U+FFFD, and what looked like a stop string."""
        return self._give(self._detokenizer.flush(), last=True)

    def copy(self) -> "TextStream":
        """Another one that has come as far, and goes on by itself."""
        twin = copy.copy(self)
        twin._detokenizer = self._detokenizer.copy()
        return twin

    def _give(self, new: str, last: bool) -> str:
        if self.stopped:
            return ""
        if self._prompt and new:
            new, self._prompt = new.removeprefix(self._prompt), ""
        self._held += new
        cut = first_stop(self._held, self._stops)
        if cut is not None:
            self.stopped = True
            ready, self._held = self._held[:cut], ""
        else:
            keep = 0 if last else open_stop(self._held, self._stops)
            ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.text += ready
        return ready


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string that is completed first begins; of several that end together, the longest."""
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(ends)[1] if ends else None


def open_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        tail = text[-size:]
        if any(stop.startswith(tail) for stop in stops):
            return size
    return 0
