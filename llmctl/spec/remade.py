"""remade: the config.json of a checkpoint that is made from others, and which of these may be summed."""

from dataclasses import replace
from pathlib import Path

from llmctl.errors import Exit, UserError
from llmctl.spec.account import rules
from llmctl.spec.families import config_of, family_for
from llmctl.spec.model import ModelConfig
from llmctl.spec.peft import is_adapter

NAMED = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
SPELLED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
HEAD = "head.weight"


def remade(json: dict, before: ModelConfig, config: ModelConfig, dtype: str | None) -> dict:
    """The config.json of a model, from that of another which differs from it in heads, ties or type alone.

    What it says of other things stays as it is.

    Args:
        json: the other's.
        before: the other.
        config: the model.
        dtype: of its tensors: fp32, bf16 or fp16; None: as before.
    """
    if config != before:
        spelled = family_for(config).to_json(config)
        names = [rule.theirs for rule in rules(config)]
        mixed = {**json, **spelled}
        json = mixed if _says(mixed, names, config) else spelled
    return json if dtype is None else json | {"dtype": SPELLED[NAMED[dtype]], "torch_dtype": SPELLED[NAMED[dtype]]}


def _says(json: dict, names: list[str], config: ModelConfig) -> bool:
    """Whether a config.json says a model; lists of as many layers as another had would not."""
    try:
        return config_of(json, names) == config
    except UserError:
        return False


def check_plain(path: Path, json: dict) -> None:
    """That a directory holds a checkpoint whose weights are plain numbers, as its config.json tells.

    Raises:
        UserError: it is quantized, or an adapter.
    """
    if is_adapter(path):
        raise UserError(
            f"{path} is an adapter, not a checkpoint.",
            f"Merge it into its own base first: llmctl lora-merge {path} -o MERGED",
            Exit.MISMATCH,
        )
    if quantized := json.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise UserError(
            f"{path} is quantized ({method or 'quantization_config in its config.json'}), and this needs weights "
            "that are plain numbers.",
            "Name the checkpoint that it was quantized from, and quantize the result.",
            Exit.MISMATCH,
        )


def apart(config: ModelConfig) -> ModelConfig | None:
    """The same model with a head that is not its embedding; None where its family has no such form.

    A scale that only tied heads have is in the weights of the head then.
    """
    if not (config.tie and config.lm_head):
        return config
    for found in (replace(config, tie=False), replace(config, tie=False, logit_scale=1.0)):
        family = family_for(found)
        if family == family_for(config) and any(rule.ours == (HEAD,) for rule in rules(found, family)):
            return found
    return None


def some(items: list[str], comma: str = ", ") -> str:
    """The first three, and how many more."""
    return comma.join(items[:3]) + (f"{comma}and {len(items) - 3} more" if len(items) > 3 else "")
