"""Activations: the bytes that the forward pass keeps for the backward pass, and those at work, component by component.

Formulas are a sum over named components of bytes a token, so that one that is wrong can be found by name. Symbols:
h width, f ff, a heads, d head_dim, q = a d, kv = kv_heads d, s tokens of a row, e bytes of a number.
"""

from math import ceil, prod

from llmctl.errors import Exit, UserError
from llmctl.spec.kept import Rows, explicit, norm_bytes, of_layer, rows_of, stream_bytes
from llmctl.spec.learning import Layer, head_learns, last_learns, learning
from llmctl.spec.model import ModelConfig
from llmctl.spec.setting import ELEMENT, Setting
from llmctl.spec.sizes import linears
from llmctl.spec.trained import trained_shapes

SPLIT = ("queries", "keys and values", "attention output", "attention statistics", "attention weights", "mlp")
CHUNK = 32 << 20  # bytes of the fp32 logits that llmctl's loss holds at once (core/train/cross_entropy.py)
GATHERED = 0.7  # share of scored tokens below which only those meet the head (core/train/objectives.py)


def of_layers(config: ModelConfig, setting: Setting, rows: Rows, layers: range) -> dict[str, float]:
    """Bytes a token that these layers of a stack keep, by component, on one tensor parallel device.

    Recompute is not considered here. The components of `SPLIT` are shared out over tensor parallel devices, the rest
    (norms, residual stream, inputs of the matrices) is whole on each, unless sequence parallel.

    Raises:
        UserError: an implementation that has no such layers.
    """
    t, sums = setting.tensor_parallel, dict[str, float]()
    learns = learning(config, setting.tuning)[rows.stack]
    kinds = [(config.window_of(layer), learns[layer]) for layer in layers]
    one_of = {kind: _LAYERS[setting.implementation](config, setting, rows, *kind) for kind in set(kinds)}
    for kind in kinds:
        for name, size in one_of[kind].items():
            share = t if name in SPLIT or setting.sequence_parallel else 1
            sums[name] = sums.get(name, 0) + size / share
    return sums


def boundary(config: ModelConfig, setting: Setting) -> float:
    """Bytes a token of what lies between two layers: all that recompute keeps of a layer."""
    size = config.width * stream_bytes(setting)
    return size / setting.tensor_parallel if setting.sequence_parallel else size


def outside(config: ModelConfig, setting: Setting, rows: Rows) -> dict[str, float]:
    """Bytes a token that a stack keeps before its first and after its last layer: "first" and "last"."""
    h, e, s = config.width, ELEMENT[setting.dtype], stream_bytes(setting)
    if setting.implementation == "megatron":  # Korthikanti et al., section 4.3: dropout mask; norm and head's input
        return {"first": h, "last": 4 * h}
    if setting.implementation == "hf":
        return {"first": 8, "last": _hf_norm(h, e)}
    learns, own = learning(config, setting.tuning)[rows.stack], trained_shapes(config, setting.tuning)
    begins = learns[0].attention.before
    first = (8 + 8 * config.next_sentence) * any(name.endswith("embed.tokens.weight") for name in own)
    first += _of_positions(config, setting, rows) if any(layer.after for layer in learns) else 0
    if config.embed_norm and begins:
        first += norm_bytes(config, setting, s)
    last, trained = 0, last_learns(config, setting.tuning)
    if config.norm_place != "post" and (learns[-1].after or trained):
        last += norm_bytes(config, setting, s, trained=trained)
    if rows.stack != config.last_stack:  # what the keys and values of every layer are made of
        reading = any(layer.cross.reading & {"k", "v"} for layer in learning(config, setting.tuning)["decoder"])
        last += 0 if setting.autocast or not reading else h * e
    elif config.lm_head:
        last += _of_head(config, setting) * setting.share(config)
    return {"first": first + (s * h if config.dropout and begins else 0), "last": last}


def head_gradient(config: ModelConfig, setting: Setting) -> int:
    """Bytes of the head's gradient, which llmctl's loss computes along with itself, in fp32."""
    own = setting.implementation == "llmctl" and config.lm_head and head_learns(config, setting.tuning)
    return 4 * ceil(config.vocab / setting.tensor_parallel) * (config.width + config.head_bias) if own else 0


def in_the_loss(config: ModelConfig, setting: Setting, rows: Rows) -> int:
    """Bytes besides logits that are at work while llmctl's loss is computed, and gone thereafter.

    The last layer's output before and after its norm, its 16-bit copy and the head's, a chunk's share of the head's
    gradient, the masks.
    """
    if setting.implementation != "llmctl" or not config.lm_head:
        return 0
    e, vocab = ELEMENT[setting.dtype], ceil(config.vocab / setting.tensor_parallel)
    tokens, scored = setting.batch * rows.tokens, _scored(config, setting)
    size = 2 * tokens * config.width * stream_bytes(setting) + _masks(config, setting)
    if head_learns(config, setting.tuning):  # a chunk's share meets fewer logits: they are half done with
        share = e + (4 if e == 2 and setting.device == "cpu" else 0)  # a CPU adds 16 bits to 32 by a copy in 32
        size += max(0, share * vocab * config.width - 4 * min(scored, _chunk(config, setting)) * vocab)
    return ceil(size + (e * config.width * (vocab + scored) if setting.autocast else 0))


