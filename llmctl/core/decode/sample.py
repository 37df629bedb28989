"""Which token comes next: filters on a step's logits, and the choice among what they leave.

Each filter takes logits (B, V) float32 and returns logits of the same shape, with -inf for what it dropped. Their order
and meaning are those of transformers' logits processors, so settings carry over.
"""

import hashlib
import struct

import torch
from torch import Tensor

from llmctl.spec.sample import Sampling

GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15, the odd integer nearest to 2^64 / golden ratio, as int64


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make tokens that were seen less likely: positive scores divided by `penalty`, negative ones multiplied.

    Args:
        logits: (B, V) float32.
        seen: (B, V) bool, the tokens of the prompt and of the completion so far.

    Source: Keskar et al., "CTRL", arXiv:1909.05858, section 4.1, with the sign handled as transformers does.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def heat(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by the temperature, with the best one moved to 0 first, so that no temperature overflows."""
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens, and those that tie with the last of them."""
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose probabilities add up to p or more; always at least one.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv:1904.09751, section 3.1.
    """
    ascending, order = logits.sort(dim=-1)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    dropped[:, -1] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """The tokens at least p times as likely as the likeliest.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling", arXiv:2407.01082, section 3.
    """
    chances = logits.softmax(dim=-1)
    best = chances.amax(dim=-1, keepdim=True)
    return logits.masked_fill(chances < p * best, -torch.inf)


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, V) after temperature, top-k, top-p and min-p, in this order. The temperature must not be 0."""
    logits = heat(logits, sampling.temperature)
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def stream_key(seed: int, record: int, sample: int) -> int:
    """The key, an int64, of one completion's random stream: a hash of the three numbers.

    A completion's randomness depends on nothing else, so neither batch size nor order of work changes it.
    """
    packed = struct.pack("<qqq", seed, record, sample)
    return struct.unpack("<q", hashlib.blake2b(packed, digest_size=8).digest())[0]


def choose(logits: Tensor, sampling: Sampling, keys: Tensor, steps: Tensor) -> Tensor:
    """The next token of each row: the likeliest, or one drawn from softmax(filtered(logits)).

    The draw is the Gumbel-max trick: argmax of logit + noise. A token's noise is a function of (key, step, token)
    alone, so rounding of the logits, which differs between batch sizes, can change the choice only where two tokens
    come out within that rounding of each other; with the inverse of the cumulated distribution, each of V borders
    would move.

    Args:
        logits: (B, V) float32, after `penalise`.
        keys: (B,) int64 of `stream_key`.
        steps: (B,) int64, how many tokens each row has drawn before.

    Returns:
        (B,) int64; -1 in a row whose logits hold a NaN.

    Source: Maddison, Tarlow & Minka, "A* Sampling", arXiv:1411.0030, section 2.
    """
    scores = logits
    if not sampling.greedy:
        uniform = uniforms(keys, steps, logits.shape[-1])
        scores = filtered(logits, sampling).to(uniform.dtype) - torch.log(-torch.log(uniform))
    ids = scores.argmax(dim=-1)
    return torch.where(scores.gather(1, ids[:, None])[:, 0].isnan(), -1, ids)


def uniforms(keys: Tensor, steps: Tensor, vocab: int) -> Tensor:
    """Numbers in (0, 1), one for each row and token: a counter-based generator without state.

    Args:
        keys: (B,) int64.
        steps: (B,) int64.

    Returns:
        (B, V) float64; float32 on devices that lack it.

    Source: SplitMix64: Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 17;
    the (id + 1)-th output of the generator seeded by the mixed (key, step).
    """
    seeds = _mix(keys + (steps + 1) * GAMMA)
    counters = torch.arange(1, vocab + 1, device=keys.device) * GAMMA
    bits = _mix(seeds[:, None] + counters[None, :])  # (B, V)
    if keys.device.type == "mps":
        return (_shift(bits, 41).float() + 0.5) * 2.0**-23
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap as unsigned ones do."""
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical right shift: int64's own would copy the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
