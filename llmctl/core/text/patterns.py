"""Byte-level BPE: the patterns that cut text into words, those of known tokenizers, and the spelling of bytes."""

from typing import NamedTuple


class Words(NamedTuple):
    """One way to cut text into words.

    Attributes:
        pattern: as tokenizer.json spells it; every character of a text is in one match.
        fast: the same matches for tiktoken's engine, with possessive repeats, which need no backtracking.
    """

    pattern: str
    fast: str


PATTERNS = {
    # Radford et al., 2019; ByteLevel's own.
    "gpt2": Words(
        r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        r"""'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s""",
    ),
    # OpenAI's cl100k_base, as Llama 3 has it: numbers of three digits at most, line ends kept with what is before.
    "llama3": Words(
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
        r"""|\s*[\r\n]+|\s+(?!\S)|\s+""",
        r"""'(?i:[stmd]|re|ve|ll)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
        r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    ),
    # Qwen 2 and 3: as Llama 3, and every digit alone.
    "qwen2": Words(
        r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
        r"""|\s*[\r\n]+|\s+(?!\S)|\s+""",
        r"""'(?i:[stmd]|re|ve|ll)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
        r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s""",
    ),
}


def byte_characters() -> list[str]:
    """(256,) the character that a byte-level vocabulary writes for each byte.

    Source: GPT-2's bytes_to_unicode: printable bytes of Latin-1 stand for themselves, the others for the
    characters from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]
