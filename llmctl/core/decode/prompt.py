"""What goes into a model and what ends it: a prompt's ids, the ids that stop a completion, prompts read from files."""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from llmctl.core.data.streams import opened
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Format

FIELDS = ("prompt", "text")  # where a record's prompt is looked for when no field is named


@dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
        number: of the record in the input, from 0; bad records count too.
        text: the prompt.
        record: the JSON object that it came in; None for plain text.
        error: why there is no prompt; "" when there is one.
    """

    number: int
    text: str
    record: dict[str, object] | None = None
    error: str = ""


def prompt_ids(tokenizer: Tokenizer, text: str, config: ModelConfig, special: bool = False) -> list[int]:
    """The ids that the model reads: the text's, after the beginning-of-text token where the tokenizer puts one.

    Args:
        special: parse special tokens typed in the text; a beginning-of-text token that is typed is not added again.

    Raises:
        UserError: the text is empty and there is no token to begin with, or it does not fit the model.
    """
    ids = tokenizer.encode(text, special=special)
    if tokenizer.begins and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        ids = [tokenizer.bos, *ids]
    if not ids:
        start = start_id(tokenizer, config)
        if start is None:
            raise UserError(
                "The prompt is empty, and this model has no token that begins a text.", "Give it a word.", Exit.USAGE
            )
        ids = [start]
    if max(ids) >= config.vocab:
        raise UserError(
            f"The tokenizer gives the id {max(ids)}, but the model knows only ids below {config.vocab}.",
            "The tokenizer files in this checkpoint belong to another model.",
            Exit.MISMATCH,
        )
    if len(ids) > config.context:
        raise UserError(
            f"The prompt has {len(ids)} tokens; the model's context holds {config.context}.", "Shorten the prompt."
        )
    return ids


def start_id(tokenizer: Tokenizer, config: ModelConfig) -> int | None:
    """The token that a text begins after: beginning-of-text, or else the end of the text before it, or None.

    config.json has its say only where the tokenizer calls the token special: many a config names ids by default.
    """
    named = [token for token in (config.bos, *config.eos) if token in tokenizer.special_ids]
    for token in (tokenizer.bos, tokenizer.eos, *named):
        if token is not None and token < config.vocab:
            return token
    return None


def stop_ids(tokenizer: Tokenizer, config: ModelConfig, generation: dict[str, object]) -> frozenset[int]:
    """Every id that ends a text: what generation_config.json, config.json and the tokenizer call end-of-text."""
    listed = generation.get("eos_token_id")
    named = listed if isinstance(listed, list) else [listed]
    return frozenset(token for token in (*named, *config.eos, tokenizer.eos) if isinstance(token, int))


def special_stops(tokenizer: Tokenizer, stops: Iterable[str]) -> frozenset[int]:
    """The ids of stop strings that are special tokens, since the text of those is not shown and so never found."""
    parsed = {stop: tokenizer.encode(stop, special=True) for stop in stops}
    return frozenset(ids[0] for ids in parsed.values() if len(ids) == 1 and ids[0] in tokenizer.special_ids)


def read_prompts(path: str, format: Format, field: str | None = None) -> Iterator[Request]:
    """The prompts of a file, or of stdin for "-", one at a time; JSON records where it holds such.

    Raises:
        UserError: the file cannot be read.
    """
    with opened(path) as stream:
        kind = _format(path, stream) if format == "auto" else format
        if stream.peek(3).startswith(codecs.BOM_UTF8):
            stream.read(3)
        if kind == "jsonl":
            yield from from_jsonl(stream, field)
        else:
            yield from from_lines(iter([stream.read()] if kind == "text" else stream), kind == "text")


def _format(path: str, stream: BufferedReader) -> Format:
    """How a file holds prompts, by its name or else by its first line."""
    endings = Path(path.lower()).suffixes
    if any(ending in (".jsonl", ".ndjson", ".json") for ending in endings):
        return "jsonl"
    first = stream.peek(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")[0]
    if ".txt" in endings or not first.startswith(b"{"):
        return "lines"
    try:
        return "jsonl" if isinstance(json.loads(first), dict) else "lines"
    except ValueError:
        return "lines"


def from_lines(lines: Iterable[bytes], whole: bool = False) -> Iterator[Request]:
    """A prompt a line, byte for byte but for the line's end; or, if `whole`, each piece with its line ends."""
    for number, line in enumerate(lines):
        text = line if whole else line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield Request(number, text.decode())
        except UnicodeDecodeError as error:
            yield Request(number, "", error=f"line {number + 1} is not UTF-8: byte 0x{text[error.start]:02x}")


def from_jsonl(lines: Iterable[bytes], field: str | None = None) -> Iterator[Request]:
    """A prompt a JSON object, from the named field or the first of FIELDS that is there; blank lines are skipped."""
    number = -1
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        number += 1
        try:
            record = json.loads(line)
        except ValueError as error:
            yield Request(number, "", {}, f"line {at} is not JSON: {error}")
            continue
        if not isinstance(record, dict):
            yield Request(number, "", {}, f"line {at} is a JSON {type(record).__name__}, wanted an object")
            continue
        name = field or next((name for name in FIELDS if name in record), FIELDS[0])
        text = record.get(name)
        error = ""
        if name not in record:
            error = f"line {at} has no field {name!r}, only {', '.join(map(repr, record)) or 'none'}"
        elif not isinstance(text, str):
            error = f"line {at}: the field {name!r} is not a string"
        elif any("\ud800" <= letter <= "\udfff" for letter in text):
            error = f"line {at}: the field {name!r} holds half of a surrogate pair, which is no character"
        yield Request(number, "" if error else text, record, error)
