"""Student: the shape of a student made from its teacher's, and which of its layers it takes; how long it learns."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.slim import renumbered
from llmctl.spec.train import TrainConfig, Watch

Begin = Literal["teacher", "fresh"]
SIZES = ("layers", "encoder_layers", "width", "heads", "kv_heads", "ff")


@dataclass(frozen=True)
class Student:
    """Student.

    Where no STUDENT is named: the teacher's shape with these changes.

    Raises:
        UserError: a number out of range, or two ways to say which layers.
    """

    layers: Annotated[
        int | None,
        "Layers; beside an encoder, the decoder's. Default: the teacher's, or half with --preset distilbert.",
    ] = None
    encoder_layers: Annotated[int | None, "Layers of the encoder beside a decoder. Default: as --layers."] = None
    take: Annotated[
        tuple[str, ...],
        "Numbers of the teacher's layers to begin with, from 0: 0,3. Default: evenly, both ends among them.",
    ] = ()
    start: Annotated[
        Begin | None,
        "Begin with the teacher's weights, or with fresh ones. Default: the teacher's, where only layers are fewer.",
    ] = None
    width: Annotated[int | None, "Channels of the residual stream."] = None
    heads: Annotated[int | None, "Attention heads. Default: as many as their size leaves in the width."] = None
    kv_heads: Annotated[int | None, "Heads of keys and values. Default: their share of the heads stays."] = None
    ff: Annotated[int | None, "Channels inside the MLP. Default: its share of the width stays."] = None

    def __post_init__(self) -> None:
        bad = [f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted 1 or more" for name in SIZES
               if getattr(self, name) is not None and getattr(self, name) < 1]  # fmt: skip
        bad += [f"--take is {text!r}, wanted numbers of layers: 0,3" for text in self.take if not _numbers(text)]
        if bad:
            raise UserError("; ".join(bad) + ".", code=Exit.USAGE)

    @property
    def given(self) -> list[str]:
        """The options that are set, as flags."""
        names = [name for name in (*SIZES, "start") if getattr(self, name) is not None] + ["take"] * bool(self.take)
        return [f"--{name.replace('_', '-')}" for name in names]

    def made(self, teacher: ModelConfig, halved: bool = False) -> tuple[ModelConfig, dict[str, tuple[int, ...]]]:
        """The student's shape, and the teacher's layers that it begins with, by stack; {}: it begins fresh.

        Args:
            halved: half of the layers, where their number is not given.

        Raises:
            UserError: a shape that cannot be, layers that the teacher has not, or weights that do not fit.
        """
        taken = self._taken(teacher, halved)
        shape = renumbered(teacher, taken)
        narrow = any(getattr(self, name) not in (None, getattr(teacher, name)) for name in ("width", "heads",
                     "kv_heads", "ff"))  # fmt: skip
        if narrow:
            if self.start == "teacher":
                problem = (
                    "A student of another width, or with other heads or ff, cannot begin with its teacher's weights."
                )
                raise UserError(problem, "Use --start fresh, or llmctl prune, which makes such a model.", Exit.USAGE)
            shape = self._resized(shape)
        fresh = narrow or self.start == "fresh"
        if fresh and self.take:
            raise UserError("--take names layers to begin with, but the student begins fresh.", code=Exit.USAGE)
        return shape, {} if fresh else taken

    def _taken(self, teacher: ModelConfig, halved: bool) -> dict[str, tuple[int, ...]]:
        counts, last = teacher.stacks, teacher.last_stack
        wanted = {last: self.layers, **({"encoder": self.encoder_layers or self.layers} if len(counts) > 1 else {})}
        if self.take:
            layers = tuple(number for text in self.take for number in _numbers(text))
            if self.layers not in (None, len(layers)):
                problem = f"--layers is {self.layers}, but --take names {len(layers)}."
                raise UserError(problem, "Leave --layers out.", Exit.USAGE)
            found = dict.fromkeys(counts, layers)
        else:
            found = {
                stack: evenly(count, wanted[stack] or (max(1, count // 2) if halved else count))
                for stack, count in counts.items()
            }
        for stack, layers in found.items():
            if bad := [number for number in layers if number >= counts[stack]] or len(layers) > counts[stack]:
                which = f"layer {bad[0]}" if isinstance(bad, list) else f"{len(layers)} layers"
                raise UserError(
                    f"The teacher's {stack} has {counts[stack]} layers, so no {which}.",
                    "A student with more layers than its teacher is one that pretrain --steps 0 makes.",
                    Exit.MISMATCH,
                )
        return found

    def _resized(self, shape: ModelConfig) -> ModelConfig:
        width = self.width or shape.width
        heads = self.heads or max(1, width // shape.head_dim)
        kv_heads = self.kv_heads or max(1, heads * shape.kv_heads // shape.heads)
        ff = self.ff or max(8, -(-shape.ff * width // (shape.width * 8)) * 8)
        head_dim = width // heads if self.heads and width % heads == 0 else shape.head_dim
        scale = width**-0.5 if math.isclose(shape.logit_scale, shape.width**-0.5) else shape.logit_scale
        return shape.resized(width=width, heads=heads, kv_heads=kv_heads, ff=ff, head_dim=head_dim, logit_scale=scale)


@dataclass(frozen=True)
class StudentTraining(TrainConfig):
    """Training.

    As pretrain's; what begins with weights is not moved as far the wider it is.

    Raises:
        UserError: a value out of range, or not exactly one length.
    """

    lr: Annotated[
        float | None,
        "Peak learning rate of AdamW; default: 1.5e-3, for a student that begins with weights as many times less as it "
        "is wider than 256 channels.",
    ] = None
    cross_document: bool = field(default=False, init=False)  # the teacher reads each document on its own

    def fitted(self, fresh: bool, width: int) -> "StudentTraining":
        """The same with a learning rate; DistilBERT's, of 768 channels, is 5e-4."""
        return self if self.lr is not None else replace(self, lr=1.5e-3 * (1.0 if fresh else min(1.0, 256 / width)))


@dataclass(frozen=True)
class Watching:
    """Evaluation and records.

    As `Watch`; --eval-tokens is that of `Judging`.

    Raises:
        UserError: a value out of range.
    """

    eval_every: Annotated[
        int | None, "Steps between evaluations on the held-out part of a directory of tokens; default: a tenth of all."
    ] = None
    save_every: Annotated[float, "Seconds between saved states, from which an interrupted run goes on."] = 60.0
    tensorboard: Annotated[bool, "Write events for TensorBoard into OUT/tensorboard."] = False

    def __post_init__(self) -> None:
        self.watch(2)

    def watch(self, eval_tokens: int) -> Watch:
        """The same with a number of held-out tokens."""
        return Watch(self.eval_every, eval_tokens, self.save_every, self.tensorboard)


def evenly(layers: int, count: int) -> tuple[int, ...]:
    """`count` of so many layers, as far from each other as may be: the first and the last are among them.

    Six of twelve are 0, 2, 4, 7, 9, 11, which DistilBERT took.
    """
    if count > layers:
        return tuple(range(count))
    return tuple(round(i * (layers - 1) / (count - 1)) for i in range(count)) if count > 1 else (0,)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    return [int(part) for part in parts] if all(part.strip().isdigit() for part in parts) else []
