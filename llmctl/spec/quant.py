"""Grid and QuantConfig: the values that weights in few bits may have, and how a checkpoint is quantized."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

Scheme = Literal["fp16", "bf16", "int8", "int4", "int3", "int2", "w8a8", "fp8", "nf4", "mxfp4"]
Method = Literal["rtn", "hqq", "gptq", "awq", "smoothquant", "qat"]
Clip = Literal["none", "mse"]
Form = Literal["compressed-tensors", "gptq", "awq", "bitsandbytes"]
GridKind = Literal["int", "fp8", "mxfp4", "nf4"]

CASTS = ("fp16", "bf16")
WHOLE = ("hqq", "gptq", "awq")  # methods that choose whole numbers
LAID = {"gptq": ("int2", "int4", "int8"), "awq": ("int4",), "bitsandbytes": ("nf4",)}
CALIBRATED = ("gptq", "awq", "smoothquant")  # methods that look at what matrices are multiplied with


@dataclass(frozen=True)
class Grid:
    """The values that the weights of a matrix may have.

    Attributes:
        kind: int: whole numbers times a scale; fp8: e4m3 times a scale; mxfp4: e2m1 times a power of two; nf4: 16
            quantiles of a normal distribution times the largest magnitude of 64 weights, row after row.
        bits: of one code.
        group: columns of a row that share a scale; 0: the whole row.
        symmetric: no zero point.
        dynamic: inputs are quantized too, as they come: each token to 8 bits of its own scale, of the grid's kind.
    """

    kind: GridKind
    bits: int
    group: int = 0
    symmetric: bool = True
    dynamic: bool = False

    @property
    def least(self) -> int:
        """The smallest code of kind int."""
        return -(1 << (self.bits - 1))

    @property
    def most(self) -> int:
        """The largest code of kind int."""
        return (1 << (self.bits - 1)) - 1

    def groups(self, columns: int) -> int:
        """How many scales a row of so many columns has.

        Raises:
            ValueError: the columns do not divide by the group.
        """
        if self.group and columns % self.group:
            raise ValueError(f"{columns} columns do not divide by groups of {self.group}")
        return columns // self.group if self.group else 1


# What each scheme is where --group-size and --symmetric do not say otherwise.
GRIDS: dict[str, Grid] = {
    "int8": Grid("int", 8),
    "int4": Grid("int", 4, 128),
    "int3": Grid("int", 3, 128),
    "int2": Grid("int", 2, 64),
    "w8a8": Grid("int", 8, dynamic=True),
    "fp8": Grid("fp8", 8),
    "nf4": Grid("nf4", 4, 64),
    "mxfp4": Grid("mxfp4", 4, 32),
}


@dataclass(frozen=True)
class QuantConfig:
    """Quantization.

    Raises:
        UserError: options that do not fit each other.
    """

    scheme: Annotated[
        Scheme,
        "fp16, bf16: a cast. int8, int4, int3, int2: weights alone. w8a8: inputs too, each token as it comes. fp8: "
        "e4m3. nf4: as bitsandbytes. mxfp4: e2m1 with a power of two for 32.",
    ] = "int4"
    method: Annotated[
        Method,
        "rtn: each weight to the nearest value; hqq: scales and zero points that fit best, without data; gptq: each "
        "column makes up for the errors of those before it; awq: channels with large inputs count more; smoothquant: "
        "large inputs made smaller, weights larger; qat: training with rounded weights.",
    ] = "rtn"
    group_size: Annotated[
        int | None, "Weights of a row that share a scale; 0: the whole row. Default: 128 (int4, int3), 64 (int2), 0."
    ] = None
    symmetric: Annotated[
        bool | None, "No zero points, which cost a little and fit better. Default: none, but for hqq."
    ] = None
    clip: Annotated[
        Clip | None,
        "mse: search the range that rounds best, where outliers are cut off; awq has a search of its own. Default: "
        "mse for gptq, else none.",
    ] = None
    layout: Annotated[
        Form | None,
        "How OUT stores it; default: compressed-tensors, for nf4 bitsandbytes. gptq: int8, int4, int2; awq: int4.",
    ] = None
    keep: Annotated[
        tuple[str, ...], "Modules that stay as they are: a shell pattern, such as mlp.down or decoder.layers.0; repeat."
    ] = ()
    head: Annotated[bool, "Quantize the head, too, where it is not the embedding's table."] = False

    def __post_init__(self) -> None:
        if self.clip is None:
            searched = self.method == "gptq" and self.scheme.startswith(("int", "w8a8"))  # others are refused
            object.__setattr__(self, "clip", "mse" if searched else "none")
        wrong = list(dict.fromkeys(text for text, found in self._wrong() if found))
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    def _wrong(self) -> list[tuple[str, bool]]:
        """What does not fit, in words, and whether it was asked for."""
        cast, whole = self.scheme in CASTS, self.scheme.startswith("int") or self.scheme == "w8a8"
        of = f"--scheme {self.scheme}"
        return [
            (f"{of} is a cast, which --method {self.method} does not fit", cast and self.method != "rtn"),
            (f"--keep leaves nothing out of {of}, which is of all tensors", cast and bool(self.keep)),
            (f"--head says nothing beside {of}, which is of all tensors", cast and self.head),
            (f"--symmetric does not fit {of}", cast and self.symmetric is True),
            (
                "--clip mse does not fit --method awq, which has a search of its own",
                self.method == "awq" and self.clip == "mse",
            ),
            (f"--group-size is {self.group_size}, wanted 0 or more", (self.group_size or 0) < 0),
            (f"--group-size does not fit {of}", self.group_size is not None and not whole),
            (f"--no-symmetric does not fit {of}", self.symmetric is False and not self.scheme.startswith("int")),
            (f"--clip {self.clip} does not fit {of}", self.clip != "none" and not (whole or self.scheme == "fp8")),
            (
                f"--method {self.method} rounds to whole numbers, not {of}",
                self.method in WHOLE and not whole and not cast,
            ),
            (
                f"--layout {self.layout} does not fit {of}",
                self.layout is not None and (cast or self.scheme not in LAID.get(self.layout, (self.scheme,))),
            ),
            (f"--layout {self.layout} does not fit {of}", self.scheme == "nf4" and self.form != "bitsandbytes"),
        ]

    @property
    def grid(self) -> Grid | None:
        """The grid of quantized matrices; None: they are cast."""
        grid = GRIDS.get(self.scheme)
        if grid is None:
            return None
        group = grid.group if self.group_size is None else self.group_size
        zeros = self.method == "hqq" and self.scheme.startswith("int")
        symmetric = not zeros if self.symmetric is None else self.symmetric
        return Grid(grid.kind, grid.bits, group, symmetric, grid.dynamic)

    @property
    def form(self) -> Form:
        """How the result is stored."""
        return self.layout or ("bitsandbytes" if self.scheme == "nf4" else "compressed-tensors")

    @property
    def calibrated(self) -> bool:
        """Whether it needs text to run through the model."""
        return self.method in CALIBRATED
