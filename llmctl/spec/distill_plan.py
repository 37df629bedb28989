"""DistillPlan: what a distillation will do and need: the student's training, its teacher, what both say of a token."""

from dataclasses import dataclass, replace
from typing import Any

from llmctl.spec.activations import held_in_inference, loss_rows
from llmctl.spec.distill import DistillConfig
from llmctl.spec.memory import gib, kv_cache
from llmctl.spec.model import ModelConfig
from llmctl.spec.plan import MOST_TOKENS, SHARE, TrainPlan, machine_memory
from llmctl.spec.setting import ELEMENT, Dtype, Setting
from llmctl.spec.sizes import flops_per_token, parameters
from llmctl.spec.student import StudentTraining

BUFFERS = 6  # float32 distributions of a chunk of places, while they are compared


@dataclass(frozen=True)
class DistillPlan:
    """The sizes of a distillation.

    Attributes:
        train: of the student's training, its memory included.
        teacher: the teacher's shape; None: it is not needed any more when training begins.
        held: bytes of the teacher's weights.
        beside: bytes besides the student's training, by what they are for.
    """

    train: TrainPlan
    teacher: ModelConfig | None
    held: int
    beside: dict[str, int]

    @classmethod
    def of(
        cls,
        student: ModelConfig,
        teacher: ModelConfig,
        held: int,
        distill: DistillConfig,
        config: StudentTraining,
        corpus: int,
        dtype: Dtype,
        memory: int | None = None,
    ) -> "DistillPlan":
        """Work out the sizes.

        Args:
            held: bytes of the teacher's weights in memory.
            corpus: training tokens there are.
            dtype: of the arithmetic.
            memory: bytes of the GPU; None: on the CPU, with the memory of this machine.

        Raises:
            UserError: rows longer than either model's context, or nothing to train on.
        """
        needed = teacher if distill.cache is None and (distill.soft or distill.features) else None
        budget = SHARE * (machine_memory() if memory is None else memory)
        most = MOST_TOKENS if memory is None else None
        tried = config
        while True:
            train = TrainPlan.of(student, tried, corpus, dtype, memory, most)
            made = cls(train, needed, held, _beside(train, needed, held, distill, dtype))
            if config.micro_batch or train.micro == 1 or made.total <= budget:
                return made
            tried = replace(config, micro_batch=-(-train.micro // 2))

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return self.train.memory.total + sum(self.beside.values())

    @property
    def flops_per_token(self) -> int:
        """Operations for each token that passes through the student, its teacher's included."""
        if self.teacher is None:
            return self.train.flops_per_token
        train = self.train
        return (
            train.flops_per_token
            + flops_per_token(self.teacher, train.target, source=train.source, scored=train.scored) // 3
        )  # without a backward pass

    def facts(self) -> dict[str, Any]:
        """The plan in numbers, for a report."""
        facts = self.train.facts()
        passed = self.train.steps * self.train.rows * (self.train.target + (self.train.source or 0))
        return facts | {
            "teacher_parameters": 0 if self.teacher is None else parameters(self.teacher),
            "bytes": {**self.train.memory.bytes(), **self.beside, "total": self.total},
            "flops": passed * self.flops_per_token,
        }

    def __str__(self) -> str:
        facts, train = self.facts(), self.train
        under = f" under {facts['teacher_parameters']:,}" if self.teacher is not None else ""
        return (
            f"{facts['parameters']:,} parameters{under}, {train.steps:,} steps of "
            f"{train.rows} x {train.block} tokens = {train.tokens:,} tokens ({facts['epochs']:.2f} epochs), "
            f"{train.micro} rows at a time, about {gib(self.total)} of memory, {facts['flops']:.2e} FLOP"
        )


def _beside(
    train: TrainPlan, teacher: ModelConfig | None, held: int, distill: DistillConfig, dtype: Dtype
) -> dict[str, int]:
    """Bytes besides the student's training."""
    student, e = train.model, ELEMENT[dtype]
    scored = min(loss_rows(student.vocab), max(1, round(train.micro * train.target * train.scored)))
    found = {"distributions": BUFFERS * 4 * scored * student.vocab}
    if teacher is None:
        return found
    setting = Setting(mode="inference", batch=train.micro, sequence=train.target, source=train.source, dtype=dtype)
    lengths = setting.lengths(teacher)
    states = max(lengths.values()) * train.micro * teacher.width * e
    found |= {"teacher": held, "teacher_activations": held_in_inference(teacher, setting) + states}
    if distill.features:
        found["features"] = _features(student, teacher, distill, train.micro, lengths, e)
    if distill.text == "student":
        both = (student, teacher) if distill.mix else (student,)
        found["kv_cache"] = sum(train.micro * kv_cache(one, train.target, 4, source=train.source or 0) for one in both)
    return found


def _features(
    student: ModelConfig, teacher: ModelConfig, distill: DistillConfig, rows: int, lengths: dict[str, int], e: int
) -> int:
    """Bytes of what is kept of the inside of both models."""
    total = 0
    for stack, tokens in lengths.items():
        total += rows * tokens * teacher.width * e * (teacher.stacks[stack] + 1)
        if distill.hidden or distill.embedding:
            total += 12 * rows * tokens * teacher.width * (student.stacks[stack] + 1)
        pairs = rows * max(student.heads, teacher.heads) * tokens**2
        total += (12 * student.stacks[stack] * bool(distill.attention) + 36 * bool(distill.relations)) * pairs
    return total
