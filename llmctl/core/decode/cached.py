"""cached: the beginning of prompts that a file keeps, so that it is read once and not in every run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmctl.core.decode.native.engine import made
from llmctl.core.decode.prefix import Prefix
from llmctl.core.decode.rows import SHARED, common, rows_of
from llmctl.core.model.position import BY_ROW
from llmctl.core.model.slots import CHUNK, SLACK
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.fingerprint import fingerprint
from llmctl.spec.model import ModelConfig
from llmctl.spec.search import Strategy


def unkept(config: ModelConfig, kv_bits: int = 0, strategy: Strategy = "tokens") -> str:
    """Why what a model makes of a prompt cannot be kept in a file, as the end of a sentence; "" if it can."""
    scaling = config.rope_scaling
    reasons = {
        "an encoder-decoder reads no prompt with its decoder": config.kind != "decoder",
        "a model with linear attention keeps sums, and not keys and values": config.attention == "linear",
        "the tokens of a prompt see those after them": config.prefix_lm,
        "the angles of its positions change with the length of a text": scaling is not None and scaling.kind in BY_ROW,
        f"keys and values are kept in {kv_bits} bits": bool(kv_bits),
        "contrastive search looks at the states of all tokens, which are not kept": strategy == "contrastive",
    }
    return next((reason for reason, found in reasons.items() if found), "")


def kept(file: Path, checkpoint: Path, model: Transformer, ids: Sequence[int]) -> tuple[Prefix | None, str]:
    """What a file keeps of a prompt; where there is no file, the prompt is read and the file written.

    Args:
        checkpoint: of the model, or of its adapter.
        model: as `ready` made it.
        ids: of the prompt.

    Returns:
        The beginning, None where there is none to speak of; and what a person should hear about it.

    Raises:
        UserError: the file is of another model or dtype, or cannot be read or written.
    """
    whose = fingerprint(checkpoint)
    weight = next(model.parameters())
    if not file.exists():
        if len(ids) < SHARED:
            return None, f"the prompt has {len(ids)} tokens, and {file} is not written for fewer than {SHARED}."
        rows = rows_of(model)
        rows.add([ids])
        prefix = rows.snapshot(0, len(ids))
        if prefix is None:
            return None, f"{file} is not written: the model has let go of the beginning, which is out of its window."
        prefix.save(file, whose)
        return prefix, ""
    prefix = Prefix.load(file, whose, weight.dtype, weight.device)
    _check(prefix, file, model)
    alike = common((prefix.ids, ids))
    if alike < SHARED:
        return None, f"the prompt does not begin as that of {file} does: {alike} of {len(prefix.ids)} tokens agree."
    return _fitting(prefix, model), ""


def _check(prefix: Prefix, file: Path, model: Transformer) -> None:
    config, tokens = model.config, len(prefix.ids) + model.virtual_tokens("decoder")
    wanted = [(config.kv_heads, tokens, config.head_dim)] * 2
    found = [[tuple(one.shape) for one in pair] for pair in prefix.pairs]
    if found != [wanted] * config.layers:
        raise UserError(
            f"{file} does not hold keys and values of {tokens} tokens in {config.layers} layers.",
            f"Remove it, and it is made anew: rm {file}",
            Exit.MISMATCH,
        )


def _fitting(prefix: Prefix, model: Transformer) -> Prefix:
    """No more of a beginning than layers have room for that let go of what is out of their window."""
    config = model.config
    if config.window is None or made(model):
        return prefix
    room = config.window + SLACK + CHUNK - model.virtual_tokens("decoder")
    return replace(prefix, ids=prefix.ids[:room])
