"""Quantized: what the quantization_config of a config.json says of the matrices."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmctl.errors import Exit, UserError
from llmctl.spec.coding import Coding
from llmctl.spec.quant import Grid

KEY = "quantization_config"
DENSE = ".weight"
_SIGNS = re.compile(r"\.(weight_packed|qweight)$")  # what a matrix in few bits has in place of its weight
_PLAIN = ("dense", None)


@dataclass(frozen=True)
class Group:
    """Matrices that are stored alike.

    Attributes:
        targets: names of modules, "re:" and a pattern that begins one, or names of classes: Linear, Embedding, Conv1D.
    """

    targets: tuple[str, ...]
    coding: Coding


@dataclass(frozen=True)
class Quantized:
    """Which matrices of a checkpoint are in few bits, and how.

    Attributes:
        method: quant_method of its config.json.
        groups: the first that has a module's name, else the first whose pattern it fits, else its class, is its.
        ignored: targets that stay as they are.
        sure: every matrix that is targeted is in few bits; else one that lies there as numbers is taken as it is.
        facts: what reports show of it.
    """

    method: str
    groups: tuple[Group, ...]
    ignored: tuple[str, ...] = ()
    sure: bool = True

    def coding(self, names: Iterable[str], kind: str) -> Coding | None:
        """How a module is stored; None: as numbers.

        Args:
            names: that it goes by.
            kind: its class: Linear, Embedding or Conv1D.
        """
        names = tuple(names)
        if any(target == kind or _named(target, names) for target in self.ignored):
            return None
        ranked = sorted(
            (rank, number, target)
            for number, group in enumerate(self.groups)
            for target in group.targets
            if (rank := _rank(target, names, kind)) is not None
        )
        return self.groups[ranked[0][1]].coding if ranked else None

    def facts(self) -> dict[str, Any]:
        """What it says, for a report."""
        return {
            "method": self.method,
            "groups": [
                {
                    "targets": list(group.targets),
                    "layout": group.coding.layout,
                    "kind": group.coding.grid.kind,
                    "bits": group.coding.grid.bits,
                    "group_size": group.coding.grid.group,
                    "symmetric": group.coding.grid.symmetric,
                    "inputs": group.coding.grid.dynamic,
                }
                for group in self.groups
            ],
            "ignored": list(self.ignored),
        }


def quantized(json: Mapping[str, Any]) -> Quantized | None:
    """What a config.json says of few bits; None: nothing.

    Raises:
        UserError: a method, or something of one, that is not known; all of it is named.
    """
    said = json.get(KEY)
    if said is None:
        return None
    method = said.get("quant_method") if isinstance(said, dict) else None
    if method is None and isinstance(said, dict):
        method = next((one for one in ("bitsandbytes",) if said.get("load_in_4bit") or said.get("load_in_8bit")), None)
    if not isinstance(method, str) or method not in _READERS:
        known = ", ".join(_READERS)
        raise _refused([f"quant_method {method!r} (known: {known})"])
    wrong: list[str] = []
    found = _READERS[method](said, wrong)
    if wrong:
        raise _refused(wrong)
    return found


def unquantized(json: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json without what it says of few bits."""
    return {key: value for key, value in json.items() if key != KEY}


def as_numbers(names: Iterable[str]) -> list[str]:
    """Names of tensors, those of matrices in few bits as if they were not."""
    return [_SIGNS.sub(DENSE, name) for name in names]


def _named(target: str, names: tuple[str, ...]) -> bool:
    if target.startswith("re:"):
        try:
            return any(re.match(target[3:], name) for name in names)
        except re.error as error:
            raise _refused([f"{target!r}, which is no pattern ({error})"]) from error
    return target in names


def _rank(target: str, names: tuple[str, ...], kind: str) -> int | None:
    """0: it is the name; 1: its pattern; 2: its class; None: not meant."""
    if _named(target, names):
        return int(target.startswith("re:"))
    return 2 if target == kind else None


def _refused(what: list[str]) -> UserError:
    return UserError(
        f"config.json: its {KEY} asks for what llmctl does not read: {'; '.join(what)}.",
        "Use another checkpoint, or dequantize it with the tool that made it.",
        Exit.MISMATCH,
    )


