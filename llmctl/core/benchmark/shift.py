"""Shifts: a record's text as another hand would have typed it, the same on every run, its meaning left alone."""

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from llmctl.spec.suite import Shift

TYPOS = 0.05  # share of the letters that are mistyped
WIDEST = 3  # spaces that one space may become
FILLED = 0.1  # share of the spaces that a filler follows

# Letters beside each letter on a QWERTY keyboard.
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEAR = {
    letter: "".join(
        other[near]
        for step in (-1, 0, 1)
        if 0 <= row + step < len(ROWS)
        for other in [ROWS[row + step]]
        for near in (place - 1, place, place + 1)
        if 0 <= near < len(other) and (step, near) != (0, place) and abs(near - place + step) < 2
    )
    for row, letters in enumerate(ROWS)
    for place, letter in enumerate(letters)
}

NEGATED = ("is", "are", "was", "were", "do", "does", "did", "has", "have", "had", "could", "should", "would", "must",
           "need")  # fmt: skip
PERSONS = {"I": ("am", "'m"), "you": ("are", "'re"), "we": ("are", "'re"), "they": ("are", "'re")}
THIRD = ["he", "she", "it", "that", "there", "here", "what", "where", "who", "how"]
HAVE = ["I", "you", "we", "they"]
WILL = ["I", "you", "he", "she", "it", "we", "they", "that", "there"]
FILLERS = ("uh", "um", "er", "like", "well", "actually", "basically", "you know")


def _contractions() -> dict[str, str]:
    """Each pair of words, in small letters but for I, and what it is contracted to."""
    pairs = {f"{word} not": f"{word}n't" for word in NEGATED}
    pairs |= {"cannot": "can't", "can not": "can't", "will not": "won't", "let us": "let's"}
    pairs |= {f"{word} {verb}": word + short for word, (verb, short) in PERSONS.items()}
    pairs |= {f"{word} is": f"{word}'s" for word in THIRD}
    pairs |= {f"{word} have": f"{word}'ve" for word in HAVE}
    return pairs | {f"{word} will": f"{word}'ll" for word in WILL}


CONTRACTED = _contractions()
# A way back for each: "can't" to cannot, which is written in one word more often.
EXPANDED = {short: long for long, short in CONTRACTED.items() if long != "can not"}


def _finder(phrases: Iterable[str]) -> "re.Pattern[str]":
    """The phrases as whole words, the longest first; spaces between words may be any."""
    longest = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    either = "|".join(re.escape(phrase).replace(r"\ ", r"[ ]+").replace("'", "['\u2019]") for phrase in longest)
    return re.compile(rf"(?<![\w'\u2019])(?:{either})(?![\w'\u2019])", re.IGNORECASE)


_LONG, _SHORT, _END = _finder(CONTRACTED), _finder(EXPANDED), re.compile(r"\s*(?:[.,;:!?)]|$)")


def shifted(
    records: Iterable[dict[str, Any]], shift: Shift, fields: tuple[str, ...], seed: int = 0
) -> Iterator[dict[str, Any]]:
    """The records with some fields shifted; lists and objects in such a field have their texts shifted.

    Args:
        records: those of a task, in order.
        shift: what is done to the texts.
        fields: whose texts; a record without one is left alone.
        seed: with a record's number and the field, decides every chance, so that neither the size of a batch nor
            other records change anything.
    """
    for number, record in enumerate(records):
        made = {
            name: _within(record[name], shift, f"{seed} {number} {shift} {name}") for name in fields if name in record
        }
        yield {**record, **made}


def shift_text(text: str, shift: Shift, key: str) -> str:
    """One text shifted; `key` decides the chances in it.

    Source: the perturbations of robustness in HELM, Liang et al., arXiv:2211.09110, appendix D.1: lower case,
    contractions made and undone, white space, misspellings, fillers. Ours differ in their lists of words, and spell
    wrongly by slips of the fingers (a letter's neighbour on the keyboard, letters swapped, lost or doubled), in words
    of three letters or more; digits and marks are never touched, as they may be the answer.
    """
    seed = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    return SHIFTS[shift](text, random.Random(seed))


def _within(value: Any, shift: Shift, key: str) -> Any:
    if isinstance(value, str):
        return shift_text(value, shift, key)
    if isinstance(value, list):
        return [_within(item, shift, f"{key} {number}") for number, item in enumerate(value)]
    if isinstance(value, dict):
        return {name: _within(item, shift, f"{key} {name}") for name, item in value.items()}
    return value


def _lower(text: str, chance: random.Random) -> str:
    return text.lower()


def _upper(text: str, chance: random.Random) -> str:
    return text.upper()


def _space(text: str, chance: random.Random) -> str:
    """Each space, but not a line's indentation, becomes one to three."""
    return re.sub(r"(?<=\S) (?=\S)", lambda _: " " * chance.randint(1, WIDEST), text)


def _typos(text: str, chance: random.Random) -> str:
    return re.sub(r"[^\W\d_]{3,}", lambda found: _mistyped(found[0], chance), text)


def _mistyped(word: str, chance: random.Random) -> str:
    """A word with slips of the fingers; its first letter stays, as it does with most writers."""
    letters, place = [word[0]], 1
    while place < len(word):
        letter, place = word[place], place + 1
        if chance.random() >= TYPOS:
            letters.append(letter)
            continue
        slip = chance.choice(("near", "swap", "lose", "double"))
        near = NEAR.get(letter.lower())
        if slip == "near" and near:
            other = chance.choice(near)
            letters.append(other.upper() if letter.isupper() else other)
        elif slip == "swap" and place < len(word):
            letters += [word[place], letter]
            place += 1
        elif slip != "lose":
            letters += [letter, letter]
    return "".join(letters)


def _contract(text: str, chance: random.Random) -> str:
    def contracted(found: "re.Match[str]") -> str:
        bare = not found[0].lower().endswith("not") and _END.match(text, found.end())
        return found[0] if bare else _cased(CONTRACTED, found[0])  # "Yes, it is." has no short form

    return _LONG.sub(contracted, text)


def _expand(text: str, chance: random.Random) -> str:
    return _SHORT.sub(lambda found: _cased(EXPANDED, found[0]), text)


def _cased(phrases: dict[str, str], found: str) -> str:
    """What a phrase becomes, as its first letter, or all of its letters, are written."""
    plain = re.sub(" +", " ", found.replace("\u2019", "'")).lower()
    made = next((phrases[name] for name in (plain, "I" + plain[1:]) if name in phrases), "")
    if not made:  # a letter that is an i or s to the search alone, as the Turkish one without a dot
        return found
    if found.isupper() and len(found.split()[0]) > 1:
        return made.upper()
    return made[0].upper() + made[1:] if found[0].isupper() else made


def _filler(text: str, chance: random.Random) -> str:
    """Words that say nothing, after some of the spaces within a line."""
    return re.sub(r"(?<=\w) (?=\w)", lambda _: f" {chance.choice(FILLERS)} " if chance.random() < FILLED else " ", text)


SHIFTS: dict[Shift, Callable[[str, random.Random], str]] = {
    "typos": _typos,
    "lower": _lower,
    "upper": _upper,
    "space": _space,
    "contract": _contract,
    "expand": _expand,
    "filler": _filler,
}
