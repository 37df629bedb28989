"""pack: the matrices of a model laid out for the native step, and what stands in their place in the model."""

import ctypes
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.compress.frozen import StandIn, product
from llmctl.core.compress.quant.grid import Codes
from llmctl.core.compress.quant.linear import CodedLinear
from llmctl.core.decode.native.layout import BRIEF, INT4, INT8, KINDS, PANEL, Matrix
from llmctl.core.model.layers import Linear
from llmctl.spec.quant import Grid

ALIGNED = 16  # columns are padded to a multiple
_DTYPES = {kind: dtype for dtype, kind in KINDS.items()}
_COLUMNS = {0: 1, 1: 2, 2: 1, INT8: 4, INT4: 8}  # that lie in a word
_SELDOM = 256  # one of so many weights may be rare in BRIEF: to add it by itself takes some 3 ns
_WORDS = {0: torch.int32, 1: torch.int32, 2: torch.int16, INT8: torch.int32, INT4: torch.int32}


@dataclass(frozen=True)
class Packed:
    """A matrix (rows, inputs) as the native step reads it.

    Attributes:
        kind: as in `Matrix`.
        codes: (panels, words of a row, 32) int32 or int16; of BRIEF (panels, columns / 4, 192) uint8.
        group: columns that share a scale; all of a row where there are none.
        scale: (panels, groups, 32), or None.
        zero: the same, uint8: the code of 0, as it is held without a sign; or None.
        brief: the table of each panel, (panels, 16) uint8, what is rare, (n, 2) int32, and the number of the first
            of it in each panel, (panels + 1,) int64, of BRIEF; or None.
    """

    library: ctypes.CDLL
    kind: int
    rows: int
    inputs: int
    group: int
    codes: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    brief: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def columns(self) -> int:
        """Inputs and padding."""
        return self.codes.shape[1] * (4 if self.kind == BRIEF else _COLUMNS[self.kind])

    @property
    def form(self) -> tuple[int, int]:
        """What matrices have in common that can take the same tokens."""
        return KINDS[torch.bfloat16] if self.kind == BRIEF else self.kind, self.group

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        parts = (self.codes, self.scale, self.zero, *(self.brief or ()))
        return sum(part.nbytes for part in parts if part is not None)

    def matrix(self, bias: Tensor | None = None) -> Matrix:
        """What the native step is told; the tensors must live as long."""
        scale, zero = (None if one is None else one.data_ptr() for one in (self.scale, self.zero))
        kind = 0 if self.scale is None else KINDS[self.scale.dtype]
        held = None if bias is None else bias.data_ptr()
        size = (self.kind, self.rows, self.columns, self.group)
        brief = (None,) * 3 if self.brief is None else (part.data_ptr() for part in self.brief)
        return Matrix(*size, self.codes.data_ptr(), scale, kind, zero, held, 0, *brief)

    def dense(self) -> Tensor:
        """(rows, inputs) of a matrix of floats, in its own dtype."""
        if self.kind != BRIEF:
            return self._straight(self.codes).view(_DTYPES[self.kind])[:, : self.inputs].contiguous()
        pairs = torch.empty(len(self.codes), self.columns // 2, PANEL, dtype=torch.int32)
        matrix = self.matrix()
        self.library.llmctl_paired(ctypes.byref(matrix), pairs.data_ptr(), torch.get_num_threads())
        return self._straight(pairs).view(torch.bfloat16)[:, : self.inputs].contiguous()

    def vectors(self, ids: Tensor) -> Tensor:
        """Rows of a matrix of floats: ids (...) to (..., inputs), in its own dtype."""
        flat = ids.reshape(-1).to(torch.int64).contiguous()
        out = torch.empty(len(flat), self.inputs)
        matrix = self.matrix()
        self.library.llmctl_rows(ctypes.byref(matrix), flat.data_ptr(), len(flat), out.data_ptr(), self.inputs)
        return out.view(*ids.shape, -1).to(_DTYPES.get(self.kind, torch.bfloat16))

    def numbers(self) -> Codes:
        """The codes of a matrix of whole numbers, as they were given."""
        held = self._straight(self.codes).view(torch.uint8)
        if self.kind == INT4:
            four = held.view(self.rows, -1, 4)
            held = torch.cat((four & 15, four >> 4), 2).view(self.rows, -1)
        lift = _LIFTS[self.kind]
        codes = (held[:, : self.inputs].to(torch.int16) - lift).to(torch.int8)
        zero = None if self.zero is None else (self._straight(self.zero).to(torch.int16) - lift).to(torch.int8)
        return Codes(codes, self._straight(self.scale), zero)

    def _straight(self, panels: Tensor) -> Tensor:
        """(panels, N, 32) to (rows, N)."""
        return panels.transpose(1, 2).reshape(-1, panels.shape[1])[: self.rows].contiguous()


_LIFTS = {INT8: 128, INT4: 8}


def packed(library: ctypes.CDLL, weight: Tensor) -> Packed:
    """A matrix (O, I) of floats; one of bf16 in 12 bits, where the machine is fast at it and little of it is rare."""
    kind, inputs = KINDS[weight.dtype], weight.shape[1]
    weight = _padded(weight.detach())
    if weight.dtype == torch.bfloat16 and library.llmctl_fast():
        found = _brief(library, weight, inputs)
        if found is not None:
            return found
    return Packed(library, kind, len(weight), inputs, weight.shape[1], _panels(library, weight.view(_WORDS[kind])))


def _brief(library: ctypes.CDLL, weight: Tensor, inputs: int) -> Packed | None:
    """A padded matrix of bf16 as BRIEF, or None where too much is rare."""
    (rows, columns), threads = weight.shape, torch.get_num_threads()
    count = -(-rows // PANEL)
    tables, begin = torch.empty(count, 16, dtype=torch.uint8), torch.zeros(count + 1, dtype=torch.int64)
    counts = begin[1:]
    library.llmctl_brief_tables(weight.data_ptr(), rows, columns, tables.data_ptr(), counts.data_ptr(), threads)
    torch.cumsum(counts, 0, out=counts)
    rare = int(begin[-1])
    if rare * _SELDOM > rows * columns:
        return None
    codes = torch.empty(count, columns // 4, PANEL * 6, dtype=torch.uint8)
    brief = tables, torch.empty(rare, 2, dtype=torch.int32), begin
    found = Packed(library, BRIEF, rows, inputs, columns, codes, brief=brief)
    matrix = found.matrix()
    library.llmctl_brief(weight.data_ptr(), ctypes.byref(matrix), threads)
    return found


def packed_codes(library: ctypes.CDLL, codes: Codes, bits: int) -> Packed:
    """A matrix (O, I) of whole numbers."""
    kind = INT4 if bits <= 4 else INT8
    inputs, groups = codes.codes.shape[1], codes.scale.shape[1]
    held = (_padded(codes.codes) + _LIFTS[kind]).view(torch.uint8) if kind == INT4 else _lifted(_padded(codes.codes))
    group = held.shape[1] if groups == 1 else inputs // groups
    if kind == INT4:
        eight = held.view(len(held), -1, 2, 4)
        held = eight[:, :, 0] | eight[:, :, 1] << 4
    words = held.view(len(held), -1).contiguous().view(torch.int32)
    zero = None if codes.zero is None else (codes.zero.to(torch.int16) + _LIFTS[kind]).to(torch.uint8).contiguous()
    scale = _panels(library, codes.scale.contiguous())
    zeros = None if zero is None else _panels(library, zero)
    return Packed(library, kind, len(held), inputs, group, _panels(library, words), scale, zeros)


def _lifted(codes: Tensor) -> Tensor:
    """int8 and 128, as uint8."""
    return codes.view(torch.uint8) ^ 128


def _padded(matrix: Tensor) -> Tensor:
    """With columns of zeros, so that there is a multiple of ALIGNED; rows lie one after another."""
    missing = -matrix.shape[1] % ALIGNED
    if missing:
        return F.pad(matrix, (0, missing))
    return matrix.clone() if matrix.storage_offset() % 4 else matrix.contiguous()  # else no view of it as words


def _panels(library: ctypes.CDLL, words: Tensor) -> Tensor:
    """(O, N) of words of 1, 2 or 4 bytes to (panels, N, 32)."""
    rows, count = words.shape
    out = torch.empty(-(-rows // PANEL), count, PANEL, dtype=words.dtype)
    size = words.element_size()
    library.llmctl_interleave(words.data_ptr(), rows, count, size, out.data_ptr(), torch.get_num_threads())
    return out


class PackedLinear(StandIn):
    """A Linear whose weight of floats is packed; the model's own passes make it dense for each product."""

    def __init__(self, source: Linear, library: ctypes.CDLL):
        super().__init__(source)
        self.packed = packed(library, source.weight)

    def __deepcopy__(self, known: dict) -> "PackedLinear":
        """Itself: nothing changes it."""
        return self

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter; in the dtype of autocast, or of the input."""
        return product(x, self.bias, lambda dtype: self.dense().to(dtype))

    def dense(self) -> Tensor:
        """The matrix, (outputs, inputs), made anew."""
        return self.packed.dense()


class PackedCodes(CodedLinear):
    """A Linear whose codes are packed."""

    def __init__(self, source: CodedLinear, library: ctypes.CDLL):
        self._library, self._bits = library, source.grid.bits
        super().__init__(source, source.codes(), source.grid, source.dtype)

    def __deepcopy__(self, known: dict) -> "PackedCodes":
        """Itself: nothing changes it."""
        return self

    def hold(self, codes: Codes) -> None:
        """Take the codes."""
        self.packed = packed_codes(self._library, codes, self._bits)

    def codes(self) -> Codes:
        """The weight as it was given."""
        return self.packed.numbers()


class PackedEmbedding(nn.Module):
    """An Embedding whose table is a packed matrix, since a head multiplies with it too."""

    def __init__(self, source: nn.Embedding, library: ctypes.CDLL):
        super().__init__()
        self.adapter = None
        self.packed = packed(library, source.weight)

    def __deepcopy__(self, known: dict) -> "PackedEmbedding":
        """Itself: nothing changes it."""
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 to (..., width)."""
        return self.packed.vectors(ids)

    @property
    def weight(self) -> Tensor:
        """The table, made anew."""
        return self.packed.dense()


def why_not(linear: nn.Module) -> str | None:
    """Why a matrix cannot be packed, as the end of a sentence, or None."""
    if isinstance(linear, (PackedLinear, PackedCodes)):
        return None
    if isinstance(linear, CodedLinear):
        return _why_no_grid(linear.grid, linear.weight_scale, linear.in_features)
    if type(linear) is not Linear or linear.weight is None:
        return f"a matrix is held in another way ({type(linear).__name__})"
    return None if linear.weight.dtype in KINDS else f"its weights are {linear.weight.dtype}"


def _why_no_grid(grid: Grid, scale: Tensor, inputs: int) -> str | None:
    if grid.kind != "int" or grid.dynamic:
        return f"its weights are {grid.kind}" + (", and its activations in 8 bits too" if grid.dynamic else "")
    groups = scale.shape[1]
    if scale.dtype not in KINDS or (groups > 1 and inputs // groups % ALIGNED):
        return f"{inputs // groups} weights share a scale"
    return None


def pack_linear(linear: Linear, library: ctypes.CDLL) -> PackedLinear | PackedCodes:
    """What stands in for a Linear that `why_not` has nothing against."""
    if isinstance(linear, (PackedLinear, PackedCodes)):
        return linear
    return PackedCodes(linear, library) if isinstance(linear, CodedLinear) else PackedLinear(linear, library)
