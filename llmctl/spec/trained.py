"""trained: which tensors a fine-tuning trains, by name and shape, from the config and the method alone."""

from functools import lru_cache
from math import prod

from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.model import ModelConfig
from llmctl.spec.sites import matches, sites
from llmctl.spec.sizes import layer_shapes, parameters, shapes

HEADS = ("head", "pooler", "next_sentence", "classifier")
ATTENTION = tuple(f"{half}.{name}" for half in ("attention", "cross_attention") for name in ("q", "k", "v", "out"))
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
    """Those of the model's own tensors that are trained; a classifier is new, and always trained."""
    return {name: shape for name, shape in shapes(config).items() if _learns(config, adapt, name)}


@lru_cache
def added_shapes(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Those of the adapters, which are beside the model's own."""
    if not adapt.makes_adapter:
        return {}
    return _ADDED[adapt.method](config, adapt)


def _learns(config: ModelConfig, adapt: AdaptConfig, name: str) -> bool:
    if name.startswith("classifier.") or any(matches(name, pattern) for pattern in adapt.train):
        return True
    if adapt.method == "full":
        return not adapt.train
    if adapt.method == "bitfit":
        return name.endswith(".bias")
    if adapt.method == "last-n":
        parts = name.split(".")
        if parts[0] == config.last_stack:
            last = config.stacks[config.last_stack] - adapt.last
            return parts[1] == "norm" or (parts[1] == "layers" and int(parts[2]) >= last)
        return parts[0] in HEADS
    return False


def targets(config: ModelConfig, adapt: AdaptConfig) -> dict[str, tuple[int, int]]:
    """The matrices and tables that adapters of low rank stand beside, (out, in) each, by their module's name."""
    wanted = adapt.patterns or ATTENTION
    found = {name.removesuffix(".weight"): shape for name, shape in shapes(config).items() if len(shape) == 2}
    return {
        name: shape
        for name, shape in found.items()
        if any(matches(name, pattern) for pattern in wanted) and name != "head" and not name.startswith("classifier.")
    }


def _low_rank(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Hu et al., arXiv:2106.09685, section 4.1; DoRA: Liu et al., arXiv:2402.09353, a magnitude for each output.

    Matrices that are one in the family's own files share the matrix that comes first.
    """
    met = targets(config, adapt)
    groups = [site.ours for site in sites(config) if len(site.ours) > 1]
    later = {name for group in groups if all(name in met for name in group) for name in group[1:]}
    found: Shapes = {}
    for name, (outputs, inputs) in met.items():
        table = name.endswith(".relative") or name.startswith(("embed.", "encoder_embed."))
        outputs, inputs = (inputs, outputs) if table else (outputs, inputs)
        if name not in later:
            found[f"{name}.adapter.a"] = (adapt.rank, inputs)
        found[f"{name}.adapter.b"] = (outputs, adapt.rank)
        if adapt.method == "dora":
            found[f"{name}.adapter.magnitude"] = (outputs,)
    return found


def _factors(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Liu et al., arXiv:2205.05638, section 3.3: of keys, of values, and of what enters the MLP's last matrix."""
    wanted = adapt.patterns or ("attention.k", "attention.v", "cross_attention.k", "cross_attention.v", "mlp.down")
    found = {name.removesuffix(".weight"): shape for name, shape in _layers(config).items() if len(shape) == 2}
    return {
        f"{name}.adapter.factor": shape[1:] if name.endswith("mlp.down") else shape[:1]
        for name, shape in found.items()
        if any(matches(name, pattern) for pattern in wanted)
    }


def _bottlenecks(config: ModelConfig, adapt: AdaptConfig) -> Shapes:
    """Houlsby et al., arXiv:1902.00751, section 2.1: after each half of a layer."""
    narrow, found = adapt.bottleneck, Shapes()
    for name in _layers(config):
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            module = f"{name.removesuffix('.weight')}.adapter"
            found |= {f"{module}.down.weight": (narrow, config.width), f"{module}.down.bias": (narrow,)}
            found |= {f"{module}.up.weight": (config.width, narrow), f"{module}.up.bias": (config.width,)}
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


def gated_layers(config: ModelConfig) -> range:
    """The layers of the last stack that look at LLaMA-Adapter's vectors: all but two, as in the paper's 30 of 32."""
    layers = config.stacks[config.last_stack]
    return range(min(2, layers - 1), layers)


def _layers(config: ModelConfig) -> Shapes:
    """Of every layer of every stack."""
    return {name: shape for name, shape in shapes(config).items() if ".layers." in name}


_ADDED = {
    "lora": _low_rank,
    "rslora": _low_rank,
    "dora": _low_rank,
    "qlora": _low_rank,
    "ia3": _factors,
    "adapter": _bottlenecks,
    "prefix": _prefixes,
    "prompt": _prompts,
    "llama-adapter": _gated,
}
