"""Frozen matrices: held in few bits or another type than the arithmetic's, and made dense only while they multiply."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llmctl.core.compress.nf4 import Nf4, pack, unpack
from llmctl.core.compress.pages import give_back
from llmctl.core.device import DTYPES
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.trained import own_shapes


def freeze(model: Transformer, config: AdaptConfig, dtype: torch.dtype) -> None:
    """Hold what an adapter leaves as it is in the type that the method asks for; one matrix at a time, in place.

    Matrices of the layers are packed or cast, and their sources given up; parameters that are to be trained as they
    are become float32, and with embeddings among them norms as well; all else stays, unless the arithmetic is in
    float32, which takes nothing else. A method that writes a whole checkpoint changes nothing. Adapters are not
    attached here, and those that are stay.

    Args:
        dtype: of the arithmetic.
    """
    if not config.makes_adapter:
        return
    trained = own_shapes(model.config, config)
    wide = any(name.startswith("embed.") for name in trained)  # float32 vectors, which norms have to fit
    inner = {f"{path}.weight" for layer in model.layers for path, _ in _frozen(model, layer, trained)}
    for name, parameter in model.named_parameters():
        beside = name not in inner and dtype == torch.float32  # no autocast makes types agree
        if name in trained or beside or (wide and parameter.ndim == 1):
            parameter.data = parameter.data.float()
    for layer in model.layers:
        sources = []
        for path, module in list(_frozen(model, layer, trained)):
            owner, _, name = path.rpartition(".")
            sources.append(module.weight.detach())
            setattr(model.get_submodule(owner), name, _held(module, config, dtype))
        give_back(sources, model.parameters())


def _frozen(model: Transformer, layer: nn.Module, trained: dict) -> list[tuple[str, Linear]]:
    """The matrices of a layer that are not trained, by their path in the model; none that is in few bits."""
    own = set(layer.modules())
    return [
        (path, module)
        for path, module in model.named_modules()
        if module in own
        and isinstance(module, Linear)
        and module.weight is not None
        and f"{path}.weight" not in trained
    ]


def _held(linear: Linear, config: AdaptConfig, dtype: torch.dtype) -> Linear:
    """A matrix as the config has it held."""
    if config.nf4:
        return Nf4Linear(linear, config.double_quant, dtype)
    held = dtype if config.base_dtype == "auto" else DTYPES[config.base_dtype]
    linear.weight = nn.Parameter(linear.weight.detach().to(held), requires_grad=False)
    return linear if held == dtype else CastLinear(linear)


class StandIn(Linear):
    """A Linear in another's place, whose bias and adapter are the other's; its weight is still to be given.

    Args:
        source: the other.
    """

    def __init__(self, source: Linear):
        super().__init__(source.in_features, source.out_features, bias=False, device="meta")
        self.weight, self.bias = None, source.bias
        self.adapter = source.adapter
        self.train(source.training)

    def single(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """The product with one token of a dtype, (1, I) to (1, O), whatever the adapter; None: it has no short way."""
        return None


class CastLinear(StandIn):
    """A Linear whose weight is in another type than the arithmetic's."""

    def __init__(self, source: Linear):
        super().__init__(source)
        self.weight = source.weight

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter; in the dtype of autocast, or of the input."""
        return product(x, self.bias, _cast, self.weight)


class Nf4Linear(StandIn):
    """A Linear whose weight is in 4 bits: there is no parameter `weight`, but buffers named after it.

    Args:
        source: whose weight is packed.
        double: quantize the scales, too.
        dtype: of `dense`.
    """

    def __init__(self, source: Linear, double: bool, dtype: torch.dtype):
        super().__init__(source)
        self.dtype = dtype
        packed = pack(source.weight, double)
        self.register_buffer("weight_nf4", packed.codes)
        self.register_buffer("weight_absmax", packed.absmax)
        self.register_buffer("weight_nested_absmax", packed.nested)
        self.register_buffer("weight_offset", packed.offset)

    @property
    def packed(self) -> Nf4:
        """The weight."""
        return Nf4(self.weight_nf4, self.weight_absmax, self.weight_nested_absmax, self.weight_offset)

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter; in the dtype of autocast, or of the input."""
        return product(x, self.bias, partial(_unpack, (self.out_features, self.in_features)), *self.packed)

    def dense(self) -> Tensor:
        """The matrix, (outputs, inputs), made anew."""
        return unpack(self.packed, (self.out_features, self.in_features), self.dtype)


def product(x: Tensor, bias: Tensor | None, make: Callable[..., Tensor], *held: Tensor | None) -> Tensor:
    """x W' + bias, where W is made for the product and given up after it, and made again to go backward.

    Args:
        x: (..., I).
        bias: (O,) or None.
        make: of the dtype to compute in and of what is held to W, (O, I).
        held: what W is made of; it has no gradient.

    Returns:
        (..., O), in the dtype of autocast, or of x.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    rows = _Product.apply(x.flatten(0, -2), bias, make, dtype, *held)  # (N, O), no view: an adapter may overwrite it
    return rows.view(*x.shape[:-1], -1)


def _cast(dtype: torch.dtype, weight: Tensor) -> Tensor:
    return weight.to(dtype)


def _unpack(shape: tuple[int, int], dtype: torch.dtype, *packed: Tensor | None) -> Tensor:
    return unpack(Nf4(*packed), shape, dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, make, dtype, *held):
        ctx.save_for_backward(*held)
        ctx.make, ctx.dtypes = make, (x.dtype, None if bias is None else bias.dtype)
        return F.linear(x.to(dtype), make(dtype, *held), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = (grad @ ctx.make(grad.dtype, *ctx.saved_tensors)).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            db = grad.sum(0, dtype=torch.float32).to(ctx.dtypes[1])
        return dx, db, None, None, *(None for _ in ctx.saved_tensors)
