"""Kernels: products with weights that stay packed, of bytes and of four bits, and what each is exact to.

Bytes (oneDNN's product of unsigned activations and signed weights): whole numbers times whole numbers are exact, so
only what activations lose on their way to whole numbers counts. A byte each loses about 1 % of a product, more beside
an outlier, and is what w8a8 asks for. Everything else gives each token two bytes, or three where it is float32, as so
many rows of one call: the product is bound by reading the weights, so they cost little. Products are then nearer to
the exact ones than those of bf16 arithmetic, and in float32 within 3e-6 of them. (Of bf16 models see `straight`.)

Four bits (tinygemm's): activations and scales are bf16, sums float32, the result is rounded to bf16, whatever the
dtype of the model: 3e-3 of a product. Numbers of more than 4 bits are the sum of two planes of 4.

KL to the weights made dense and multiplied in float32, nats a token, of small trained decoders that write one token
after another: int8 in float32 5e-9, in bf16 8.2e-5 (dense weights in bf16 8.4e-5); int4 in float32 9e-6, where 4 bits
themselves cost 6e-3 to 9e-3, and bf16 in an unquantized model 4e-5. Activations of one byte would add 1.6e-4 to the
3.5e-5 that int8 costs: so weights alone in int8 are not multiplied that way, however fast.
"""

from collections.abc import Callable
from copy import copy
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

PARTS = {torch.float32: 3, torch.bfloat16: 2, torch.float16: 2}  # bytes of an activation
MOST = {2: 127 * 257, 3: 126 * 65793}  # the largest whole number of so many bytes from -128 to 127; in float32 room
LIFT = {2: 128 * 257 + 0.5, 3: 128 * 65793.0}  # added, it makes all of them positive, and truncation rounding
POWERS = (1.0, 256.0)  # what a unit of each of two bytes stands for
SMALLEST = 1e-30  # a unit, so that its inverse is a float32
TOKENS = 256  # that are multiplied at once: what is made of them takes little memory
LOOKED_UP = 1 << 16  # weights at a time: they stay in a core's cache
GROUPS = (256, 128, 64, 32)  # columns that share a scale, in four bits


@lru_cache
def bytes_are_fast() -> bool:
    """Whether this CPU multiplies bytes into 32-bit sums that cannot overflow on the way (AVX512-VNNI, AMX)."""
    return torch.backends.mkldnn.is_available() and bool(torch.cpu._is_vnni_supported())


