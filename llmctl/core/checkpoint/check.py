"""Check of a checkpoint: headers, tensors against config.json, special ids and tokenizer against the vocabulary."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmctl.core.checkpoint.values import not_finite, same_bytes
from llmctl.errors import UserError
from llmctl.spec.account import account
from llmctl.spec.contents import every_tensor, has_weights
from llmctl.spec.families import config_within, family_of, read_config_json
from llmctl.spec.files import read_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.peft import CONFIG, base_of, read_adapter, weights_of
from llmctl.spec.quantized_config import Quantized, quantized
from llmctl.spec.safetensors import INDEX, TensorInfo, read_header, read_tensors
from llmctl.spec.whole import Problem

NATIVE = ("bos", "eos", "pad")  # special ids as a config.json of our own spells them
NONE = {"pad_token_id": -1}  # how some say that there is no such id


def check_checkpoint(
    directory: Path, values: bool, note: Callable[[str], None], read: Callable[[int], None]
) -> Iterator[Problem]:
    """What does not fit in a checkpoint directory, or in that of a single file.

    Args:
        values: read all weights, for infinities and NaNs.
        note: told what could not be checked.
        read: told the bytes of weights that have been read.
    """
    tensors, problems = _tensors(directory)
    yield from problems
    json: dict[str, Any] | None = None
    config = None
    if (directory / "config.json").is_file():
        try:
            json = read_config_json(directory)
        except UserError as error:
            yield Problem.of(directory / "config.json", error, "config")
    elif tensors:
        note(f"{directory} has no config.json, so shapes were not checked.")
    if json is not None:
        try:
            family_of(json)
        except UserError as error:
            note(f"{directory}: {error.problem} Shapes were not checked.")
        else:
            try:
                config = config_within(json, tensors)
            except UserError as error:
                yield Problem.of(directory / "config.json", error, "config")
    if config is not None and tensors is not None:
        yield from _fit(directory, tensors, config, quantized(json))
    vocab = config.vocab if config is not None else (json or {}).get("vocab_size")
    if type(vocab) is int:
        yield from _special(directory, json or {}, vocab)
        yield from check_tokenizer(directory, vocab)
    if values and tensors:
        yield from check_values(directory, tensors, read)


def check_adapter(
    directory: Path, values: bool, note: Callable[[str], None], read: Callable[[int], None]
) -> Iterator[Problem]:
    """What does not fit in an adapter's directory, or of it in its base; arguments as for `check_checkpoint`."""
    from llmctl.core.checkpoint.directory import Checkpoint

    try:
        read_adapter(directory)
    except UserError as error:
        yield Problem.of(directory / CONFIG, error, "config")
        return
    try:
        file = weights_of(directory)
        tensors, _ = read_header(file)
    except UserError as error:
        yield Problem.of(directory, error, "header")
        return
    try:
        base_of(directory)
    except UserError as error:
        note(f"{error.problem} So it was not checked whether the adapter fits it.")
    else:
        try:
            Checkpoint.open(directory).model()
        except UserError as error:
            yield Problem.of(directory, error, "tensors")
    if values:
        yield from check_values(directory, tensors, read)


def check_values(directory: Path, tensors: dict[str, TensorInfo], read: Callable[[int], None]) -> Iterator[Problem]:
    """The tensors that have infinities or NaNs."""
    for name, info in tensors.items():
        if count := not_finite(directory, info):
            text = f"{name} has {count:,} value{'s' * (count > 1)} that {'are' if count > 1 else 'is'} infinite or NaN."
            yield Problem(str(directory / info.file), text, "values")
        read(info.bytes)


def check_tokenizer(directory: Path, vocab: int) -> Iterator[Problem]:
    """What of the tokenizer, where there is one, does not fit the model's `vocab` rows."""
    if not any((directory / name).is_file() for name in ("tokenizer.json", "merges.txt", "vocab.txt")):
        return
    from llmctl.core.text.tokenizer import Tokenizer

    try:
        size = Tokenizer.open(directory).size
    except UserError as error:
        yield Problem.of(directory, error, "vocabulary")
        return
    if size > vocab:
        text = f"the tokenizer has ids up to {size - 1}, but the model's vocabulary ends at {vocab - 1}."
        yield Problem(str(directory), text, "vocabulary")


def _tensors(directory: Path) -> tuple[dict[str, TensorInfo] | None, list[Problem]]:
    """The tensors, None where they cannot be known; every header that is not sound, or how files and index disagree."""
    if not has_weights(directory):
        return None, [Problem(str(directory), "holds no weights.", "missing")]
    problems = []
    for file in sorted(directory.glob("*.safetensors")):
        try:
            read_header(file)
        except UserError as error:
            problems.append(Problem.of(file, error, "header"))
    if problems:
        return None, problems
    whole = (directory / "config.json").is_file() or (directory / INDEX).is_file()
    try:
        return (read_tensors if whole else every_tensor)(directory), []
    except UserError as error:
        return None, [Problem.of(directory, error, "tensors")]


def _fit(
    directory: Path, tensors: dict[str, TensorInfo], config: ModelConfig, said: Quantized | None
) -> Iterator[Problem]:
    try:
        found = account(tensors, config, str(directory), said)
    except UserError as error:
        yield Problem.of(directory, error, "tensors")
        return
    for copy, rule in found.copies:
        original = found.stored[rule]
        if original.dtype != copy.dtype or not same_bytes(directory, original, directory, copy):
            text = f"{copy.name} differs from {original.name}, but config.json ties the two."
            yield Problem(str(directory / copy.file), text, "tensors")


def _special(directory: Path, config: dict[str, Any], vocab: int) -> Iterator[Problem]:
    """The special ids of config.json and generation_config.json that are no ids of the vocabulary."""
    path = directory / "generation_config.json"
    generation: dict[str, Any] = {}
    if path.is_file():
        try:
            generation = read_json(path, "generation_config.json")
        except UserError as error:
            yield Problem.of(path, error, "config")
    for file, json in ((directory / "config.json", config), (path, generation)):
        for key, value in json.items():
            if not key.endswith("_token_id") and key not in NATIVE:
                continue
            for one in value if isinstance(value, list) else [value]:
                if one is None or one == NONE.get(key):
                    continue
                if type(one) is not int or not 0 <= one < vocab:
                    yield Problem(str(file), f"{key} is {one!r}; the vocabulary is 0 to {vocab - 1}.", "vocabulary")
