"""Graphs: what each architecture of llama.cpp computes, in the terms of ModelConfig, and which one fits a model."""

from dataclasses import dataclass
from typing import Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.model import Activation, Kind, ModelConfig, Norm, NormPlace, Position

Bias = Literal["never", "optional", "filled", "needed"]  # filled: zeros stand where there is none
Half = Literal["qkv", "out", "mlp"]
Normed = Literal["no", "heads", "whole"]
UNCAPPED = 65536.0  # a cap so high that float32 does not feel it
NO_TURN = 1e30  # frequencies divided by it turn nothing


@dataclass(frozen=True)
class Graph:
    """One architecture of llama.cpp.

    Attributes:
        name: as `general.architecture` has it.
        activations: those it computes; "gelu" where its tanh form stands for it.
        paired: rotary positions turn channels 2i and 2i + 1, not i and i + R/2.
        partial: rotary positions may turn a part of each head.
        square: heads * head_dim must be the width.
        factors: it reads a divisor for each rotary frequency (rope_freqs).
        biases: of each half of a layer.
        qkv: queries, keys and values are one matrix.
        gate_up: gate and up are one matrix.
        head: "tied": it has no head of its own; "always": it has one, even if it equals the embedding.
        windows: some layers may have a window, one of each run of equally many seeing everything.
        local: layers with a window turn by a base of their own.
        capped: scores of attention and of tokens are capped.
        lengths: it takes other frequencies in longer rows (longrope), and only models that turn so, or in part, are
            its.
        skips: each such layer turns nothing; 0: none.
    """

    name: str
    kind: Kind = "decoder"
    norm: Norm = "rms"
    place: NormPlace = "pre"
    activations: tuple[Activation, ...] = ("silu",)
    gated: bool | None = True
    position: Position = "rope"
    paired: bool = False
    partial: bool = False
    square: bool = False
    factors: bool = False
    parallel: bool = False
    embed_norm: bool = False
    embed_scale: bool = False
    qk_norm: Normed = "no"
    biases: tuple[Bias, Bias, Bias] = ("optional", "never", "never")  # qkv, out, mlp
    qkv: bool = False
    gate_up: bool = False
    head: Literal["optional", "tied", "always"] = "optional"
    windows: bool = False
    local: bool = False
    capped: bool = False
    lengths: bool = False
    skips: int = 0

    def bias(self, half: Half) -> Bias:
        """Whether a half of a layer has biases."""
        return self.biases[("qkv", "out", "mlp").index(half)]


_GELU: tuple[Activation, ...] = ("gelu_tanh", "gelu")
_GEMMA = {"activations": _GELU, "embed_scale": True}
_OLD = {"norm": "layer", "activations": _GELU, "gated": False, "qkv": True, "square": True}
_ALL: tuple[Bias, Bias, Bias] = ("filled", "filled", "filled")

# The first that fits is taken. llama stands for all that it can say; others are there for what it cannot.
GRAPHS = (
    Graph("qwen2", biases=("needed", "never", "never")),
    Graph("phi3", partial=True, lengths=True, square=True, biases=("never",) * 3, qkv=True, gate_up=True),
    Graph("llama", paired=True, factors=True, biases=("optional",) * 3),
    Graph("smollm3", paired=True, skips=4),
    Graph("qwen3", qk_norm="heads"),
    Graph("olmo2", place="output", qk_norm="whole", square=True, biases=("never",) * 3, head="always"),
    Graph("gemma", head="tied", **_GEMMA),
    Graph("gemma2", place="sandwich", head="tied", windows=True, capped=True, **_GEMMA),
    Graph("gemma3", place="sandwich", qk_norm="heads", windows=True, local=True, **_GEMMA),
    Graph("gpt2", position="learned", biases=_ALL, **_OLD),
    Graph("gptneox", partial=True, parallel=True, biases=_ALL, head="always", **_OLD),
    Graph("bloom", position="alibi", embed_norm=True, biases=_ALL, **_OLD),
    Graph(
        "bert", kind="encoder", norm="layer", place="post", activations=_GELU, gated=False, position="learned",
        square=True, embed_norm=True, biases=_ALL,
    ),
    Graph(
        "t5", kind="encoder-decoder", activations=("gelu_tanh", "gelu", "relu"), gated=None, position="relative",
        biases=("never",) * 3,
    ),
)  # fmt: skip


def graph_of(config: ModelConfig) -> Graph:
    """The first architecture of llama.cpp that computes a model.

    Raises:
        UserError: none does; names what the nearest one lacks.
    """
    found = [(misfits(graph, config), graph) for graph in GRAPHS]
    lacking, nearest = min(found, key=lambda pair: len(pair[0]))  # the first of the least
    if lacking:
        some = lacking[:4] + [f"and {len(lacking) - 4} more"] * (len(lacking) > 4)
        raise UserError(
            f"llama.cpp computes no such model; the nearest it has is {nearest.name}, but here {'; '.join(some)}.",
            "Use the checkpoint itself: llmctl generate, or transformers.",
            Exit.MISMATCH,
        )
    return nearest


