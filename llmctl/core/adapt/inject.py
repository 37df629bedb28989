"""adapt: freezes what a method does not train, and attaches its fresh adapters."""

import hashlib
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from llmctl.core.adapt.additive import Bottleneck, Scaling
from llmctl.core.adapt.lora import Lora, norms
from llmctl.core.adapt.soft import attach_soft, has_soft
from llmctl.core.model.heads import Head, TiedHead
from llmctl.core.model.layers import Embedding, Linear
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.adapt import AdaptConfig, Method
from llmctl.spec.sites import adaptable, matches

ATTENTION = tuple(f"{block}.{part}" for block in ("attention", "cross_attention") for part in ("q", "k", "v", "out"))
KEYS_VALUES = tuple(f"{block}.{part}" for block in ("attention", "cross_attention") for part in ("k", "v"))
LAST = "mlp.down"  # the last matrix of each MLP
HALVES = ("attention.out", "cross_attention.out", LAST)
ADAPTABLE = (Linear, Embedding, Head, TiedHead)
HEADS = ("head", "pooler", "next_sentence", "classifier")


def adapt(model: Transformer, config: AdaptConfig, seed: int, tokenizer=None) -> None:
    """Make a model trainable by a method, in place.

    What the method does not train is frozen. Fresh adapters are float32 whatever the base's dtype, and change nothing
    yet. Parameters that --train names, and those of a classifier, are trained as they are; a matrix that is trained
    has no adapter.

    Args:
        model: as it was read, without adapters.
        seed: of first weights; each tensor has a stream of its own, seeded by (seed, name).
        tokenizer: of the text that a soft prompt begins with.

    Raises:
        UserError: a pattern that is nothing's name; nothing is left to train; there are adapters already.
    """
    if has_soft(model) or any(name.endswith(".adapter") for name, _ in model.named_modules()):
        raise UserError("This model has an adapter already.", "Merge it first: llmctl lora-merge.", Exit.MISMATCH)
    model.requires_grad_(False)
    _train(model, config.train)
    if model.classifier is not None and config.method != "full":
        model.classifier.requires_grad_(True)
    METHODS[config.method](model, config, seed, tokenizer)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--method {config.method} finds nothing to train in this model.", "Use another.", Exit.USAGE)


def trained(model: Transformer) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; one that is shared counts once."""
    found = {id(one): one for one in model.parameters()}.values()
    packed = sum(
        module.in_features * module.out_features
        for module in model.modules()
        if isinstance(module, Linear) and not isinstance(getattr(module, "weight", None), nn.Parameter)
    )
    return sum(one.numel() for one in found if one.requires_grad), sum(one.numel() for one in found) + packed


def drawn(shape: tuple[int, ...], seed: int, name: str, fill: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
    """A float32 tensor with a stream of its own, seeded by (seed, name), on the CPU."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return fill(torch.empty(shape, dtype=torch.float32, device="cpu"), generator)


def sides(layer: nn.Module) -> tuple[int, int]:
    """What a layer takes and makes, (in, out): of a table its rows and their width."""
    if isinstance(layer, Embedding):
        return layer.num_embeddings, layer.embedding_dim
    if isinstance(layer, Linear):
        return layer.in_features, layer.out_features
    rows, width = layer.dense().shape
    return width, rows


def selected(model: Transformer, patterns: Iterable[str]) -> list[str]:
    """The names of the modules that can be adapted and are named by a pattern, in the model's order.

    Raises:
        UserError: a pattern is nothing's name.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, ADAPTABLE)]

    def whole(name: str) -> bool:
        weight = getattr(model.get_submodule(name), "weight", None)  # in 4 bits there is none to train
        return isinstance(weight, Tensor) and weight.requires_grad

    taken = {name for site in adaptable(model.config) if any(map(whole, site.ours)) for name in site.ours}
    chosen: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in names if matches(name, pattern)]
        if not found:
            raise _nothing(f"--targets {pattern}", names)
        chosen |= dict.fromkeys(found)
    return [name for name in names if name in chosen and name not in taken]


def _nothing(what: str, names: list[str]) -> UserError:
    ends = sorted({".".join(part for part in name.split(".")[-3:] if not part.isdigit()) for name in names})
    return UserError(f"{what} is the name of nothing in this model.", f"There are {', '.join(ends)}.", Exit.USAGE)


def _train(model: Transformer, patterns: tuple[str, ...]) -> None:
    """Unfreezes the parameters that patterns name."""
    names = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    for pattern in (part for given in patterns for part in given.split(",") if part):
        found = [name for name in names if matches(name, pattern)]
        if not found:
            raise _nothing(f"--train {pattern}", names)
        for name in found:
            model.get_parameter(name).requires_grad_(True)


def _full(model: Transformer, config: AdaptConfig, seed: int, tokenizer=None) -> None:
    """Every parameter, or those that --train names alone."""
    _train(model, config.train or ("*",))


def _bitfit(model: Transformer, config: AdaptConfig, seed: int, tokenizer=None) -> None:
    """Source: Ben Zaken et al., arXiv:2106.10199, section 3: every bias, norms' included, and the classifier."""
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    if not biases:
        raise UserError("--method bitfit trains biases, and this model has none.", "Use --method ia3.", Exit.USAGE)
    for parameter in biases:
        parameter.requires_grad_(True)


