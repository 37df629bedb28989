"""Divergence of two models' distributions of tokens, straight from hidden states: (tokens, vocab) never exists."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.data.batch import IGNORE, Answers
from llmctl.core.train.cross_entropy import chunk_rows
from llmctl.spec.distill import Divergence, Tail


class Scores(NamedTuple):
    """What a model's logits are made of, at N places.

    Attributes:
        features: (N, D).
        weight: (V, D).
        bias: (V,) or None.
        softcap: logits become softcap * tanh(logits / softcap), or None.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float | None

    def logits(self, rows: slice) -> Tensor:
        """Of some places, (n, V) float32, in the model's own arithmetic."""
        bias = None if self.bias is None else self.bias.to(self.features.dtype)
        made = F.linear(self.features[rows], self.weight.to(self.features.dtype), bias).float()
        return made if self.softcap is None else self.softcap * torch.tanh(made / self.softcap)


class Aim(NamedTuple):
    """What a student is drawn to.

    Attributes:
        loss, beta, temperature, tail: as of `DistillConfig`.
        vocab: ids that both models have a row for.
    """

    loss: Divergence
    beta: float | None
    temperature: float
    tail: Tail
    vocab: int


def divergence(logp: Tensor, logq: Tensor, loss: Divergence, beta: float | None = None) -> tuple[Tensor, Tensor]:
    """How far q is from p, and its gradient with respect to the logits that q is the softmax of.

    Args:
        logp: (N, V) float32, the teacher's log probabilities; -inf for an outcome that neither has.
        logq: (N, V) float32, the student's.
        beta: of jsd: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    Returns:
        (N,) in nats, and (N, V).

    Source: Agarwal et al., arXiv:2306.13649, equations 1 to 3 (theirs weighs the mixture as here, as TRL's does).
    """
    p, q = logp.exp(), logq.exp()
    if loss == "forward-kl":
        return _expected(p, logp - logq), q - p
    if loss == "reverse-kl":
        apart = (logq - logp).nan_to_num_(0.0)
    else:
        share = torch.tensor(float(beta), device=p.device)
        logm = torch.logaddexp(logp + share.log(), logq + torch.log1p(-share))
        apart = (logq - logm).nan_to_num_(0.0)
        before = beta * _expected(p, logp - logm)
    mean = (q * apart).sum(-1)
    gradient = q * (apart - mean[:, None])
    if loss == "reverse-kl":
        return mean, gradient
    return before + (1 - beta) * mean, (1 - beta) * gradient


def top(logp: Tensor, k: int) -> Answers:
    """The k likeliest outcomes of (N, V) log probabilities, and the rest as one."""
    k = min(k, logp.shape[1])
    best = logp.topk(k, dim=-1)
    rest = logp.scatter(1, best.indices, float("-inf")).logsumexp(-1, keepdim=True)
    return Answers(best.indices, torch.cat((best.values, rest), dim=1))


def taught(teacher: Scores, aim: Aim, rows: slice) -> Tensor:
    """The teacher's log probabilities at some places, (n, vocab) float32, softened by the temperature."""
    return F.log_softmax(teacher.logits(rows)[:, : aim.vocab] / aim.temperature, dim=-1)


def chosen(scores: Scores, targets: Tensor, vocab: int) -> Tensor:
    """Log probabilities of targets (N,) among the first `vocab` ids, (N,) float32; without gradients."""
    step = chunk_rows(len(scores.weight))
    parts = [
        F.log_softmax(scores.logits(slice(start, start + step))[:, :vocab], dim=-1).gather(
            1, targets[start : start + step, None]
        )
        for start in range(0, len(targets), step)
    ]
    return torch.cat(parts)[:, 0] if parts else torch.zeros(0, device=targets.device)


@torch.no_grad()
def compared(
    student: Scores, teacher: Scores | Answers | None, targets: Tensor, vocab: int
) -> tuple[Tensor, Tensor | None]:
    """What is known of a student at N places: sums of -log q(target) and of KL(p || q), in nats, float32 scalars.

    Args:
        teacher: as of `linear_divergence`, at temperature 1; None: there is no KL.
        vocab: ids that both have a row for.
    """
    aim, zero = Aim("forward-kl", None, 1.0, "rest", vocab), torch.zeros((), device=targets.device)
    nll, kl, step = zero, zero.clone(), chunk_rows(len(student.weight))
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        logq = F.log_softmax(student.logits(rows), dim=-1)
        target = targets[rows, None]
        nll = nll - (logq.gather(1, target.clamp_min(0)) * (target != IGNORE)).sum()
        if teacher is not None:
            kl = kl + _soft(logq, _answered(teacher, aim, rows, 0), aim)[0].sum()
    return nll, None if teacher is None else kl


