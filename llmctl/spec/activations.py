"""Activations: which tensors the forward pass keeps for the backward pass, and their bytes, component by component.

Formulas are a sum over named components of bytes a token, so that one that is wrong can be found by name. Symbols:
h width, f ff, a heads, d head_dim, q = a d, kv = kv_heads d, s tokens of a row, e bytes of a number.
"""

from math import ceil

from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.setting import ELEMENT, TARGETS, Setting
from llmctl.spec.sizes import linears

SPLIT = ("queries", "keys and values", "attention output", "attention statistics", "attention weights", "mlp")
EXPLICIT = 1024  # tokens of a row up to which llmctl, on a CPU, keeps the attention weights (core/model/explicit.py)
QUERIES = 256  # of one block of theirs
CHUNK = 32 << 20  # bytes of the fp32 logits that llmctl's loss holds at once (core/train/cross_entropy.py)


def of_layers(config: ModelConfig, setting: Setting, sequence: int, layers: range) -> dict[str, float]:
    """Bytes a token that these layers keep, by component, on one tensor parallel device.

    Recompute is not considered here. The components of `SPLIT` are shared out over tensor parallel devices, the rest
    (norms, residual stream, inputs of the matrices) is whole on each, unless sequence parallel.
    """
    t, sums = setting.tensor_parallel, dict[str, float]()
    one_of = {window: _LAYERS[setting.implementation](config, setting, sequence, window) for window in _windows(config)}
    for layer in layers:
        for name, size in one_of[config.window_of(layer)].items():
            share = t if name in SPLIT or setting.sequence_parallel else 1
            sums[name] = sums.get(name, 0) + size / share
    return sums


def boundary(config: ModelConfig, setting: Setting) -> float:
    """Bytes a token of what lies between two layers: all that recompute keeps of a layer."""
    size = config.width * _stream(setting)
    return size / setting.tensor_parallel if setting.sequence_parallel else size


def outside(config: ModelConfig, setting: Setting, sequence: int) -> dict[str, float]:
    """Bytes a token that is kept before the first and after the last layer: "first" and "last"."""
    h, e, s = config.width, ELEMENT[setting.dtype], _stream(setting)
    if setting.implementation == "megatron":  # Korthikanti et al., section 4.3: dropout mask; norm and head's input
        return {"first": h, "last": 4 * h}
    if setting.implementation == "hf":
        return {"first": 8, "last": _hf_norm(h, e)}
    once = 1 if setting.packed else 1 / setting.batch  # positions are every row's own, or shared
    first = 8 + {"learned": 8 * once, "rope": 2 * config.head_dim * e * once}.get(config.position, 0)
    if config.position == "alibi" and not _explicit(config, setting, sequence):
        first += config.heads * sequence * e * once  # distances and what is not seen, for all layers
    first += _norm(config.norm, setting, s, h) if config.embed_norm else 0
    return {"first": first + (s * h if config.dropout else 0), "last": _norm(config.norm, setting, s, h) + h * e}


def head_gradient(config: ModelConfig, setting: Setting) -> int:
    """Bytes of the head's gradient, which llmctl's loss computes along with itself, in fp32."""
    own = setting.implementation == "llmctl" and not setting.lora_rank
    return 4 * ceil(config.vocab / setting.tensor_parallel) * config.width if own else 0


def in_the_loss(config: ModelConfig, setting: Setting, tokens: int, sequence: int) -> int:
    """Bytes besides logits that are at work while llmctl's loss is computed, and gone thereafter.

    The last layer's output before and after its norm, its 16-bit copy and the head's, a chunk's share of the head's
    gradient, the masks.
    """
    if setting.implementation != "llmctl":
        return 0
    e, head = ELEMENT[setting.dtype], ceil(config.vocab / setting.tensor_parallel) * config.width
    size = tokens * (2 * config.width * _stream(setting) + _masks(config, setting, sequence))
    if not setting.lora_rank:  # a chunk's share meets fewer logits: they are half done with
        size += max(0, e * head - 4 * _scored(config, setting, tokens) * ceil(config.vocab / setting.tensor_parallel))
    return ceil(size + (e * (head + tokens * config.width) if setting.autocast else 0))


