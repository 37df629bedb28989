"""PruneConfig: which weights of a model's matrices become zero: by what score, in what pattern."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sites import matches
from llmctl.spec.sizes import shapes

Score = Literal["magnitude", "wanda", "sparsegpt"]
Pattern = Literal["free", "2:4", "4:8"]
Per = Literal["tensor", "row"]

CALIBRATED = ("wanda", "sparsegpt")  # scores that look at what matrices are given
GROUPS: dict[str, tuple[int, int]] = {"2:4": (2, 4), "4:8": (4, 8)}  # zeros in each run of so many of a row
USUAL: dict[str, Per] = {"magnitude": "tensor", "wanda": "row", "sparsegpt": "tensor"}
BLOCK = 128  # columns whose weights sparsegpt compares with each other


@dataclass(frozen=True)
class PruneConfig:
    """Single weights pruned.

    Raises:
        UserError: options that do not fit each other.
    """

    sparsity: Annotated[
        float | None, "Share of the weights of each matrix that become zero. Default: 0.5, unless parts are cut out."
    ] = None
    pattern: Annotated[
        Pattern | None, "free: any of them; 2:4, 4:8: so many zeros in each run of 4, or 8, of a row. Default: free."
    ] = None
    score: Annotated[
        Score,
        "Which weights go. magnitude: small ones, no text needed; wanda: small ones on small inputs; sparsegpt: those "
        "that others can make up for, and these do.",
    ] = "magnitude"
    per: Annotated[
        Per | None,
        "What a weight is compared with: those of its matrix (sparsegpt: in 128 columns of it), or of its row. "
        "Default: row for wanda, else tensor.",
    ] = None
    keep: Annotated[
        tuple[str, ...], "Matrices that stay whole: a shell pattern, such as mlp.down or decoder.layers.0; repeat."
    ] = ()
    damp: Annotated[
        float, "sparsegpt: what is added to the second moments of inputs, as a share of their mean; more holds back."
    ] = 0.01
    sparse: Annotated[
        bool, "Store a bit for each pruned weight, smaller on disk; only llmctl opens that. Default: zeros are stored."
    ] = False

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise UserError(f"--sparsity is {self.sparsity:g}, wanted 0 to less than 1.", code=Exit.USAGE)
        group = GROUPS.get(self.pattern or "free")
        if group and self.sparsity not in (None, group[0] / group[1]):
            raise UserError(
                f"--pattern {self.pattern} fixes the sparsity at {group[0] / group[1]:g}, but --sparsity is "
                f"{self.sparsity:g}.",
                "Leave --sparsity out, or use --pattern free.",
                Exit.USAGE,
            )
        if group and self.per is not None:
            raise UserError(
                f"--pattern {self.pattern} compares weights with the others of their run, so --per does not fit.",
                "Leave --per out.",
                Exit.USAGE,
            )
        if not 0 < self.damp < 100:
            raise UserError(f"--damp is {self.damp:g}, wanted a number more than 0, such as 0.01.", code=Exit.USAGE)

    @property
    def asked(self) -> bool:
        """Whether single weights are to be pruned whatever else is."""
        return self.sparsity is not None or self.pattern is not None

    @property
    def calibrated(self) -> bool:
        """Whether it needs text to run through the model."""
        return self.score in CALIBRATED

    @property
    def mends(self) -> bool:
        """Whether weights that stay make up for those that go."""
        return self.score == "sparsegpt"

    @property
    def group(self) -> tuple[int, int] | None:
        """Zeros, and the run of a row that they are in; None: they may be anywhere."""
        return GROUPS.get(self.pattern or "free")

    @property
    def share(self) -> float:
        """Of zeros."""
        group = self.group
        return group[0] / group[1] if group else 0.5 if self.sparsity is None else self.sparsity

    @property
    def among(self) -> Per:
        """What a weight is compared with."""
        return self.per or USUAL[self.score]


def targets(config: ModelConfig, prune: PruneConfig) -> list[str]:
    """Our paths of the matrices that are pruned: those of the layers, but for what is to be kept.

    Raises:
        UserError: a pattern that is nothing's name, or rows that do not divide by a run.
    """
    found = {
        name.removesuffix(".weight"): shape
        for name, shape in shapes(config).items()
        if ".layers." in name and len(shape) == 2
    }
    unknown = [pattern for pattern in prune.keep if not any(matches(path, pattern) for path in found)]
    if unknown:
        raise UserError(
            f"--keep {unknown[0]} is no matrix of the model's layers.",
            f"They are called {', '.join(list(found)[:2])} ...; a part such as attention.q will do.",
            Exit.USAGE,
        )
    taken = {path: shape for path, shape in found.items() if not any(matches(path, one) for one in prune.keep)}
    if not taken:
        raise UserError("--keep leaves no matrix to prune.", "Keep less.", Exit.USAGE)
    run = prune.group[1] if prune.group else 1
    uneven = [path for path, shape in taken.items() if shape[1] % run]
    if uneven:
        raise UserError(
            f"--pattern {prune.pattern} needs rows that divide by {run}, but those of {uneven[0]} have "
            f"{taken[uneven[0]][1]} weights.",
            f"Leave such matrices whole with --keep {uneven[0].rpartition('.')[2]}, or use --pattern free.",
            Exit.MISMATCH,
        )
    return list(taken)
