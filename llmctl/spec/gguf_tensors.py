"""Tensors of a GGUF file: which of ours each one is made of, and how."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from llmctl.spec.gguf_graphs import Graph, Half
from llmctl.spec.model import ModelConfig, NormPlace
from llmctl.spec.sizes import shapes

Turns = Literal["factors", "short", "long"]
Shapes = dict[str, tuple[int, ...]]

# What the norms of a layer are called, by where they stand.
_NORMS: dict[NormPlace, dict[str, str]] = {
    "pre": {"attn_norm": "attention_norm", "cross_attn_norm": "cross_attention_norm", "ffn_norm": "mlp_norm"},
    "post": {"attn_output_norm": "attention_norm", "layer_output_norm": "mlp_norm"},
    "output": {"post_attention_norm": "attention_norm", "post_ffw_norm": "mlp_norm"},
    "sandwich": {
        "attn_norm": "attention_norm",
        "post_attention_norm": "attention_out_norm",
        "ffn_norm": "mlp_norm",
        "post_ffw_norm": "mlp_out_norm",
    },
}
# Sizes at which an architecture takes another scale of attention than that of the head's size.
_OTHER_SCALE = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class Part:
    """One of our tensors, as it lies in one of the file's.

    Attributes:
        name: ours.
        times: what each number is multiplied by, once `Entry.plus` has been added.
        heads: whose channels i and i + D/2 come to stand side by side; 0: they stay where they are.
    """

    name: str
    times: float = 1.0
    heads: int = 0


@dataclass(frozen=True)
class Entry:
    """One tensor of a GGUF file.

    Attributes:
        name: as llama.cpp calls it.
        shape: (rows, columns) or (n,); the file itself says them in reverse.
        parts: of ours, one after another along the rows; none: zeros, or what `turns` says.
        plus: added to each number.
        skip: first rows of ours that are left out.
        turns: divisors of the rotary frequencies, made from the config.
        plain: it is float32 whatever the type of the file.
        last: it scores tokens, so it keeps more bits than the others where these have few.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] = ()
    plus: float = 0.0
    skip: int = 0
    turns: Turns | None = None
    plain: bool = False
    last: bool = False

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return prod(self.shape)


def entries(graph: Graph, config: ModelConfig, lengthened: float = 1.0) -> list[Entry]:
    """Every tensor of a model's file, in the file's order.

    Args:
        graph: which computes the model.
        lengthened: by how much rotary positions lengthen queries and keys beside turning them; the weights do it where
            the architecture does not.
    """
    return [*_Tensors(graph, config, lengthened).all()]


