"""Seeker: what beams find, as texts."""

from collections.abc import Sequence
from typing import Any

from llmctl.core.decode.beam import Hypothesis
from llmctl.core.decode.beam_desk import BeamDesk, Quest
from llmctl.core.decode.generate import Completion, Scribe, Told, room
from llmctl.core.decode.text import TextStream


class Seeker(Scribe):
    """It stands where Scribe does: the texts of a prompt come together, the best first, when its search is over.

    Args:
        keep: texts of each prompt.
    """

    def __init__(self, desk: BeamDesk, *how: Any, keep: int = 1):
        super().__init__(desk, *how)
        self.asks, self.keep = 1, keep

    def ask(self, name: Any, prompt: Sequence[int], key: int) -> None:
        """Have a prompt completed; what is found is told under the name.

        Raises:
            UserError: it takes more memory than there is.
        """
        before = self.chooser.rules.start or prompt
        limit = room(self.desk.model, len(before), self.chooser.sampling.max_tokens)
        stream = self._stream(before) if self.stops else None
        quest = Quest(prompt, self.chooser, key, limit, self.eos, stream=stream)
        self.desk.ask(quest)
        self._texts[id(quest)] = name

    def step(self) -> list[Told]:
        """Search on: what has been found."""
        told = []
        for event in self.desk.step():
            quest, name = event.wish, self._texts.pop(id(event.wish))
            texts = quest.texts[: self.keep]
            for number, one in enumerate(texts, start=1):
                told.append(Told(name, "", self._completion(quest, one), number == len(texts)))
        return told

    def _completion(self, quest: Quest, found: Hypothesis) -> Completion:
        stream = self._stream(self.chooser.rules.start or quest.prompt)
        for token in found.ids[:-1] if found.ids and found.ids[-1] in self.eos else found.ids:
            stream.push(token)
        stream.finish()
        told = {"picked": found.picked, "score": found.score, "tree": tuple(quest.tree), "branch": found.branch}
        return Completion(stream.text, found.finish, len(found.ids), **told)

    def _stream(self, before: Sequence[int]) -> TextStream:
        return TextStream(self.tokenizer, before, self.stops, self.special)
