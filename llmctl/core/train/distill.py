"""Distillation objectives: a student drawn to its teacher's distribution of tokens."""

import math

import torch
from torch import Tensor

from llmctl.core.data.batch import IGNORE, Answers, Batch
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.divergence import Aim, Scores, chosen, compared, linear_divergence
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
        needed = (
            self.teacher is not None and batch.answers is None and (self.config.soft or not torch.is_grad_enabled())
        )
        return silently(self.teacher, batch) if needed else None

    def of(self, model: Transformer, batch: Batch, hidden: Tensor, said: Tensor | None) -> Loss:
        """The loss, of the last hidden states of both, (B, T, width) each."""
        everywhere = self.config.everywhere and model.config.kind == "encoder" and batch.answers is None
        asked = batch.segments != 0 if everywhere else batch.targets != IGNORE
        student, targets = scores_of(model, hidden[asked]), batch.targets[asked]
        teacher: Scores | Answers | None = batch.answers
        if said is not None:
            with torch.no_grad():
                teacher = scores_of(self.teacher, said[asked])
        if torch.is_grad_enabled() and not (self.config.soft or self.config.hard):
            return Loss(torch.zeros((), device=hidden.device), batch.scored, {})
        if not torch.is_grad_enabled():
            return self._measured(batch, student, teacher, targets, everywhere)
        soft, hard = self._weights(batch, student, teacher, asked)
        soft = soft * _share(everywhere)
        return Loss(linear_divergence(student, teacher, targets, self._aim(student), soft, hard, self.config.top_k),
                    batch.scored, {})  # fmt: skip

    def _measured(
        self,
        batch: Batch,
        student: Scores,
        teacher: Scores | Answers | None,
        targets: Tensor,
        everywhere: bool,
    ) -> Loss:
        """The loss of text as it is, and what else is known of it."""
        config, aim, scored = self.config, self._aim(student), int((targets != IGNORE).sum())
        nll, kl = compared(student, teacher, targets, aim.vocab)
        soft, hard = (0.0 if config.policy_gradient else config.soft) * _share(everywhere), config.hard
        total = hard * nll + (0.0 if kl is None else soft * kl)
        if teacher is not None and soft and not self._plain:
            one = torch.ones(len(targets), device=targets.device)
            total = linear_divergence(student, teacher, targets, aim, one * soft, one * hard, config.top_k)
        sums = torch.stack((nll, torch.tensor(float(scored), device=nll.device)))
        found = {"nll": Measure(nll, scored), "perplexity": Measure(sums, scored, _perplexity)}
        if kl is not None and (isinstance(teacher, Scores) or config.temperature == 1):
            found["kl"] = Measure(kl, len(targets))
        return Loss(total, batch.scored, found)

    @property
    def _plain(self) -> bool:
        """Whether the divergence is the KL of whole distributions that is measured anyway."""
        return self.config.loss == "forward-kl" and self.config.temperature == 1 and self.config.whole

    def _aim(self, student: Scores) -> Aim:
        config, vocab = self.config, len(student.weight)
        vocab = vocab if self.vocab is None else min(vocab, self.vocab)
        return Aim(config.loss, config.beta, config.temperature, config.tail, vocab)

    def _weights(
        self, batch: Batch, student: Scores, teacher: Scores | Answers | None, asked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the divergence and of the tokens at each of the N places that are asked, (N,) float32 each."""
        config = self.config
        one = torch.ones(int(asked.sum()), device=asked.device)
        if not config.policy_gradient:
            return one * config.soft, one * (0.0 if batch.written else config.hard)
        if not batch.written:
            return one * 0.0, one * config.hard
        ratio, later = self._returns(student, teacher, batch.targets, asked)
        return config.soft * ratio, config.soft * ratio * later

    @torch.no_grad()
    def _returns(self, student: Scores, teacher: Scores, targets: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Of each written token how much likelier the student finds it than what it was drawn from, and the mean reward
        of those after it, (N,) float32 each. The reward is log p - log q.

        With these weights the gradients of the reverse KL at each place and of -log q of each token add up to that of
        the KL of whole texts: MiniLLM's, with its single-step part in full, its mixed sampling and its length
        normalisation. Each text is learned from once, so that nothing is to be clipped.

        Source: Gu et al., arXiv:2306.08543, equations 3 to 7.
        """
        vocab = self._aim(student).vocab
        theirs, own = (chosen(scores, targets[asked], vocab) for scores in (teacher, student))
        mixed = torch.logaddexp(theirs + math.log(max(self.config.mix, 1e-30)), own + math.log1p(-self.config.mix))
        ratio = (own - mixed).exp() if self.config.mix else torch.ones_like(own)
        rewards, there = torch.zeros(asked.shape, device=own.device), asked.float()
        rewards[asked] = theirs - own
        after = rewards.flip(1).cumsum(1).flip(1) - rewards
        count = there.flip(1).cumsum(1).flip(1) - there
        return ratio, (after / count.clamp_min(1))[asked]


@torch.no_grad()
def silently(teacher: Transformer, batch: Batch) -> Tensor:
    """The last hidden states of a model in its own dtype, (B, T, width), without gradients."""
    with torch.autocast(batch.tokens.device.type, enabled=False):
        return hidden_of(teacher, batch)


def scores_of(model: Transformer, hidden: Tensor) -> Scores:
    """What the logits of a model are made of, at hidden states (N, width)."""
    return Scores(model.head.features(hidden), *model.head.projection)


def _share(everywhere: bool) -> float:
    """What a place counts: a loss is divided by the number of scored tokens, of which there may be fewer."""
    return NoiseConfig().mask_rate if everywhere else 1.0


def _perplexity(sums: list[float]) -> dict[str, float]:
    return {"perplexity": math.exp(min(700.0, sums[0] / max(1.0, sums[1])))}
