"""initialise: first weights, the same for a seed whatever the device, the dtype or the order."""

import hashlib
import math

import torch
from torch import Tensor

from llmctl.core.model.transformer import Transformer

RESIDUAL = ("attention.out.weight", "mlp.down.weight")  # what adds to the stream, twice a layer


def initialise(model: Transformer, seed: int) -> Transformer:
    """Fill a model with its first weights, in place, and return it.

    Matrices are normal with deviation init_std, those that add to the residual stream divided by the root of twice
    the layers; norms are one and biases zero. Each tensor has a stream of its own, seeded by (seed, name) and drawn
    in float32 on the CPU, so torch's global generator is neither read nor moved.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners", section 2.3.
    """
    config = model.config
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = config.init_std / (math.sqrt(2 * config.layers) if name.endswith(RESIDUAL) else 1.0)
            parameter.copy_(_drawn(parameter.shape, deviation, seed, name))
    return model


def _drawn(shape: torch.Size, deviation: float, seed: int, name: str) -> Tensor:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, deviation, generator=generator)
