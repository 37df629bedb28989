"""What is compared inside two models: hidden states, attention scores, relations; and a student with projections."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.data.batch import Batch
from llmctl.core.model.attend import Mask
from llmctl.core.model.init import drawn
from llmctl.core.model.layers import Linear
from llmctl.core.model.memory import Memory
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.distill import Response
from llmctl.core.train.objectives import Loss
from llmctl.spec.distill import DistillConfig, check_insides
from llmctl.spec.model import ModelConfig

HIDDEN = -1e30  # the score of a key that is not seen: its weight is 0, and no difference of two is NaN


class Heads(NamedTuple):
    """What the attention of one layer was given: q (B, H, T, D), k and v (B, Hkv, T, D), its mask, scale and cap."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Mask
    scale: float
    softcap: float | None


class Inside(NamedTuple):
    """One pass through a stack.

    Attributes:
        hidden: (B, T, width) each: what the first layer is given, then what each layer returns, the last normalised:
            as transformers' hidden_states.
        heads: by number of layer, of the layers that were asked for.
        real: (B, T) bool, places of text.
    """

    hidden: list[Tensor]
    heads: dict[int, Heads]
    real: Tensor


class Pupil(nn.Module):
    """A student, and the projections of its hidden states to its teacher's width where that is another.

    Attributes:
        fits: by what they project.
    """

    def __init__(self, student: Transformer, teacher: ModelConfig, config: DistillConfig, seed: int):
        super().__init__()
        self.student, self.fits = student, nn.ModuleDict()
        narrow, wide = student.config.width, teacher.width
        if narrow != wide:
            names = [name for name in ("hidden", "embedding") if getattr(config, name)]
            made = student.embed.tokens.weight.device
            for name in (f"{name}_{stack}" for name in names for stack in student.config.stacks):
                self.fits[name] = fit = Linear(narrow, wide, bias=False, device=made, dtype=torch.float32)
                with torch.no_grad():
                    fit.weight.copy_(drawn(fit.weight.shape, narrow**-0.5, seed, f"fit.{name}"))

    def fitted(self, name: str, stack: str, x: Tensor) -> Tensor:
        """(B, T, width) in the teacher's width."""
        key = f"{name}_{stack}"
        return self.fits[key](x) if key in self.fits else x


class Compared:
    """An objective of a `Pupil`: what its teacher says, and what goes on inside.

    Each term is a mean over the places of a stack, summed over layers; it counts as much as one of the scored
    tokens.

    Args:
        shares: scored tokens over places of text, by stack.

    Raises:
        UserError: the two models' insides cannot be compared as asked.

    Source: hidden states, attention and embeddings: Jiao et al., arXiv:1909.10351, equations 7 to 9, layer m of M with
    layer m N / M of N; cosine of the last states: Sanh et al., arXiv:1910.01108, section 3; relations: Wang et al.,
    arXiv:2002.10957, section 3, and where heads differ, heads that are cut anew: arXiv:2012.15828, section 3.1.
    """

    def __init__(self, teacher: Transformer, student: ModelConfig, config: DistillConfig, shares: dict[str, float]):
        check_insides(teacher.config, student, config)
        self.teacher, self.config, self.shares = teacher, config, shares
        self.response = Response(teacher, config)
        self.layers = {stack: mapped(student.stacks[stack], count) for stack, count in teacher.config.stacks.items()}

    def __call__(self, pupil: Pupil, batch: Batch) -> Loss:
        """The loss of one batch."""
        taught = {stack: pairs if self.config.attention else pairs[-1:] if self.config.relations else []
                  for stack, pairs in self.layers.items()}  # fmt: skip
        with torch.no_grad(), torch.autocast(batch.tokens.device.type, enabled=False):
            theirs = look_inside(self.teacher, batch, {s: [n for _, n in pairs] for s, pairs in taught.items()})
        ours = look_inside(pupil.student, batch, {s: [m for m, _ in pairs] for s, pairs in taught.items()})
        last = pupil.student.config.last_stack
        said = theirs[last].hidden[-1] if self.config.soft or not torch.is_grad_enabled() else None
        loss = self.response.of(pupil.student, batch, ours[last].hidden[-1], said)
        total = loss.total
        for stack, one in ours.items():
            places = self._inside(pupil, stack, one, theirs[stack])  # (B, T)
            total = total + self.shares[stack] * (places * one.real).sum()
        return Loss(total, loss.count, loss.measures)

    def _inside(self, pupil: Pupil, stack: str, ours: Inside, theirs: Inside) -> Tensor:
        """What each place adds, (B, T) float32."""
        config, pairs = self.config, self.layers[stack]
        total = torch.zeros(ours.real.shape, device=ours.real.device)
        if config.embedding:
            x = pupil.fitted("embedding", stack, ours.hidden[0])
            total = total + config.embedding * _mse(x, theirs.hidden[0])
        if config.hidden and config.hidden_loss == "cosine":
            x = pupil.fitted("hidden", stack, ours.hidden[-1])
            total = total + config.hidden * (1 - F.cosine_similarity(x.float(), theirs.hidden[-1].float(), dim=-1))
        elif config.hidden:
            for m, n in pairs:
                x = pupil.fitted("hidden", stack, ours.hidden[m + 1])
                total = total + config.hidden * _mse(x, theirs.hidden[n + 1])
        with torch.autocast(total.device.type, enabled=False):  # what is to be told apart differs by little
            for m, n in pairs if config.attention else ():
                total = total + config.attention * scores_apart(ours.heads[m], theirs.heads[n])
            if config.relations:
                m, n = pairs[-1]
                total = total + config.relations * relations_apart(ours.heads[m], theirs.heads[n])
        return total


