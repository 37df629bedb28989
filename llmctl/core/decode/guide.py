"""Guide: a text held to a JSON schema, a regular expression or a grammar: which tokens may come next (llguidance)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from llmctl.core.text.texts import Texts
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.guide import Form


class Guide:
    """One text that follows a grammar.

    Args:
        matcher: llguidance's, at the beginning of a text.
        ends: ids that end a text; the grammar does not see them.
        hidden: ids that llguidance takes for ends; those that are not in `ends` are never written.
    """

    def __init__(self, matcher: Any, ends: frozenset[int], hidden: frozenset[int] = frozenset()):
        self._matcher, self._ends, self._hidden = matcher, ends, hidden
        self._pushed = self._read = 0  # tokens; those that the grammar has read

    @property
    def done(self) -> bool:
        """Whether the text is complete, so that nothing can be added to it."""
        return self._pushed == self._read and self._matcher.is_stopped()

    def push(self, token: int) -> None:
        """Write a token. After one that the grammar does not allow, nothing may follow until it is taken back."""
        fits = self._pushed == self._read and token not in self._ends and not self._matcher.is_stopped()
        self._read += fits and self._matcher.try_consume_tokens([token])
        self._pushed += 1

    def cut(self, step: int) -> None:
        """Take back the tokens after so many."""
        if self._read > step:
            self._matcher.rollback(self._read - step)
            self._read = step
        self._pushed = min(self._pushed, step)

    def copy(self) -> "Guide":
        """Another one that has come as far."""
        twin = Guide(self._matcher.deep_copy(), self._ends, self._hidden)
        twin._pushed, twin._read = self._pushed, self._read
        return twin

    def allowed(self, vocab: int) -> np.ndarray:
        """Which tokens may come next, (vocab,) bool: those that end a text too, where it may end."""
        mask = np.zeros(vocab, dtype=bool)
        if self._pushed > self._read:
            return mask
        if not self._matcher.is_stopped():
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            told = np.unpackbits(bits, bitorder="little")[:vocab]
            mask[: len(told)] = told
        within = [token for token in self._ends | self._hidden if token < vocab]
        mask[within] = False
        if self._matcher.is_accepting():
            mask[[token for token in self._ends if token < vocab]] = True
        return mask


class Grammar:
    """What texts are held to, made ready for a tokenizer once for all texts.

    Args:
        tokenizer: of the model.
        eos: ids that end a text.
        form: what the text is: a JSON schema, a regular expression, or a grammar in Lark's syntax.
        text: it.
        flag: what it is called in errors.

    Attributes:
        warnings: what llguidance has to say of a grammar that it follows.

    Raises:
        UserError: the extra is missing, or the text is not sound.
    """

    def __init__(self, tokenizer: Tokenizer, eos: frozenset[int], form: Form, text: str, flag: str = ""):
        flag = flag or f"--{form}"
        try:
            import llguidance
        except ImportError as error:
            raise UserError(f"{flag} needs llguidance, which is not here.", "pip install 'llmctl[guide]'") from error
        self._eos = frozenset(token for token in eos if token < tokenizer.size)
        ends = sorted(self._eos) or None
        try:
            backend = llguidance.LLTokenizer(tokenizer.backend.to_str(), eos_token=ends)
        except ValueError:  # of a kind that it does not know by itself: T5's, BERT's
            backend = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Spelled(tokenizer, ends)), eos_token=ends)
        self._hidden = frozenset(backend.eos_tokens)
        try:
            grammar = FORMS[form](llguidance.LLMatcher, text)
        except ValueError as error:  # a schema that is not JSON; LLMatcher itself raises nothing narrower
            raise UserError(f"{flag} is not JSON: {_line(error)}.", code=Exit.USAGE) from error
        wrong, said = llguidance.LLMatcher.validate_grammar_with_warnings(grammar, backend)
        if wrong:
            raise UserError(f"{flag} cannot be followed: {_line(said[0])}.", code=Exit.USAGE)
        self.warnings = [_line(one) for one in said]
        self._first = llguidance.LLMatcher(backend, grammar, log_level=0)

    def guide(self) -> Guide:
        """That of a new text."""
        return Guide(self._first.deep_copy(), self._eos, self._hidden)


class _Spelled:
    """A tokenizer as llguidance takes those that it cannot read: what each token adds to a text."""

    def __init__(self, tokenizer: Tokenizer, ends: list[int] | None):
        texts = Texts(tokenizer)
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.tokens = [texts(id).encode("utf-8", "replace") for id in range(tokenizer.size)]
        self.eos_token_id, self.bos_token_id = (ends or [tokenizer.size - 1])[0], None
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def _schema(matcher: Any, text: str) -> str:
    return matcher.grammar_from_json_schema(text, defaults={"whitespace_pattern": SPACE})


# Between the signs of a JSON text: a space or none. Without a bound a model may write spaces for ever, and where lines
# may be broken and indented, a weak one writes little else.
SPACE = r"\x20?"
# What llguidance makes a grammar of, by form; it takes its own class, which is imported where it is used.
FORMS: dict[Form, Callable[[Any, str], str]] = {
    "schema": _schema,
    "regex": lambda matcher, text: matcher.grammar_from_regex(text),
    "grammar": lambda matcher, text: matcher.grammar_from_lark(text),
}


def _line(said: object) -> str:
    """The first line of what a library says, and the one that names the fault where that is another."""
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    fault = next((line for line in lines[1:] if line.startswith("error: ")), "")
    return ": ".join(filter(None, (lines[0].rstrip(".:") if lines else "", fault.removeprefix("error: "))))
