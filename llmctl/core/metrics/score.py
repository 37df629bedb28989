"""Scorer: the likelihood of the text of each request, alone or after its prompt, in the order of the requests."""

from collections.abc import Iterable, Iterator
from typing import Any

from llmctl.core.data.requests import Request, no_text
from llmctl.core.metrics.likelihood import continuation, reach
from llmctl.core.metrics.methods import framing_for, method_for
from llmctl.core.metrics.passages import Passage
from llmctl.core.metrics.perplexity import Measured, Method, Windows, measured
from llmctl.core.metrics.scored import Asked
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.scoring import Scoring


class Scorer:
    """Scores requests; one that cannot be scored gets the reason instead.

    Args:
        prompt_field: of a record, what comes before the text; None: nothing does.
        special: parse special tokens typed in the texts.
        each: give each token with its log probability.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        scoring: Scoring,
        prompt_field: str | None = None,
        special: bool = False,
        each: bool = False,
    ):
        self.model, self.tokenizer, self.scoring = model, tokenizer, scoring
        self.prompt_field, self.special, self.each = prompt_field, special, each
        config = model.config
        self.framing = framing_for(tokenizer, config, scoring)
        self.method: Method = method_for(model, tokenizer, scoring)
        if config.kind == "encoder-decoder":  # not noise: its decoder says the text
            self.method = Windows(model, *scoring.sizes(config))

    def scores(self, requests: Iterable[Request]) -> Iterator[tuple[Request, dict[str, Any] | str]]:
        """Each request with its nll, tokens, bytes, perplexity and bits_per_byte, or with why it has none."""
        waiting: dict[int, tuple[Request, str]] = {}

        def passages() -> Iterator[Passage]:
            for number, request in enumerate(requests):
                made: Passage | str = request.error or ""
                if not made:
                    try:
                        made = self._passage(request)
                    except UserError as error:
                        made = str(error)
                waiting[number] = request, made if isinstance(made, str) else ""
                yield made if isinstance(made, Passage) else Passage([], 0, 0)

        for step in measured(self.method, passages(), self.scoring.batch_tokens, self.each):
            for one in step.done:
                request, error = waiting.pop(one.number)
                if not error and not one.sum.tokens:
                    error = "the text has no token to score"
                yield request, error or self._made(one)

    def _passage(self, request: Request) -> Passage:
        """What is scored.

        Raises:
            UserError: there is nothing, or no prompt.
        """
        if self.prompt_field is None:
            return self.framing.alone(request.text, self.special)
        record = request.record or {}
        if wrong := no_text(record, self.prompt_field):
            raise UserError(f"the record {wrong}.")
        prompt, config = str(record[self.prompt_field]), self.model.config
        if config.kind == "encoder":
            whole = self.tokenizer.encode(prompt + request.text, self.special)
            before = len(self.tokenizer.encode(prompt.rstrip(), self.special))
            asked = Asked(whole, max(0, len(whole) - before))
        else:
            asked = continuation(self.tokenizer, prompt, request.text, config, self.special)
            longest, most = max(len(asked.ids) - 1, len(asked.encoder)), reach(self.model)
            if config.kind == "encoder-decoder" and most is not None and longest > most:
                raise UserError(f"the prompt or the text has {longest} tokens; the model's context holds {most}")
        size = len(request.text.encode())
        return Passage(list(asked.ids), size, asked.scored, len(request.text.split()), encoder=list(asked.encoder))

    def _made(self, one: Measured) -> dict[str, Any]:
        made: dict[str, Any] = {
            "nll": one.sum.nll,
            "tokens": one.sum.tokens,
            "bytes": one.sum.bytes,
            "perplexity": one.sum.perplexity,
            "bits_per_byte": one.sum.bits_per_byte if one.sum.bytes else None,
        }
        if self.each:
            ids = one.passage.ids[len(one.passage.ids) - one.passage.scored :]
            made["logprobs"] = [
                {"token": self.tokenizer.token(id), "logprob": logprob}
                for id, logprob in zip(ids, one.logprobs, strict=True)
            ]
        return made
