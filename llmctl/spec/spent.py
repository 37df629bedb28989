"""spent: the floating-point operations that a way of training or running spends on a token."""

from math import prod

from llmctl.spec.model import ModelConfig
from llmctl.spec.setting import Setting
from llmctl.spec.sizes import forward_flops, head_products, linears, products
from llmctl.spec.trained import added_shapes, own_shapes


def spent_flops(config: ModelConfig, setting: Setting) -> int:
    """Operations that a setting spends on a token: forward, backward, and what is computed again.

    Frozen matrices need no gradient, only pass one on: 4 operations a parameter in place of 6; adapters have their 6.
    """
    lengths, share = setting.lengths(config), setting.share(config)
    forward = forward_flops(config, lengths[config.last_stack], False, setting.source, share)
    if setting.mode == "inference":
        return forward
    tokens, spent, tuning = sum(lengths.values()), 3 * forward, setting.tuning
    if tuning.makes_adapter or tuning.method != "full" or tuning.train:
        frozen = products(config, lengths, share)
        own = own_shapes(config, tuning)
        met = {name: prod(shape) * _tokens(name, lengths) for name, shape in own.items() if _is_matrix(name, config)}
        added = added_shapes(config, tuning)
        low = sum(prod(shape) * _tokens(name, lengths) for name, shape in added.items() if name.endswith((".a", ".b")))
        head = "embed.tokens.weight" if config.tie else "head.weight"
        learned = sum(met.values()) + (head in own) * lengths[config.last_stack] * share * head_products(config)
        spent += round((6 * low - 2 * (frozen - learned)) / tokens)
    head = lengths[config.last_stack] * share * head_products(config) / tokens
    return spent + (forward - round(2 * head) if setting.recompute else 0)


def _is_matrix(name: str, config: ModelConfig) -> bool:
    """Whether a parameter is a matrix of the layers."""
    parts = name.split(".")
    return ".layers." in name and parts[-1] == "weight" and parts[-2] in linears(config)


def _tokens(name: str, lengths: dict[str, int]) -> int:
    """How many tokens of a row meet a parameter; keys and values of cross-attention are made of the encoder's."""
    if ".cross_attention.k." in name or ".cross_attention.v." in name:
        return lengths["encoder"]
    return lengths.get(name.partition(".")[0], 0)
