"""Amounts of memory, as people write them."""

import re

from llmctl.errors import Exit, UserError

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def size_of(text: str, flag: str) -> int:
    """Bytes of "24GiB", "80GB", "500M" or "16000000".

    Raises:
        UserError: the text is none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmgt]?)(i?)b?)\s*", text.lower())
    if not match or (match[3] and not match[2]):
        raise UserError(f"{flag} is {text!r}, which is no size.", "Write it as 24GiB, 80GB or 500MB.", Exit.USAGE)
    return int(float(match[1]) * (BINARY[match[2]] if match[3] else UNITS[match[2]]))
