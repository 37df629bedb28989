"""SlimConfig: which heads, neurons, channels and layers a model loses, and the shape that it then has."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

from llmctl.errors import Exit, UserError
from llmctl.spec.families import fitted
from llmctl.spec.model import ModelConfig

Rank = Literal["activation", "loss", "weight", "random"]

_SIZES = ("heads", "ff", "width", "layers", "encoder_layers")
_ROUND = ((1024, 64), (64, 8))  # neurons that a share leaves: from so many on, a multiple of that many, for kernels


@dataclass(frozen=True)
class SlimConfig:
    """Whole parts cut out.

    A smaller dense model with a smaller config. Each size is a number, or a share of what there is when less than 1.

    Raises:
        UserError: a size out of range, or layers said in two ways.
    """

    heads: Annotated[
        float | None, "Attention heads that stay in each layer; those that share keys and values stay or go together."
    ] = None
    ff: Annotated[float | None, "Neurons of each MLP that stay."] = None
    width: Annotated[
        float | None,
        "Channels of the residual stream that stay. Where a config has no size of a head, heads go with them.",
    ] = None
    layers: Annotated[float | None, "Layers that stay; beside an encoder, the decoder's."] = None
    encoder_layers: Annotated[
        float | None, "Layers of the encoder beside a decoder that stay; default: as --layers."
    ] = None
    drop_layers: Annotated[
        tuple[str, ...], "A layer to cut, counted from 0, in place of --layers: 3, encoder.3 or decoder.3; repeat."
    ] = ()
    rank: Annotated[
        Rank | None,
        "What matters least. activation: what adds least to the stream on the calibration text, layers by block "
        "influence; loss: without what the loss on that text is lowest; weight: small weights, no text; random. "
        "Default: loss for layers, of a model that scores tokens, and activation for the rest.",
    ] = None
    reverse: Annotated[bool, "Cut what is most important, as a control."] = False
    repair: Annotated[
        bool, "Let the matrix after what is cut make up for it on the calibration text, by least squares."
    ] = True

    def __post_init__(self) -> None:
        wrong = [
            f"--{name.replace('_', '-')} is {value:g}, wanted a share of more than 0, or a whole number"
            for name in _SIZES
            if (value := getattr(self, name)) is not None and not (0 < value < 1 or (value >= 1 and value % 1 == 0))
        ]
        wrong += [f"--drop-layers is {one!r}, wanted a number, or a stack and a number: 3, encoder.3" for one in
                  self.drop_layers if not _place(one, "decoder")]  # fmt: skip
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)
        if self.drop_layers and (self.layers is not None or self.encoder_layers is not None):
            raise UserError("--drop-layers and --layers both say which layers stay.", "Keep one.", Exit.USAGE)

    @property
    def asked(self) -> bool:
        """Whether anything is to be cut."""
        return bool(self.drop_layers) or any(getattr(self, name) is not None for name in _SIZES)

    @property
    def calibrated(self) -> bool:
        """Whether it needs text to run through the model."""
        ranked = any(getattr(self, name) is not None for name in _SIZES)
        repaired = self.repair and (self.heads, self.ff, self.width) != (None, None, None)
        return (ranked and self.rank in (None, "activation", "loss")) or repaired

    def ranking(self, layers: bool, scores: bool) -> Rank:
        """What decides which `layers` stay, or which of their parts.

        Args:
            scores: the model has a head that scores tokens.
        """
        return self.rank or ("loss" if layers and scores else "activation")

    def stays(self, layers: dict[str, int]) -> dict[str, tuple[int, ...]]:
        """The layers that --drop-layers leaves, by stack; {} without it.

        Args:
            layers: of each stack of the model.

        Raises:
            UserError: a layer that is not there, or none is left.
        """
        if not self.drop_layers:
            return {}
        last = "decoder" if "decoder" in layers else "encoder"
        dropped = {_place(one, last) for one in self.drop_layers}
        absent = [f"{stack}.{layer}" for stack, layer in sorted(dropped) if layer >= layers.get(stack, 0)]
        left = {stack: tuple(i for i in range(count) if (stack, i) not in dropped) for stack, count in layers.items()}
        if absent or not all(left.values()):
            there = " and ".join(f"{count} layers in the {stack}" for stack, count in layers.items())
            what = f"names {', '.join(absent)}" if absent else "leaves a stack without layers"
            raise UserError(f"--drop-layers {what}; there are {there}.", code=Exit.MISMATCH)
        return left


class Slimmed(NamedTuple):
    """What a model is to be cut down to.

    Attributes:
        config: its shape; which layers have windows or turn is as if the first ones stayed.
        along: what goes besides what was asked for, and why, in words; empty: nothing.
    """

    config: ModelConfig
    along: str


def slimmed(config: ModelConfig, slim: SlimConfig) -> Slimmed:
    """The shape of the model that is left.

    Raises:
        UserError: sizes that the model has not, that its kind of position does not allow, or that no config of Hugging
            Face can say although it can say the model's own.
    """
    sizes = _sizes(config, slim)
    for along in ((), ("heads",), ("ff",), ("heads", "ff")):
        if any(getattr(slim, name) is not None for name in along) or (along and slim.width is None):
            continue
        made = _with(config, slim, sizes, along)
        if made is not None and (_theirs(made) or not _theirs(config)):
            _check_positions(config, made)
            said = " and ".join(f"{name} {getattr(config, name)} -> {getattr(made, name)}" for name in along)
            return Slimmed(made, f"no config.json says such a width alone; {said} go with it" if along else "")
    cut = {name: value for name, value in sizes.items() if value != getattr(config, name)}
    hint = "Sizes that divide one another are more often possible."
    if "width" not in cut and "heads" in cut:
        hint = (
            "Its config.json has no size of a head: they share the width evenly. Cut the width by as much, a multiple "
            f"of {config.head_dim}; --width without --heads takes heads along."
        )
    elif "width" not in cut and "ff" in cut:
        hint = "Its config.json has no number of neurons: it follows from the width. --width takes them along."
    size = ", ".join(f"{name} {value}" for name, value in cut.items())
    raise UserError(f"No config.json of Hugging Face says a model like this with {size}.", hint, Exit.MISMATCH)


def renumbered(config: ModelConfig, layers: dict[str, tuple[int, ...]]) -> ModelConfig:
    """The config with these layers of each stack alone, what is said of layers by number carried over.

    Raises:
        UserError: an encoder and a decoder share what is said of their layers, and lose different ones.
    """
    counts = {"layers": len(layers[config.last_stack])}
    if config.kind == "encoder-decoder":
        counts["encoder_layers"] = len(layers["encoder"])
    special = set(config.window_layers or ()) | set(config.rope_skip)
    told = {stack: tuple(i for i, old in enumerate(kept) if old in special) for stack, kept in layers.items()}
    if len(set(told.values())) > 1:
        raise UserError(
            "Windows of an encoder's layers and a decoder's would no longer be the same.", code=Exit.MISMATCH
        )
    kept = layers[config.last_stack]

    def moved(numbers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(new for new, old in enumerate(kept) if old in numbers)

    changes: dict[str, object] = {**counts, "rope_skip": moved(config.rope_skip)}
    if config.window_layers is not None:
        left = moved(config.window_layers)
        changes["window_layers"] = None if len(left) == len(kept) else left
        if not left:
            changes |= {"window": None, "window_layers": None, "rope_local_theta": None}
    return replace(config, **changes)  # type: ignore[arg-type]


def alike(config: ModelConfig, heads: int) -> tuple[int, ...] | None:
    """The heads of ALiBi whose slopes are those of a model with fewer heads, in its order, by the number of what they
    share keys and values with; None: some of those that share would go alone.

    There are always such heads: the series of fewer is every other slope, or a beginning, of the series of more.

    Source: the series is that of `core.model.position.alibi_slopes`.
    """
    old, new = _slopes(config.heads), _slopes(heads)
    group = config.heads // config.kv_heads
    kept = [old.index(slope) for slope in new]
    shared = [kept[i : i + group] for i in range(0, heads, group)]
    whole = all(one == list(range(one[0], one[0] + group)) and one[0] % group == 0 for one in shared)
    return tuple(one[0] // group for one in shared) if whole else None


def _slopes(heads: int) -> list[float]:
    power = 2 ** (heads.bit_length() - 1)
    return [8 * (i + 1) / power for i in range(power)] + [4 * (2 * i + 1) / power for i in range(heads - power)]


def _sizes(config: ModelConfig, slim: SlimConfig) -> dict[str, int]:
    """The counts that are asked for, those that stay included.

    Raises:
        UserError: more than there is, or heads that do not divide by those that share keys and values.
    """
    group = config.heads // config.kv_heads
    wanted = {
        "heads": _count("heads", slim.heads, config.heads, group),
        "ff": _count("ff", slim.ff, config.ff, next((step for least, step in _ROUND if config.ff >= least), 1)),
        "width": _count("width", slim.width, config.width, 8 if config.width >= 64 else 1),
        "layers": _count("layers", slim.layers, config.layers, 1),
    }
    if config.kind == "encoder-decoder":
        asked = slim.encoder_layers
        if asked is None and slim.layers is not None:
            asked = slim.layers if slim.layers < 1 else min(slim.layers, config.encoder_layers)
        wanted["encoder_layers"] = _count("encoder_layers", asked, config.encoder_layers, 1)
    elif slim.encoder_layers is not None:
        raise UserError("--encoder-layers is of an encoder beside a decoder.", "Use --layers.", Exit.MISMATCH)
    if wanted["heads"] % group:
        raise UserError(
            f"--heads is {wanted['heads']}, but {group} heads share keys and values, and stay or go together.",
            f"Use a multiple of {group}.",
            Exit.MISMATCH,
        )
    for stack, kept in slim.stays(config.stacks).items():
        wanted["layers" if stack == config.last_stack else "encoder_layers"] = len(kept)
    return wanted


def _count(name: str, asked: float | None, there: int, step: int) -> int:
    """How many of `there` stay: a share is rounded to a multiple of `step`."""
    if asked is None:
        return there
    if asked < 1:
        return min(there, max(step, round(asked * there / step) * step))
    if asked > there:
        raise UserError(f"--{name.replace('_', '-')} is {asked:g}, but the model has {there}.", code=Exit.MISMATCH)
    return int(asked)


def _with(config: ModelConfig, slim: SlimConfig, sizes: dict[str, int], along: tuple[str, ...]) -> ModelConfig | None:
    """The shape of those sizes, where `along` are as the width is; None: they cannot be."""
    sizes = dict(sizes)
    if "heads" in along:
        step = config.head_dim * (config.heads // config.kv_heads)
        if slim.width is not None and slim.width < 1:
            sizes["width"] = max(step, round(slim.width * config.width / step) * step)
        if sizes["width"] % step or config.width != config.heads * config.head_dim:
            return None
        sizes["heads"] = sizes["width"] // config.head_dim
    if "ff" in along:
        if config.ff * sizes["width"] % config.width:
            return None
        sizes["ff"] = config.ff * sizes["width"] // config.width
    group = config.heads // config.kv_heads
    scale = {}
    if config.logit_scale == config.width**-0.5:  # T5's of old, which follows from the width
        scale = {"logit_scale": sizes["width"] ** -0.5}
    first = {stack: tuple(range(sizes["layers" if stack == config.last_stack else "encoder_layers"]))
             for stack in config.stacks}  # fmt: skip
    numbers = {name: sizes[name] for name in ("heads", "ff", "width")}
    return replace(renumbered(config, first), kv_heads=sizes["heads"] // group, **numbers, **scale)


def _theirs(config: ModelConfig) -> bool:
    """Whether a config.json of Hugging Face says it."""
    return fitted(config).model_type != "llmctl"


def _check_positions(config: ModelConfig, made: ModelConfig) -> None:
    if config.position == "alibi" and made.heads != config.heads and alike(config, made.heads) is None:
        raise UserError(
            f"ALiBi gives heads slopes that follow from their number; to get {made.heads} of {config.heads} heads "
            "as they are, some of those that share keys and values would have to go alone.",
            "Leave --heads out.",
            Exit.MISMATCH,
        )
    if config.position == "sinusoidal" and made.width != config.width:
        raise UserError("Sinusoidal positions follow from the width, which cannot be cut.", code=Exit.MISMATCH)


def _place(text: str, last: str) -> tuple[str, int] | None:
    """A layer by stack and number, or None where it is none."""
    stack, dot, number = text.rpartition(".")
    if (dot and stack not in ("encoder", "decoder")) or not (number.isascii() and number.isdecimal()):
        return None
    return stack or last, int(number)
