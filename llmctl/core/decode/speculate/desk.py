"""GuessingDesk: completions in the making, several tokens a pass where guesses are right."""

import time

from torch import Tensor

from llmctl.core.decode.batch import Desk, Event, Finish, Wish, kept_bytes
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.speculate.draft import Draft, Guess
from llmctl.core.decode.speculate.pace import SPARE, Pace
from llmctl.core.decode.speculate.reach import places, unturned
from llmctl.core.decode.speculate.source import Source
from llmctl.core.decode.speculate.tally import Tally
from llmctl.core.decode.speculate.verify import verified
from llmctl.core.model.transformer import Transformer
from llmctl.spec.drafting import MOST


class GuessingDesk(Desk):
    """It stands where Desk does: each completion is the same, but for the rounding of sums.

    Args:
        model: that writes.
        source: of guesses.
        rows, kv_bits, rules, memory: as for Desk.

    Attributes:
        tally: how the guesses fared.
    """

    def __init__(
        self,
        model: Transformer,
        source: Source,
        rows: int = 16,
        kv_bits: int = 0,
        rules: Rules | None = None,
        memory: int | None = None,
    ):
        super().__init__(model, rows, kv_bits, rules, memory)
        self.source, self.tally = source, Tally()
        self._drafter = source.make(self.rows)
        if self._drafter.own is not None:
            self._drafter.own.widest, self._drafter.own.frugal = self.rows.widest, self.rows.frugal
        self._paces: dict[Wish, Pace] = {}
        self._spare = SPARE.get(self.rows.device.type, SPARE["cuda"])
        self._places = places(model.config, self.rows.virtual)

    def step(self) -> list[Event]:
        """Have every completion go on by one pass of the model, after which those begin that there is room for.

        Raises:
            UserError: a model's scores are not numbers, or rules leave no token.
        """
        events = self._pass() if self._wishes else []
        events += [Event(wish, None, "length") for wish in self._unfit()]
        return events + self._begin(self._entering())

    def _begin(self, fresh: list[Wish]) -> list[Event]:
        """Read the prompts of new wishes and write the first token of each."""
        if not fresh:
            return []
        self.rows.most = max(map(self._length, [*self._wishes, *fresh]))
        if self._drafter.own is not None:
            self._drafter.own.most = self.rows.most
        prompts = [wish.prompt for wish in fresh]
        logits = self.rows.add(prompts)
        self._drafter.add(prompts)
        first = len(self._wishes)
        self._wishes += fresh
        self._lines += [wish.chooser.line(wish.prompt, wish.key, wish.limit) for wish in fresh]
        self._paces |= {wish: Pace(self.source.tokens, self.source.cost, self._spare) for wish in fresh}
        self._remember(range(first, len(self._wishes)))
        drafts = [
            Draft(self.rows.texts[place], 0, self._lines[place], self._wishes[place].chooser, self._wishes[place].eos)
            for place in range(first, len(self._wishes))
        ]
        return self._written(first, drafts, [Guess([], []) for _ in fresh], logits[:, None])

    def _pass(self) -> list[Event]:
        began, count = time.perf_counter(), len(self._wishes)
        drafts = self._drafts()
        guesses = [Guess([], []) for _ in drafts]
        if any(draft.count for draft in drafts):
            guesses = self._drafter.guess(drafts)
        guessed = sum(len(guess.tokens) for guess in guesses)
        news = [[draft.text[-1], *guess.tokens] for draft, guess in zip(drafts, guesses, strict=True)]
        logits = self.rows.read(news) if guessed else self.rows.step([new[0] for new in news])[:, None]
        events = self._written(0, drafts, guesses, logits)
        self.tally.passed(count, guessed, len(events), time.perf_counter() - began)
        return events

    def _drafts(self) -> list[Draft]:
        """What the drafter is asked: how many guesses each text takes."""
        texts = [[*text, line.written[-1]] for text, line in zip(self.rows.texts, self._lines, strict=True)]
        most = MOST if self._places is None else min(MOST, self._places - max(map(len, texts)))
        drafts = []
        for text, line, wish in zip(texts, self._lines, self._wishes, strict=True):
            count = min(most, self._paces[wish].count(), wish.limit - line.step - 1)
            count = min(count, unturned(self.model.config, self.rows.virtual, len(text) - 1) - 1)
            drafts.append(Draft(text, max(0, int(count)), line, wish.chooser, wish.eos))
        return drafts

    def _written(self, first: int, drafts: list[Draft], guesses: list[Guess], logits: Tensor) -> list[Event]:
        """Write what the model's scores say to the rows from `first` on, which hold those texts and guesses by now."""
        events: list[Event] = []
        live = list(range(first))
        found = verified(logits, drafts, guesses, self.source.accept)
        for place, (guess, picks) in enumerate(zip(guesses, found, strict=True), first):
            wish, line, right = self._wishes[place], self._lines[place], 0
            before = line.step - len(picks)  # tokens before these
            for number, picked in enumerate(picks):
                finish: Finish | None = None
                stops = picked.id in wish.eos or (wish.stopped is not None and wish.stopped(picked.id))
                if stops or (number + 1 == len(picks) and line.done):
                    finish = "stop"
                elif before + number + 1 >= wish.limit:
                    finish = "length"
                right += guess.tokens[number : number + 1] == [picked.id]
                events.append(Event(wish, picked, finish))
                if finish is not None:
                    del self._paces[wish]
                    break
            else:
                live.append(place)
                self._paces[wish].told(len(guess.tokens), right)
            for told in (wish, self.tally):
                told.drafted += len(guess.tokens)
                told.accepted += right
        if len(live) < len(self._wishes):
            self._keep(live)
        held = [len(line.prompt) + line.step - 1 for line in self._lines]
        if held != [len(text) for text in self.rows.texts]:
            self.rows.cut(held)
        return events

    def cancel(self, wish: Wish) -> None:
        """Let go of a wish; nothing more is heard of it."""
        super().cancel(wish)
        self._paces.pop(wish, None)

    def _bytes(self, rows: int, tokens: int) -> int:
        """Bytes of the keys and values of so many texts, those that guess for them included."""
        own = self._drafter.own
        beside = 0 if own is None else kept_bytes(own, rows, tokens - self.rows.virtual + own.virtual)
        return super()._bytes(rows, tokens) + beside

    def _keep(self, live: list[int]) -> None:
        places = {id(wish): place for place, wish in enumerate(self._wishes)}
        super()._keep(live)
        self._drafter.keep([places[id(wish)] for wish in self._wishes])
