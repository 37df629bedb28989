"""QuantPlan: which matrices of a checkpoint are quantized, and what becomes of its bytes, as headers and config say."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.account import Account, account
from llmctl.spec.families import family_read, read_config, read_config_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.peft import is_adapter
from llmctl.spec.quant import Grid, QuantConfig
from llmctl.spec.remade import HEAD, NAMED, some
from llmctl.spec.safetensors import BITS, TensorInfo, read_tensors
from llmctl.spec.sites import Site, matches, sites
from llmctl.spec.sizes import shapes

Group = Literal["embedding", "layers", "head", "other"]
SMALLEST = 8  # columns of a group that is made smaller because a matrix does not divide by it


@dataclass(frozen=True)
class Matrix:
    """A matrix that is quantized.

    Attributes:
        name: of our module: "decoder.layers.0.attention.q".
        shape: (outputs, inputs).
        before: bytes of it as it is stored.
        after: bytes of its codes, scales and zero points.
    """

    name: str
    shape: tuple[int, int]
    before: int
    after: int

    def record(self, relative: float) -> dict[str, Any]:
        """What a report says of it; `relative`: the error, |W^ - W|^2 over |W|^2, or of outputs."""
        bits = 8 * self.after / prod(self.shape)
        return {
            "name": self.name,
            "shape": "x".join(map(str, self.shape)),
            "bits_per_weight": round(bits, 4),
            "relative_error": relative,
            "bytes_before": self.before,
            "bytes": self.after,
        }


@dataclass(frozen=True)
class QuantPlan:
    """What a quantized checkpoint is made of.

    Attributes:
        source: directory of the checkpoint.
        config, json: its shape and its config.json.
        quant: with groups that fit the matrices.
        found: its tensors.
        matrices: those that are quantized, by our module's name, in the order of the files; of a cast none.
        notes: what a user should know.
    """

    source: Path
    config: ModelConfig
    json: dict
    quant: QuantConfig
    found: Account
    matrices: dict[str, Matrix]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Path, quant: QuantConfig) -> "QuantPlan":
        """Reads headers and config.json, and checks that the matrices fit the grid.

        Raises:
            UserError: the checkpoint is quantized already, or an adapter; nothing is left to quantize; columns that do
                not divide by --group-size; a pattern of --keep that is no module's name.
        """
        json = read_config_json(source)
        _check_plain(source, json)
        config = read_config(source)
        found = account(read_tensors(source), config, str(source))
        if quant.grid is None:
            return cls(source, config, json, quant, found, {})
        chosen, notes = _chosen(config, quant)
        wanted = shapes(config)
        columns = {name: wanted[f"{name}.weight"][1] for site in chosen for name in site.ours}
        quant, more = _grouped(quant, columns)
        chosen, odd = _dividing(chosen, columns, quant.grid)
        if not chosen:
            raise UserError(
                f"Nothing of {source} is left to quantize{': ' + odd if odd else ''}.",
                "Leave out some --keep, or take another --scheme.",
                Exit.MISMATCH,
            )
        stored = {rule.ours[0]: info for rule, info in found.stored.items()}
        matrices = {}
        for site in chosen:
            info = stored[f"{site.ours[0]}.weight"]
            for name in site.ours:
                rows, width = wanted[f"{name}.weight"]
                before = rows * width * BITS[info.dtype] // 8
                after = packed_bytes(quant.grid, rows, width, BITS[info.dtype])
                matrices[name] = Matrix(name, (rows, width), before, after)
        wide = [info for rule, info in found.stored.items() if info.dtype == "F32" and len(info.shape) > 1]
        kept = sum(info.bytes for info in wide) - sum(one.before for one in matrices.values())
        if kept > sum(one.after for one in matrices.values()):
            more.append(
                "what is not quantized is stored in 32 bits, more than all that is: --scheme bf16 first would halve it."
            )
        notes = [*notes, *more, *([odd] if odd else [])]
        return cls(source, config, json, quant, found, matrices, tuple(notes))

    @property
    def cast(self) -> str | None:
        """The dtype of a cast, as headers spell it; None: matrices are quantized."""
        return NAMED[self.quant.scheme] if self.quant.grid is None else None

    @property
    def groups(self) -> dict[Group, dict[str, int]]:
        """`parameters`, `bytes_before` and `bytes` of the embedding, the layers, the head and all else there is."""
        sums: dict[Group, dict[str, int]] = {}
        for rule, info in self.found.stored.items():
            part = sums.setdefault(_group(rule), {"parameters": 0, "bytes_before": 0, "bytes": 0})
            part["parameters"] += prod(info.shape)
            part["bytes_before"] += info.bytes
            part["bytes"] += self._after(rule, info)
        return sums

    def _after(self, rule: Name, info: TensorInfo) -> int:
        names = [name.removesuffix(".weight") for name in rule.ours]
        if names[0] in self.matrices and rule.ours[0] != names[0]:
            return sum(self.matrices[name].after for name in names)
        return prod(info.shape) * BITS[self.cast] // 8 if self.cast else info.bytes

    @property
    def bytes(self) -> int:
        """Size of the result's tensors."""
        return sum(part["bytes"] for part in self.groups.values())

    @property
    def read_bytes(self) -> int:
        """Size of the source's tensors."""
        return sum(info.bytes for info in self.found.stored.values())

    def facts(self) -> dict[str, Any]:
        """The plan in numbers, for a report."""
        groups, grid = self.groups, self.quant.grid
        total = sum(part["parameters"] for part in groups.values())
        facts: dict[str, Any] = {
            "scheme": self.quant.scheme,
            "method": self.quant.method,
            "layout": self.quant.form if grid else "plain",
            "matrices": len(self.matrices),
            "parameters": total,
            "quantized_parameters": sum(prod(one.shape) for one in self.matrices.values()),
            "bytes_before": self.read_bytes,
            "bytes": self.bytes,
            "bits_per_weight": round(8 * self.bytes / max(1, total), 4),
            "groups": {
                name: {**part, "bits_per_weight": round(8 * part["bytes"] / max(1, part["parameters"]), 4)}
                for name, part in groups.items()
            },
        }
        if grid is not None and grid.kind == "int":
            facts |= {"group_size": grid.group, "symmetric": grid.symmetric}
        return facts


