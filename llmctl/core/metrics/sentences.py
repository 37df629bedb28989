"""Sentences of a text, by its signs: no model, nothing to download."""

import re

# What may end a sentence in scripts with spaces (European, Arabic, Indic, Armenian, Ethiopic), then closing quotes and
# brackets, then white space; and in scripts without, where no space follows.
END = re.compile(r"""([.!?…؟۔।॥։።፧]+["'”’»)\]]*)\s+|([。！？｡]+[」』”’）】]*)\s*|\s*\n\s*""")
OPENING = "\"'“‘«([¿¡„"
# Words whose full stop ends no sentence; those of NUMBERED only before a number ("No. 5", "Jan. 7").
TITLES = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "st", "sen", "rep", "gov", "gen", "col", "lt", "capt", "sgt", "hon", "rev"),
        *("messrs", "mt", "vs", "cf", "e.g", "i.e", "viz"),
    )
)
NUMBERED = frozenset(
    (
        *("no", "nos", "fig", "figs", "eq", "eqs", "vol", "vols", "p", "pp", "art", "sec", "ch", "al", "approx", "ca"),
        *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"),
    )
)
INITIAL = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")  # "J" of "J. Smith", "U.S" of "U.S. Army"


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the white space around them; none is empty.

    A line's end always ends one; so does a full stop, question mark, exclamation mark or ellipsis before white space,
    unless a small letter follows, or the word before a single full stop is an initial or a title ("Dr.").
    """
    found, begin = [], 0
    for end in END.finditer(text):
        if end[1] and not _ends(text[begin : end.start()], end[1], text[end.end() : end.end() + 2], end[0]):
            continue
        found.append(text[begin : end.end()])
        begin = end.end()
    found.append(text[begin:])
    return [sentence for sentence in map(str.strip, found) if sentence]


def _ends(before: str, signs: str, after: str, whole: str) -> bool:
    """Whether signs between a beginning and what comes next end a sentence."""
    if "\n" in whole or not after:
        return True
    first = after[1:] if after[0] in OPENING else after[:1]
    if first.islower():
        return False
    if signs != ".":
        return True
    word = before.split()[-1].lstrip(OPENING) if before.strip() else ""
    if word.lower() in TITLES or (word.lower() in NUMBERED and first.isdigit()):
        return False
    return word == "I" or not (INITIAL.fullmatch(word) and word[-1].isupper())