class _Tensors:
    """The entries of one model, made in order."""

    def __init__(self, graph: Graph, config: ModelConfig, lengthened: float):
        self.graph, self.config = graph, config
        self.lengthened = lengthened if graph.factors else 1.0
        self.ours = shapes(config)
        self.both = config.kind == "encoder-decoder"

    def all(self) -> Iterator[Entry]:
        yield from self.outer()
        for stack, layers in self.config.stacks.items():
            prefix = f"{stack[:3]}." if self.both else ""
            for layer in range(layers):
                yield from self.layer(f"{stack}.layers.{layer}", f"{prefix}blk.{layer}")
            if self.config.position == "relative":
                one = f"{stack}.relative.weight"
                yield Entry(f"{prefix}blk.0.attn_rel_b.weight", self.ours[one], (Part(one),), plain=True)

    def outer(self) -> Iterator[Entry]:
        """Embeddings, last norms, the head, and what all layers share."""
        config, graph = self.config, self.graph
        table, own_head = "embed.tokens.weight", not config.tie or graph.head == "always"
        scored = config.kind != "encoder"
        yield Entry("token_embd.weight", self.ours[table], (Part(table),), last=scored and not own_head)
        if config.token_types:
            one = "embed.types.weight"
            yield Entry("token_types.weight", self.ours[one], (Part(one),), plain=True)
        if config.position == "learned":
            shape, one = (config.context, config.width), Part("embed.positions.weight")
            yield Entry("position_embd.weight", shape, (one,), skip=config.position_offset, plain=True)
        yield from self.norm("token_embd_norm", "embed.norm")
        for stack in config.stacks:
            name = f"{stack[:3]}.output_norm" if self.both else "output_norm"
            yield from self.norm(name, f"{stack}.norm", config.logit_scale if stack == config.last_stack else 1.0)
        if scored and own_head:
            one = table if config.tie else "head.weight"
            yield Entry("output.weight", self.ours[one], (Part(one),), last=True)
        yield from self.turns()

    def turns(self) -> Iterator[Entry]:
        """What changes rotary frequencies."""
        config, graph = self.config, self.graph
        if config.position not in ("rope", "none"):
            return
        shape = ((config.rotary_dim or config.head_dim) // 2,)
        kind = None if config.rope_scaling is None else config.rope_scaling.kind
        if graph.factors and (config.position == "none" or kind in ("llama3", "yarn", "longrope")):
            yield Entry("rope_freqs.weight", shape, turns="factors", plain=True)
        if graph.lengths and kind == "longrope":
            yield Entry("rope_factors_long.weight", shape, turns="long", plain=True)
            yield Entry("rope_factors_short.weight", shape, turns="short", plain=True)

    def layer(self, theirs: str, name: str) -> Iterator[Entry]:
        """One layer; `theirs` is its name among our modules, `name` that in the file."""
        for one, mine in _NORMS[self.config.norm_place].items():
            yield from self.norm(f"{name}.{one}", f"{theirs}.{mine}")
        out = "o" if self.both else "output"
        for half, label in (("attention", "attn"), ("cross_attention", "cross_attn")):
            if f"{theirs}.{half}.q.weight" in self.ours:
                yield from self.attention(f"{theirs}.{half}", f"{name}.{label}")
                yield from self.matrix(f"{name}.{label}_{out}", [f"{theirs}.{half}.out"], "out")
        gate, up, down = (f"{theirs}.mlp.{part}" for part in ("gate", "up", "down"))
        if self.config.gated and not self.graph.gate_up:
            yield from self.matrix(f"{name}.ffn_gate", [gate], "mlp")
        yield from self.matrix(f"{name}.ffn_up", [gate, up] if self.graph.gate_up else [up], "mlp")
        yield from self.matrix(f"{name}.ffn_down", [down], "mlp")

    def attention(self, theirs: str, name: str) -> Iterator[Entry]:
        """Queries, keys and values, and their norms; a scale that the architecture does not have goes into queries."""
        config, graph = self.config, self.graph
        more = scale_of(config) / own_scale(graph, config)
        times = (more * self.lengthened, self.lengthened, 1.0)
        if config.qk_norm:
            yield from self.norm(f"{name}_q_norm", f"{theirs}.q_norm", times[0])
            yield from self.norm(f"{name}_k_norm", f"{theirs}.k_norm", times[1])
            times = (1.0, 1.0, 1.0)
        modules = [f"{theirs}.{part}" for part in "qkv"]
        if graph.qkv:
            yield from self.matrix(f"{name}_qkv", modules, "qkv", times)
            return
        heads = (config.heads, config.kv_heads, 0) if graph.paired else (0, 0, 0)
        for part, module, by, count in zip("qkv", modules, times, heads, strict=True):
            yield from self.matrix(f"{name}_{part}", [module], "qkv", (by,), count)

    def matrix(
        self, name: str, modules: list[str], half: Half, times: tuple[float, ...] = (1.0, 1.0), heads: int = 0
    ) -> Iterator[Entry]:
        """The weight of one matrix, or of several one below the other, and the bias."""
        for kind in ("weight", "bias"):
            parts = tuple(
                Part(f"{module}.{kind}", by, heads) for module, by in zip(modules, times[: len(modules)], strict=True)
            )
            known = [self.ours[part.name] for part in parts if part.name in self.ours]
            rows = sum(self.ours[f"{module}.weight"][0] for module in modules)
            if known:
                yield Entry(f"{name}.{kind}", (rows, *known[0][1:]), parts)
            elif self.graph.bias(half) == "filled":
                yield Entry(f"{name}.{kind}", (rows,))

    def norm(self, name: str, module: str, times: float = 1.0) -> Iterator[Entry]:
        """A norm's weight and bias, where there is such a norm."""
        plus = 1.0 if self.config.norm_plus_one else 0.0
        for kind in ("weight", "bias"):
            one = f"{module}.{kind}"
            if one in self.ours:
                more = plus if kind == "weight" else 0.0
                yield Entry(f"{name}.{kind}", self.ours[one], (Part(one, times),), plus=more)


def scale_of(config: ModelConfig) -> float:
    """What scores of attention are multiplied by."""
    return config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale


def own_scale(graph: Graph, config: ModelConfig) -> float:
    """What the architecture multiplies scores of attention by, where the file does not say."""
    if graph.position == "relative":
        return 1.0
    size = config.width // config.heads if _OTHER_SCALE.get(graph.name) == config.layers else config.head_dim
    return size**-0.5