def packed_bytes(grid: Grid, rows: int, columns: int, scale_bits: int) -> int:
    """Bytes of a matrix's codes, scales and zero points, as compressed-tensors and bitsandbytes lay them out."""
    if grid.kind == "nf4":
        return ceil(rows * columns / 2) + 4 * ceil(rows * columns / grid.group)
    groups = grid.groups(columns)
    scales = rows * groups * (8 if grid.kind == "mxfp4" else scale_bits) // 8
    zeros = 0 if grid.symmetric else 4 * ceil(rows * grid.bits / 32) * groups
    line = columns if grid.kind != "int" else 4 * ceil(columns * grid.bits / 32)
    return rows * (line if grid.kind != "mxfp4" else columns // 2) + scales + zeros


def _check_plain(source: Path, json: dict) -> None:
    if is_adapter(source):
        raise UserError(
            f"{source} is an adapter, not a checkpoint.",
            f"Merge it into its base first: llmctl lora-merge {source} -o MERGED",
            Exit.MISMATCH,
        )
    if json.get("quantization_config"):
        raise UserError(
            f"{source} is quantized already.", "Quantize the checkpoint that it was made from.", Exit.MISMATCH
        )


def _chosen(config: ModelConfig, quant: QuantConfig) -> tuple[list[Site], list[str]]:
    """The matrices to be quantized, as the checkpoint has them, and what to say of others."""
    found = [site for site in sites(config, family_read(config)) if not site.table]
    inner = [site for site in found if ".layers." in site.ours[0]]
    heads = [site for site in found if site.ours == (HEAD.removesuffix(".weight"),)]
    notes = []
    if quant.head and not heads:
        notes.append("--head says nothing here: the head is the embedding's table, which stays as it is.")
    chosen = inner + (heads if quant.head else [])
    unknown = [
        pattern for pattern in quant.keep if not any(matches(name, pattern) for site in found for name in site.ours)
    ]
    if unknown:
        raise UserError(
            f"--keep {unknown[0]} is no matrix of this model.",
            f"They are called {some(sorted({site.ours[0] for site in chosen}))}; parts of names and * serve as well.",
            Exit.USAGE,
        )

    def kept(site: Site) -> bool:
        return any(matches(name, pattern) for name in site.ours for pattern in quant.keep)

    fused = [
        site.theirs
        for site in chosen
        if kept(site) and not all(any(matches(name, one) for one in quant.keep) for name in site.ours)
    ]
    if fused:
        notes.append(f"stored as one matrix and kept as one: {some(fused)}.")
    return [site for site in chosen if not kept(site)], notes


def _grouped(quant: QuantConfig, columns: dict[str, int]) -> tuple[QuantConfig, list[str]]:
    """The options with groups that all matrices divide by, and what to say of it."""
    grid = quant.grid
    if grid.kind != "int" or not grid.group:
        return quant, []
    odd = {name: count for name, count in columns.items() if count % grid.group}
    if not odd:
        return quant, []
    several = some([f"{name} has {count}" for name, count in odd.items()])
    if quant.group_size is not None:
        raise UserError(
            f"--group-size is {grid.group}, but columns do not divide by it: {several}.",
            f"Use --group-size {_fitting(grid.group, columns.values())}, or --keep those.",
            Exit.MISMATCH,
        )
    group = _fitting(grid.group, columns.values())
    return replace(quant, group_size=group), [
        f"groups are of {group} weights, 0 being whole rows, as columns do not divide by {grid.group}: {several}."
    ]


def _fitting(group: int, columns: Iterable[int]) -> int:
    """The largest group, halving, that all divide by; 0: whole rows."""
    counts = set(columns)
    while group >= SMALLEST and any(count % group for count in counts):
        group //= 2
    return group if group >= SMALLEST else 0


def _dividing(chosen: list[Site], columns: dict[str, int], grid: Grid) -> tuple[list[Site], str]:
    """Those of the matrices that a grid of fixed groups fits, and what to say of the others."""
    if grid.kind != "mxfp4":
        return chosen, ""
    odd = [site for site in chosen if columns[site.ours[0]] % grid.group]
    names = [f"{site.ours[0]} has {columns[site.ours[0]]}" for site in odd]
    text = f"columns do not divide by {grid.group}, so these stay as they are: {some(names)}." if odd else ""
    return [site for site in chosen if site not in odd], text


def _group(rule: Name) -> Group:
    """The part of a model that a tensor belongs to."""
    name = rule.ours[0]
    if ".layers." in name:
        return "layers"
    if name.startswith(("embed.", "encoder_embed.")):
        return "embedding"
    return "head" if name.startswith("head.") else "other"
