"""Lists that a user brings: patterns of refusals, words, groups of terms; each entry checked, its line named."""

import re
from pathlib import Path

from llmctl.core.safety.words import words
from llmctl.errors import UserError
from llmctl.spec.files import read_json


def read_patterns(path: Path) -> tuple[str, ...]:
    """The regular expressions of a file, one a line; blank lines and those that begin with # say nothing.

    Raises:
        UserError: the file cannot be read or holds none, or a line is no regular expression.
    """
    found = _lines(path)
    for at, line in found:
        try:
            re.compile(line, re.IGNORECASE)
        except re.error as error:
            raise UserError(f"{path}:{at}: {line!r} is no regular expression: {error}.", "Mend it.") from error
    return tuple(line for _, line in found)


def read_words(path: Path) -> tuple[str, ...]:
    """The words and phrases of a file, one a line; blank lines and those that begin with # say nothing.

    Raises:
        UserError: the file cannot be read or holds none, or a line has no word in it.
    """
    found = _lines(path)
    for at, line in found:
        if not words(line):
            raise UserError(f"{path}:{at}: {line!r} has no word in it.", "A word or phrase a line is wanted.")
    return tuple(line for _, line in found)


def read_terms(path: Path) -> dict[str, list[str]]:
    """Groups of terms from a JSON file: {"female": ["she", "her"], "male": ["he", "him"]}.

    Raises:
        UserError: the file cannot be read, or holds anything else, or fewer than two groups.
    """
    found = read_json(path, "groups of terms in JSON")
    for name, terms in found.items():
        if not isinstance(terms, list) or not terms or not all(isinstance(one, str) and words(one) for one in terms):
            raise UserError(f"{path}: {name!r} is {terms!r}, wanted a list of words.", 'As {"female": ["she", "her"]}.')
    if len(found) < 2:
        raise UserError(f"{path} has {len(found)} groups, wanted two or more.", 'As {"female": [...], "male": [...]}.')
    return found


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file, each with its number from 1, without the spaces around them, blank ones and comments."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    found = [(at, line.strip()) for at, line in enumerate(text.split("\n"), start=1)]
    found = [(at, line) for at, line in found if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{path} holds nothing but blank lines and comments.", "One entry a line is wanted.")
    return found
