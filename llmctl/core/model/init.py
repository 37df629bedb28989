"""initialise: first weights, the same for a seed whatever the device, the dtype or the order."""

import hashlib
import math

import torch
from torch import Tensor

from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig

RESIDUAL = ("attention.out.weight", "mlp.down.weight")  # what adds to the stream, twice a layer or more


def initialise(model: Transformer, seed: int) -> Transformer:
    """Fill a model with its first weights, in place, and return it.

    Matrices are normal with deviation init_std, those that add to the residual stream divided by the root of twice
    the layers; norms multiply by one and biases are zero. Models with relative positions have T5's deviations
    instead, since their scores are not scaled down. Each tensor has a stream of its own, seeded by (seed, name) and
    drawn in float32 on the CPU, so torch's global generator is neither read nor moved.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3; Raffel et al.,
    arXiv:1910.10683, and the released code, for T5.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(first(model.config, name, parameter.shape, seed))
    return model


def first(config: ModelConfig, name: str, shape: torch.Size, seed: int) -> Tensor:
    """The first weights of one parameter of a model, float32 on the CPU; see `initialise`."""
    if len(shape) == 1:
        one = not name.endswith("bias") and not (config.norm_plus_one and "norm" in name)
        return torch.full(shape, 1.0 if one else 0.0)
    deviation = _relative if config.position == "relative" else _plain
    return drawn(shape, deviation(config, name, shape[1]), seed, name)


def _plain(config: ModelConfig, name: str, inputs: int) -> float:
    return config.init_std / (math.sqrt(2 * config.layers) if name.endswith(RESIDUAL) else 1.0)


def _relative(config: ModelConfig, name: str, inputs: int) -> float:
    """T5's: by the inputs of a matrix, queries smaller by the root of a head, and token vectors of length one each."""
    if name == "embed.tokens.weight":
        return 1.0
    if name.endswith("relative.weight"):
        return config.width**-0.5
    return (inputs * config.head_dim if name.endswith("attention.q.weight") else inputs) ** -0.5


def drawn(shape: torch.Size, deviation: float, seed: int, name: str) -> Tensor:
    """Normal numbers of a deviation, float32 on the CPU, from the stream of a seed and a name."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, deviation, generator=generator)
