"""Words: what a user says of words and ids, as rules of a model's tokens."""

from dataclasses import replace

from llmctl.core.decode.rules import Rules
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.wording import Wording


def worded(rules: Rules, wording: Wording, tokenizer: Tokenizer, vocab: int) -> Rules:
    """Rules of a checkpoint with the words of a user beside them.

    A word is meant as its tokens, spelled with a space before it and without: other tokens that make the same
    letters are not looked for.

    Args:
        vocab: V of the model.

    Raises:
        UserError: the tokenizer has no tokens for a word, or the model no such id.
    """
    bad = [run for word in wording.bad_word for run in spellings(tokenizer, word, "--bad-word")]
    bias: dict[tuple[int, ...], float] = {}
    for what, value in wording.biases:
        runs = [(what,)] if isinstance(what, int) else spellings(tokenizer, what, "--logit-bias")
        bias |= {run: bias.get(run, 0.0) + value for run in runs}
    ids = {"--logit-bias": [id for run in bias for id in run], "--stop-id": list(wording.stop_id)}
    wrong = [f"{flag} names the id {id}" for flag, each in ids.items() for id in each if id >= vocab]
    if wrong:
        raise UserError(f"{'; '.join(wrong)}; the model knows ids below {vocab}.", code=Exit.USAGE)
    return replace(
        rules,
        never=(*rules.never, *(run[0] for run in bad if len(run) == 1)),
        never_after=(*rules.never_after, *(run for run in bad if len(run) > 1)),
        bias=(*rules.bias, *bias.items()),
        wanted=(*rules.wanted, *(spellings(tokenizer, word, "--forced-word") for word in wording.forced_word)),
    )


def spellings(tokenizer: Tokenizer, word: str, flag: str) -> tuple[tuple[int, ...], ...]:
    """The ids of a word: first as it follows another word, then at a beginning, then within a word.

    Raises:
        UserError: there are none.
    """
    line = tokenizer.encode("\n")
    within = tokenizer.encode("\n" + word)
    ways = [tokenizer.encode(" " + word), tokenizer.encode(word)]
    ways += [within[len(line) :]] if within[: len(line)] == line else []
    known = [tuple(ids) for ids in ways if ids and tokenizer.unk not in ids]
    if not known:
        raise UserError(f"{flag}: the tokenizer has no tokens for {word!r}.", "Leave it out.", Exit.USAGE)
    before = tokenizer.encode("a")
    known.sort(key=lambda ids: tokenizer.decode([*before, *ids]) != f"a {word}")
    return tuple(dict.fromkeys(known))
