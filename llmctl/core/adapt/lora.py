"""Lora: a matrix of low rank beside a frozen one: LoRA, rsLoRA, DoRA; on matrices and on tables."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Lora(nn.Module):
    """scale B A beside the frozen matrix W, which a `Linear`, an `Embedding` or a head holds: W + scale B A.

    With a magnitude (DoRA) each row of that sum has a learned length: row o is magnitude[o] times its direction. The
    length that is divided by is a constant of the backward pass.

    Of a table, (rows, width), W is the transpose: B A is (width, rows).

    Attributes:
        a: (r, in) float32; the matrices of one fused one share it.
        b: (out, r) float32.
        bias: (out,) float32, scaled as the product is, or None.
        magnitude: (out,) float32, or None.
        scale: of the product.
        dropout: share of the input of A that is dropped in training.

    Source: Hu et al., arXiv:2106.09685, equation 3; DoRA: Liu et al., arXiv:2402.09353, equations 5 and 11. Where
    dropout and magnitude meet we drop what enters A alone, PEFT what enters W a second time as well.
    """

    def __init__(
        self,
        a: nn.Parameter,
        b: Tensor,
        scale: float,
        dropout: float = 0.0,
        magnitude: Tensor | None = None,
        bias: Tensor | None = None,
    ):
        super().__init__()
        self.a, self.b = a, nn.Parameter(b)
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.scale, self.dropout = scale, dropout

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What the layer makes of x, (..., in) to (..., out); of a table, (...) ids to (..., width)."""
        if self._summed(layer, x):
            y = _Beside.apply(x, layer.bias, self.a, self.b, self.scale, layer)
            if self.magnitude is not None:
                y = _rescaled(y, self._factor(layer), layer.bias)
            return y if self.bias is None else torch.add(y, self.bias, alpha=self.scale)
        y = layer.plain(x)
        if isinstance(layer, nn.Embedding):
            low = F.embedding(x, self.a.t())  # (..., r)
        else:
            low = F.linear(self._dropped(_as(x, self.a)), self.a)  # (..., r)
        if self.magnitude is None:
            return _added(_as(y, low), low, self.b, self.scale, self.bias).to(y.dtype)
        factor = self._factor(layer)
        scaled = _rescaled(y, factor, getattr(layer, "bias", None))
        return _added(_as(scaled, low), low, factor[:, None] * self.b, self.scale, self.bias).to(y.dtype)

    def weight(self, layer: nn.Module) -> Tensor:
        """The matrix that the layer amounts to, (out, in) float32; of a table (rows, width)."""
        found = _sum(layer, self.a, self.b, self.scale)
        if self.magnitude is not None:
            found = found * self._factor(layer)[:, None]
        return found.t() if isinstance(layer, nn.Embedding) else found

    def _factor(self, layer: nn.Module) -> Tensor:
        """DoRA's magnitude over length, (out,)."""
        return self.magnitude / norms(layer, self.a, self.b, self.scale)

    def _summed(self, layer: nn.Module, x: Tensor) -> bool:
        """Whether the sum W + scale B A is made, rather than two products: in training, where many rows meet it.

        Only in float32: rounded to bfloat16, W would swallow most of what is added.
        """
        if not torch.is_grad_enabled() or isinstance(layer, nn.Embedding) or (self.training and self.dropout):
            return False
        if x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
            return False
        held = getattr(layer, "weight", None)  # in 4 bits there is none
        if held is None or held.dtype != torch.float32 or held.requires_grad:
            return False
        outputs, inputs = held.shape
        return x.numel() // inputs * (inputs + outputs) >= inputs * outputs

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


@torch.no_grad()
def norms(layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The length of each row of W + scale B A: (out,) float32, a constant."""
    return torch.linalg.vector_norm(_sum(layer, a, b, scale), dim=1)


class _Beside(torch.autograd.Function):
    """x (W + scale B A)' + bias, W frozen: the matrix that is as large as W has no gradient, A and B have theirs."""

    @staticmethod
    def forward(ctx, x, bias, a, b, scale, layer):
        ctx.save_for_backward(x, a, b)
        ctx.scale, ctx.layer = scale, layer
        return F.linear(x, _sum(layer, a, b, scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, a, b = ctx.saved_tensors
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ _sum(ctx.layer, a, b, ctx.scale)
        gradient, x = gradient.flatten(0, -2), x.flatten(0, -2)  # (N, out), (N, in)
        if ctx.needs_input_grad[1]:
            of_bias = gradient.sum(0)
        of_a = (gradient @ b * ctx.scale).t() @ x
        of_b = gradient.t() @ (x @ a.t() * ctx.scale)
        return of_x, of_bias, of_a, of_b, None, None


def _rescaled(y: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
    """All but the bias of y, (..., out), times the factor, (out,)."""
    return y * factor if bias is None else torch.addcmul((1 - factor) * bias, y, factor)


def _sum(layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A, (out, in) float32 under autocast too; W of a table is its transpose."""
    dense = layer.weight.t() if isinstance(layer, nn.Embedding) else layer.dense()
    with torch.autocast(a.device.type, enabled=False):
        return torch.addmm(dense.float(), b, a, alpha=scale)


def _as(x: Tensor, other: Tensor) -> Tensor:
    """x in the dtype of the other, unless autocast chooses it."""
    return x if x.dtype == other.dtype or torch.is_autocast_enabled(x.device.type) else x.to(other.dtype)


def _added(y: Tensor, low: Tensor, b: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """y + scale (low b' + bias), in one product: (..., out)."""
    found = torch.addmm(y.flatten(0, -2), low.flatten(0, -2), b.t(), alpha=scale).view(y.shape)
    return found if bias is None else torch.add(found, bias, alpha=scale)
