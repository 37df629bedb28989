"""QuantPlan: which matrices of a checkpoint are quantized, and what becomes of its bytes, as headers and config say."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.families import family_read, read_config, read_config_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.quant import Grid, QuantConfig
from llmctl.spec.quant_files import QuantFiles
from llmctl.spec.remade import HEAD, NAMED, check_plain, some
from llmctl.spec.safetensors import BITS
from llmctl.spec.sites import Site, matches, sites
from llmctl.spec.sizes import shapes

Group = Literal["embedding", "layers", "head", "other"]
GROUPS: tuple[Group, ...] = ("embedding", "layers", "head", "other")
SMALLEST = 8  # columns of a group that is made smaller because a matrix does not divide by it


@dataclass(frozen=True)
class Matrix:
    """A matrix that is quantized.

    Attributes:
        name: of our module: "decoder.layers.0.attention.q".
        shape: (outputs, inputs).
        before: bytes of it as it is stored.
        after: bytes of its codes, scales and zero points.
        dtype: of its scales, as headers spell it.
    """

    name: str
    shape: tuple[int, int]
    before: int
    after: int
    dtype: str

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
        config: its shape.
        quant: with groups that fit the matrices.
        files: what is written.
        matrices: those that are quantized, by our module's name, in the order of the files; of a cast none.
        notes: what a user should know.
    """

    source: Path
    config: ModelConfig
    quant: QuantConfig
    files: QuantFiles
    matrices: dict[str, Matrix]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Path, quant: QuantConfig) -> "QuantPlan":
        """Reads headers and config.json, and checks that the matrices fit the grid.

        Raises:
            UserError: the checkpoint is quantized already, or an adapter; nothing is left to quantize; columns that do
                not divide by --group-size; a pattern of --keep that is no module's name.
        """
        check_plain(source, read_config_json(source))
        config = read_config(source)
        if quant.grid is None:
            return cls(source, config, quant, QuantFiles.of(source, quant, {}), {})
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
        files = QuantFiles.of(source, quant, {name: quant.grid for site in chosen for name in site.ours})
        matrices = {}
        for one in files.matrices:
            for name in one.ours:
                rows, width = wanted[f"{name}.weight"]
                share = rows / one.shape[0]
                before = round(share * one.info.bytes)
                matrices[name] = Matrix(name, (rows, width), before, round(share * one.bytes), one.dtype)
        notes = (*notes, *more, *([odd] if odd else []), *files.notes, *_wide(files))
        return cls(source, config, quant, files, matrices, notes)

    @property
    def cast(self) -> str | None:
        """The dtype of a cast, as headers spell it; None: matrices are quantized."""
        return NAMED[self.quant.scheme] if self.quant.grid is None else None

    @property
    def grids(self) -> dict[str, Grid]:
        """The grid of each matrix that is quantized."""
        return dict.fromkeys(self.matrices, self.quant.grid)

    @property
    def groups(self) -> dict[Group, dict[str, int]]:
        """`parameters`, `bytes_before` and `bytes` of the embedding, the layers, the head and all else there is."""
        parts = [(rule, info, prod(info.shape) * BITS[dtype] // 8) for rule, info, dtype in self.files.plain]
        parts += [(one.rule, one.info, one.bytes) for one in self.files.matrices]
        sums: dict[Group, dict[str, int]] = {}
        for group in GROUPS:
            own = [(info, after) for rule, info, after in parts if _group(rule) == group]
            if own:
                sums[group] = {
                    "parameters": sum(prod(info.shape) for info, _ in own),
                    "bytes_before": sum(info.bytes for info, _ in own),
                    "bytes": sum(after for _, after in own),
                }
        return sums

    @property
    def bytes(self) -> int:
        """Size of the result's tensors."""
        return self.files.bytes

    def facts(self) -> dict[str, Any]:
        """The plan in numbers, for a report."""
        groups, grid = self.groups, self.quant.grid
        sums = {key: sum(part[key] for part in groups.values()) for key in ("parameters", "bytes_before", "bytes")}
        facts: dict[str, Any] = {
            "scheme": self.quant.scheme,
            "method": self.quant.method,
            "layout": self.quant.form if grid else "plain",
            "matrices": len(self.matrices),
            "quantized_parameters": sum(prod(one.shape) for one in self.matrices.values()),
            **sums,
            "bits_per_weight": _bits(sums),
            "groups": {name: {**part, "bits_per_weight": _bits(part)} for name, part in groups.items()},
        }
        if grid is not None and grid.kind == "int":
            facts |= {"group_size": grid.group, "symmetric": grid.symmetric}
        return facts


def _bits(part: dict[str, int]) -> float:
    return round(8 * part["bytes"] / max(1, part["parameters"]), 4)


def _wide(files: QuantFiles) -> list[str]:
    """A word on tables of 32 bits that take more than all that is quantized."""
    wide = sum(info.bytes for _, info, dtype in files.plain if dtype == "F32")
    if wide <= sum(one.bytes for one in files.matrices):
        return []
    return ["what is not quantized stays in 32 bits and takes more than all that is; --scheme bf16 first halves it."]


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
    wide = family_read(config).wide if quant.form == "bitsandbytes" else ()
    if wide:
        notes.append(f"{', '.join(wide)} of each layer stay as they are, as transformers expects it of bitsandbytes.")
    return [site for site in chosen if not kept(site) and site.theirs.rpartition(".")[2] not in wide], notes


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
