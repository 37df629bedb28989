"""What a sentence-transformers directory says of its vectors: modules.json, and a config.json for each module."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.files import read_json

Pooling = Literal["mean", "cls", "last"]
Activation = Literal["none", "tanh"]

# How 1_Pooling/config.json spells them: a flag each, or since version 5 one word.
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_WORDS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_ACTIVATIONS: dict[str, Activation] = {"Identity": "none", "Tanh": "tanh"}
HINT = "Say what is wanted by --pooling and --normalize, and name the directory of its transformer."


@dataclass(frozen=True)
class Dense:
    """A dense layer after the pooling; its weights lie in `path`."""

    path: str
    inputs: int
    outputs: int
    bias: bool
    activation: Activation


@dataclass(frozen=True)
class Sentence:
    """How texts become vectors.

    Attributes:
        transformer: the directory of the model itself.
        pooling: None where nothing is said.
        normalize: whether vectors have length 1.
        limit: tokens of a text, special ones included; None where nothing is said.
        layers: dense layers between pooling and normalisation.
    """

    transformer: Path
    pooling: Pooling | None = None
    normalize: bool = False
    limit: int | None = None
    layers: tuple[Dense, ...] = ()


def read_sentence(directory: Path) -> Sentence:
    """What a directory says; of one without modules.json, that it is the model itself.

    Raises:
        UserError: files that cannot be read, or a module that is not implemented.
    """
    if not (directory / "modules.json").is_file():
        return Sentence(directory)
    found: dict = {"transformer": directory, "layers": ()}
    for module in _modules(directory / "modules.json"):
        kind, place = str(module.get("type")).rpartition(".")[2], directory / str(module.get("path") or "")
        if kind == "Transformer":
            found |= {"transformer": place, "limit": _limit(place)}
        elif kind == "Pooling":
            found["pooling"] = _pooling(place / "config.json")
        elif kind == "Dense" and "normalize" not in found:
            found["layers"] += (_dense(place),)
        elif kind == "Normalize":
            found["normalize"] = True
        elif kind != "Dropout":
            raise UserError(
                f"{directory}/modules.json has a module {kind!r}, which is not done here.", HINT, Exit.MISMATCH
            )
    return Sentence(**found)


def _modules(path: Path) -> list[dict]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.", "Fetch it again.") from error
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise UserError(f"{path} is not a list of modules.", "Fetch it again.")
    return modules


def _limit(directory: Path) -> int | None:
    """max_seq_length of sentence_bert_config.json, or of its like."""
    for path in sorted(directory.glob("sentence_*_config.json")):
        limit = read_json(path).get("max_seq_length")
        if type(limit) is int and limit > 0:
            return limit
    return None


def _pooling(path: Path) -> Pooling:
    said = read_json(path)
    word = said.get("pooling_mode")
    flags = [name for name, value in said.items() if name.startswith("pooling_mode_") and value is True]
    modes = (
        [_WORDS.get(word) if isinstance(word, str) else None] if word is not None else [_FLAGS.get(n) for n in flags]
    )
    if len(modes) != 1 or modes[0] is None:
        asked = word or ", ".join(flags) or "nothing"
        raise UserError(f"{path} asks for {asked}; wanted mean, cls or last.", HINT, Exit.MISMATCH)
    return modes[0]


def _dense(place: Path) -> Dense:
    said = read_json(place / "config.json")
    activation = _ACTIVATIONS.get(str(said.get("activation_function")).rpartition(".")[2])
    sizes = [said.get("in_features"), said.get("out_features")]
    if activation is None or not all(type(size) is int and size > 0 for size in sizes):
        asked = f"{said.get('activation_function')} of {sizes[0]} to {sizes[1]}"
        raise UserError(f"{place}/config.json asks for {asked}, which is not done here.", HINT, Exit.MISMATCH)
    return Dense(str(place), *sizes, bias=said.get("bias", True) is not False, activation=activation)