def misfits(graph: Graph, config: ModelConfig) -> list[str]:
    """What a model has that the architecture does not compute, in words; empty: it computes the model."""
    gated = config.gated if graph.gated is None else graph.gated
    normed = "no" if not config.qk_norm else "whole" if config.qk_norm_whole else "heads"
    position = "rope" if graph.factors and config.position == "none" else config.position
    wrong = {
        f"its kind is {config.kind}": config.kind != graph.kind,
        f"its attention is {config.attention}": config.attention != "softmax",
        "prompts are seen both ways": config.prefix_lm,
        f"its norm is {config.norm}": config.norm != graph.norm,
        f"norms stand {config.norm_place}": config.norm_place != graph.place,
        f"its activation is {config.activation}": config.activation not in graph.activations,
        f"its MLP is {'gated' if config.gated else 'plain'}": config.gated != gated,
        "attention and MLP stand side by side": config.parallel and not graph.parallel,
        f"positions are {config.position}": position != graph.position,
        f"a part of each head turns ({config.rotary_dim} of {config.head_dim})": _partial(config) and not graph.partial,
        "the embedding has a norm" if config.embed_norm else "the embedding has no norm": (
            config.embed_norm != graph.embed_norm
        ),
        "embeddings are scaled" if config.embed_scale else "embeddings are not scaled": (
            config.embed_scale != graph.embed_scale
        ),
        "queries and keys have norms" if config.qk_norm else "queries and keys have no norms": normed != graph.qk_norm,
        f"the width is {config.width}, heads times head_dim {config.heads * config.head_dim}": (
            graph.square and config.heads * config.head_dim != config.width
        ),
        "scores of attention are capped": config.attention_softcap is not None and not graph.capped,
        "scores of tokens are capped": config.logit_softcap is not None and not (graph.capped or graph.local),
        "the head is not the embedding": graph.head == "tied" and not config.tie and config.lm_head,
        "the head has a bias": config.head_bias and config.kind != "encoder",
        "it has no head that scores tokens": not config.lm_head and config.kind != "encoder",
        f"its MLP is {'gated' if config.gated else 'plain'}, with {config.activation}": (
            graph.gated is None and (config.activation == "relu") == config.gated
        ),
        f"relative positions share a bucket from {config.relative_distance} on, not from 128": (
            graph.position == "relative" and config.relative_distance != 128
        ),
        "kinds of tokens have vectors": bool(config.token_types) and config.kind != "encoder",
    }
    found = [problem for problem, here in wrong.items() if here]
    for half, here in (("qkv", config.qkv_bias), ("out", config.out_bias), ("mlp", config.mlp_bias)):
        allowed = graph.bias(half)  # type: ignore[arg-type]
        if (here and allowed == "never") or (not here and allowed == "needed"):
            found.append(f"{half} has {'biases' if here else 'no biases'}")
    if config.position == "rope" and graph.position == "rope":
        found += _turns(graph, config)
    return found


def period(config: ModelConfig) -> int | None:
    """The n of layers whose i-th has a window where i % n < n - 1; None: their windows follow no such n."""
    has = [config.window_of(i) is not None for i in range(config.layers)]
    every = range(1, config.layers + 2)
    return next((n for n in every if has == [i % n < n - 1 for i in range(config.layers)]), None)


def context_of(graph: Graph, config: ModelConfig) -> int:
    """The tokens within which the architecture computes what the model does.

    Where it knows no windows, that is as many as a window holds; where rotary frequencies change in longer rows, as
    many as are in the context that was trained.
    """
    context = config.context
    if config.window is not None and not (graph.windows and period(config) is not None):
        context = min(context, config.window)
    scaling = config.rope_scaling
    if config.position == "rope" and scaling is not None and scaling.kind == "longrope":
        context = min(context, scaling.original_context or context)
    return context


def _turns(graph: Graph, config: ModelConfig) -> list[str]:
    """What is not computed of rotary positions."""
    skipped = tuple(range(graph.skips - 1, config.layers, graph.skips)) if graph.skips else ()
    local = config.rope_local_theta is not None and config.window is not None
    scaling = config.rope_scaling
    kind = None if scaling is None else scaling.kind
    usual = scaling is None or (scaling.truncate and scaling.attention_factor is scaling.mscale is None)
    wrong = {
        f"layers {list(config.rope_skip)} do not turn": config.rope_skip != skipped,
        "layers with a window turn by another base": local and not (graph.local and period(config) is not None),
        "rotary positions turn whole heads, in rows of any length": graph.lengths
        and not (_partial(config) or kind == "longrope"),
        f"rotary positions are scaled by {kind}": not graph.factors
        and (kind == "llama3" or (kind == "longrope" and not graph.lengths) or (kind == "yarn" and not usual)),
        f"layers with a window turn as the others, scaled by {kind}": (
            graph.windows and kind not in (None, "dynamic") and not (kind == "linear" and (local or not graph.local))
        ),
    }
    return [problem for problem, here in wrong.items() if here]


def _partial(config: ModelConfig) -> bool:
    return config.position == "rope" and config.rotary_dim not in (0, config.head_dim)