def in_the_backward_pass(config: ModelConfig, setting: Setting, rows: Rows, layers: range) -> int:
    """Bytes at work while the gradients of the last layer's MLP are computed, less what the loss had kept till then.

    With recompute, what the layer had kept is there again.
    """
    size = sum(of_layers(config, setting, rows, layers[-1:]).values()) if setting.recompute else 0.0
    if setting.implementation != "llmctl":
        return ceil(setting.batch * rows.tokens * size)
    e, s = ELEMENT[setting.dtype], stream_bytes(setting)
    size += (2 if config.gated else 1) * config.ff * e / setting.tensor_parallel + config.width * s
    size -= outside(config, setting, rows)["last"]
    return ceil(setting.batch * rows.tokens * size + _masks(config, setting)) + _dense(config, setting, rows)


def _dense(config: ModelConfig, setting: Setting, rows: Rows) -> int:
    """Bytes of the largest matrix that is made for a product: of few bits, of another type, or with its adapter."""
    tuning, sizes = setting.tuning, {name: prod(shape) for name, shape in linears(config).items()}
    if not tuning.makes_adapter:
        return 0
    made = ELEMENT[setting.dtype] * max(sizes.values()) if setting.matrices != setting.dtype else 0
    if tuning.method == "dora":
        low = {name for layer in learning(config, tuning)[rows.stack] for name in layer.attention.low | layer.mlp.low}
        each = 8 if setting.matrices != "fp32" else 4  # lengths are those of an fp32 sum
        made = max([made, *(each * sizes[name] for name in low)])
    return made // setting.tensor_parallel


def logits(config: ModelConfig, setting: Setting) -> int:
    """Bytes of the logits at the loss's peak: as the head gives them, in fp32 where that differs, and one more in fp32.

    That one is their log-softmax where they come in chunks, and their gradient where all come at once (which in fp32
    is a third). Capped logits are in fp32, and the slopes of the cap beside them.
    """
    if not config.lm_head:
        return 0
    e, vocab = ELEMENT[setting.dtype], ceil(config.vocab / setting.tensor_parallel)
    each = 8 if e == 4 and setting.loss_chunk != 0 else 8 + e
    rows = min(_scored(config, setting), _chunk(config, setting))
    return rows * vocab * (max(12, each) if config.logit_softcap else each)


