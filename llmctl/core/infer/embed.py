"""embed: a vector for each text, drawn together from the hidden states of its tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llmctl.core.infer.encode import Padded, Row, padded
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.sentence import Activation, Dense, Pooling


def mean(hidden: Tensor, batch: Padded) -> Tensor:
    """(B, T, D) to (B, D): the mean over each row's tokens, special ones included.

    Source: Reimers and Gurevych, "Sentence-BERT", arXiv:1908.10084, section 3.
    """
    real = batch.real[..., None].to(hidden.dtype)  # (B, T, 1)
    return (hidden * real).sum(dim=1) / real.sum(dim=1)


def first(hidden: Tensor, batch: Padded) -> Tensor:
    """(B, T, D) to (B, D): of each row's first token."""
    return hidden[:, 0]


def last(hidden: Tensor, batch: Padded) -> Tensor:
    """(B, T, D) to (B, D): of each row's last token, the only one of a decoder that has seen all."""
    return hidden[torch.arange(len(hidden), device=hidden.device), batch.last]


POOLINGS: dict[Pooling, Callable[[Tensor, Padded], Tensor]] = {"mean": mean, "cls": first, "last": last}

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "tanh": torch.tanh}


@dataclass(frozen=True, eq=False)
class Layer:
    """A dense layer after the pooling: activation(x weight' + bias)."""

    weight: Tensor
    bias: Tensor | None
    activation: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        return self.activation(F.linear(x, self.weight, self.bias))


@torch.inference_mode()
def embed(
    model: Transformer, rows: Sequence[Row], pooling: Pooling, normalize: bool, layers: Sequence[Layer] = ()
) -> Tensor:
    """(B, D) float32 on the CPU: a vector for each row; of an encoder-decoder, what its encoder makes of it.

    Args:
        normalize: to length 1.
        layers: dense layers between pooling and normalisation.

    Raises:
        UserError: the vectors are not numbers.
    """
    batch = padded(rows, model.config, next(model.parameters()).device)
    read = {"segments": batch.segments, "types": batch.types}
    if model.config.kind == "encoder-decoder":
        hidden = model.encode(batch.tokens, **read).hidden[:, -batch.tokens.shape[1] :]  # without a soft prompt's
    else:
        hidden = model(batch.tokens, **read)  # (B, T, D)
    vectors = POOLINGS[pooling](hidden.float(), batch)  # (B, D)
    for layer in layers:
        vectors = layer(vectors)
    vectors = (F.normalize(vectors, dim=-1) if normalize else vectors).cpu()
    if not bool(vectors.isfinite().all()):
        raise UserError("The model's vectors are not numbers (NaN).", "Try --dtype fp32, or llmctl verify.")
    return vectors


def open_layer(dense: Dense, device: torch.device) -> Layer:
    """A dense layer of a sentence-transformers directory.

    Raises:
        UserError: its weights are absent, pickled or misshapen.
    """
    file = Path(dense.path) / "model.safetensors"
    if not file.is_file():
        raise UserError(
            f"{dense.path} has no model.safetensors.", "Save the model again with sentence-transformers.", Exit.MISMATCH
        )
    try:
        state = load_file(file, device=str(device))
    except SafetensorError as error:
        raise UserError(f"{file} is not a sound safetensors file: {error}.", code=Exit.MISMATCH) from error
    wanted = {"linear.weight": (dense.outputs, dense.inputs)} | (
        {"linear.bias": (dense.outputs,)} if dense.bias else {}
    )
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != wanted:
        raise UserError(f"{file} holds {found}, wanted {wanted}.", "Fetch it again.", Exit.MISMATCH)
    weight, bias = state["linear.weight"].float(), state.get("linear.bias")
    return Layer(weight, None if bias is None else bias.float(), ACTIVATIONS[dense.activation])
