"""quantization_config: what a config.json says of matrices in few bits, as each layout spells it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llmctl.errors import Exit, UserError
from llmctl.spec.coding import Coding
from llmctl.spec.quant import Form, Grid


def quantized_json(
    form: Form, grids: Mapping[str, Grid], classes: list[str], left: list[str], dtype: str
) -> dict[str, Any]:
    """A quantization_config.

    Args:
        form: whose.
        grids: by the name of each module that is in few bits, as classes call it.
        classes: that those modules are of.
        left: modules of the same classes that are not.
        dtype: of numbers, as torch calls it.
    """
    return WRITERS[form](grids, classes, left, dtype)


def coding_of(form: Form, grid: Grid) -> Coding:
    """How a matrix of a grid is written."""
    if form == "compressed-tensors":
        whole = grid.dynamic or grid.kind == "fp8"
        return Coding("mxfp4" if grid.kind == "mxfp4" else "whole" if whole else "packed", grid)
    if form == "bitsandbytes":
        return Coding("nf4", grid)
    if form == "awq":
        return Coding("awq", replace(grid, symmetric=False))
    return Coding("gptq", replace(grid, symmetric=False), shifted=grid.symmetric)


def _write_compressed(grids: Mapping[str, Grid], classes: list[str], left: list[str], dtype: str) -> dict[str, Any]:
    kinds = list(dict.fromkeys(grids.values()))
    groups = {}
    for number, grid in enumerate(kinds):
        targets = classes if len(kinds) == 1 else [name for name, one in grids.items() if one == grid]
        groups[f"group_{number}"] = {"targets": targets, **_scheme(grid)}
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": left,
        # transformers makes no room for zero points beside packed weights, but reads them where it dequantizes
        **({} if all(grid.symmetric for grid in kinds) else {"dequantize": True}),
    }


def _scheme(grid: Grid) -> dict[str, Any]:
    """A group's format, weights and inputs."""
    kind = "int" if grid.kind == "int" else "float"
    weights: dict[str, Any] = {"num_bits": grid.bits, "type": kind, "symmetric": grid.symmetric}
    weights |= {"strategy": "group", "group_size": grid.group} if grid.group else {"strategy": "channel"}
    weights["dynamic"] = False
    if grid.kind == "mxfp4":
        weights |= {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    form = {"int": "int-quantized" if grid.dynamic else "pack-quantized", "fp8": "float-quantized"}
    found: dict[str, Any] = {"format": form.get(grid.kind, "mxfp4-pack-quantized"), "weights": weights}
    if grid.dynamic:
        found["input_activations"] = {
            "num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True,
        }  # fmt: skip
    return found


def _write_gptq(grids: Mapping[str, Grid], classes: list[str], left: list[str], dtype: str) -> dict[str, Any]:
    grid = _one(grids)
    return {
        "quant_method": "gptq",
        "bits": grid.bits,
        "group_size": grid.group or -1,
        "desc_act": False,
        "sym": grid.symmetric,
        "lm_head": False,
        "checkpoint_format": "gptq" if grid.symmetric else "gptq_v2",
    }


def _write_awq(grids: Mapping[str, Grid], classes: list[str], left: list[str], dtype: str) -> dict[str, Any]:
    grid = _one(grids)
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": grid.group or -1,
        "zero_point": True,
        "version": "gemm",
        "backend": "autoawq",
        "modules_to_not_convert": left,
    }


def _one(grids: Mapping[str, Grid]) -> Grid:
    """The grid of all matrices.

    Raises:
        UserError: they differ.
    """
    kinds = set(grids.values())
    if len(kinds) != 1:
        raise UserError(
            "This layout has one group size for all matrices, and these have several.",
            "Use --layout compressed-tensors, or a --group-size that divides every matrix.",
            Exit.MISMATCH,
        )
    return kinds.pop()


def _write_bitsandbytes(grids: Mapping[str, Grid], classes: list[str], left: list[str], dtype: str) -> dict[str, Any]:
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": dtype,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_skip_modules": left,
    }


WRITERS: dict[Form, Callable[[Mapping[str, Grid], list[str], list[str], str], dict[str, Any]]] = {
    "compressed-tensors": _write_compressed,
    "gptq": _write_gptq,
    "awq": _write_awq,
    "bitsandbytes": _write_bitsandbytes,
}
