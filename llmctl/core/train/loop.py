"""The one training loop: a generator of steps; the caller shows, evaluates, saves and stops."""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from llmctl.core.data.batch import Batch
from llmctl.core.device import Place
from llmctl.core.train.objectives import Loss
from llmctl.core.train.optim import set_rate
from llmctl.errors import UserError
from llmctl.spec.train import Learning

Objective = Callable[[torch.nn.Module, Batch], Loss]


class Step(NamedTuple):
    """What one optimizer step did.

    Attributes:
        number: of the step, from 1.
        scored: tokens that were scored.
        read: tokens that went through the model.
        loss: their mean loss before the update, nats.
        lr: learning rate of the first group.
        grad_norm: global norm of the gradient before clipping.
        seconds: wall time of the step, the wait for the caller not counted.
    """

    number: int
    scored: int
    read: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float


def train(
    model: torch.nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    objective: Objective,
    config: Learning,
    optimizers: list[torch.optim.Optimizer],
    place: Place,
    steps: int,
    done: int = 0,
    seed: int = 0,
    after: Callable[[int], None] | None = None,
) -> Iterator[Step]:
    """Take optimizer steps done+1 .. steps, and yield after each.

    The gradient of a step is that of its summed loss over its count of scored tokens, whatever the number and
    size of the micro-batches.

    Args:
        model: in training mode; its parameters change in place.
        batches: the micro-batches of a step, a pure function of the step's number.
        objective: model and micro-batch to a loss.
        config: clipping and schedule.
        optimizers: over the model's parameters.
        place: device and precision.
        steps: the last step, which the schedule ends with.
        done: steps taken before.
        seed: of what is dropped: torch's generators are seeded with it and the number of each step, so that a run
            that was broken off drops what it would have dropped.
        after: called with the number of each step when the optimizers have taken it: to keep what training must not
            move, such as weights that were pruned.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    upcoming = list(batches(done + 1)) if done < steps else []
    for number in range(done + 1, steps + 1):
        start = time.perf_counter()
        micro, scored = upcoming, sum(batch.scored for batch in upcoming)
        lr = set_rate(optimizers, config.rate(number, steps))
        torch.manual_seed(zlib.crc32(f"{seed}/{number}".encode()))  # of a seed the CPU takes 32 bits
        total = torch.zeros((), device=place.device)
        for batch in micro:
            total += _backward(model, batch.to(place.device), objective, place, scored)
        norm = clip_grad_norm_(parameters, config.clip or float("inf"))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if after is not None:
            after(number)
        upcoming = list(batches(number + 1)) if number < steps else []  # while a GPU is still at work
        loss = total.item() / max(1, scored)
        if loss != loss or loss == float("inf"):
            raise UserError(f"The loss of step {number} is {loss}.", "Lower --lr, or raise --warmup.")
        read = sum(batch.read for batch in micro)
        yield Step(number, scored, read, loss, lr, float(norm), time.perf_counter() - start)


def _backward(model: torch.nn.Module, batch: Batch, objective: Objective, place: Place, scored: int) -> Tensor:
    """Add one micro-batch's share to the gradients; returns its summed loss."""
    with place.autocast():
        loss = objective(model, batch)
    (loss.total / max(1, scored)).backward()
    return loss.total.detach()


@torch.no_grad()
def evaluate(model: torch.nn.Module, batches: Iterable[Batch], objective: Objective, place: Place) -> Iterator[Loss]:
    """The loss of each batch without training on it; the caller sums, and may stop between batches."""
    training = model.training
    model.eval()
    try:
        for batch in batches:
            with place.autocast():
                yield objective(model, batch.to(place.device))
    finally:
        model.train(training)
