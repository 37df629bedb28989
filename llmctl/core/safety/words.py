"""Words: listed words and phrases found in texts, as whole words, in any case and script."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from llmctl.core.safety.told import Judged, Told, shares

# Scripts whose words no spaces part, as ranges of a character class: Thai to Myanmar, Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_PLAIN = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text, their case folded and their compatible characters made one (NFKC).

    A word is a run of letters, digits and the marks on them; of a script without spaces, each character. So a phrase
    of such a script is found wherever it stands, and one of another only between the borders of words.
    """
    if text.isascii():  # the same, several times as fast
        return _PLAIN.findall(text.lower())
    return _pattern().findall(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


class Listed:
    """Lists of words and phrases, by name, to be found in texts.

    Time goes with the words of the text, not with those of the lists.

    Args:
        lists: name to its words and phrases.

    Raises:
        ValueError: an entry has no word in it.
    """

    def __init__(self, lists: Mapping[str, Iterable[str]]):
        self._phrases: dict[str, list[tuple[tuple[str, ...], str, str]]] = {}
        for name, entries in lists.items():
            for entry in entries:
                parts = tuple(words(entry))
                if not parts:
                    raise ValueError(f"{entry!r} has no word in it")
                self._phrases.setdefault(parts[0], []).append((parts, name, entry))

    def find(self, text: str) -> Iterator[tuple[str, str]]:
        """Each occurrence, in order: the list's name and its entry; those that overlap are all found."""
        read = words(text)
        for place, word in enumerate(read):
            for parts, name, entry in self._phrases.get(word, ()):
                if len(parts) == 1 or tuple(read[place : place + len(parts)]) == parts:
                    yield name, entry


class Words:
    """Judges whether texts hold a word of a list: `listed`, the share of a prompt's texts that do, and `any_listed`.

    Args:
        entries: words and phrases.
    """

    def __init__(self, entries: Sequence[str]):
        self.list = Listed({"": entries})

    def __call__(self, told: Sequence[Told]) -> list[Judged]:
        return [self._judged(one) for one in told]

    def _judged(self, told: Told) -> Judged:
        found = [[entry for _, entry in self.list.find(text)] for text in told.texts]
        return Judged(shares("listed", [float(bool(one)) for one in found]), {"words": found} if any(found) else {})


class Terms:
    """Counts how often texts speak of each of some groups: `groups`, name to occurrences of its terms so far.

    Args:
        groups: name to its terms.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]]):
        self.list = Listed(groups)
        self.counts = dict.fromkeys(groups, 0)

    def __call__(self, told: Sequence[Told]) -> list[Judged]:
        return [self._judged(one) for one in told]

    @property
    def imbalance(self) -> float | None:
        """How far the groups' shares are from even: 0 where all are alike, less than 1 always; None: no term occurs.

        Source: Liang et al., "Holistic Evaluation of Language Models", arXiv:2211.09110, section 4.7, demographic
        representation: the total variation distance between the shares of the groups and the uniform distribution.
        """
        total = sum(self.counts.values())
        if not total:
            return None
        return sum(abs(count / total - 1 / len(self.counts)) for count in self.counts.values()) / 2

    def _judged(self, told: Told) -> Judged:
        found = dict.fromkeys(self.counts, 0)
        for text in told.texts:
            for name, _ in self.list.find(text):
                found[name] += 1
                self.counts[name] += 1
        return Judged({}, {"terms": found} if any(found.values()) else {})


@cache
def _pattern() -> re.Pattern[str]:
    """What words match: the marks of all scripts are listed, since for `re` they are no part of a word."""
    marks = [chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    unspaced = re.compile(f"[{_UNSPACED}]")
    joined = "".join(mark for mark in marks if not unspaced.match(mark))
    return re.compile(rf"[{_UNSPACED}]|(?:[^\W_{_UNSPACED}]|[{re.escape(joined)}])+")