def in_the_backward_pass(config: ModelConfig, setting: Setting, tokens: int, sequence: int, layers: range) -> int:
    """Bytes at work while the gradients of the last layer's MLP are computed, less what the loss had kept till then.

    With recompute, what the layer had kept is there again.
    """
    again = of_layers(config, setting, sequence, layers[-1:]) if setting.recompute else {}
    size = sum(again.values())
    if setting.implementation == "llmctl":
        e, s = ELEMENT[setting.dtype], _stream(setting)
        gradients = (2 if config.gated else 1) * config.ff * e / setting.tensor_parallel + config.width * s
        size += gradients + _masks(config, setting, sequence) - outside(config, setting, sequence)["last"]
    return ceil(tokens * size)


def logits(config: ModelConfig, setting: Setting, tokens: int) -> int:
    """Bytes of the logits at the loss's peak: as the head gives them, in fp32 where that differs, and one more in fp32.

    That one is their log-softmax where they come in chunks, and their gradient where all come at once (which in fp32
    is a third).
    """
    e, vocab = ELEMENT[setting.dtype], ceil(config.vocab / setting.tensor_parallel)
    return _scored(config, setting, tokens) * vocab * (8 if e == 4 and setting.loss_chunk != 0 else 8 + e)


def loss_rows(vocab: int) -> int:
    """Tokens of one chunk of llmctl's loss: a power of two whose fp32 logits take at most CHUNK bytes, 64 at least."""
    return max(64, 1 << max(1, CHUNK // (4 * vocab)).bit_length() - 1)


def held_in_inference(config: ModelConfig, setting: Setting, sequence: int) -> float:
    """Bytes a token that the forward pass of one layer holds at once: nothing is kept for later.

    The largest of three moments, the multiples as measured: attention (the layer's input and its norm, q, k and v and
    their copies while they are rotated), the MLP's product (the layer's input, the stream, its norm, its sum), and,
    on a CPU and in 16 bits, RMS norm in fp32.
    """
    e, h, t = ELEMENT[setting.dtype], config.width, setting.tensor_parallel
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = 4 * (q + kv) if config.position == "rope" else 2 * q + 2 * kv
    attention += 0 if setting.fused_attention else 2 * config.heads * sequence
    mlp = (3 if config.gated else 2) * config.ff
    norm = 9 * h if config.norm == "rms" and setting.device == "cpu" and e == 2 else 0
    return e * max(2 * h + attention / t, 4 * h + mlp / t, norm)


def _llmctl(config: ModelConfig, setting: Setting, sequence: int, window: int | None) -> dict[str, float]:
    """llmctl's own layers, as measured on a CPU; on a GPU, not measured, norms and attention as its fused kernels keep.

    Under autocast each matrix has a 16-bit copy of its input of its own. With LoRA a frozen matrix keeps no input.
    """
    e, s, a = ELEMENT[setting.dtype], _stream(setting), config.heads
    h, f, q, kv = config.width, config.ff, a * config.head_dim, config.kv_heads * config.head_dim
    need = [not setting.lora_rank or name in setting.lora_targets for name in TARGETS]
    entering = [need[:3], need[4:6] if config.gated else need[5:6]]  # q k v; gate up
    copies = sum(len(group) if setting.autocast else any(group) for group in entering)
    explicit, dropout = _explicit(config, setting, sequence), config.dropout > 0
    wide = dropout and setting.device == "cpu"  # torch then falls back to plain operations in fp32
    weights = a * (e * _kept_keys(sequence) if explicit else 12 * sequence if wide else 0)
    masked = not explicit and (setting.packed or (window or sequence) < sequence) and config.position != "alibi"
    return {
        "norms": 2 * _norm(config.norm, setting, s, h),
        "norms of q and k": _norm("rms", setting, e, q, a) + _norm("rms", setting, e, kv, config.kv_heads)
        if config.qk_norm
        else 0,
        "inputs of the matrices": h * e * copies,
        "queries": q * (4 if wide else e),
        "keys and values": 2 * (4 * q if wide else e * q if explicit else e * kv),
        "attention output": q * e if need[3] or not explicit else 0,
        "attention statistics": 0 if explicit or wide else 4 * a,
        "attention weights": weights,
        "attention masks": e * sequence / (1 if setting.packed else setting.batch) if masked and not wide else 0,
        "mlp": f * e * ((3 if config.gated else 1) + need[6]),
        "dropout masks": 2 * h * (e if setting.device == "cpu" else 1) if dropout else 0,
        "adapters": e * setting.lora_rank * sum(name in linears(config) for name in setting.lora_targets),
    }


def _explicit(config: ModelConfig, setting: Setting, sequence: int) -> bool:
    """Whether the attention weights are kept."""
    short = setting.device == "cpu" and sequence <= EXPLICIT
    return not setting.fused_attention or (short and not config.dropout)


def _kept_keys(sequence: int) -> float:
    """Attention weights kept for a token, on average: a block of queries leaves the keys after it out."""
    ends = [min(sequence, start + QUERIES) for start in range(0, sequence, QUERIES)]
    return (
        sum(min(QUERIES, end - start) * end for start, end in zip(range(0, sequence, QUERIES), ends, strict=True))
        / sequence
    )


def _scored(config: ModelConfig, setting: Setting, tokens: int) -> int:
    """Tokens whose logits exist at once."""
    rows = loss_rows(config.vocab) if setting.loss_chunk is None else setting.loss_chunk or tokens
    return min(rows, tokens)


def _masks(config: ModelConfig, setting: Setting, sequence: int) -> float:
    """Bytes a token of the masks that all layers share, one for each window."""
    once = 1 if setting.packed else 1 / setting.batch
    if config.position == "alibi":
        return ELEMENT[setting.dtype] * config.heads * sequence * once if _explicit(config, setting, sequence) else 0
    masks = sum(setting.packed or (window or sequence) < sequence for window in _windows(config))
    return masks * sequence * once


def _windows(config: ModelConfig) -> set[int | None]:
    return {config.window_of(layer) for layer in range(config.layers)}


def _hf(config: ModelConfig, setting: Setting, sequence: int, window: int | None) -> dict[str, float]:
    """transformers' Llama, Mistral and Qwen2: 20 h + 4 kv + 8 f + 4 a + 8 bytes in bf16 with fused attention.

    Source: measured, transformers 5.23. Without fused attention the softmax is fp32, copied to 16 bits, and keys and
    values are repeated for every query head.
    """
    if config.norm != "rms" or not config.gated or config.qk_norm or config.embed_norm:
        raise UserError(
            "--implementation hf knows the layers of Llama, Mistral and Qwen2 only, and this model's differ.",
            "Leave --implementation out.",
            Exit.MISMATCH,
        )
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
        "attention weights": 0 if fused else a * sequence * (4 if e == 4 else 6),
        "mlp": 4 * config.ff * e,
    }


def _megatron(config: ModelConfig, setting: Setting, sequence: int, window: int | None) -> dict[str, float]:
    """Megatron's GPT with dropout, in 16 bits: 34 h + 5 a s bytes; 4 h wide MLP with GELU, as many keys as queries.

    Source: Korthikanti et al., arXiv:2205.05198, equations 1 to 4; what the paper calls selective recomputation is
    what fused attention does: it leaves out 5 a s.
    """
    h = config.width
    return {
        "norms": 4 * h,
        "inputs of the matrices": 4 * h,
        "dropout masks": 2 * h,
        "queries": 2 * h,
        "keys and values": 4 * h,
        "attention output": 2 * h,
        "attention weights": 0 if setting.fused_attention else 5 * config.heads * sequence,
        "mlp": 16 * h,
    }


_LAYERS = {"llmctl": _llmctl, "hf": _hf, "megatron": _megatron}


def _stream(setting: Setting) -> int:
    """Bytes of a number of the residual stream: autocast leaves it in fp32."""
    return 4 if setting.autocast else ELEMENT[setting.dtype]


def _norm(kind: str, setting: Setting, element: int, width: int, rows: int = 1) -> float:
    """What a norm of `rows` rows a token, `width` wide together, keeps of an input whose numbers have `element` bytes.

    Its input (or, as large, the normalised input) and statistics of each row; on a CPU and in 16 bits, RMS norm is
    plain operations on an fp32 copy, and keeps both.
    """
    if kind == "layer":
        return (width + 2 * rows) * element
    plain = setting.device == "cpu" and element == 2
    return width * (8 if plain else element) + 4 * rows


def _hf_norm(h: int, e: int) -> float:
    """An fp32 copy (in fp32: the input itself), the normed copy, the output, and 1 / rms."""
    return (4 + 2 * e) * h + 4
