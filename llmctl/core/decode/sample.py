"""Which token comes next: filters on a step's logits, and the choice among what they leave.

Each filter takes logits (B, V) float32 and returns logits of the same shape, with -inf for what it dropped. Their order
and meaning are those of transformers' logits processors, so settings carry over.
"""

import hashlib
import math
import struct
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llmctl.spec.sample import Sampling

GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15, the odd integer nearest to 2^64 / golden ratio, as int64
LONG = 2048  # scores of a row; shorter ones are looked at together


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

    Of tokens that are equally likely at the border, the first are kept, as many as are needed.

    Source: Holtzman et al., "The Curious Case of Neural Text Degeneration", arXiv:1904.09751, section 3.1.
    """
    chances = logits.softmax(dim=-1)
    ordered = _descending(chances)
    before = ordered.cumsum(dim=-1) - ordered  # of the likelier tokens
    count = (before < p).sum(dim=-1, keepdim=True).clamp(min=1)  # (B, 1)
    border = ordered.gather(1, count - 1)
    dropped = chances < border
    spare = chances.shape[1] - count - dropped.sum(dim=-1, keepdim=True)  # of those that tie, too many
    if bool((spare > 0).any()):
        tied = chances == border
        dropped |= tied & (tied.cumsum(dim=-1) > tied.sum(dim=-1, keepdim=True) - spare)
    return logits.masked_fill(dropped, -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """The tokens at least p times as likely as the likeliest.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling", arXiv:2407.01082, section 3.
    """
    chances = logits.softmax(dim=-1)
    best = chances.amax(dim=-1, keepdim=True)
    return logits.masked_fill(chances < p * best, -torch.inf)


def keep_typical_p(logits: Tensor, p: float) -> Tensor:
    """The tokens whose surprise is nearest to the entropy, as many as hold p of the probability.

    Source: Meister et al., "Locally Typical Sampling", arXiv:2202.00666, section 4.
    """
    surprise = -logits.log_softmax(dim=-1)
    chances = logits.softmax(dim=-1)
    entropy = (chances * surprise).nansum(dim=-1, keepdim=True)
    distance = (surprise - entropy).abs()
    order = _order(distance)
    count = (chances.gather(1, order).cumsum(dim=-1) < p).sum(dim=-1, keepdim=True).clamp(max=order.shape[1] - 1)
    border = distance.gather(1, order.gather(1, count))
    return logits.masked_fill(distance > border, -torch.inf)


def keep_epsilon(logits: Tensor, epsilon: float) -> Tensor:
    """The tokens of probability epsilon or more, and always the likeliest.

    Source: Hewitt et al., "Truncation Sampling as Language Model Desmoothing", arXiv:2210.15191, section 4.
    """
    unlikely = logits.softmax(dim=-1) < epsilon
    return logits.masked_fill(unlikely & (logits < logits.amax(dim=-1, keepdim=True)), -torch.inf)


def keep_eta(logits: Tensor, epsilon: float) -> Tensor:
    """The tokens of probability min(epsilon, sqrt(epsilon) exp(-entropy)) or more, and always the likeliest.

    Source: Hewitt et al., arXiv:2210.15191, section 4.2.
    """
    chances = logits.softmax(dim=-1)
    entropy = -(chances * logits.log_softmax(dim=-1)).nansum(dim=-1, keepdim=True)
    unlikely = chances < (math.sqrt(epsilon) * (-entropy).exp()).clamp(max=epsilon)
    return logits.masked_fill(unlikely & (logits < logits.amax(dim=-1, keepdim=True)), -torch.inf)


# What shapes the distribution, by the field of Sampling, in order.
WARPERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "temperature": heat,
    "top_k": keep_top_k,
    "top_p": keep_top_p,
    "min_p": keep_min_p,
    "typical_p": keep_typical_p,
    "epsilon_cutoff": keep_epsilon,
    "eta_cutoff": keep_eta,
}
# Values at which each changes nothing.
OFF = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits (B, V) after all of WARPERS that are on. The temperature must not be 0."""
    for name, warp in WARPERS.items():
        value = getattr(sampling, name)
        if value != OFF[name]:
            logits = warp(logits, value)
    return logits