def loss_rows(vocab: int) -> int:
    """Tokens of one chunk of llmctl's loss: a power of two whose fp32 logits take at most CHUNK bytes, 64 at least."""
    return max(64, 1 << max(1, CHUNK // (4 * vocab)).bit_length() - 1)


def held_in_inference(config: ModelConfig, setting: Setting) -> int:
    """Bytes that the forward pass of one layer holds at once: nothing is kept for later but what an encoder made.

    The largest of three moments, the multiples as measured: attention (the layer's input and its norm, q, k and v and
    their copies while they are rotated), the MLP's product (the layer's input, the stream, its norm unless that comes
    after, its sum), and, on a CPU and in 16 bits, RMS norm in fp32.
    """
    e, h, t = ELEMENT[setting.dtype], config.width, setting.tensor_parallel
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    mlp, stream = (3 if config.gated else 2) * config.ff, (3 if config.norm_place == "post" else 4) * h
    norm = 9 * h if config.norm == "rms" and setting.device == "cpu" and e == 2 else 0
    most, made = 0.0, 0
    for rows in rows_of(config, setting):
        attention = 4 * (q + kv) if config.position == "rope" else 2 * q + 2 * kv
        if config.attention_softcap:  # scores, capped scores and weights of all heads in fp32, as q, k and v
            attention += (12 * config.heads * rows.tokens + 12 * q) / e
        elif not setting.fused_attention:
            attention += 2 * config.heads * max(rows.tokens, rows.source)
        each = e * max(2 * h + attention / t, stream + mlp / t, norm)
        bias = e * config.heads / t * rows.tokens**2 if config.position == "relative" else 0
        most = max(most, setting.batch * rows.tokens * each + bias + made)
        made = setting.batch * rows.tokens * h * e
    return ceil(most)


def _of_positions(config: ModelConfig, setting: Setting, rows: Rows) -> float:
    """Bytes a token of what tells positions: of every row's own, or shared by all rows."""
    e, dim = ELEMENT[setting.dtype], config.rotary_dim or config.head_dim
    once = 1 if setting.packed else 1 / setting.batch
    if config.position == "relative":  # numbers of buckets, which depend on distances alone
        return 8 * rows.tokens / setting.batch
    if config.position == "rope":
        turns = {config.rotation_of(layer) for layer in range(config.stacks[rows.stack])} - {None}
        return 2 * dim * e * len(turns) * once
    if config.position == "alibi" and not explicit(config, setting, rows.tokens):
        return config.heads * rows.tokens * e * once  # distances and what is not seen, for all layers
    return 8 * once if config.position == "learned" else 0


def _of_head(config: ModelConfig, setting: Setting) -> float:
    """Bytes that a scored token keeps: the loss's gradient, its place if others are left out, and the transform's."""
    h, e = config.width, ELEMENT[setting.dtype]
    place = 8 if setting.share(config) < GATHERED else 0
    transform = 2 * h * e + norm_bytes(config, setting, e, kind="layer") if config.head_transform else 0
    return h * e + place + transform


def _scored(config: ModelConfig, setting: Setting) -> int:
    """Tokens that meet the head."""
    tokens, share = setting.batch * setting.lengths(config)[config.last_stack], setting.share(config)
    return ceil(tokens * share) if share < GATHERED else tokens


def _chunk(config: ModelConfig, setting: Setting) -> int:
    """Tokens whose logits exist at once, if there are so many."""
    return loss_rows(config.vocab) if setting.loss_chunk is None else setting.loss_chunk or _scored(config, setting)


def _masks(config: ModelConfig, setting: Setting) -> float:
    """Bytes of the masks that all layers share, one for each window."""
    found, count = 0.0, setting.batch if setting.packed else 1
    for rows in rows_of(config, setting):
        windows = {config.window_of(layer) for layer in range(config.stacks[rows.stack])}
        square = count * rows.tokens**2
        if config.position == "alibi":
            each = ELEMENT[setting.dtype] * config.heads if explicit(config, setting, rows.tokens) else 0
        else:
            each = sum(setting.packed or (window or rows.tokens) < rows.tokens for window in windows)
        bias = ELEMENT[setting.dtype] * config.heads * rows.tokens**2 if config.position == "relative" else 0
        found += each * square + bias + setting.packed * count * rows.tokens * rows.source
    return found


def _hf(config: ModelConfig, setting: Setting, rows: Rows, window: int | None, learns: Layer) -> dict[str, float]:
    """transformers' Llama, Mistral and Qwen2: 20 h + 4 kv + 8 f + 4 a + 8 bytes in bf16 with fused attention.

    Source: measured, transformers 5.23. Without fused attention the softmax is fp32, copied to 16 bits, and keys and
    values are repeated for every query head.
    """
    if config.norm != "rms" or not config.gated or config.qk_norm or config.embed_norm or not _usual(config):
        raise _differs("hf", "Llama, Mistral and Qwen2")
    e, a, q, kv = (
        ELEMENT[setting.dtype],
        config.heads,
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    )
    fused = setting.fused_attention
    return {
        "norms": 2 * _hf_norm(config.width, e),
        "queries": q * e,
        "keys and values": 2 * e * (kv if fused else q),
        "attention output": q * e,
        "attention statistics": 4 * a if fused else 0,
        "attention weights": 0 if fused else a * rows.tokens * (4 if e == 4 else 6),
        "mlp": 4 * config.ff * e,
    }


def _megatron(config: ModelConfig, setting: Setting, rows: Rows, window: int | None, learns: Layer) -> dict[str, float]:
    """Megatron's GPT with dropout, in 16 bits: 34 h + 5 a s bytes; 4 h wide MLP with GELU, as many keys as queries.

    Source: Korthikanti et al., arXiv:2205.05198, equations 1 to 4; what the paper calls selective recomputation is
    what fused attention does: it leaves out 5 a s.
    """
    if not _usual(config):
        raise _differs("megatron", "GPT")
    h = config.width
    return {
        "norms": 4 * h,
        "inputs of the matrices": 4 * h,
        "dropout masks": 2 * h,
        "queries": 2 * h,
        "keys and values": 4 * h,
        "attention output": 2 * h,
        "attention weights": 0 if setting.fused_attention else 5 * config.heads * rows.tokens,
        "mlp": 16 * h,
    }


_LAYERS = {"llmctl": of_layer, "hf": _hf, "megatron": _megatron}


def _usual(config: ModelConfig) -> bool:
    """Whether its layers are those of the decoders from GPT-2 to Llama: nothing between their halves, nor capped."""
    plain = config.kind == "decoder" and config.norm_place == "pre" and not (config.parallel or config.norm_plus_one)
    return plain and config.attention == "softmax" and config.attention_softcap is None


def _differs(implementation: str, known: str) -> UserError:
    return UserError(
        f"--implementation {implementation} knows the layers of {known} only, and this model's differ.",
        "Leave --implementation out.",
        Exit.MISMATCH,
    )


def _hf_norm(h: int, e: int) -> float:
    """An fp32 copy (in fp32: the input itself), the normed copy, the output, and 1 / rms."""
    return (4 + 2 * e) * h + 4
