"""carry: the small files of a checkpoint, from those it is made of: config, generation config, tokenizer."""

import shutil
from pathlib import Path

from llmctl.core.text.tokenizer import TOKENIZER_FILES
from llmctl.spec.files import read_json, write_json

_VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt")
_TEMPLATE, _GENERATION = "chat_template.jinja", "generation_config.json"


def carry(directory: Path, json: dict, sources: list[Path]) -> None:
    """Write config.json and copy what else a checkpoint has beside its weights.

    The tokenizer is that of the first source that has one, the same for generation_config.json. A chat template that
    the tokenizer's own directory lacks is that of the first source that has it.

    Args:
        directory: an existing directory.
        json: contents of config.json.
        sources: directories, the foremost first.
    """
    write_json(directory / "config.json", json)
    for source in sources:
        if any((source / name).is_file() for name in _VOCABULARY):
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, directory / name)
            break
    if not _templated(directory):
        _first(_TEMPLATE, sources, directory)
    _first(_GENERATION, sources, directory)


def _first(name: str, sources: list[Path], directory: Path) -> None:
    source = next((source for source in sources if (source / name).is_file()), None)
    if source is not None:
        shutil.copyfile(source / name, directory / name)


def _templated(directory: Path) -> bool:
    """Whether the tokenizer has a chat template, in either place."""
    config = directory / "tokenizer_config.json"
    said = config.is_file() and read_json(config, "tokenizer_config.json").get("chat_template")
    return bool(said) or (directory / _TEMPLATE).is_file()
