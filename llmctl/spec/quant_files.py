"""QuantFiles: every tensor of a quantized checkpoint, and its config.json, known from headers before any is made."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from llmctl.errors import Exit, UserError
from llmctl.spec.account import account, module_kind, their_shape
from llmctl.spec.coding import BLOCK, Coding
from llmctl.spec.families import config_of, family_read, read_config_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.quant import CASTS, Grid, QuantConfig
from llmctl.spec.quantized_config import DENSE, KEY
from llmctl.spec.quantized_json import coding_of, quantized_json
from llmctl.spec.remade import NAMED, SPELLED, check_plain, some
from llmctl.spec.safetensors import BITS, TensorInfo, main_dtype, read_tensors
from llmctl.spec.sites import head_names, sites
from llmctl.spec.sizes import shapes


@dataclass(frozen=True)
class Matrix:
    """A matrix that is written in few bits.

    Attributes:
        rule: the one of the tensor that it is made from.
        info: that tensor.
        module: its name in a file.
        ours: our modules that share its rows.
        shape: (O, I).
        coding: how it is written.
        dtype: of its scales, as headers spell it.
    """

    rule: Name
    info: TensorInfo
    module: str
    ours: tuple[str, ...]
    shape: tuple[int, int]
    coding: Coding
    dtype: str

    @property
    def tensors(self) -> list[tuple[str, str, tuple[int, ...], str]]:
        """Suffix, name, shape and dtype of what is written of it."""
        state = len('{"quant_type": "nf4", "blocksize": 64, "dtype": "", "shape": []}')
        state += len(SPELLED[self.dtype]) + len(", ".join(map(str, self.shape)))
        return [
            (
                part.suffix,
                f"{self.module}.{part.suffix}",
                (state,) if part.shape is None else part.shape,
                self.dtype if self.dtype in part.dtypes else part.dtypes[0],
            )
            for part in self.coding.parts(*self.shape)
            if part.suffix == "g_idx" or not part.optional
        ]

    @property
    def bytes(self) -> int:
        """Of all its tensors."""
        return sum(prod(shape) * BITS[dtype] // 8 for _, _, shape, dtype in self.tensors)


@dataclass(frozen=True)
class QuantFiles:
    """What is written when a checkpoint is quantized.

    Attributes:
        source: the checkpoint.
        config: of both.
        matrices: those in few bits, in the order of the files.
        plain: the other tensors: the rule of each, where it lies, and the dtype that it is written in.
        json: contents of config.json.
        notes: what other tools make of it, where they do not open it.
    """

    source: Path
    config: ModelConfig
    matrices: tuple[Matrix, ...]
    plain: tuple[tuple[Name, TensorInfo, str], ...]
    json: dict[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, source: Path, quant: QuantConfig, grids: Mapping[str, Grid]) -> "QuantFiles":
        """Reads headers and config.json.

        Args:
            source: a checkpoint of plain weights.
            quant: the scheme and the layout.
            grids: of each of our modules that is quantized: {"decoder.layers.0.attention.q": grid}. Of modules that
                share a tensor of the files all or none.

        Raises:
            UserError: the checkpoint is not sound, or quantized already; a matrix that the layout cannot hold.
        """
        json = read_config_json(source)
        check_plain(source, json)
        infos = read_tensors(source)
        config = config_of(json, infos)
        stored = account(infos, config, str(source)).stored
        usual = main_dtype(stored.values())
        cast = NAMED[quant.scheme] if quant.scheme in CASTS else "BF16" if quant.scheme == "mxfp4" else None
        matrices, plain, wrong = [], [], []
        wanted, left = shapes(config), set(grids)
        for rule, info in stored.items():
            ours = tuple(name.removesuffix(DENSE) for name in rule.ours)
            chosen = {grids.get(one) for one in ours} if rule.theirs.endswith(DENSE) else {None}
            if chosen == {None}:
                plain.append((rule, info, cast or info.dtype))
                continue
            left -= set(ours)
            if len(chosen) > 1:
                wrong.append(f"{', '.join(ours)} are one matrix of the files, quantized as a whole or not at all")
                continue
            shape = their_shape(replace(rule, transposed=False), wanted)
            dtype = "F16" if quant.form in ("gptq", "awq") else cast or info.dtype
            coding = coding_of(quant.form, chosen.pop())
            if why := coding.wrong(*shape):
                wrong.append(f"{ours[0]}: {why}")
            module = rule.theirs.removesuffix(DENSE)
            matrices.append(Matrix(rule, info, module, ours, shape, coding, dtype))
        wrong += [f"{name} is no matrix of the model" for name in sorted(left)]
        if wrong:
            shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            hint = "Choose another --group-size or --layout, or --keep those."
            raise UserError(f"{source} cannot be written so: {shown}.", hint, Exit.MISMATCH)
        if cast:
            json = json | {"dtype": SPELLED[cast], "torch_dtype": SPELLED[cast]}
        notes: list[str] = []
        if matrices:
            json = json | {KEY: _said(config, quant, grids, matrices, cast or usual)}
            notes = _notes(quant, matrices)
        return cls(source, config, tuple(matrices), tuple(plain), json, tuple(notes))

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        beside = sum(prod(info.shape) * BITS[dtype] // 8 for _, info, dtype in self.plain)
        return beside + sum(matrix.bytes for matrix in self.matrices)


def _said(
    config: ModelConfig, quant: QuantConfig, grids: Mapping[str, Grid], matrices: list[Matrix], dtype: str
) -> dict[str, Any]:
    """The quantization_config."""
    family = family_read(config)
    named = {family.in_class(matrix.module): grids[matrix.ours[0]] for matrix in matrices}
    others = [family.in_class(site.theirs) for site in sites(config, family) if not site.table]
    left = [name for name in (*others, *head_names(config)) if family.in_class(name) not in named]
    left = list(dict.fromkeys([*left, *map(family.bare, left)]))
    classes = list(dict.fromkeys(kind for matrix in matrices if (kind := module_kind(matrix.rule))))
    said = quantized_json(quant.form, named, classes, left, SPELLED[dtype])
    if quant.form == "compressed-tensors" and not quant.grid.dynamic and family.touched:
        said["dequantize"] = True  # else transformers does not open it
    return said


def _notes(quant: QuantConfig, matrices: list[Matrix]) -> list[str]:
    found = []
    if quant.form == "compressed-tensors" and any(matrix.rule.transposed for matrix in matrices):
        found.append(
            "transformers does not read compressed-tensors of this family, whose matrices it keeps as Conv1D (it fills "
            "them at random, without a word); llmctl does, and --scheme nf4 is read by both."
        )
    odd = [matrix.ours[0] for matrix in matrices if matrix.shape[1] % BLOCK]
    if quant.form == "bitsandbytes" and odd:
        found.append(
            f"bitsandbytes ends with an error on CPUs where columns do not divide by {BLOCK}: {some(odd)}. llmctl "
            "reads these; --keep leaves them out."
        )
    if quant.scheme == "mxfp4":
        found.append("All that is not mxfp4 is stored in bfloat16, the type in which transformers opens it.")
    return found