_FORMATS = {
    "pack-quantized": "packed",
    "int-quantized": "whole",
    "float-quantized": "whole",
    "naive-quantized": "whole",
    "mxfp4-pack-quantized": "mxfp4",
}


def _read_compressed(said: dict[str, Any], wrong: list[str]) -> Quantized:
    """Source: QuantizationConfig, QuantizationScheme and QuantizationArgs of compressed-tensors 0.20."""
    sparse = said.get("sparsity_config") or {}
    if not isinstance(sparse, dict) or sparse.get("format", "dense") not in _PLAIN:
        wrong.append(f"sparsity_config of format {sparse['format'] if isinstance(sparse, dict) else sparse!r}")
    for key in ("kv_cache_scheme", "transform_config"):
        if said.get(key):
            wrong.append(key)
    if said.get("quantization_status", "compressed") != "compressed":
        wrong.append(f"quantization_status {said['quantization_status']!r}")
    groups = said.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(one, dict) for one in groups.values()):
        wrong.append("no config_groups")
        groups = {}
    found = []
    for name, group in groups.items():
        targets = group.get("targets")
        if not _strings(targets):
            wrong.append(f"{name}: targets {targets!r}")
            continue
        coding = _compressed(name, group, said.get("format"), wrong)
        if coding is not None:
            found.append(Group(tuple(targets), coding))
    ignored = said.get("ignore") or []
    if not _strings(ignored):
        wrong.append(f"ignore {ignored!r}")
        ignored = []
    return Quantized("compressed-tensors", tuple(found), tuple(ignored))


def _compressed(name: str, group: dict[str, Any], everywhere: str | None, wrong: list[str]) -> Coding | None:
    """Of one group; what is not known of it is added to `wrong`."""
    weights, inputs = group.get("weights"), group.get("input_activations")
    problems = [key for key in ("output_activations",) if group.get(key)]
    if not isinstance(weights, dict):
        wrong.append(f"{name}: weights {weights!r}")
        return None
    kind, bits, symmetric = weights.get("type", "int"), weights.get("num_bits", 8), weights.get("symmetric", True)
    size, block = weights.get("group_size"), weights.get("block_structure")
    types = {
        "type": (kind, str),
        "num_bits": (bits, int),
        "symmetric": (symmetric, bool),
        "group_size": (size or 0, int),
    }
    if odd := [f"{name}: {key} {value!r}" for key, (value, kind_) in types.items() if type(value) is not kind_]:
        wrong += odd
        return None
    usual = "tensor" if size is None else "group" if size > 0 else "channel"
    strategy = weights.get("strategy") or usual
    grids = {("int", n): "int" for n in range(1, 9)} | {("float", 8): "fp8", ("float", 4): "mxfp4"}
    if (kind, bits) not in grids or (grids[kind, bits] == "mxfp4" and (strategy, size) != ("group", 32)):
        problems.append(f"weights of type {kind!r}, num_bits {bits!r}, strategy {strategy!r}, group_size {size!r}")
    if strategy not in ("tensor", "channel", "group", "block"):
        problems.append(f"strategy {strategy!r}")
    sizes = isinstance(block, list) and len(block) == 2 and all(type(one) is int and one > 0 for one in block)
    if (strategy == "block" and not sizes) or (strategy == "group" and (size or 0) < 1):
        problems.append(f"block_structure {block!r}, group_size {size!r}")
    if weights.get("dynamic"):
        problems.append("dynamic weights")
    if weights.get("actorder") not in (None, False, "weight", "static"):
        problems.append(f"actorder {weights['actorder']!r}")
    if inputs is not None and not _by_token(inputs, kind):
        problems.append(
            "input_activations other than of 8 bits, symmetric, dynamic, a token each, of the weights' type"
        )
    layout = _layout(group.get("format") or everywhere, kind, bits, inputs is not None)
    if layout not in _FORMATS.values():
        problems.append(f"format {layout!r}")
    wrong += [f"{name}: {one}" for one in problems]
    if problems:
        return None
    shared = {"tensor": (0, 0), "channel": (1, 0), "group": (1, size), "block": tuple(block or (1, 0))}
    rows, columns = shared[strategy]
    grid = Grid(grids[kind, bits], bits, columns, symmetric, inputs is not None)
    return Coding(layout, grid, rows)  # type: ignore[arg-type]


