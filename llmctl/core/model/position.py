"""Where a token stands: rotary angles and their scalings, ALiBi's slopes, sinusoids."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from llmctl.spec.model import ModelConfig, RopeScaling, Rotation

Angles = tuple[Tensor, Tensor]


class Rotary:
    """The rotary embedding of one model: positions to cosines and sines.

    Source: Su et al., "RoFormer", arXiv:2104.09864, equation 34, in the layout of the Hugging Face checkpoints,
    where channel i turns with channel i + D/2.
    """

    def __init__(self, config: ModelConfig, kind: Rotation = "global"):
        if kind == "local":
            config = replace(config, rope_theta=config.rope_local_theta, rope_scaling=None)
        self.config = config
        self.frequencies, self.factor = rope_frequencies(config)  # (R/2,) float32, not a buffer: casts would round it
        self.by_row = None if config.rope_scaling is None else BY_ROW.get(config.rope_scaling.kind)

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """Cosines and signed sines for `rotate`.

        Args:
            positions: (B or 1, T) int64.
            dtype: of the result; the angles are float32.

        Returns:
            Two tensors (B or 1, 1, T, R), R the channels that turn.
        """
        if self.frequencies.device != positions.device:
            self.frequencies = self.frequencies.to(positions.device)
        frequencies = self.frequencies if self.by_row is None else self.by_row(self.config, positions)
        angles = positions[:, None, :, None].float() * frequencies  # (B or 1, 1, T, R/2)
        cos, sin = angles.cos() * self.factor, angles.sin() * self.factor
        return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x: Tensor, angles: Angles) -> Tensor:
    """x (B, H, T, D) with each pair of channels (i, i + R/2) of the first R turned by its position's angle."""
    cos, sin = angles
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], angles), x[..., turned:]), dim=-1)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def turning(config: ModelConfig) -> int:
    """R, the channels of a head that turn."""
    return config.rotary_dim or config.head_dim


def rope_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Radians a position that each pair of channels turns, (R/2,) float32 on the CPU, and the cosines' factor."""
    plain = _inverse_powers(config.rope_theta, turning(config))
    scaling = config.rope_scaling
    return (plain, 1.0) if scaling is None else _SCALED[scaling.kind](config, scaling, plain)


def dynamic_frequencies(config: ModelConfig, positions: Tensor) -> Tensor:
    """Frequencies whose base grows with the row once it passes the context that was trained.

    Keys in a cache keep the angles of the length at which they were read, as in transformers, so beyond that
    context a cached pass is not exactly an uncached one. The length is each row's own, so rows do not depend on
    their batch (transformers takes the longest row's).

    Args:
        config: with rope_scaling of kind "dynamic".
        positions: (B, T) int64.

    Returns:
        (B, 1, 1, R/2) float32.

    Source: "dynamic NTK-aware scaling", described in Peng et al., arXiv:2309.00071, section 3.3.
    """
    factor, dim = config.rope_scaling.factor, turning(config)
    length = positions.amax(dim=1).float().add(1).clamp(min=config.context)  # (B,)
    growth = factor * length / config.context - (factor - 1)
    base = config.rope_theta * growth ** (dim / (dim - 2))
    return _inverse_powers(base[:, None, None, None], dim)


def longrope_frequencies(config: ModelConfig, positions: Tensor) -> Tensor:
    """Frequencies divided by the short factors, or in rows longer than the original context by the long ones.

    The length is each row's own. Keys in a cache keep the angles with which they were read, so a row that grows
    past the original context, `turning_point`, is best read again.

    Args:
        config: with rope_scaling of kind "longrope".
        positions: (B, T) int64.

    Returns:
        (B, 1, 1, R/2) float32.

    Source: Ding et al., "LongRoPE", arXiv:2402.13753, and the released code of Phi-3 for the choice by length.
    """
    scaling, device = config.rope_scaling, positions.device
    both = torch.tensor((scaling.short_factor, scaling.long_factor), dtype=torch.float32, device=device)  # (2, R/2)
    long = positions.amax(dim=1) >= turning_point(config)  # (B,)
    base = torch.tensor(config.rope_theta, dtype=torch.float32, device=device)
    return _inverse_powers(base, turning(config), both[long.long(), None, None])


def turning_point(config: ModelConfig) -> int | None:
    """The position that gives all earlier ones of its row other angles, or None where there is no such one place."""
    scaling = config.rope_scaling
    if config.position != "rope" or scaling is None or scaling.kind != "longrope":
        return None
    return scaling.original_context or config.context


def _inverse_powers(base: float | Tensor, dim: int, times: float | Tensor = 1.0) -> Tensor:
    device = base.device if isinstance(base, Tensor) else "cpu"
    return 1.0 / (times * base ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim))


