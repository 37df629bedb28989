"""Which models a command works on: those that have the stacks and heads it needs; and what to use for the others."""

from typing import Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.model import Kind, ModelConfig
from llmctl.spec.sample import KV_BITS, KvDtype

Task = Literal["generate", "chat", "eval-ppl", "score", "fill-mask", "embed", "classify", "eval-memorization"]

# What each kind of model is asked, by the commands that suit it.
_HINTS: dict[Kind, str] = {
    "decoder": "llmctl generate continues texts with it, llmctl eval-ppl scores them, llmctl embed makes vectors.",
    "encoder": "llmctl fill-mask fills in words, llmctl eval-ppl scores texts, llmctl embed makes vectors, "
    "llmctl classify gives labels.",
    "encoder-decoder": "llmctl generate answers texts with it, llmctl embed makes vectors of them.",
}
_KINDS: dict[Task, tuple[Kind, ...]] = {
    "generate": ("decoder", "encoder-decoder"),
    "chat": ("decoder",),
    "eval-ppl": ("decoder", "encoder", "encoder-decoder"),
    "score": ("decoder", "encoder", "encoder-decoder"),
    "fill-mask": ("encoder",),
    "embed": ("decoder", "encoder", "encoder-decoder"),
    "classify": ("decoder", "encoder", "encoder-decoder"),
    "eval-memorization": ("decoder",),
}
_WHY: dict[tuple[Task, Kind], str] = {
    ("generate", "encoder"): "which reads whole texts and does not write any",
    ("chat", "encoder"): "which reads whole texts and does not write any",
    ("chat", "encoder-decoder"): "which answers a text and not a conversation",
    ("eval-memorization", "encoder"): "which reads whole texts and does not go on with them",
    ("eval-memorization", "encoder-decoder"): "which answers a text and does not go on with it",
    ("fill-mask", "decoder"): "which knows no mask",
    ("fill-mask", "encoder-decoder"): "which writes what is missing",
}


def suited(task: Task, config: ModelConfig, name: object) -> None:
    """Check that a model can do what a command asks of it.

    Args:
        name: of the checkpoint, for the error.

    Raises:
        UserError: it is of another kind, or lacks the head.
    """
    if config.kind not in _KINDS[task]:
        hint = _HINTS[config.kind]
        if task == "fill-mask" and config.kind == "encoder-decoder":
            hint = f'llmctl generate {name} --special -p "... <extra_id_0> ..." fills sentinels, if it was trained to.'
        raise UserError(
            f"{name} holds an {config.kind}, {_WHY[task, config.kind]}.".replace("an decoder", "a decoder"),
            hint,
            Exit.MISMATCH,
        )
    if task not in ("embed", "classify") and not config.lm_head:
        raise UserError(f"{name} has no head that scores tokens; {has(config)}.", _other(config), Exit.MISMATCH)
    if task == "classify" and config.classifier == "none":
        raise UserError(f"{name} has no head that scores labels; {has(config)}.", _other(config), Exit.MISMATCH)


def check_kv(wanted: KvDtype, config: ModelConfig, name: object) -> None:
    """Check that a model's keys and values can be kept in a type.

    Args:
        name: of the checkpoint, for the error.

    Raises:
        UserError: it has none, or not of an even number of channels.
    """
    bits = KV_BITS[wanted]
    if bits and config.attention == "linear":
        raise UserError(f"--kv-dtype is {wanted}, but {name} keeps sums, not keys and values.", "Leave it out.")
    if bits == 4 and config.head_dim % 2:
        raise UserError(
            f"--kv-dtype int4 takes channels by twos, but {name} has heads of {config.head_dim}.", "Use int8."
        )


def has(config: ModelConfig) -> str:
    """The heads that a model has, in words."""
    labels = f"scores of {len(config.labels)} labels for each {'token' if config.classifier == 'token' else 'text'}"
    found = {
        "scores of tokens": config.lm_head,
        "a pooler": config.pooler,
        "next-sentence scores": config.next_sentence,
        labels: config.classifier != "none",
    }
    return f"it has {', '.join(name for name, there in found.items() if there) or 'none'}"


def _other(config: ModelConfig) -> str:
    if config.classifier != "none":
        level = " --level token" if config.classifier == "token" else ""
        return f"llmctl classify{level} gives the labels; llmctl embed works on every model."
    return "Name a checkpoint that was saved with it; llmctl embed works on every model."
