"""The tensors of a model, its parameters, and the floating-point operations of a token, from its config alone."""

from math import prod

from llmctl.spec.model import ModelConfig
from llmctl.spec.setting import Setting

CHINCHILLA_TOKENS_PER_PARAMETER = 20


def linears(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The matrices of one layer by the last part of their name, each (out, in), in the order of the forward pass."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes = {
        "q": (queries, config.width),
        "k": (keys, config.width),
        "v": (keys, config.width),
        "out": (config.width, queries),
    }
    if config.gated:
        shapes["gate"] = (config.ff, config.width)
    return shapes | {"up": (config.ff, config.width), "down": (config.width, config.ff)}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of `core.model.Transformer`, by its name there; a tied head is absent."""
    found = outer_shapes(config)
    first = {name: shape for name, shape in found.items() if name.startswith("embed.")}
    for layer in range(config.layers):
        first |= layer_shapes(config, f"decoder.layers.{layer}.")
    return first | found


def outer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters outside the layers: embedding, last norm, head."""
    found: dict[str, tuple[int, ...]] = {"embed.tokens.weight": (config.vocab, config.width)}
    if config.position == "learned":
        found["embed.positions.weight"] = (config.context, config.width)
    if config.embed_norm:
        found |= _norm("embed.norm", config.width, config)
    found |= _norm("decoder.norm", config.width, config)
    if not config.tie:
        found["head.weight"] = (config.vocab, config.width)
    return found


def layer_shapes(config: ModelConfig, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """The shapes of one layer's parameters; every layer has the same."""
    biased = {"q": config.qkv_bias, "k": config.qkv_bias, "v": config.qkv_bias, "out": config.out_bias}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in linears(config).items():
        part = "attention" if name in biased else "mlp"
        found[f"{prefix}{part}.{name}.weight"] = shape
        if biased.get(name, config.mlp_bias):
            found[f"{prefix}{part}.{name}.bias"] = shape[:1]
    if config.qk_norm:
        found[f"{prefix}attention.q_norm.weight"] = (config.head_dim,)
        found[f"{prefix}attention.k_norm.weight"] = (config.head_dim,)
    return (
        found
        | _norm(f"{prefix}attention_norm", config.width, config)
        | _norm(f"{prefix}mlp_norm", config.width, config)
    )


def parameters(config: ModelConfig) -> int:
    """How many numbers the model learns; a tied head counts once."""
    one = sum(map(prod, layer_shapes(config).values()))
    return sum(map(prod, outer_shapes(config).values())) + config.layers * one


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that a token is multiplied by: all linear layers and the head, not the embedding's look-up."""
    return config.layers * sum(map(prod, linears(config).values())) + config.vocab * config.width


def forward_flops(config: ModelConfig, sequence: int, causal: bool = False) -> int:
    """Floating-point operations of the forward pass, a token, in rows of `sequence` tokens.

    Matrix products only, a multiply and an add counted as two. With `causal` the products above the
    diagonal, which need not be computed, are left out; without, all of them count, as is customary
    for the utilisation of hardware (MFU).

    Source: Chowdhery et al., PaLM, arXiv:2204.02311, appendix B; the linear part counts each matrix
    as it is, so that embeddings do not count and grouped keys and values do.
    """
    attention = sum(
        4 * config.heads * config.head_dim * _keys(sequence, config.window_of(layer), causal)
        for layer in range(config.layers)
    )
    return 2 * matrix_parameters(config) + round(attention / sequence)


def flops_per_token(config: ModelConfig, sequence: int, causal: bool = False) -> int:
    """Floating-point operations of training, a token: forward once, backward twice as much (no recompute)."""
    return 3 * forward_flops(config, sequence, causal)


def spent_flops(config: ModelConfig, setting: Setting) -> int:
    """Operations that a setting spends on a token: forward, backward, and what is computed again.

    Frozen matrices need no gradient, only pass one on: 4 operations a parameter in place of 6; adapters have their 6.
    """
    sequence = setting.sequence or config.context
    forward = forward_flops(config, sequence)
    if setting.mode == "inference":
        return forward
    matrices = 2 * matrix_parameters(config)
    spent = 3 * forward
    if setting.lora_rank:
        spent += 6 * adapter_parameters(config, setting) - matrices
    return spent + (forward - 2 * config.vocab * config.width if setting.recompute else 0)


def adapter_parameters(config: ModelConfig, setting: Setting) -> int:
    """Parameters of the LoRA adapters: r (in + out) a matrix. Source: Hu et al., arXiv:2106.09685, section 4.2."""
    sides = sum(sum(shape) for name, shape in linears(config).items() if name in setting.lora_targets)
    return config.layers * setting.lora_rank * sides


def six_n(config: ModelConfig) -> int:
    """The rule of thumb for training, operations a token: 6 N.

    Source: Kaplan et al., arXiv:2001.08361, section 2.1, with N all parameters, as Hoffmann et al. count them.
    """
    return 6 * parameters(config)


def chinchilla_tokens(config: ModelConfig) -> int:
    """The training tokens that suit the model's size best for a given compute: 20 a parameter.

    Source: Hoffmann et al., arXiv:2203.15556, table 3.
    """
    return CHINCHILLA_TOKENS_PER_PARAMETER * parameters(config)


def _norm(name: str, width: int, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {f"{name}.weight": (width,)}
    if config.norm == "layer":
        found[f"{name}.bias"] = (width,)
    return found


def _keys(sequence: int, window: int | None, causal: bool) -> int:
    """Keys met by all queries of a row together."""
    width = min(window or sequence, sequence)
    if not causal:
        return sequence * width
    return width * (width + 1) // 2 + (sequence - width) * width
