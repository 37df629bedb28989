"""Bytes that a model needs to train or to run: weights, gradients, optimizer, activations, logits, KV cache."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Literal

from llmctl.errors import Exit, UserError
from llmctl.spec import activations
from llmctl.spec.kept import rows_of
from llmctl.spec.learning import learning
from llmctl.spec.model import ModelConfig
from llmctl.spec.quantized import packing_of
from llmctl.spec.setting import ELEMENT, Setting
from llmctl.spec.sizes import crossed, layer_shapes, linears, outer_shapes, parameters
from llmctl.spec.trained import added_shapes, own_shapes, trained_parameters

Solvable = Literal["batch", "sequence", "lora-rank"]
LARGEST = 2**40  # where `solve` stops
_DENSE = ("head.transform", "pooler", "next_sentence", "classifier")  # matrices between the layers and the scores


@dataclass(frozen=True)
class Memory:
    """Bytes on one device (with a pipeline: on the fullest).

    `activations` is everything alive between forward and backward besides the logits; `parts` says what it
    and `weights` are made of, in bytes.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    master_weights: int = 0
    activations: int = 0
    logits: int = 0
    kv_cache: int = 0
    parts: tuple[tuple[str, int], ...] = ()

    @property
    def total(self) -> int:
        return sum(self.bytes().values())

    def bytes(self) -> dict[str, int]:
        """The seven components by name, without their total."""
        names = ("weights", "gradients", "optimizer", "master_weights", "activations", "logits", "kv_cache")
        return {name: getattr(self, name) for name in names}


def estimate(config: ModelConfig, setting: Setting = Setting()) -> Memory:
    """The memory that one device needs at its peak.

    Not in it: the CUDA context (0.3 to 1 GiB), fragmentation of the allocator, buffers of communication.

    Raises:
        UserError: the setting does not fit the model.

    Source: states: Rajbhandari et al., ZeRO, arXiv:1910.02054, section 3 (K = 12 with AdamW in mixed precision) and 5;
    pipeline: Korthikanti et al., arXiv:2205.05198, section 4.2.3 (1F1B: the first stage holds the activations of as
    many micro-batches as there are stages).
    """
    setting.check(config)
    stages = ("first", "last") if setting.pipeline_parallel > 1 else ("only",)
    return max((_stage(config, setting, stage) for stage in stages), key=lambda memory: memory.total)


def classic(config: ModelConfig) -> Memory:
    """The table of LLM courses: 4 bytes a parameter to hold it, 20 more to train it, whatever the batch.

    8 are Adam's moments, 4 gradients, and 8 "activations and temporary memory", a generous guess: 24 GB for
    10^9 parameters. The "80 GB" that circulates for it is 4 x 20, a slip.
    """
    count = parameters(config)
    return Memory(weights=4 * count, gradients=4 * count, optimizer=8 * count, activations=8 * count)


def trainable_parameters(config: ModelConfig, setting: Setting = Setting()) -> int:
    """How many numbers the setting trains: all, or its adapters; none in inference."""
    if setting.mode == "inference":
        return 0
    return trained_parameters(config, setting.tuning)


BEYOND_WINDOW = 576  # slots of a layer with a window that tokens are read into, and that forgetting some needs


def kv_cache(
    config: ModelConfig,
    sequence: int,
    element: int,
    tensor_parallel: int = 1,
    layers: range | None = None,
    source: int = 0,
    beyond: int = 0,
) -> int:
    """Bytes that a decoder keeps of the tokens of one row: their keys and values, or with linear attention sums.

    A layer with a window keeps only that. Sums are as large for any number of tokens. An encoder keeps nothing.

    Args:
        sequence: tokens of the row.
        element: bytes of one number.
        layers: those of one pipeline stage; None: all.
        source: tokens of the encoder's row, whose keys and values a decoder beside it keeps as well.
        beyond: what a layer with a window has room for besides.
    """
    if config.kind == "encoder":
        return 0
    heads, held = ceil(config.kv_heads / tensor_parallel), layers or range(config.layers)
    of_source = 2 * heads * config.head_dim * element * len(held) * source if config.kind == "encoder-decoder" else 0
    if config.attention == "linear":
        return of_source + 4 * len(held) * heads * config.head_dim * (config.head_dim + 1)
    windows = [config.window_of(layer) for layer in held]
    own = sum(min(sequence, sequence if window is None else window + beyond) for window in windows)
    return of_source + 2 * heads * config.head_dim * element * own


