"""Words of a text, as ROUGE compares them."""

import re
import unicodedata
from collections.abc import Callable

from llmctl.core.metrics.rouge.stem import stem
from llmctl.spec.rouge import Words

LONG = 3  # letters; shorter words have no stem
# First and last letters of scripts that put no spaces between words: Thai and Lao, Myanmar, Khmer, New Tai Lue, Tai
# Tham, Hiragana, Han (with its iteration marks and further planes), Javanese.
UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1980, 0x19DF), (0x1A20, 0x1AAF), (0x3005, 0x3007),
    (0x3041, 0x309F), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA980, 0xA9DF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
PLAIN = re.compile(r"[a-z0-9]+")
# A character with its marks; or letters and digits, with an apostrophe or full stop between letters ("don't"), a
# comma or full stop between digits ("1,000.5").
WORD = re.compile(r"im*|[a0]m*(?:[a0]m*|(?<=[am])[':](?=a)|(?<=[0m])[',](?=0))*")


def tokenizer(words: Words, stemmed: bool) -> Callable[[str], list[str]]:
    """What takes a text to its words, in lower case; `stemmed`: to stems, of English ones of four letters or more."""
    found = TOKENIZERS[words]
    if not stemmed:
        return found
    return lambda text: [
        stem(word) if len(word) > LONG and (words == "rouge" or PLAIN.fullmatch(word)) else word for word in found(text)
    ]


def plain(text: str) -> list[str]:
    """The runs of a-z and 0-9, which is how rouge_score and the first ROUGE see a text."""
    return PLAIN.findall(text.lower())


def unicode(text: str) -> list[str]:
    """Words of all scripts; where a script has no spaces, each character with its marks.

    Compatibility forms (full-width letters, ligatures) and case do not count.

    Source: Unicode Standard Annex 29, "Unicode Text Segmentation", section 4 (rules WB5 to WB12), in short: words are
    letters, digits and their marks, with single apostrophes and stops within; signs are none.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return [text[found.start() : found.end()] for found in WORD.finditer(text.translate(_kinds))]


class _Kinds(dict[int, str]):
    """The kind of each character, looked up once: a letter, 0 digit, m mark, i of unspaced scripts, ' : , or space."""

    def __missing__(self, code: int) -> str:
        self[code] = kind = _kind(code)
        return kind


def _kind(code: int) -> str:
    letter = chr(code)
    category = unicodedata.category(letter)
    if letter in "'.\u2019\u2024":
        return "'"
    if letter in ":\u00b7\u2027":
        return ":"
    if letter in ",;\u066c":
        return ","
    if category[0] == "M" or letter == "\u200d":
        return "m"
    if category[0] == "L" or category == "Nl":
        return "i" if any(first <= code <= last for first, last in UNSPACED) else "a"
    return "0" if category[0] == "N" or letter == "_" else " "


_kinds = _Kinds()
TOKENIZERS: dict[Words, Callable[[str], list[str]]] = {"rouge": plain, "unicode": unicode}
