"""Activations: which tensors the forward pass keeps for the backward pass, and their bytes, component by component.

Formulas are a sum over named components of bytes a token, so that one that is wrong can be found by name. Symbols:
h width, f ff, a heads, d head_dim, q = a d, kv = kv_heads d, s tokens of a row, e bytes of a number.
"""

from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.setting import ELEMENT, Setting

SPLIT = ("queries", "keys and values", "attention output", "attention statistics", "attention scores", "mlp")


def layer(config: ModelConfig, setting: Setting, sequence: int) -> dict[str, float]:
    """Bytes a token that one layer keeps, by component, on one tensor parallel device.

    Recompute is not considered here. The components of `SPLIT` are shared out over tensor parallel devices, the rest
    (norms, residual stream, inputs of the matrices) is whole on each, unless sequence parallel.
    """
    parts = _LAYERS[setting.implementation](config, setting, sequence)
    t = setting.tensor_parallel
    return {name: size / t if name in SPLIT or setting.sequence_parallel else size for name, size in parts.items()}


def boundary(config: ModelConfig, setting: Setting) -> float:
    """Bytes a token of what lies between two layers: all that recompute keeps of a layer."""
    size = config.width * _stream(setting)
    return size / setting.tensor_parallel if setting.sequence_parallel else size


def outside(config: ModelConfig, setting: Setting) -> dict[str, float]:
    """Bytes a token that is kept before the first and after the last layer: "first" and "last"."""
    h, e, s = config.width, ELEMENT[setting.dtype], _stream(setting)
    if setting.implementation == "megatron":  # Korthikanti et al., section 4.3: dropout mask; norm and head's input
        return {"first": h, "last": 4 * h}
    if setting.implementation == "hf":
        return {"first": 8, "last": _hf_norm(h, e)}
    return {"first": 8, "last": _norm(config, s) + h * e}


def of_a_logit(setting: Setting) -> int:
    """Bytes of one logit at the loss's peak: as the head gives it, its fp32 copy or log-softmax, and the gradient."""
    return 4 + 4 + ELEMENT[setting.dtype]


def held_in_inference(config: ModelConfig, setting: Setting, sequence: int) -> float:
    """Bytes a token that the forward pass of one layer holds at once: nothing is kept for later.

    The residual stream, its norm, and the larger of attention (q, k, v, output) and MLP.
    """
    e, t = ELEMENT[setting.dtype], setting.tensor_parallel
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    attention = 2 * q + 2 * kv + (0 if setting.fused_attention else 2 * config.heads * sequence)
    mlp = (3 if config.gated else 2) * config.ff
    return e * (2 * config.width + max(attention, mlp) / t)


def _llmctl(config: ModelConfig, setting: Setting, sequence: int) -> dict[str, float]:
    e, s = ELEMENT[setting.dtype], _stream(setting)
    h, f, a = config.width, config.ff, config.heads
    q, kv = a * config.head_dim, config.kv_heads * config.head_dim
    return {
        "norms": 2 * _norm(config, s),
        "inputs of the matrices": 2 * h * e,
        "queries": q * e,
        "keys and values": 2 * kv * e,
        "attention output": q * e,
        "attention statistics": 4 * a if setting.fused_attention else 0,
        "attention scores": 0 if setting.fused_attention else a * sequence * e,
        "mlp": (4 if config.gated else 2) * f * e,
    }


def _hf(config: ModelConfig, setting: Setting, sequence: int) -> dict[str, float]:
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
        "attention scores": 0 if fused else a * sequence * (4 if e == 4 else 6),
        "mlp": 4 * config.ff * e,
    }


def _megatron(config: ModelConfig, setting: Setting, sequence: int) -> dict[str, float]:
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
        "attention scores": 0 if setting.fused_attention else 5 * config.heads * sequence,
        "mlp": 16 * h,
    }


_LAYERS = {"llmctl": _llmctl, "hf": _hf, "megatron": _megatron}


def _stream(setting: Setting) -> int:
    """Bytes of a number of the residual stream: autocast leaves it in fp32."""
    return 4 if setting.autocast else ELEMENT[setting.dtype]


def _norm(config: ModelConfig, element: int) -> float:
    """What one norm keeps: its input and a statistic (rms) or two (layer)."""
    return config.width * element + (4 if config.norm == "rms" else 8)


def _hf_norm(h: int, e: int) -> float:
    """An fp32 copy (in fp32: the input itself), the normed copy, the output, and 1 / rms."""
    return (4 + 2 * e) * h + 4