def _layout(form: str | None, kind: str, bits: int, inputs: bool) -> str | None:
    """How a format stores matrices; where none is named the library takes this one."""
    if form in (None, "mixed-precision"):
        form = (
            "mxfp4-pack-quantized" if (kind, bits) == ("float", 4) else "float-quantized" if kind == "float" else None
        )
        form = form or ("int-quantized" if inputs else "pack-quantized")
    return _FORMATS.get(form, form) if isinstance(form, str) else repr(form)


def _by_token(inputs: Any, kind: str) -> bool:
    if not isinstance(inputs, dict):
        return False
    wanted = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    usual = {"num_bits": 8, "type": "int", "symmetric": True}
    return all(inputs.get(key, usual.get(key)) == value for key, value in wanted.items())


def _read_gptq(said: dict[str, Any], wrong: list[str]) -> Quantized:
    """Source: the quantize_config of AutoGPTQ, and GPTQModel's `dynamic` beside it."""
    form = said.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        wrong.append(f"checkpoint_format {form!r}")

    def coding(values: dict[str, Any]) -> Coding:
        bits, size = values.get("bits"), values.get("group_size", 128)
        if bits not in (2, 3, 4, 8):
            wrong.append(f"bits {bits!r}")
            bits = 4
        if type(size) is not int or size < -1 or size == 0:
            wrong.append(f"group_size {size!r}")
            size = -1
        return Coding("gptq", Grid("int", bits, max(0, size), False), shifted=form == "gptq")

    groups = []
    dynamic = said.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(isinstance(one, dict) for one in dynamic.values()):
        wrong.append(f"dynamic {dynamic!r}")
        dynamic = {}
    for pattern, changes in dynamic.items():
        if not pattern.startswith("-:"):  # those are not in few bits, as their files show
            groups.append(Group((f"re:{pattern.removeprefix('+:')}",), coding({**said, **changes})))
    return Quantized("gptq", (*groups, Group(("Linear", "Conv1D"), coding(said))), sure=False)


def _read_awq(said: dict[str, Any], wrong: list[str]) -> Quantized:
    """Source: AwqConfig of transformers."""
    bits, size = said.get("bits", said.get("w_bit", 4)), said.get("group_size", said.get("q_group_size", 128))
    if bits != 4:
        wrong.append(f"bits {bits!r}")
    if type(size) is not int or size < -1 or size == 0:
        wrong.append(f"group_size {size!r}")
        size = -1
    if not said.get("zero_point", True):
        wrong.append("zero_point false")
    if str(said.get("version", said.get("format", "gemm"))).lower() != "gemm":
        wrong.append(f"version {said.get('version', said.get('format'))!r}")
    return Quantized(
        "awq", (Group(("Linear", "Conv1D"), Coding("awq", Grid("int", 4, max(0, size), False))),), sure=False
    )


def _read_bitsandbytes(said: dict[str, Any], wrong: list[str]) -> Quantized:
    """Source: BitsAndBytesConfig of transformers."""
    if said.get("load_in_8bit") or said.get("_load_in_8bit"):
        coding = Coding("llm-int8", Grid("int", 8))
    else:
        kind = said.get("bnb_4bit_quant_type", "fp4")
        if kind != "nf4":
            wrong.append(f"bnb_4bit_quant_type {kind!r}")
        if said.get("bnb_4bit_quant_storage", "uint8") != "uint8":
            wrong.append(f"bnb_4bit_quant_storage {said['bnb_4bit_quant_storage']!r}")
        coding = Coding("nf4", Grid("nf4", 4, 64))
    return Quantized("bitsandbytes", (Group(("Linear", "Conv1D"), coding),), sure=False)


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


_READERS: dict[str, Callable[[dict[str, Any], list[str]], Quantized]] = {
    "compressed-tensors": _read_compressed,
    "gptq": _read_gptq,
    "awq": _read_awq,
    "bitsandbytes": _read_bitsandbytes,
}