def _linear(config: ModelConfig, scaling: RopeScaling, plain: Tensor) -> tuple[Tensor, float]:
    """Positions pressed together. Source: Chen et al., arXiv:2306.15595."""
    return plain / scaling.factor, 1.0


def _dynamic(config: ModelConfig, scaling: RopeScaling, plain: Tensor) -> tuple[Tensor, float]:
    return plain, 1.0  # of rows within the context


def _llama3(config: ModelConfig, scaling: RopeScaling, plain: Tensor) -> tuple[Tensor, float]:
    """Slow channels pressed together, fast ones left, a ramp between. Source: Llama 3.1's released code."""
    turns = (scaling.original_context or config.context) / (2 * math.pi / plain)  # in the context that was trained
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * plain / scaling.factor + kept * plain, 1.0


def _yarn(config: ModelConfig, scaling: RopeScaling, plain: Tensor) -> tuple[Tensor, float]:
    """NTK by parts, and cosines scaled to sharpen attention. Source: Peng et al., "YaRN", arXiv:2309.00071."""
    dim, context = turning(config), scaling.original_context or config.context

    def channel(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    pairs = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    pressed = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return plain / scaling.factor * pressed + plain * (1 - pressed), _yarn_factor(scaling)


def _yarn_factor(scaling: RopeScaling) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def _longrope(config: ModelConfig, scaling: RopeScaling, plain: Tensor) -> tuple[Tensor, float]:
    """Each pair pressed by a factor of its own. Source: Ding et al., "LongRoPE", arXiv:2402.13753, section 3.2."""
    attention = scaling.attention_factor
    if attention is None:
        original = scaling.original_context or config.context
        attention = math.sqrt(1 + math.log(scaling.factor) / math.log(original)) if scaling.factor > 1 else 1.0
    short = torch.tensor(scaling.short_factor, dtype=torch.float32, device="cpu")
    return plain / short, attention  # of rows within the original context


BY_ROW = {"dynamic": dynamic_frequencies, "longrope": longrope_frequencies}  # scalings by the length of a row
_SCALED: dict[str, Callable[[ModelConfig, RopeScaling, Tensor], tuple[Tensor, float]]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def alibi_slopes(heads: int) -> Tensor:
    """How steeply each head's scores fall with distance, (heads,) float32 on the CPU.

    A geometric series 2^(-8/n), 2^(-16/n), ... for n heads, n a power of two; for other counts, that of the power
    below, then every other one of the series of the power above.

    Source: Press et al., "Train Short, Test Long", arXiv:2108.12409, section 3, and its released code.
    """
    power = 2 ** (heads.bit_length() - 1)
    series = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    series += [2.0 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    return torch.tensor(series, dtype=torch.float32, device="cpu")


def places_ahead(queries: int, keys: int, device: torch.device | None = None) -> Tensor:
    """How many places each of `keys` tokens is after each of the last `queries` of them, (1, T, S) int64."""
    slots = torch.arange(keys, device=device)
    return (slots - slots[keys - queries :, None])[None]


def relative_buckets(ahead: Tensor, config: ModelConfig, causal: bool) -> Tensor:
    """The row of the table of biases for each query and key: near distances have one each, far ones share.

    Args:
        ahead: int64, how many places each key is after its query.
        config: of a model whose position is "relative".
        causal: keys after the query share the first bucket, and all buckets are for those before it; else half
            of the buckets are for either side.

    Returns:
        int64 of the same shape, less than relative_buckets.

    Source: Raffel et al., arXiv:1910.10683, section 2.1, and the released code for the logarithmic steps.
    """
    count, first = config.relative_buckets, torch.zeros_like(ahead)
    if causal:
        away = -ahead.clamp(max=0)
    else:
        count //= 2
        first, away = (ahead > 0) * count, ahead.abs()
    near = count // 2
    steps = math.log(config.relative_distance / near)
    far = near + (torch.log(away.clamp(min=1).float() / near) / steps * (count - near)).long()
    return first + torch.where(away < near, away, far.clamp(max=count - 1))


def sinusoids(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Sines in even channels and cosines in odd ones, of wavelengths from 2 pi to 10000 x 2 pi.

    Args:
        positions: (B or 1, T) int64.
        width: channels; an odd one ends with a sine.
        dtype: of the result; the angles are float32.

    Returns:
        (B or 1, T, width).

    Source: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, section 3.5.
    """
    steps = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].float() * 10000.0 ** (-steps / width)  # (B or 1, T, ceil(width / 2))
    both = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)  # (B or 1, T, width or width + 1)
    return both[..., :width].to(dtype)
