"""Stems of English words, by Porter's algorithm as rouge_score has it from nltk.

Ours, as nltk takes a second to import and is needed for nothing else; a test compares the two word by word.
"""

from functools import lru_cache

# The rules of a step: a suffix, and what takes its place where the measure of what is before it is high enough. The
# first suffix that a word has decides, so longer ones stand before those they end in.
Rules = tuple[tuple[str, str], ...]
STEP_2: Rules = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"),
    ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"),
    ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"),
    ("iviti", "ive"), ("biliti", "ble"), ("fulli", "ful"),
)  # fmt: skip
STEP_3: Rules = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""),
)  # fmt: skip
STEP_4: Rules = (
    ("al", ""), ("ance", ""), ("ence", ""), ("er", ""), ("ic", ""), ("able", ""), ("ible", ""), ("ant", ""),
    ("ement", ""), ("ment", ""), ("ent", ""), ("ion", ""), ("ou", ""), ("ism", ""), ("ate", ""), ("iti", ""),
    ("ous", ""), ("ive", ""), ("ize", ""),
)  # fmt: skip
# Words that the rules would treat badly, and their stems.
IRREGULAR = {
    "skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news", "innings": "inning",
    "inning": "inning", "outings": "outing", "outing": "outing", "cannings": "canning", "canning": "canning",
    "howe": "howe", "proceed": "proceed", "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip


@lru_cache(maxsize=1 << 17)
def stem(word: str) -> str:
    """The stem of a word in lower case.

    Source: Porter, "An algorithm for suffix stripping", Program 14.3 (1980), with the amendments that nltk's default
    mode has: Porter's own later ones (-bli, -logi, words of two letters), -ies and -ied after one letter give -ie, -y
    gives -i after any consonant that is not the word's first letter, -alli is followed by another look, -fulli, a vowel
    and a consonant alone count as short (*o), and irregular words.
    """
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= 2:
        return word
    return _step_5(_step_4(_ruled(_step_2(_step_1c(_step_1b(_step_1a(word)))), STEP_3)))


def _letters(text: str) -> str:
    """The letters of a text as c (consonants) and v (vowels); y is a vowel after a consonant."""
    kinds = ""
    for letter in text:
        vowel = letter in "aeiou" or (letter == "y" and kinds[-1:] == "c")
        kinds += "v" if vowel else "c"
    return kinds


def _measure(text: str) -> int:
    """Porter's m: how often a consonant follows a vowel."""
    return _letters(text).count("vc")


def _short(text: str) -> bool:
    """Porter's *o: it ends as "hop" does, but not in w, x or y; or it is as "at"."""
    kinds = _letters(text)
    return kinds == "vc" or (kinds.endswith("cvc") and text[-1] not in "wxy")


def _ruled(word: str, rules: Rules, measure: int = 1) -> str:
    for suffix, other in rules:
        if word.endswith(suffix):
            before = word[: -len(suffix)]
            return before + other if _measure(before) >= measure else word
    return word


def _step_1a(word: str) -> str:
    """Plurals."""
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _step_1b(word: str) -> str:
    """-ed and -ing."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    suffix = next((suffix for suffix in ("ed", "ing") if word.endswith(suffix)), None)
    if suffix is None or "v" not in _letters(word[: -len(suffix)]):
        return word
    word = word[: -len(suffix)]
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if len(word) > 1 and word[-1] == word[-2] and _letters(word)[-1] == "c":
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _short(word) else word


def _step_1c(word: str) -> str:
    """-y after a consonant."""
    return word[:-1] + "i" if word.endswith("y") and len(word) > 2 and _letters(word)[-2] == "c" else word


def _step_2(word: str) -> str:
    """Double suffixes: -ational, -fulness."""
    if word.endswith("alli") and _measure(word[:-4]):
        return _step_2(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) else word
    return _ruled(word, STEP_2)


def _step_4(word: str) -> str:
    """Single suffixes after long beginnings."""
    if word.endswith("ion") and word[-4:-3] not in ("s", "t"):
        return word
    return _ruled(word, STEP_4, measure=2)


def _step_5(word: str) -> str:
    """A last -e, and the second of -ll."""
    if word.endswith("e"):
        before = word[:-1]
        measure = _measure(before)
        if measure > 1 or (measure == 1 and not _short(before)):
            word = before
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