def _last(model: Transformer, config: AdaptConfig, seed: int, tokenizer=None) -> None:
    """The last layers of the last stack, the norm after them, and the heads that are not the embedding."""
    stack = model.last_stack
    layers = list(stack.layers.values())
    if config.last > len(layers):
        raise UserError(
            f"--last is {config.last}, but there are {len(layers)} layers.", "Use --method full.", Exit.USAGE
        )
    for module in (*layers[-config.last :], stack.norm, *(getattr(model, name) for name in HEADS)):
        if module is not None:
            module.requires_grad_(True)


def _lora(model: Transformer, config: AdaptConfig, seed: int, tokenizer=None) -> None:
    """Lora on each target; those that are one matrix in the published model share A."""
    default = [pattern for pattern in ATTENTION if _any(model, pattern)]
    chosen = selected(model, config.patterns or default)
    shared = {name: site.ours[0] for site in adaptable(model.config) for name in site.ours}
    firsts, device = {}, model.embed.tokens.weight.device
    for name in chosen:
        layer = model.get_submodule(name)
        inputs, outputs = sides(layer)
        group = shared.get(name, name)
        table = isinstance(layer, Embedding)
        if group not in firsts:
            a = (
                torch.zeros(config.rank, inputs)
                if table
                else _uniform((config.rank, inputs), seed, f"{group}.adapter.a")
            )
            firsts[group] = nn.Parameter(a.to(device))
        b = (
            drawn((outputs, config.rank), seed, f"{name}.adapter.b", _normal)
            if table
            else torch.zeros(outputs, config.rank)
        )
        b = b.to(device)
        magnitude = norms(layer, firsts[group].detach(), b, config.scale) if config.method == "dora" else None
        layer.adapter = Lora(firsts[group], b, config.scale, config.dropout, magnitude)


def _ia3(model: Transformer, config: AdaptConfig, seed: int, tokenizer=None) -> None:
    """Factors of one on each target: of what enters the last matrix of an MLP, of what leaves any other."""
    default = [pattern for pattern in (*KEYS_VALUES, LAST) if _any(model, pattern)]
    for name in selected(model, config.patterns or default):
        layer = model.get_submodule(name)
        if not isinstance(layer, Linear):
            raise UserError(f"--targets {name}: ia3 scales what a matrix of the layers takes or makes.", "", Exit.USAGE)
        entering = matches(name, LAST)
        ones = torch.ones(sides(layer)[0 if entering else 1], device=model.embed.tokens.weight.device)
        layer.adapter = Scaling(nn.Parameter(ones), entering)


def _bottleneck(model: Transformer, config: AdaptConfig, seed: int, tokenizer=None) -> None:
    """A bottleneck after each half of each layer."""
    for name in selected(model, [pattern for pattern in HALVES if _any(model, pattern)]):
        layer = model.get_submodule(name)
        made = Bottleneck(sides(layer)[1], config.bottleneck, config.dropout)
        with torch.no_grad():
            made.down.weight.copy_(_uniform(made.down.weight.shape, seed, f"{name}.adapter.down.weight"))
            for zeros in (made.down.bias, made.up.weight, made.up.bias):
                zeros.zero_()
        layer.adapter = made.to(model.embed.tokens.weight.device)


def _any(model: Transformer, pattern: str) -> bool:
    return any(matches(name, pattern) for name, module in model.named_modules() if isinstance(module, Linear))


def _uniform(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """First weights of A, (r, in): uniform within 1 / root of in, as PEFT's."""
    bound = 1 / math.sqrt(shape[-1])
    return drawn(shape, seed, name, lambda empty, generator: empty.uniform_(-bound, bound, generator=generator))


def _normal(empty: Tensor, generator: torch.Generator) -> Tensor:
    return empty.normal_(generator=generator)


METHODS: dict[Method, Callable[..., None]] = {
    "full": _full,
    "bitfit": _bitfit,
    "last-n": _last,
    "lora": _lora,
    "rslora": _lora,
    "dora": _lora,
    "qlora": _lora,
    "ia3": _ia3,
    "adapter": _bottleneck,
    "prefix": attach_soft,
    "prompt": attach_soft,
    "llama-adapter": attach_soft,
}