def linear_divergence(
    student: Scores,
    teacher: Scores | Answers | None,
    targets: Tensor,
    aim: Aim,
    soft: Tensor,
    hard: Tensor,
    k: int = 0,
) -> Tensor:
    """The sum over N places of soft x temperature^2 x divergence + hard x -log q(target), in nats.

    With gradients on, those of the student's features and matrix are computed along with the loss, a chunk of places
    at a time; the backward pass only scales them. The softmax is in float32 always.

    Where the student has rows for ids that the teacher has none for, what it gives to them is lost: -log of the rest
    is added to the divergence, so that they go to zero.

    Args:
        teacher: of the same places, without gradients; or what it answered there, at the temperature of `aim`;
            None: the targets' loss is all.
        targets: (N,) int64, IGNORE where there is none.
        soft: (N,) float32, weights of the divergence.
        hard: (N,) float32, weights of the targets' loss.
        k: keep the teacher's likeliest k only; 0: all.

    Returns:
        A float32 scalar.

    Source: Hinton et al., arXiv:1503.02531, section 2: the factor temperature^2 keeps gradients of one size.
    """
    hidden, weight, bias, softcap = student
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    able = hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad
    wanted = able if torch.is_grad_enabled() else (False, False, False)
    rest = softcap, teacher, targets, aim, soft, hard, k, dtype, wanted
    return _LinearDivergence.apply(hidden, weight, bias, *rest)


class _LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, softcap, teacher, targets, aim, soft, hard, k, dtype, wanted):
        with torch.autocast(hidden.device.type, enabled=False):
            student = Scores(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), softcap)
            h, w = student.features, student.weight
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            d_hidden = torch.empty_like(h) if wanted[0] else None
            d_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
            d_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] else None
            step = chunk_rows(len(w))
            for start in range(0, len(h), step):
                rows = slice(start, start + step)
                logits = student.logits(rows)
                value, d_logits = _chunk(logits, _answered(teacher, aim, rows, k), targets[rows], aim, soft[rows],
                                         hard[rows])  # fmt: skip
                total += value
                if not any(wanted):
                    continue
                if softcap is not None:
                    d_logits *= (logits / softcap).square_().neg_().add_(1)
                del logits
                d_logits = d_logits.to(dtype)
                if d_hidden is not None:
                    torch.mm(d_logits, w, out=d_hidden[rows])
                if d_weight is not None:
                    d_weight += d_logits.t() @ h[rows]
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx, grad):
        made = [
            None if part is None else (part * grad.to(part.dtype)).to(dtype)
            for part, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *made, *[None] * 9


def _answered(teacher: Scores | Answers | None, aim: Aim, rows: slice, k: int) -> Tensor | Answers | None:
    """What the teacher says at some places."""
    if teacher is None:
        return None
    if isinstance(teacher, Answers):
        return Answers(teacher.ids[rows], teacher.logp[rows])
    logp = taught(teacher, aim, rows)
    return top(logp, k) if k else logp


def _chunk(
    logits: Tensor, said: Tensor | Answers | None, targets: Tensor, aim: Aim, soft: Tensor, hard: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss of some places, a scalar, and its gradient with respect to the student's logits, (n, V)."""
    plain = F.log_softmax(logits, dim=-1)
    at, weight = targets.clamp_min(0)[:, None], (hard * (targets != IGNORE))[:, None]
    total, gradient = -(weight * plain.gather(1, at)).sum(), None
    if said is not None:
        tempered = plain if aim.temperature == 1 else F.log_softmax(logits / aim.temperature, dim=-1)
        value, gradient = _soft(tempered, said, aim)
        total = total + (soft * value).sum() * aim.temperature**2
        gradient *= (soft * aim.temperature)[:, None]
    if gradient is None or bool(hard.any()):
        own = plain.exp_().mul_(weight).scatter_add_(1, at, -weight)
        gradient = own if gradient is None else gradient.add_(own)
    return total, gradient


def _soft(logq: Tensor, said: Tensor | Answers, aim: Aim) -> tuple[Tensor, Tensor]:
    """Divergence (n,), and its gradient with respect to tempered logits, (n, V)."""
    if logq.shape[1] > aim.vocab:
        common = logq[:, : aim.vocab]
        kept = common.logsumexp(-1, keepdim=True)  # log of what the student gives to ids that both have
        value, inner = _soft(common - kept, said, aim)
        gradient = logq.exp()
        gradient[:, : aim.vocab] += inner - (common - kept).exp()
        return value - kept[:, 0], gradient
    if isinstance(said, Tensor):
        return divergence(said, logq, aim.loss, aim.beta)
    if aim.tail == "renormalise":
        logp = said.logp[:, :-1] - said.logp[:, :-1].logsumexp(-1, keepdim=True)
        value = _expected(logp.exp(), logp - logq.gather(1, said.ids))
        return value, logq.exp().scatter_add_(1, said.ids, -logp.exp())
    others = logq.scatter(1, said.ids, float("-inf")).logsumexp(-1, keepdim=True)  # (n, 1)
    coarse = torch.cat((logq.gather(1, said.ids), others), dim=1)  # (n, K + 1)
    value, inner = divergence(said.logp, coarse, aim.loss, aim.beta)
    whole = said.ids.shape[1] == logq.shape[1]
    gradient = torch.zeros_like(logq) if whole else (logq - others).exp_().mul_(inner[:, -1:])
    return value, gradient.scatter_(1, said.ids, inner[:, :-1])


def _expected(p: Tensor, x: Tensor) -> Tensor:
    """The mean of x under p, (N,): outcomes that cannot be do not count, whatever x is there."""
    return (p * x).masked_fill_(p == 0, 0.0).sum(-1)