def _descending(x: Tensor) -> Tensor:
    """Each row's values, the largest first. NumPy sorts floats many times faster than torch does on a CPU."""
    if x.device.type != "cpu":
        return x.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(x.detach().numpy(), axis=-1)).flip(-1)


def _order(x: Tensor) -> Tensor:
    """(B, V) int64, the places of each row's values, the smallest first."""
    return x.argsort(dim=-1) if x.device.type != "cpu" else torch.from_numpy(np.argsort(x.detach().numpy(), axis=-1))


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
    if sampling.greedy:
        return torch.tensor(likeliest(logits), device=logits.device)
    return drawn(filtered(logits, sampling), keys, steps)


def likeliest(scores: Tensor) -> list[int]:
    """The best token of each row of (B, V), the first of several; -1 in a row that holds a NaN."""
    if scores.device.type != "cpu":
        ids = scores.argmax(dim=-1)
        return torch.where(scores.gather(1, ids[:, None])[:, 0].isnan(), -1, ids).tolist()
    rows = scores.detach().numpy()  # ten times as fast as torch, which matters where a step takes some milliseconds
    best = rows.argmax(axis=1)
    return [-1 if math.isnan(row[token]) else token for row, token in zip(rows, best.tolist(), strict=True)]


def drawn(scores: Tensor, keys: Tensor, steps: Tensor) -> Tensor:
    """A token of each row, drawn from softmax(scores); arguments and result as for `choose`."""
    if by_rows(scores):
        return torch.tensor(
            [_drawn(*row) for row in zip(scores.detach().numpy(), keys.tolist(), steps.tolist(), strict=True)]
        )
    uniform = uniforms(keys, steps, scores.shape[1])
    ids = (scores.to(uniform.dtype) - torch.log(-torch.log(uniform))).argmax(dim=-1)
    return torch.where(scores.gather(1, ids[:, None])[:, 0].isnan(), -1, ids)


def by_rows(scores: Tensor) -> bool:
    """Whether rows are better looked at one by one: on a CPU, long ones stay in its cache from one step to the next."""
    return scores.device.type == "cpu" and scores.shape[1] > LONG


def _drawn(scores: np.ndarray, key: int, step: int) -> int:
    """As `drawn`, of one row, (V,) float32; only tokens that are left get noise."""
    if math.isnan(scores.max()):
        return -1
    left = scores > -np.inf
    tokens = None if left.all() else np.flatnonzero(left)
    noise = np.log(row_uniforms(key, step, len(scores), tokens))
    np.log(np.negative(noise, out=noise), out=noise)
    place = ((scores if tokens is None else scores[tokens]) - noise).argmax()
    return int(place if tokens is None else tokens[place])


def uniforms(keys: Tensor, steps: Tensor, vocab: int) -> Tensor:
    """Numbers in (0, 1), one for each row and token: a counter-based generator without state.

    Args:
        keys: (B,) int64.
        steps: (B,) int64.
        vocab: V, how many tokens there are.

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


def row_uniforms(key: int, step: int, vocab: int, tokens: np.ndarray | None = None) -> np.ndarray:
    """The numbers of one row, (V,) float64, or of some tokens; the same, but NumPy is three times as fast."""
    seed = _mixed(np.array([(key + (step + 1) * GAMMA) % 2**64], dtype=np.uint64))
    bits = np.arange(1, vocab + 1, dtype=np.uint64) if tokens is None else (tokens + 1).astype(np.uint64)
    bits *= np.uint64(GAMMA % 2**64)
    bits += seed
    uniform = (_mixed(bits) >> np.uint64(12)).astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-52
    return uniform


def _mixed(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on uint64, in place."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    return z


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap as unsigned ones do."""
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical right shift: int64's own would copy the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