def solve(config: ModelConfig, setting: Setting, budget: int, what: Solvable) -> tuple[int, Setting, Memory]:
    """The largest batch, sequence or LoRA rank whose total is at most `budget` bytes.

    Returns:
        the value, the setting with it, and its memory.

    Raises:
        UserError: even 1 does not fit (code SPACE).
    """

    def tried(value: int) -> tuple[int, Setting, Memory]:
        changed = setting.changed(what.replace("-", "_"), value)
        return value, changed, estimate(config, changed)

    best = tried(1)
    if best[2].total > budget:
        short = best[2].total - budget
        raise UserError(
            f"--fit {gib(budget)}: even --{what} 1 needs {gib(best[2].total)}, {gib(short)} more.",
            f"The largest part is {max(best[2].bytes().items(), key=lambda part: part[1])[0]}: try {_remedy(setting)}.",
            Exit.SPACE,
        )
    low, high = 1, 2
    while high < LARGEST and tried(high)[2].total <= budget:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tried(middle)[2].total <= budget else (low, middle)
    return tried(low)


def gib(count: float) -> str:
    """Bytes for people, in units of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _remedy(setting: Setting) -> str:
    adapts = setting.tuning.makes_adapter
    ways = [
        ("--recompute", setting.mode == "training" and not setting.recompute),
        ("--lora-rank 16", setting.mode == "training" and not adapts),
        ("--quantize int4", setting.matrices == setting.dtype and (setting.mode == "inference" or adapts)),
        ("a shorter --sequence", True),
    ]
    return ", ".join(way for way, open_ in ways if open_)


def _stage(config: ModelConfig, setting: Setting, stage: str) -> Memory:
    """Bytes on a device that holds the first layers, the last ones, or all ("only")."""
    last = rows_of(config, setting)[-1]
    held = ceil(config.layers / setting.pipeline_parallel)
    layers = range(config.layers)[-held:] if stage == "last" else range(held)  # of the last stack
    tensors = list(_tensors(config, setting, stage, layers))
    states = _states(setting, tensors, config)
    if setting.mode == "inference":
        element, vocab = ELEMENT[setting.dtype], ceil(config.vocab / setting.tensor_parallel)
        one = kv_cache(config, last.tokens, element, setting.tensor_parallel, layers, last.source)
        return replace(
            states,
            activations=activations.held_in_inference(config, setting),
            logits=setting.batch * vocab * (element + 4) if stage != "first" and config.lm_head else 0,
            kv_cache=setting.batch * one,
        )
    parts = _kept(config, setting, stage, layers)
    copies = _copies(setting, tensors)
    logits = 0
    if stage != "first":
        logits = activations.logits(config, setting)
        parts["gradient of the head"] = activations.head_gradient(config, setting)
        parts["at work in the loss"] = activations.in_the_loss(config, setting, last)
    later = activations.in_the_backward_pass(config, setting, last, layers)
    if setting.recompute and setting.zero < 3:  # by then the other layers' copies are gone
        later -= sum(copies.values()) * (held - 1) // held
    parts["at work in the backward pass, beyond that"] = later - logits - parts.get("at work in the loss", 0)
    parts = {name: size for name, size in (parts | copies).items() if size > 0}
    return replace(states, activations=sum(parts.values()), logits=logits, parts=tuple(parts.items()))


def _kept(config: ModelConfig, setting: Setting, stage: str, layers: range) -> dict[str, int]:
    """Bytes kept for the backward pass, by component."""
    sums: dict[str, int] = {}
    for rows in rows_of(config, setting):
        own = layers if rows.stack == config.last_stack else range(config.stacks[rows.stack])
        every = {"inputs of the layers": len(own) * activations.boundary(config, setting)}
        if not setting.recompute:
            every = activations.of_layers(config, setting, rows, own)
        ends = activations.outside(config, setting, rows)
        every["before and after the layers"] = sum(size for end, size in ends.items() if stage in (end, "only"))
        in_flight = setting.pipeline_parallel if stage == "first" else 1
        for name, size in every.items():
            sums[name] = sums.get(name, 0) + ceil(in_flight * setting.batch * rows.tokens * size)
    return sums


def _copies(setting: Setting, tensors: list["_Tensor"]) -> dict[str, int]:
    """Bytes of weights held a second time: the 16-bit copies of autocast, the layers that ZeRO 3 has gathered.

    Beside an adapter, frozen matrices have none for longer than a product.
    """
    if setting.zero == 3 and setting.data_parallel > 1:
        sizes: dict[int, int] = {}
        for tensor in tensors:
            if tensor.layer is not None:
                sizes[tensor.layer] = sizes.get(tensor.layer, 0) + prod(tensor.shape)
        one = max(sizes.values())
        return {"gathered layers": 2 * one * ELEMENT[setting.dtype]}  # the one at work and the next, fetched ahead
    if setting.casts:
        held = (tensor for tensor in tensors if tensor.copied and tensor.kind not in ("vector", "embed", "head"))
        if count := sum(prod(tensor.shape) for tensor in held):
            return {"16-bit copies of the weights": 2 * count}
    return {}


@dataclass(frozen=True)
class _Tensor:
    """A parameter as one tensor parallel device holds it.

    Attributes:
        kind: as in sizes.linears, or embed, head, dense, vector.
        layer: of the whole model, counted on from the encoder's to the decoder's; None: outside the layers.
        shape: its own, or its part's.
        trained: it is not frozen.
        copied: autocast keeps a copy of it until the backward pass.
    """

    kind: str
    layer: int | None
    shape: tuple[int, ...]
    trained: bool
    copied: bool


def _tensors(config: ModelConfig, setting: Setting, stage: str, layers: range) -> Iterator[_Tensor]:
    """Everything on a device; a tied head is a second copy where the pipeline puts it on another stage."""
    t, matrices, before = setting.tensor_parallel, linears(config), 0
    own = own_shapes(config, setting.tuning) if setting.mode == "training" else {}
    learns = learning(config, setting.tuning)
    for name, shape in outer_shapes(config).items():
        start = name.startswith(("embed.", "encoder_embed."))
        if stage in ("only", "first" if start else "last"):
            whole = name in ("embed.tokens.weight", "head.weight")
            kind = {"embed.tokens.weight": "embed", "head.weight": "head"}.get(name, "vector")
            kind = "dense" if name.startswith(_DENSE) and len(shape) == 2 else kind
            local = (ceil(shape[0] / t), *shape[1:]) if whole else shape
            yield _Tensor(kind, None, local, name in own, name in own)
    if config.tie and config.lm_head and stage == "last":
        yield _Tensor("head", None, (ceil(config.vocab / t), config.width), "embed.tokens.weight" in own, False)
    for stack, count in config.stacks.items():
        for name, shape in layer_shapes(config, cross=crossed(config, stack)).items():
            short = name.split(".")[1] if name.split(".")[1] in matrices else ""
            local = _split(short, shape, t, config)
            for layer in layers if stack == config.last_stack else range(count):
                trained = f"{stack}.layers.{layer}.{name}" in own
                passed = not setting.tuning.makes_adapter and learns[stack][layer].after
                yield _Tensor(short if len(shape) == 2 else "vector", before + layer, local, trained, trained or passed)
        yield from _added(config, setting, stack, layers if stack == config.last_stack else range(count), before)
        before += count
    for name, shape in added_shapes(config, setting.tuning).items():
        if ".layers." not in name and stage != ("last" if name.startswith("embed.") else "first"):
            yield _Tensor("adapter", None, shape, setting.mode == "training", False)


def _added(config: ModelConfig, setting: Setting, stack: str, layers: range, before: int) -> Iterator[_Tensor]:
    """The adapters of some layers of a stack; those of low rank are split as their matrices are."""
    for name, shape in added_shapes(config, setting.tuning).items():
        parts = name.split(".")
        if parts[0] == stack and parts[1] == "layers" and int(parts[2]) in layers:
            short, side = parts[4], parts[-1]
            if side in ("a", "b") and short in linears(config):
                outputs, inputs = _split(short, linears(config)[short], setting.tensor_parallel, config)
                shape = (shape[0], inputs) if side == "a" else (outputs, shape[1])
            kind, trained = "adapter" if len(shape) > 1 else "vector", setting.mode == "training"
            yield _Tensor(kind, before + int(parts[2]), shape, trained, trained)


def _split(name: str, shape: tuple[int, ...], t: int, config: ModelConfig) -> tuple[int, ...]:
    """A layer's tensor on one of t devices: rows of q, k, v, gate, up; columns of out and down; the rest whole."""
    if name in ("k", "v"):
        return (ceil(config.kv_heads / t) * config.head_dim, *shape[1:])
    if name in ("q", "gate", "up"):
        return (shape[0] // t, *shape[1:])
    return (shape[0], shape[1] // t) if name in ("out", "down") and len(shape) == 2 else shape


def _states(setting: Setting, tensors: list[_Tensor], config: ModelConfig) -> Memory:
    """Weights and all that is held for each trained one."""
    weight, gradient, master, moment = _per_parameter(setting)
    sums = dict.fromkeys(("weights", "gradients", "optimizer", "master_weights"), 0)
    for tensor in tensors:
        if not tensor.trained:
            sums["weights"] += _frozen(setting, tensor, config)
            continue
        count, hidden = prod(tensor.shape), tensor.kind in linears(config) or tensor.kind == "adapter"
        sums["weights"] += count * weight
        sums["gradients"] += count * gradient
        sums["master_weights"] += count * master
        sums["optimizer"] += _moments(setting.optimizer, tensor.shape, moment, hidden and tensor.layer is not None)
    stages = {"weights": 3, "gradients": 2, "optimizer": 1, "master_weights": 1}
    return Memory(
        **{
            name: ceil(size / setting.data_parallel) if setting.zero >= stages[name] else size
            for name, size in sums.items()
        }
    )


def _frozen(setting: Setting, tensor: _Tensor, config: ModelConfig) -> int:
    """Bytes of a weight that is not trained."""
    count, held = prod(tensor.shape), setting.matrices
    inner = tensor.kind in linears(config)
    if held in ELEMENT or (setting.mode == "inference" and tensor.kind == "adapter"):
        return count * ELEMENT[held if inner and held in ELEMENT else setting.base]
    layers = sum(config.stacks.values())
    packing = packing_of(held, tensor.kind, tensor.layer or 0, layers, config.tie and config.lm_head)
    if not inner and not packing.everywhere:
        return count * setting.beside
    return packing.bytes(*tensor.shape) if tensor.kind not in ("vector", "dense") else count * 4


def _per_parameter(setting: Setting) -> tuple[int, int, int, int]:
    """Bytes of a trained weight, its gradient, its fp32 master copy, and one moment of the optimizer."""
    if setting.dtype == "fp32" or setting.precision == "autocast":
        return 4, 4, 0, 4
    if setting.precision == "mixed":
        return 2, 4 if setting.gradients_fp32 else 2, 4, 4
    return 2, 2, 0, 2


def _moments(optimizer: str, shape: tuple[int, ...], element: int, hidden: bool) -> int:
    """Bytes of one tensor's optimizer states; the step counter is left out.

    Args:
        element: bytes of one number of a moment.
        hidden: a matrix of a layer, which Muon takes; AdamW takes the rest.

    Source: Kingma & Ba, arXiv:1412.6980 (two moments); Dettmers et al., arXiv:2110.02861 (8 bits and an fp32 scale
    for 256; tensors under 4096 numbers stay fp32); Shazeer & Stern, arXiv:1804.04235 (means of rows and columns, no
    first moment); torch.optim.Muon (one momentum).
    """
    count = prod(shape)
    if optimizer == "sgd":
        return 0
    if optimizer == "sgd-momentum" or (optimizer == "muon" and hidden):
        return count * element
    if optimizer == "adafactor":
        return element * (sum(shape) if len(shape) == 2 else count)
    if optimizer == "adamw8bit" and count >= 4096:
        return 2 * (count + 4 * ceil(count / 256))
    return 2 * count * element
