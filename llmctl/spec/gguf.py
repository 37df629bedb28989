"""GGUF: the types of a file's tensors, what they take, and the plan of a file."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.gguf_graphs import Graph, context_of, graph_of
from llmctl.spec.gguf_tensors import Entry, entries
from llmctl.spec.model import ModelConfig

FileType = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0"]
TensorType = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0"]

MADE = "llmctl.made"  # the key of what a file says of its making
# Weights in a block, which lies in one row, and its bytes.
BLOCKS: dict[TensorType, tuple[int, int]] = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q6_K": (256, 210),
    "Q5_1": (32, 24),
    "Q5_0": (32, 22),
    "Q4_K": (256, 144),
    "Q4_1": (32, 20),
    "Q4_0": (32, 18),
}
# The type of the matrices, of what scores tokens, and the number by which readers know the mixture.
MIXTURES: dict[FileType, tuple[TensorType, TensorType, int]] = {
    "f32": ("F32", "F32", 0),
    "f16": ("F16", "F16", 1),
    "bf16": ("BF16", "BF16", 32),
    "q8_0": ("Q8_0", "Q8_0", 7),
    "q6_k": ("Q6_K", "Q6_K", 18),
    "q5_1": ("Q5_1", "Q6_K", 9),
    "q5_0": ("Q5_0", "Q6_K", 8),
    "q4_k_m": ("Q4_K", "Q6_K", 15),
    "q4_1": ("Q4_1", "Q6_K", 3),
    "q4_0": ("Q4_0", "Q6_K", 2),
}
# What takes the place of a type whose blocks do not fill a row.
INSTEAD: dict[str, TensorType] = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}


@dataclass(frozen=True)
class ExportConfig:
    """File."""

    type: Annotated[
        FileType, "Type of the matrices; vectors stay float32, and what scores tokens has 6 bits or more."
    ] = "f16"
    name: Annotated[str | None, "What the file calls the model (general.name)."] = None


@dataclass(frozen=True)
class Planned:
    """A tensor of a file and its type."""

    entry: Entry
    type: TensorType

    @property
    def bytes(self) -> int:
        """Size of its data."""
        weights, size = BLOCKS[self.type]
        return self.entry.elements // weights * size


@dataclass(frozen=True)
class GgufPlan:
    """What a GGUF file of a model will hold.

    Attributes:
        graph: the architecture of llama.cpp that computes the model.
        context: tokens within which it does so exactly.
        tensors: of the file, in order.
        notes: what its reader should know.
    """

    graph: Graph
    context: int
    tensors: list[Planned]
    notes: list[str]

    @property
    def bytes(self) -> int:
        """Size of the data of all tensors; the file has the tokenizer beside them."""
        return sum(one.bytes for one in self.tensors)

    @classmethod
    def of(cls, config: ModelConfig, type: FileType, lengthened: float = 1.0) -> "GgufPlan":
        """The plan of a model's file.

        Args:
            lengthened: by how much rotary positions lengthen queries and keys.

        Raises:
            UserError: llama.cpp computes no such model.
        """
        graph = graph_of(config)
        context = context_of(graph, config)
        tensors = [Planned(one, type_of(one, type, config)) for one in entries(graph, config, lengthened)]
        return cls(graph, context, tensors, _notes(config, context))

    def facts(self) -> dict[str, object]:
        """The plan in numbers, for a report."""
        weights = sum(one.entry.elements for one in self.tensors)
        types: dict[str, int] = {}
        for one in self.tensors:
            types[one.type] = types.get(one.type, 0) + 1
        return {
            "architecture": self.graph.name,
            "context": self.context,
            "tensors": len(self.tensors),
            "tensor_types": types,
            "tensor_bytes": self.bytes,
            "bits_per_weight": round(8 * self.bytes / weights, 3),
        }


def room(out: Path, need: int) -> None:
    """Check that a file of so many bytes can be written.

    Raises:
        UserError: its directory is not there, or has too little room; or the name is a directory's.
    """
    if out.is_dir() or not out.name:
        raise UserError(f"-o is {out}, a directory; wanted the name of a file.", "Add model.gguf.", Exit.USAGE)
    if str(out) == "-" or (out.exists() and not out.is_file()):
        raise UserError(f"-o is {out}, which is no file: a GGUF file cannot go through a pipe.", code=Exit.USAGE)
    if not out.parent.is_dir():
        raise UserError(f"{out} cannot be made: {out.parent} does not exist.", f"mkdir -p {out.parent}")
    free = shutil.disk_usage(out.parent).free
    if need > free:
        problem = f"{out} will take {need / 2**20:,.0f} MiB, but {out.parent} has {free / 2**20:,.0f} MiB free."
        raise UserError(problem, "Free some space, or write elsewhere with -o.", Exit.SPACE)


def made_of(path: Path) -> dict[str, Any] | None:
    """What a GGUF file of llmctl says of its making; None where it is none such, or there is none."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            return None
        file.seek(24)  # version, tensors, keys
        for _ in range(2):  # the architecture stands first, then what llmctl says
            key, kind = _text(file), file.read(4)
            if kind != (8).to_bytes(4, "little"):
                return None
            value = _text(file)
    if key != MADE:
        return None
    try:
        said = json.loads(value)
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _text(file: IO[bytes]) -> str:
    """A string as GGUF has it, of a megabyte at most."""
    length = int.from_bytes(file.read(8), "little")
    return file.read(min(length, 1 << 20)).decode("utf-8", "replace")


def type_of(entry: Entry, type: FileType, config: ModelConfig) -> TensorType:
    """The type of one tensor in a file of such a type."""
    if entry.plain or len(entry.shape) == 1:
        return "F32"
    matrices, scoring, _ = MIXTURES[type]
    found = scoring if entry.last else _more(entry.name, config) if type == "q4_k_m" else matrices
    while entry.shape[1] % BLOCKS[found][0]:
        found = INSTEAD.get(found, "F16")
    return found


def _more(name: str, config: ModelConfig) -> TensorType:
    """Values, and the last matrices of the MLP, keep more bits in the first and last layers and each third between.

    Source: llama.cpp's mixture of that name.
    """
    found = re.fullmatch(r"(?:enc\.|dec\.)?blk\.(\d+)\.(?:attn_v|attn_qkv|ffn_down)\.weight", name)
    if found is None:
        return "Q4_K"
    layer, edge = int(found[1]), config.layers // 8
    return "Q6_K" if layer < edge or layer >= 7 * config.layers // 8 or (layer - edge) % 3 == 2 else "Q4_K"


def _notes(config: ModelConfig, context: int) -> list[str]:
    notes = []
    if context < config.context and config.window is not None and context == config.window:
        notes.append(
            f"llama.cpp has no sliding window here: the file's context is that of the window, {context} of "
            f"{config.context} tokens."
        )
    elif context < config.context:
        notes.append(
            f"rotary positions change in rows longer than {context} of {config.context} tokens: that is the file's "
            "context."
        )
    if config.activation == "gelu":
        notes.append("llama.cpp computes gelu by its tanh form, which differs in the fourth digit.")
    if config.kind == "encoder-decoder":
        notes.append("llama.cpp runs encoder-decoders from its library (llama_encode), not in its server.")
    if config.kind == "encoder" and (config.lm_head or config.pooler or config.classifier != "none"):
        notes.append("the heads are left out: llama.cpp makes embeddings of such a model.")
    return notes
