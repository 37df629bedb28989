"""qat: training while weights count as they will be rounded, so that they move to where rounding harms least."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.checkpoint.quantized import QuantWriter
from llmctl.core.checkpoint.write import DTYPES
from llmctl.core.compress.judge import texts
from llmctl.core.compress.quant.grid import FP8_MOST, Codes, fake, measured, quantise
from llmctl.core.data.old import read_old
from llmctl.core.device import Place
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.objectives import tokens_loss
from llmctl.core.train.run import Probe, Run
from llmctl.core.train.texts import prepare
from llmctl.spec.plan import TrainPlan
from llmctl.spec.qat import Tuning
from llmctl.spec.quant import Clip, Grid
from llmctl.spec.quant_plan import QuantPlan
from llmctl.spec.tokens import is_tokens

MEASURED = 20_000  # tokens of held-out text, before and after


def rounded(model: Transformer, names: Iterable[str], grid: Grid, dtype: torch.dtype, clip: Clip = "none") -> None:
    """Have matrices of a model multiply as they would when quantized, in place; their parameters stay what they are.

    Args:
        names: of the matrices: "decoder.layers.0.attention.q".
        dtype: of the scales, as they will be stored.
    """
    for path in names:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, RoundedLinear(model.get_submodule(path), grid, dtype, clip))


class RoundedLinear(Linear):
    """A Linear whose product is that of its weight's nearest values, and whose weight learns as if it were its own.

    Source: the straight-through estimator of Bengio et al., arXiv:1308.3432, section 4, as in Jacob et al.,
    arXiv:1712.05877, section 3.
    """

    def __init__(self, source: Linear, grid: Grid, dtype: torch.dtype, clip: Clip):
        super().__init__(source.in_features, source.out_features, bias=False, device="meta")
        self.weight, self.bias, self.adapter = source.weight, source.bias, source.adapter
        self.grid, self.dtype, self.clip = grid, dtype, clip
        self.train(source.training)

    def codes(self) -> Codes:
        """What it would be exported as."""
        return self.nearest(self.weight.detach())

    def nearest(self, weight: Tensor) -> Codes:
        """What another weight, or rows of it, would be exported as."""
        return quantise(weight, self.grid, self.dtype, self.clip)

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter."""
        if self.grid.dynamic:
            x = _Straight.apply(x, by_token, self.grid)
        return F.linear(x, _Straight.apply(self.weight, fake, self.grid, self.dtype, self.clip), self.bias)


def by_token(x: Tensor, grid: Grid) -> Tensor:
    """Inputs (..., I) in 8 bits with a scale for each token, of the grid's kind, and back in their own dtype.

    Source: compressed-tensors: whole numbers from -128 to 127 of absmax / 127.5; e4m3 of absmax / 448.
    """
    most = FP8_MOST if grid.kind == "fp8" else 127.5
    scale = (x.abs().amax(-1, keepdim=True) / most).clamp(min=torch.finfo(x.dtype).tiny)
    if grid.kind == "fp8":
        return (x / scale).clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).to(x.dtype) * scale
    return (x / scale).round().clamp(-128, 127) * scale


class _Straight(torch.autograd.Function):
    """`change(x, ...)`, with a gradient as if it were x."""

    @staticmethod
    def forward(ctx, x, change, *options):
        ctx.given = len(options)
        return change(x, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad, None, *(None for _ in range(ctx.given))


def tuned(directory: Path, plan: QuantPlan, text: str, tuning: Tuning, place: Place, seed: int) -> Run:
    """A run that trains a checkpoint with rounded matrices and writes it quantized.

    Args:
        directory: where it is made; it exists.
        text: to train on: a text, or a directory of tokens, whose held-out part is measured before and after.
    """
    checkpoint = Checkpoint.open(plan.source)
    tokenizer, config = checkpoint.tokenizer(), checkpoint.config
    model = checkpoint.model(place.device, torch.float32, writable=True)
    for name, matrix in plan.matrices.items():
        rounded(model, [name], plan.quant.grid, DTYPES[matrix.dtype], plan.quant.clip)
    learning = tuning.learning(config.context)
    memory = None if place.device.type == "cpu" else place.total_memory()
    dtype = "fp32" if place.dtype == torch.float32 else "bf16"
    sizes = TrainPlan.of(config, learning, read_old(text, tokenizer, "train").tokens, dtype, memory)
    probes = {}
    if is_tokens(text) and read_old(text, tokenizer, "heldout").tokens > 1:
        batches = texts(text, config, tokenizer, MEASURED, row=sizes.block)
        probes["rounded_heldout"] = Probe(batches, tokens_loss, True)
    return prepare(
        directory, model, None, text, tokenizer, sizes, learning, tuning.watch, place,
        lambda to: export(model, plan, to), seed, probes=probes,
    )  # fmt: skip


@torch.no_grad()
def export(model: Transformer, plan: QuantPlan, directory: Path) -> None:
    """Write a model with rounded matrices as a quantized checkpoint: the codes that its products were of."""
    with QuantWriter(directory, plan.source, plan.quant, plan.grids) as writer:
        for name in plan.matrices:
            writer.put(name, model.get_submodule(name).codes())
        for name, parameter in model.named_parameters():
            if name.removesuffix(".weight") not in plan.matrices:
                writer.plain(name, parameter.detach())


def records(model: Transformer, plan: QuantPlan) -> list[dict[str, Any]]:
    """A record of each matrix of a trained model; its error is that of its rounding."""
    found = []
    for name, matrix in plan.matrices.items():
        module = model.get_submodule(name)
        found.append(matrix.record(measured(module.nearest, module.weight.detach(), module.grid)[1]))
    return found
