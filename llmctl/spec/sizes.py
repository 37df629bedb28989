"""The tensors of a model, its parameters, and the floating-point operations of a token, from its config alone."""

from math import prod

from llmctl.spec.model import ModelConfig
from llmctl.spec.setting import Setting

CHINCHILLA_TOKENS_PER_PARAMETER = 20
LINEAR_CHUNK = 64  # tokens that linear attention weighs one by one (core/model/linear.py)


def linears(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The matrices of one layer by the last part of their name, each (out, in), in the order of the forward pass.

    Cross-attention, where there is one, has the first four a second time.
    """
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
    first = {name: shape for name, shape in found.items() if name.startswith(("embed.", "encoder_embed."))}
    for stack, layers in config.stacks.items():
        for layer in range(layers):
            first |= layer_shapes(config, f"{stack}.layers.{layer}.", crossed(config, stack))
    return first | found


def crossed(config: ModelConfig, stack: str) -> bool:
    """Whether the layers of a stack have cross-attention."""
    return stack == "decoder" and config.kind == "encoder-decoder"


def outer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters outside the layers: embeddings, relative positions, last norms, heads."""
    width = config.width
    found: dict[str, tuple[int, ...]] = {"embed.tokens.weight": (config.vocab, width)}
    if config.token_types:
        found["embed.types.weight"] = (config.token_types, width)
    for embed in ("embed", "encoder_embed") if config.kind == "encoder-decoder" else ("embed",):
        if config.position == "learned":
            found[f"{embed}.positions.weight"] = (config.context + config.position_offset, width)
        if config.embed_norm:
            found |= _norm(f"{embed}.norm", width, config)
    for stack in config.stacks:
        if config.position == "relative":
            found[f"{stack}.relative.weight"] = (config.relative_buckets, config.heads)
        if config.norm_place != "post":
            found |= _norm(f"{stack}.norm", width, config)
    return found | _head_shapes(config)


def _head_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of tokens, of the pooler, of pairs and of labels."""
    width = config.width
    found: dict[str, tuple[int, ...]] = {}
    if config.lm_head:
        if config.head_transform:
            found |= _dense("head.transform", width, width)
            found |= {"head.norm.weight": (width,), "head.norm.bias": (width,)}
        if not config.tie:
            found["head.weight"] = (config.vocab, width)
        if config.head_bias:
            found["head.bias"] = (config.vocab,)
    if config.pooler:
        found |= _dense("pooler", width, width)
    if config.next_sentence:
        found |= _dense("next_sentence", 2, width)
    if config.classifier_dense != "none":
        found |= _dense("classifier.dense", width, width)
    if config.labels:
        found |= _dense("classifier.out", len(config.labels), width)
    if config.classifier_bare:
        del found["classifier.out.bias"]
    return found


def layer_shapes(config: ModelConfig, prefix: str = "", cross: bool = False) -> dict[str, tuple[int, ...]]:
    """The shapes of one layer's parameters, `cross`: with cross-attention; all layers of a stack have the same."""
    found = _attention_shapes(config, f"{prefix}attention")
    halves = ["attention", "mlp"]
    if cross:
        found |= _attention_shapes(config, f"{prefix}cross_attention")
        halves.insert(1, "cross_attention")
    for name, shape in linears(config).items():
        if name in ("gate", "up", "down"):
            found[f"{prefix}mlp.{name}.weight"] = shape
            if config.mlp_bias:
                found[f"{prefix}mlp.{name}.bias"] = shape[:1]
    for half in halves:
        found |= _norm(f"{prefix}{half}_norm", config.width, config)
        if config.norm_place == "sandwich":
            found |= _norm(f"{prefix}{half}_out_norm", config.width, config)
    return found


def _attention_shapes(config: ModelConfig, module: str) -> dict[str, tuple[int, ...]]:
    biased = {"q": config.qkv_bias, "k": config.qkv_bias, "v": config.qkv_bias, "out": config.out_bias}
    found: dict[str, tuple[int, ...]] = {}
    for name, bias in biased.items():
        shape = linears(config)[name]
        found[f"{module}.{name}.weight"] = shape
        if bias:
            found[f"{module}.{name}.bias"] = shape[:1]
    if config.qk_norm:
        for name, heads in (("q", config.heads), ("k", config.kv_heads)):
            found[f"{module}.{name}_norm.weight"] = (config.head_dim * (heads if config.qk_norm_whole else 1),)
    return found


def _dense(module: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{module}.weight": (outputs, inputs), f"{module}.bias": (outputs,)}


def parameters(config: ModelConfig) -> int:
    """How many numbers the model learns; a tied head counts once."""
    layers = sum(
        count * sum(map(prod, layer_shapes(config, cross=crossed(config, stack)).values()))
        for stack, count in config.stacks.items()
    )
    return sum(map(prod, outer_shapes(config).values())) + layers


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that a token is multiplied by: all linear layers and the head, not the embedding's look-up."""
    matrices = linears(config)
    layers = sum(count * prod(matrices[name]) for name, _, count in uses(config))
    return layers + config.lm_head * config.vocab * config.width


def forward_flops(
    config: ModelConfig,
    sequence: int,
    causal: bool = False,
    source: int | None = None,
    scored: float | None = None,
) -> int:
    """Floating-point operations of the forward pass, for each token that passes through it.

    Matrix products only, a multiply and an add counted as two. With `causal` a decoder's products above the
    diagonal, which need not be computed, are left out; without, all of them count, as is customary for the
    utilisation of hardware (MFU). Linear attention counts as its chunked form computes it, either way.

    Args:
        sequence: tokens of a row; of an encoder-decoder, of its decoder's.
        source: tokens of its encoder's row; None: as many. Both are divided among.
        scored: share of the tokens that meet the head, of a decoder's beside an encoder; None: as in `Setting`.

    Source: Chowdhery et al., PaLM, arXiv:2204.02311, appendix B; the linear part counts each matrix
    as it is, so that embeddings do not count and grouped keys and values do.
    """
    setting = Setting(sequence=sequence, source=source, scored=scored)
    lengths = setting.lengths(config)
    attention = 0
    for stack, layers in config.stacks.items():
        for layer in range(layers):
            attention += _attention_flops(config, stack, layer, lengths[stack], causal)
        if crossed(config, stack):
            attention += 4 * layers * config.heads * config.head_dim * lengths[stack] * lengths["encoder"]
    row = 2 * products(config, lengths, setting.share(config)) + attention
    return round(row / sum(lengths.values()))


def flops_per_token(
    config: ModelConfig,
    sequence: int,
    causal: bool = False,
    source: int | None = None,
    scored: float | None = None,
) -> int:
    """Floating-point operations of training, a token: forward once, backward twice as much (no recompute)."""
    return 3 * forward_flops(config, sequence, causal, source, scored)


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


def uses(config: ModelConfig) -> list[tuple[str, str, int]]:
    """Every kind of matrix of the layers: its name, the stack whose tokens meet it, and how many layers have it.

    Keys and values of cross-attention are made of the encoder's tokens.
    """
    found = [(name, stack, layers) for stack, layers in config.stacks.items() for name in linears(config)]
    if config.kind == "encoder-decoder":
        found += [(name, "decoder", config.layers) for name in ("q", "out")]
        found += [(name, "encoder", config.layers) for name in ("k", "v")]
    return found


def products(config: ModelConfig, lengths: dict[str, int], share: float) -> float:
    """Multiplications of tokens with weights, in a row of so many tokens in each stack, `share` of them scored."""
    matrices, own = linears(config), lengths[config.last_stack]
    row = sum(lengths[stack] * layers * prod(matrices[name]) for name, stack, layers in uses(config))
    row += own * share * head_products(config)
    width, labelled = config.width, own if config.classifier == "token" else 1
    row += config.pooler * width * width + config.next_sentence * 2 * width
    return row + labelled * width * (len(config.labels) + (config.classifier_dense != "none") * width)


def head_products(config: ModelConfig) -> int:
    """Multiplications of one scored token in the head."""
    return config.lm_head * config.width * (config.vocab + config.head_transform * config.width)


def _attention_flops(config: ModelConfig, stack: str, layer: int, length: int, causal: bool) -> int:
    """Of one layer's products between tokens of a row.

    Linear attention weighs the tokens of a chunk, with rotary positions a second time for their sum, and adds keys
    and values to a state and reads it: D^2 a head and token each; both ways, it reads the tokens after it as well.
    """
    heads, dim, both = config.heads, config.head_dim, stack == "encoder"
    if config.attention == "linear":
        within = min(LINEAR_CHUNK, length) * dim * (6 if config.rotation_of(layer) else 4)
        return length * (heads * (within + 2 * (1 + both) * dim * dim) + 2 * config.kv_heads * dim * dim)
    return 4 * heads * dim * _keys(length, config.window_of(layer), causal, both)


def _keys(sequence: int, window: int | None, causal: bool, both: bool) -> int:
    """Keys met by all queries of a row together; a window reaches as far after a token where it sees `both` ways."""
    width = min(window or sequence, sequence)
    if both:
        return sequence * (2 * width - 1) - width * (width - 1)
    if not causal:
        return sequence * width
    return width * (width + 1) // 2 + (sequence - width) * width
