"""trained: which tensors a fine-tuning trains, by name and shape, from the config and the method alone."""

from collections.abc import Callable
from functools import lru_cache
from math import prod

from llmctl.spec.adapt import AdaptConfig, Method
from llmctl.spec.model import ModelConfig
from llmctl.spec.sites import adaptable, matches
from llmctl.spec.sizes import parameters, shapes

HEADS = ("head", "pooler", "next_sentence", "classifier")
ATTENTION = tuple(f"{half}.{name}" for half in ("attention", "cross_attention") for name in ("q", "k", "v", "out"))
SCALED = tuple(f"{half}.{name}" for half in ("attention", "cross_attention") for name in ("k", "v"))
LAST = "mlp.down"  # the last matrix of each MLP
HALVES = ("attention.out", "cross_attention.out", LAST)
Shapes = dict[str, tuple[int, ...]]


def trained_parameters(config: ModelConfig, adapt: AdaptConfig) -> int:
    """How many numbers a method trains; what several matrices share counts once."""
    return sum(map(prod, trained_shapes(config, adapt).values()))


def total_parameters(config: ModelConfig, adapt: AdaptConfig) -> int:
    """Those of the model and of what the method adds to it."""
    return parameters(config) + sum(map(prod, added_shapes(config, adapt).values()))


def trained_shapes(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """The shape of everything that a method trains, by its name in the model."""
    return own_shapes(config, adapt) | added_shapes(config, adapt)


@lru_cache
def own_shapes(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Those of the model's own tensors that are trained."""
    learns, _ = METHODS[adapt.method]
    patterns = [part for pattern in adapt.train for part in pattern.split(",") if part]
    return {
        name: shape
        for name, shape in shapes(config).items()
        if learns(name, config, adapt) or any(matches(name, pattern) for pattern in patterns)
    }


@lru_cache
def added_shapes(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Those of the adapters, which are beside the model's own; under the first name of what is shared."""
    _, added = METHODS[adapt.method]
    return added(config, adapt)


def targets(config: ModelConfig, adapt: AdaptConfig, usual: tuple[str, ...]) -> Shapes:
    """What adapters stand beside, matrices (out, in) and tables (rows, width), by their modules' names.

    A matrix that is trained as it is has none, nor has what is one matrix with it in the published model; a tied head
    can have one though it has no matrix of its own.

    Args:
        usual: patterns in place of absent `--targets`.
    """
    found = {name.removesuffix(".weight"): shape for name, shape in shapes(config).items() if len(shape) == 2}
    if config.tie and config.lm_head:
        found["head"] = found["embed.tokens"]
    own, wanted = own_shapes(config, adapt), adapt.patterns or usual
    whole = {name.removesuffix(".weight") for name in own}
    whole |= {name for site in adaptable(config) if not whole.isdisjoint(site.ours) for name in site.ours}
    if config.tie and "embed.tokens" in whole:
        whole.add("head")
    return {
        name: shape
        for name, shape in found.items()
        if name not in whole and any(matches(name, pattern) for pattern in wanted)
    }


def is_table(name: str) -> bool:
    """Whether a module of this name is an embedding."""
    return name.endswith(".relative") or name.startswith(("embed.", "encoder_embed."))


def gated_layers(config: ModelConfig) -> range:
    """The layers of the last stack that look at LLaMA-Adapter's vectors: all but two, as in the paper's 30 of 32."""
    layers = config.stacks[config.last_stack]
    return range(min(2, layers - 1), layers)


def _low_rank(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Hu et al., arXiv:2106.09685, section 4.1; DoRA: Liu et al., arXiv:2402.09353, a magnitude for each output.

    Matrices that are one in the family's own files share A.
    """
    met = targets(config, adapt, ATTENTION)
    group = {name: site.ours for site in adaptable(config) for name in site.ours}
    found, begun = Shapes(), set()
    for name, (outputs, inputs) in met.items():
        outputs, inputs = (inputs, outputs) if is_table(name) else (outputs, inputs)
        if group.get(name, name) not in begun:
            found[f"{name}.adapter.a"] = (adapt.rank, inputs)
            begun.add(group.get(name, name))
        found[f"{name}.adapter.b"] = (outputs, adapt.rank)
        if adapt.method == "dora":
            found[f"{name}.adapter.magnitude"] = (outputs,)
    return found


def _factors(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Liu et al., arXiv:2205.05638, section 3.3: of keys, of values, and of what enters the MLP's last matrix."""
    return {
        f"{name}.adapter.factor": shape[1:] if matches(name, LAST) else shape[:1]
        for name, shape in targets(config, adapt, (*SCALED, LAST)).items()
    }


def _bottlenecks(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Houlsby et al., arXiv:1902.00751, section 2.1: after each half of a layer."""
    narrow, wide, found = adapt.bottleneck, config.width, Shapes()
    for name in targets(config, AdaptConfig(train=adapt.train), HALVES):
        module = f"{name}.adapter"
        found |= {f"{module}.down.weight": (narrow, wide), f"{module}.down.bias": (narrow,)}
        found |= {f"{module}.up.weight": (wide, narrow), f"{module}.up.bias": (wide,)}
    return found


def _prefixes(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Li & Liang, arXiv:2101.00190, as PEFT has them: keys and values of every layer of the last stack."""
    one = (2, config.kv_heads, adapt.virtual_tokens, config.head_dim)
    stack = config.last_stack
    return {f"{stack}.layers.{layer}.attention.prefix": one for layer in range(config.stacks[stack])}


def _prompts(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Lester et al., arXiv:2104.08691, section 2."""
    return {"prompt.vectors": (adapt.virtual_tokens, config.width)}


def _gated(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Zhang et al., arXiv:2303.16199, section 3.2; one gate a layer, as PEFT has them."""
    found: Shapes = {}
    for layer in gated_layers(config):
        extra = f"{config.last_stack}.layers.{layer}.attention.extra"
        found |= {f"{extra}.vectors": (adapt.virtual_tokens, config.width), f"{extra}.gate": (1,)}
    return found


def _nothing(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    return {}


def _all(name: str, config: ModelConfig, adapt: AdaptConfig) -> bool:
    return not adapt.train


def _head(name: str, config: ModelConfig, adapt: AdaptConfig) -> bool:
    return name.startswith("classifier.")


def _bias(name: str, config: ModelConfig, adapt: AdaptConfig) -> bool:
    """Ben Zaken et al., arXiv:2106.10199, section 3: norms' biases, and the classifier."""
    return name.endswith("bias") or _head(name, config, adapt)


def _last(name: str, config: ModelConfig, adapt: AdaptConfig) -> bool:
    """Of the last layers, the norms of their stacks, and the heads."""
    layers = [f"{stack}.layers.{layer}." for stack, count in config.stacks.items() for layer in range(count)]
    last = layers[-adapt.last :]
    norms = {f"{layer.partition('.')[0]}.norm." for layer in last}
    return name.startswith((*last, *norms, *HEADS))


# Which of the model's own tensors a method trains, and what it adds.
METHODS: dict[Method, tuple[Callable[[str, ModelConfig, AdaptConfig], bool], Callable[..., Shapes]]] = {
    "full": (_all, _nothing),
    "bitfit": (_bias, _nothing),
    "last-n": (_last, _nothing),
    "lora": (_head, _low_rank),
    "rslora": (_head, _low_rank),
    "dora": (_head, _low_rank),
    "qlora": (_head, _low_rank),
    "ia3": (_head, _factors),
    "adapter": (_head, _bottlenecks),
    "prefix": (_head, _prefixes),
    "prompt": (_head, _prompts),
    "llama-adapter": (_head, _gated),
}
