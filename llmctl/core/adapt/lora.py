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
        self._kept: tuple[tuple[object, ...], Tensor] | None = None  # DoRA's factor, and what it was made of

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What the layer makes of x, (..., in) to (..., out); of a table, (...) ids to (..., width)."""
        if isinstance(layer, nn.Embedding):
            y, low = layer.plain(x), F.embedding(x, self.a.t())  # (..., width), (..., r)
            if self.magnitude is None:
                return torch.add(y, F.linear(low, self.b), alpha=self.scale).to(y.dtype)
            factor = self._factor(layer)
            return (y * factor + F.linear(low, factor[:, None] * self.b) * self.scale).to(y.dtype)
        kind = x.device.type
        cast = torch.is_autocast_enabled(kind)
        x = x.to(torch.get_autocast_dtype(kind)) if cast else x  # once, for both products
        y, b = layer.plain(x), self.b
        if self.magnitude is not None:
            factor = self._factor(layer)  # (out,)
            y, b = _rescaled(y, factor, layer.bias), factor[:, None] * b
        y = _Beside.apply(y, self._dropped(x), self.a, b, self.scale, y.dtype if cast else self.a.dtype)
        return y if self.bias is None else torch.add(y, self.bias, alpha=self.scale).to(y.dtype)

    def train(self, mode: bool = True) -> "Lora":
        """Change the mode; what was kept is forgotten."""
        self._kept = None
        return super().train(mode)

    def weight(self, layer: nn.Module) -> Tensor:
        """The matrix that the layer amounts to, (out, in) float32; of a table (rows, width)."""
        found = _sum(layer, self.a, self.b, self.scale)
        if self.magnitude is not None:
            found = found * self._factor(layer)[:, None]
        return found.t() if isinstance(layer, nn.Embedding) else found

    def _factor(self, layer: nn.Module) -> Tensor:
        """DoRA's magnitude over length, (out,); where nothing is trained it is made once, not for each token.

        A step of an optimizer may leave no trace on its parameters, but between two there is a change of mode.
        """
        if torch.is_grad_enabled() or self.training:
            return self.magnitude / norms(layer, self.a, self.b, self.scale)
        parts = (self.a, self.b, self.magnitude)
        made_of = (id(layer), *((id(part), part.device, part.dtype, _version(part)) for part in parts))
        if self._kept is None or self._kept[0] != made_of:
            self._kept = made_of, self.magnitude / norms(layer, self.a, self.b, self.scale)
        return self._kept[1]

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; one made in inference mode does not tell, and is written to no more."""
    return 0 if tensor.is_inference() else tensor._version


@torch.no_grad()
def norms(layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The length of each row of W + scale B A: (out,) float32, a constant."""
    return torch.linalg.vector_norm(_sum(layer, a, b, scale), dim=1)


class _Beside(torch.autograd.Function):
    """y + scale x A' B' in a dtype; y, which nothing else may hold, is overwritten where it is of that dtype.

    In each product the narrow side stands first, with contiguous rows: the other way round, which autograd takes, such
    shapes need up to thirteen times as long on a CPU (1024 rows, 256 to 1024, r = 8, float32: 3.8 ms for 0.3 ms).
    """

    @staticmethod
    def forward(ctx, y, x, a, b, scale, dtype):
        rows = x.flatten(0, -2).to(dtype)  # (N, in)
        thin, back = a.to(dtype), b.to(dtype)
        low = thin @ rows.t()  # (r, N)
        ctx.save_for_backward(rows, thin, back, low)
        ctx.scale, ctx.dtype, ctx.shape = scale, x.dtype, x.shape
        if y.dtype == dtype and y.is_contiguous():
            ctx.mark_dirty(y)
            y.view(-1, y.shape[-1]).addmm_(low.t(), back.t(), alpha=scale)
            return y
        return torch.addmm(y.flatten(0, -2).to(dtype), low.t(), back.t(), alpha=scale).view(y.shape).to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, a, b, low = ctx.saved_tensors
        gradient_rows = gradient.flatten(0, -2).to(b.dtype)  # (N, out)
        back = (b.t() * ctx.scale) @ gradient_rows.t()  # (r, N)
        of_x = (back.t() @ a).view(ctx.shape).to(ctx.dtype) if ctx.needs_input_grad[1] else None
        return gradient, of_x, back @ rows, ((low * ctx.scale) @ gradient_rows).t(), None, None


def _rescaled(y: Tensor, factor: Tensor, bias: Tensor | None) -> Tensor:
    """All but the bias of y, (..., out), times the factor, (out,); what is added is small and may be of few bits."""
    more = (factor - 1).to(y.dtype)
    return y + (y * more if bias is None else torch.addcmul((-more * bias).to(y.dtype), y, more))


def _sum(layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale B A, (out, in) float32 under autocast too; W of a table is its transpose."""
    dense = layer.weight.t() if isinstance(layer, nn.Embedding) else layer.dense()
    with torch.autocast(a.device.type, enabled=False):
        return torch.addmm(dense.float(), b, a, alpha=scale)
