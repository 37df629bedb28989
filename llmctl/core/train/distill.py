"""Distillation objectives: a student drawn to its teacher's distribution of tokens."""

import math

import torch
from torch import Tensor

from llmctl.core.data.batch import IGNORE, Answers, Batch
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.divergence import Aim, Scores, linear_divergence
from llmctl.core.train.loop import Objective
from llmctl.core.train.measures import Measure
from llmctl.core.train.objectives import Loss, hidden_of
from llmctl.spec.distill import DistillConfig
from llmctl.spec.noise import NoiseConfig


def response(
    teacher: Transformer | None, config: DistillConfig = DistillConfig(), vocab: int | None = None
) -> Objective:
    """The loss of a student by what its teacher says at the same places, and by the text's own tokens.

    The teacher runs in its own dtype, without gradients; it is to be in eval mode. A vocabulary that is padded
    otherwise is aligned at the ids that both have rows for. Batches with `answers` need no teacher.

    Args:
        teacher: of the student's kind, on its device; None: batches bring answers, or the text's tokens suffice.
        config: what is learned; features do not count here.
        vocab: ids that answers may be; None: those of the teacher, or of the student without one.

    Returns:
        An objective: sums over scored tokens. While evaluating it also measures nll (nats a token) and perplexity of
        the text, and kl from teacher to student where there is one.
    """
    return Response(teacher, config, vocab)


class Response:
    """See `response`."""

    def __init__(self, teacher: Transformer | None, config: DistillConfig, vocab: int | None = None):
        self.teacher, self.config = teacher, config
        self.vocab = teacher.config.vocab if vocab is None and teacher is not None else vocab

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        """The loss of one batch."""
        return self.of(model, batch, hidden_of(model, batch), self.said(batch))

    def said(self, batch: Batch) -> Tensor | None:
        """The teacher's last hidden states, (B, T, width), where they are needed."""
        needed = self.teacher is not None and batch.answers is None and (self.config.soft or not _learning())
        return silently(self.teacher, batch) if needed else None

    def of(self, model: Transformer, batch: Batch, hidden: Tensor, said: Tensor | None) -> Loss:
        """The loss, of the last hidden states of both, (B, T, width) each."""
        everywhere = self.config.everywhere and model.config.kind == "encoder" and batch.answers is None
        asked = batch.segments != 0 if everywhere else batch.targets != IGNORE
        student, targets = _scores(model, hidden[asked]), batch.targets[asked]
        teacher: Scores | Answers | None = batch.answers
        if said is not None:
            with torch.no_grad():
                teacher = _scores(self.teacher, said[asked])
        soft, hard = self._weights(batch, student, teacher, targets)
        if everywhere:  # the loss is divided by the number of scored tokens
            soft = soft * NoiseConfig().mask_rate
        total = linear_divergence(student, teacher, targets, self._aim(student), soft, hard, self.config.top_k)
        return Loss(total, batch.scored, {} if _learning() else self._measures(student, teacher, targets))

    def _aim(self, student: Scores) -> Aim:
        config, vocab = self.config, len(student.weight)
        vocab = vocab if self.vocab is None else min(vocab, self.vocab)
        return Aim(config.loss, config.beta, config.temperature, config.tail, vocab)

    def _weights(
        self, batch: Batch, student: Scores, teacher: Scores | Answers | None, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the divergence and of the tokens at each place, (N,) float32 each."""
        one = torch.ones(len(targets), device=targets.device)
        if batch.written:
            return one * self.config.soft, one * 0.0
        return one * self.config.soft, one * self.config.hard

    def _measures(self, student: Scores, teacher: Scores | Answers | None, targets: Tensor) -> dict[str, Measure]:
        """What is known of held-out text besides the loss."""
        one, none = (torch.full((len(targets),), weight, device=targets.device) for weight in (1.0, 0.0))
        aim = Aim("forward-kl", None, 1.0, "rest", self._aim(student).vocab)
        nll, scored = linear_divergence(student, None, targets, aim, none, one), int((targets != IGNORE).sum())
        sums = torch.stack((nll, torch.tensor(float(scored), device=nll.device)))
        found = {"nll": Measure(nll, scored), "perplexity": Measure(sums, scored, _perplexity)}
        if isinstance(teacher, Scores) or (teacher is not None and self.config.temperature == 1):
            found["kl"] = Measure(linear_divergence(student, teacher, targets, aim, one, none), len(targets))
        return found


@torch.no_grad()
def silently(teacher: Transformer, batch: Batch) -> Tensor:
    """The last hidden states of a model in its own dtype, (B, T, width), without gradients."""
    with torch.autocast(batch.tokens.device.type, enabled=False):
        return hidden_of(teacher, batch)


def _scores(model: Transformer, hidden: Tensor) -> Scores:
    return Scores(model.head.features(hidden), *model.head.projection)


def _learning() -> bool:
    return torch.is_grad_enabled()


def _perplexity(sums: list[float]) -> dict[str, float]:
    return {"perplexity": math.exp(min(700.0, sums[0] / max(1.0, sums[1])))}