class Bytes:
    """A matrix of bytes as oneDNN lays it out, or some of its rows; not a buffer, since little can be done with one.

    Args:
        codes: (O, I) int8.
        scale: (O,), what a unit of each row stands for.
        zero: (O,) int8, what code of each row stands for 0; None: 0 does.
    """

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor | None):
        self._packed = torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)
        self._scale = scale.float().contiguous()
        self._points = torch.zeros(len(scale), dtype=torch.int64)
        self._shift = None if zero is None else self._scale * zero.float()  # (O,)
        self._span: slice | None = None  # of rows; None: all

    def __deepcopy__(self, known: dict) -> "Bytes":
        """Itself: nothing changes it."""
        return self

    @property
    def codes(self) -> Tensor:
        """(O, I) int8, as they were given."""
        codes = self._packed.to_dense().t()
        return codes if self._span is None else codes[self._span]

    @property
    def nbytes(self) -> int:
        """Bytes of its rows as they are held."""
        return self.codes.nbytes if self._span is not None else self._packed.nbytes

    def parts(self, sizes: list[int]) -> "list[Bytes]":
        """Runs of so many rows; each multiplies with all of them and takes its own."""
        ends = list(accumulate(sizes))
        found = [copy(self) for _ in sizes]
        for part, size, end in zip(found, sizes, ends, strict=True):
            part._span = slice(end - size, end)
        return found

    def product(self, x: Tensor, bias: Tensor | None, dynamic: bool) -> Tensor:
        """x W' + bias, (N, O) in the dtype of x.

        Args:
            x: (N, I), any float dtype.
            bias: (O,) or None.
            dynamic: each token in one byte, rounded as compressed-tensors does it.
        """
        one, many = (_one_byte, _one_byte) if dynamic else (_one, token_bytes)
        if x.shape[0] <= TOKENS:
            return self._of(x, (one if x.shape[0] == 1 else many), bias)
        return torch.cat([self._of(rows, many, bias) for rows in x.split(TOKENS)])

    def single(self, dtype: torch.dtype, bias: Tensor | None, dynamic: bool) -> Callable[[Tensor], Tensor] | None:
        """`product` for one token (1, I) of a dtype, where every call counts; None: it has no shorter way."""
        if dynamic or PARTS.get(dtype) != len(POWERS) or self._shift is not None or self._span is not None:
            return None
        packed, scale, points, powers = self._packed, self._scale, self._points, torch.tensor([POWERS])
        multiply = torch.ops.onednn.qlinear_pointwise.default

        def product(x: Tensor) -> Tensor:
            rows, unit = _one(x)
            sums = multiply(rows, unit, 128, packed, scale, points, None, 1.0, 0, torch.float32, "none", [], "")
            y = torch.mm(powers, sums).type(dtype)
            return y if bias is None else y + bias

        return product

    def _of(self, x: Tensor, make: "Callable[[Tensor], Whole]", bias: Tensor | None) -> Tensor:
        rows, unit = make(x)
        number, tokens = isinstance(unit, float), x.shape[0]
        sums = torch.ops.onednn.qlinear_pointwise(
            rows, unit if number else 1.0, 128, self._packed, self._scale, self._points, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # (parts N, O)  # fmt: skip
        y, *lower = reversed(sums.split(tokens)) if rows.shape[0] > tokens else (sums,)
        for part in lower:
            y = torch.add(part, y, alpha=256)
        y = y if number else y.mul_(unit)
        if self._shift is not None:
            y.addr_(_total(rows, unit, tokens), self._shift, alpha=-1)
        y = y if self._span is None else y[:, self._span]
        return (y if bias is None else y + bias).to(x.dtype)


# Tokens (N, I) as whole numbers, (parts N, I) uint8, the lowest bytes first, 128 of which is 0; and what 1 stands for.
Whole = tuple[Tensor, float | Tensor]


def _one(x: Tensor) -> Whole:
    """One token, in as many bytes as its dtype asks for, with as few calls as possible."""
    parts = PARTS[x.dtype]
    least, most = torch.aminmax(x)
    unit = max(max(-least.item(), most.item()) / MOST[parts], SMALLEST)  # NaN stays
    whole = torch.add(_lift(parts), x, alpha=1 / unit).int()  # (1, I); the sum is float32
    return whole.view(torch.uint8).as_strided((parts, x.shape[1]), (1, 4)).contiguous(), unit


def token_bytes(x: Tensor) -> Whole:
    """The same of any number of tokens: `unit` is (N, 1)."""
    parts, x = PARTS[x.dtype], x.float()
    unit = x.abs().amax(1, True).div_(MOST[parts]).clamp_(min=SMALLEST)
    whole = torch.addcmul(_lift(parts), x, unit.reciprocal()).to(torch.int32)  # (N, I)
    return whole.view(torch.uint8).view(*x.shape, 4)[..., :parts].permute(2, 0, 1).flatten(0, 1), unit


def _one_byte(x: Tensor) -> Whole:
    """Tokens in a byte each."""
    unit = token_scales(x, 127.5)
    return (x / unit).round_().clamp_(-128, 127).add_(128).to(torch.uint8), unit.float()


def _total(rows: Tensor, unit: float | Tensor, tokens: int) -> Tensor:
    """The sum of each token (tokens,), given (parts tokens, I) uint8."""
    parts = rows.sum(1, dtype=torch.int64).view(-1, tokens) - 128 * rows.shape[1]
    powers = 256 ** torch.arange(len(parts))
    total = (parts * powers[:, None]).sum(0).float()
    return total * unit if isinstance(unit, float) else total * unit[:, 0]


def token_scales(x: Tensor, steps: float) -> Tensor:
    """What a unit of each token stands for, (N, 1) in the dtype of x (N, I): as compressed-tensors has it."""
    scale = x.abs().amax(-1, True) / steps
    return scale.add_(scale == 0)  # 1 where there are zeros only


@lru_cache
def _lift(parts: int) -> Tensor:
    """(1,) float32."""
    return torch.tensor([LIFT[parts]])


class Nibbles(NamedTuple):
    """A matrix (O, I) of whole numbers from -8 to 7 as tinygemm lays it out, with what they stand for.

    Attributes:
        packed: (O, I / 2) uint8.
        values: (I / group, O, 2) bf16: a number n of a group stands for n times the first, plus the second.
        group: columns that share those.
    """

    packed: Tensor
    values: Tensor
    group: int

    @classmethod
    def of(cls, numbers: Tensor, values: Tensor, group: int) -> "Nibbles":
        """Pack numbers (O, I) int8."""
        return cls(_packed(numbers, block_rows()), values, group)

    @property
    def numbers(self) -> Tensor:
        """(O, I) int8, as they were given."""
        return _signed(_unpacked(self.packed, block_rows()))

    def product(self, x: Tensor) -> Tensor:
        """x W' of (N, I) bf16, (N, O) bf16."""
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, self.group, self.values)

    def single(self, dtype: torch.dtype, bias: Tensor | None) -> Callable[[Tensor], Tensor] | None:
        """x W' + bias of one token (1, I) of a dtype, where every call counts; None: it has no shorter way."""
        if dtype != torch.bfloat16:
            return None
        (packed, values, group), multiply = self, torch._weight_int4pack_mm_for_cpu
        if bias is None:
            return lambda x: multiply(x, packed, group, values)
        return lambda x: multiply(x, packed, group, values).add_(bias)

    def dense(self) -> Tensor:
        """W', (I, O) bf16."""
        rows, columns, block = len(self.packed), 2 * self.packed.shape[1], block_rows()
        out = torch.empty(columns, rows, dtype=torch.bfloat16)
        whole, flat = rows // block * block, self.packed.view(-1)
        bits = flat[: whole * columns // 2].view(-1, columns, block // 2)
        made = out[:, :whole].unflatten(1, (-1, 2, block // 2)).transpose(0, 1)  # (blocks, I, 2, half a block)
        made[:, :, 0], made[:, :, 1] = _signed(bits & 15), _signed(bits >> 4)
        if whole < rows:
            out[:, whole:] = _signed(_tail(flat[whole * columns // 2 :], columns))
        scale, shift = (self.values[:, None, :, part].contiguous() for part in (0, 1))  # else no vectors
        grouped = out.unflatten(0, (-1, self.group)).mul_(scale)
        if bool(shift.any()):
            grouped.add_(shift)
        return out


def _signed(bits: Tensor) -> Tensor:
    """0 to 15 as -8 to 7, int8."""
    return (bits - 8).view(torch.int8)


def group_of(columns: int, group: int) -> int | None:
    """Columns that share a scale in four bits where they share one by `group`s (0: all of a row); None: no number."""
    return next((size for size in GROUPS if (group or columns) % size == 0), None)


@lru_cache
def block_rows() -> int:
    """Rows that tinygemm lays out side by side on this CPU; 0: it does so in another way than is known here."""
    numbers = torch.arange(80 * 32, dtype=torch.int32).view(80, 32) * 7 % 16  # the last 16 rows are no whole block
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    known = packed.dtype == torch.uint8 and packed.numel() == numbers.numel() // 2
    signed = (numbers - 8).to(torch.int8)
    return next((size for size in (64, 32) if known and torch.equal(_packed(signed, size), packed)), 0)


def _packed(numbers: Tensor, block: int) -> Tensor:
    """What torch's own packing makes of (O, I) int8 + 8, in a tenth of its time: (O, I / 2) uint8."""
    rows, columns = numbers.shape
    whole, out = rows // block * block, torch.empty(rows, columns // 2, dtype=torch.uint8)
    flat = out.view(-1)
    parts = flat[: whole * columns // 2].view(-1, columns, block // 2)
    for part, run in zip(parts, numbers.split(block), strict=False):  # each stays in a core's cache
        part.copy_(_in_pairs(*(run + 8).view(torch.uint8).split(block // 2)))
    if whole < rows:
        last = (numbers[whole:] + 8).view(torch.uint8)
        flat[whole * columns // 2 :].view(columns, -1).copy_(_in_pairs(last[::2], last[1::2]))
    return out


def _in_pairs(first: Tensor, second: Tensor) -> Tensor:
    """Two (n, I) uint8 in a byte, (I, n)."""
    return (first | second << 4).t()


def _unpacked(packed: Tensor, block: int) -> Tensor:
    """(O, I) uint8, 0 to 15."""
    rows, columns = len(packed), 2 * packed.shape[1]
    whole, flat = rows // block * block, packed.view(-1)
    bits = flat[: whole * columns // 2].view(-1, columns, block // 2)
    first = torch.cat((bits & 15, bits >> 4), 2).transpose(1, 2).reshape(whole, columns)
    return first if whole == rows else torch.cat((first, _tail(flat[whole * columns // 2 :], columns).t()))


def _tail(flat: Tensor, columns: int) -> Tensor:
    """Rows that make no whole block, (I, rows) uint8: two neighbours a byte."""
    bits = flat.view(columns, -1)
    return torch.stack((bits & 15, bits >> 4), 2).flatten(1)


def looked_up(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix that e4m3 codes stand for, two at a time: torch's own cast takes 8 times as long.

    Args:
        codes: (O, I) float8_e4m3fn, I even.
        scale: (O, 1).

    Returns:
        (O, I) in `dtype`, of products in the dtype of the scales.
    """
    pairs = _pairs(scale.dtype)  # (65536,), as wide as two values
    out = torch.empty(codes.shape, dtype=dtype)
    step = max(1, LOOKED_UP // codes.shape[1])
    for start in range(0, len(codes), step):
        keys = codes[start : start + step].contiguous().view(torch.uint16).to(torch.int32)  # (rows, I / 2)
        values = pairs.index_select(0, keys.view(-1)).view(scale.dtype).view(len(keys), -1)
        out[start : start + step] = values * scale[start : start + step]
    return out


@lru_cache
def _pairs(dtype: torch.dtype) -> Tensor:
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(dtype)
    both = torch.stack((values.repeat(256), values.repeat_interleave(256)), 1)  # (65536, 2): the lower byte is first
    return both.view({2: torch.int32, 4: torch.int64}[dtype.itemsize]).view(-1)