def mapped(student: int, teacher: int) -> list[tuple[int, int]]:
    """Which layer of the teacher each of the student's layers is compared with, from 0; the last with the last."""
    return [(m, max(1, round((m + 1) * teacher / student)) - 1) for m in range(student)]


def look_inside(model: Transformer, batch: Batch, layers: dict[str, list[int]]) -> dict[str, Inside]:
    """Run a model on a batch and keep what goes on inside, by stack.

    Args:
        layers: numbers of layers whose attention is kept, by stack.
    """
    found: dict[str, Inside] = {}
    memory: Memory | None = None
    for side in model.config.stacks:
        stack = {"encoder": model.encoder, "decoder": model.decoder}[side]
        source = batch.encoder if side == "encoder" and batch.encoder is not None else batch
        kinds = {"types": batch.types, "prefix": batch.prefix} if source is batch else {}
        x, shared = model.enter(side, source.tokens, source.positions, source.segments, memory=memory, **kinds)
        hidden, heads = [x], {}
        for number, layer in enumerate(stack.layers.values()):
            with _heard(layer.attention, number, heads, number in layers.get(side, [])):
                x = layer(x, shared)
            hidden.append(x)
        if stack.norm is not None:
            hidden[-1] = stack.norm(x)
        memory = Memory(hidden[-1], source.segments)
        found[side] = Inside(hidden, heads, source.segments != 0)
    return found


@contextmanager
def _heard(attention: nn.Module, number: int, heads: dict[int, Heads], wanted: bool) -> Iterator[None]:
    """Meanwhile keep what a layer's attention is given."""
    if not wanted:
        yield
        return
    before: Callable[..., Tensor] = attention.attend

    def hear(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float = 0.0,
             softcap: float | None = None) -> Tensor:  # fmt: skip
        heads[number] = Heads(q, k, v, mask, scale, softcap)
        return before(q, k, v, mask, scale, dropout, softcap)

    attention.attend = hear
    try:
        yield
    finally:
        attention.attend = before


def scores_apart(ours: Heads, theirs: Heads) -> Tensor:
    """The squared difference of attention scores before the softmax, at each query: (B, T) float32.

    The mean over the heads and over the keys that both see.
    """
    seen = _seen(ours) & _seen(theirs)
    apart = (_scores(ours) - _scores(theirs)).square() * seen
    return (apart.sum(-1) / seen.sum(-1)).mean(1)


def relations_apart(ours: Heads, theirs: Heads) -> Tensor:
    """KL from the teacher's relations to the student's, of queries to keys and of values to values: (B, T) float32.

    The mean over the heads. Where the models have other numbers of heads, both are cut into as many as fit both.
    """
    seen = _seen(ours) & _seen(theirs)
    heads = theirs.q.shape[1]
    if ours.q.shape[1] != heads:
        common = math.gcd(*(one.q.shape[1] * one.q.shape[3] for one in (ours, theirs)))
        heads = max(n for n in range(1, heads + 1) if common % n == 0)
        seen = seen[:, :1]  # what is not seen is so in every head
    total = torch.zeros((), device=ours.q.device)
    for relation in (_of_keys, _of_values):
        with torch.no_grad():
            logp = F.log_softmax(relation(theirs, heads).masked_fill_(~seen, HIDDEN), dim=-1)
            p = logp.exp()
            total = total + (logp.mul_(p)).sum(-1).mean(1)  # (B, T)
            del logp
        logq = F.log_softmax(relation(ours, heads).masked_fill_(~seen, HIDDEN), dim=-1)
        total = total - (p * logq).sum(-1).mean(1)
    return total


def _of_keys(one: Heads, heads: int) -> Tensor:
    """Scores of queries to keys in so many heads, (B, heads, T, T) float32: the layer's own where it has so many."""
    if one.q.shape[1] == heads:
        return _scores(one)
    return _products(_cut_anew(one.q, heads), _cut_anew(_wide(one.k, one), heads))


def _of_values(one: Heads, heads: int) -> Tensor:
    """The same of values to values."""
    v = _cut_anew(_wide(one.v, one), heads)
    return _products(v, v)


def _cut_anew(x: Tensor, heads: int) -> Tensor:
    """(B, H, T, D) as so many heads of H D / heads channels each."""
    if x.shape[1] == heads:
        return x
    return x.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)


def _products(x: Tensor, y: Tensor) -> Tensor:
    return x.float() @ y.float().transpose(-1, -2) * x.shape[-1] ** -0.5


def _wide(x: Tensor, one: Heads) -> Tensor:
    """Keys or values once for each head of queries."""
    return x.repeat_interleave(one.q.shape[1] // x.shape[1], dim=1)


def _scores(one: Heads) -> Tensor:
    """(B, H, T, T) float32, scaled and capped, with learned biases; what is not seen is not hidden."""
    scores = one.q.float() @ _wide(one.k, one).float().transpose(-1, -2) * one.scale
    if one.softcap is not None:
        scores = one.softcap * torch.tanh(scores / one.softcap)
    return scores if one.mask.bias is None else scores + one.mask.bias


def _seen(one: Heads) -> Tensor:
    """Which keys each query sees: (B or 1, H or 1, T, T) bool."""
    tokens = one.q.shape[2]
    hidden = one.mask.hidden(tokens, tokens, torch.float32, one.q.device)
    if hidden is None:
        return torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=one.q.device)
    return hidden.view(-1, *hidden.shape[-3:]) > -torch.inf if hidden.dim() > 2 else hidden[None, None] > -torch.inf


def _mse(x: Tensor, y: Tensor) -> Tensor:
    """The mean squared difference of (B, T, width) at each place, (B, T) float32."""
    return (x.float() - y.float()).square().mean(-1)
