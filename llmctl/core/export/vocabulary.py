"""Vocabulary: the tokenizer of a checkpoint as the keys of a GGUF file."""

import json

from llmctl.core.decode.prompt import stop_ids
from llmctl.core.export.pieces import CONTROL, NORMAL, UNUSED, USER, pieces_of
from llmctl.core.text.chat import own_template
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig

_ROLES = {
    "bos": "bos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # sic
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}


def vocabulary(tokenizer: Tokenizer, config: ModelConfig, generation: dict) -> tuple[dict[str, object], list[str]]:
    """The keys of a file that say the tokenizer, and where it is not quite that in llama.cpp.

    Args:
        generation: contents of generation_config.json.

    Raises:
        UserError: llama.cpp has no such tokenizer, or it has more tokens than the model.
    """
    if tokenizer.size > config.vocab:
        raise UserError(
            f"The tokenizer has ids up to {tokenizer.size - 1}, but the model knows only those below {config.vocab}.",
            "The tokenizer files in this checkpoint belong to another model.",
            Exit.MISMATCH,
        )
    parts = json.loads(tokenizer.backend.to_str())
    tokens, kinds = _tokens(tokenizer, parts, config.vocab)
    made = pieces_of(parts, tokens, kinds)
    twice = len(made.tokens) - len(set(made.tokens))
    if twice:
        raise UserError(
            f"{twice} tokens of the tokenizer would have the name of another.", "llama.cpp wants names.", Exit.MISMATCH
        )
    keys: dict[str, object] = {
        "tokenizer.ggml.model": made.model,
        "tokenizer.ggml.pre": made.pre,
        "tokenizer.ggml.tokens": made.tokens,
        "tokenizer.ggml.token_type": made.kinds,
    }
    if made.scores is not None:
        keys["tokenizer.ggml.scores"] = made.scores
    if made.merges is not None:
        keys["tokenizer.ggml.merges"] = made.merges
    ends, notes = ({}, []) if config.kind == "encoder" else _ends(tokenizer, config, generation)
    keys |= {**made.keys, **_special(tokenizer, config), **ends}
    if config.kind == "encoder":
        keys["tokenizer.ggml.token_type_count"] = max(1, config.token_types)
    if template := own_template(tokenizer):
        keys["tokenizer.chat_template"] = template
    return keys, [*made.notes, *notes]


def _tokens(tokenizer: Tokenizer, parts: dict, rows: int) -> tuple[list[str], list[int]]:
    """The tokens by id and their kinds; ids that name none are unused, up to the rows of the embedding."""
    names = tokenizer.backend.get_vocab(with_added_tokens=True)
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [UNUSED] * rows
    for i in range(rows):
        while tokens[i] in names:
            tokens[i] += "_"
    for name, i in names.items():
        tokens[i], kinds[i] = name, NORMAL
    for added in parts["added_tokens"]:
        kinds[added["id"]] = CONTROL if added["special"] else USER
    return tokens, kinds


def _special(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, object]:
    """Which tokens have a role, and which are put around a text."""
    found: dict[str, object] = {}
    for role, name in _ROLES.items():
        if (id := getattr(tokenizer, role)) is not None:
            found[f"tokenizer.ggml.{name}"] = id
    if config.kind == "decoder":
        return {**found, "tokenizer.ggml.add_bos_token": tokenizer.begins, "tokenizer.ggml.add_eos_token": False}
    before, after = tokenizer.frame
    if before:
        found["tokenizer.ggml.bos_token_id"] = before[0]
    if config.kind == "encoder" and after:  # which of the two is put there, the kind of tokenizer decides
        found |= {f"tokenizer.ggml.{name}_token_id": after[-1] for name in ("seperator", "eos")}
    sep = {"tokenizer.ggml.add_sep_token": bool(after)} if config.kind == "encoder" else {}
    ends = {"tokenizer.ggml.add_eos_token": bool(after)}
    return {**found, **sep, "tokenizer.ggml.add_bos_token": bool(before), **ends}


def _ends(tokenizer: Tokenizer, config: ModelConfig, generation: dict) -> tuple[dict[str, object], list[str]]:
    """Which tokens end a text: llama.cpp has three names for such."""
    stops = stop_ids(tokenizer, config, generation)
    known = sorted((one for one in stops if one < config.vocab), key=lambda one: (one != tokenizer.eos, one))
    names = ("eos", "eot", "eom")
    found: dict[str, object] = {f"tokenizer.ggml.{name}_token_id": id for name, id in zip(names, known, strict=False)}
    if len(known) > len(names):
        more = ", ".join(str(tokenizer.token(id)) for id in known[len(names) :])
        return found, [f"llama.cpp is told of three tokens that end a text; {more} are left out."]
    if known:
        return found, []
    spare = next((id for id in (tokenizer.pad, tokenizer.bos, tokenizer.unk) if id is not None), None)
    if spare is None:
        return {}, ["no token ends a text, so llama.cpp takes one by its number; tell it to go on (--ignore-eos)."]
    return {"tokenizer.ggml.eos_token_id": spare}, []
