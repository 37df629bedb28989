"""The training loop, its optimizers and its schedule."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.device import Place
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.loop import train
from llmctl.core.train.objectives import tokens_loss
from llmctl.core.train.optim import optimizers
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.train import TrainConfig

CPU = Place(torch.device("cpu"), torch.float32)
CONFIG = ModelConfig(vocab=50, width=32, layers=2, heads=4, ff=64, context=16)


def model() -> Transformer:
    return initialise(Transformer(CONFIG, "cpu", torch.float32), 0).train()


def rows(number: int, count: int = 8, block: int = 16) -> Batch:
    """Rows of unequal numbers of scored tokens."""
    rng = np.random.default_rng(number)
    tokens = torch.from_numpy(rng.integers(0, 50, (count, block + 1)))
    targets = tokens[:, 1:].clone()
    for row in range(count):
        targets[row, row * 2 + 1 :] = IGNORE
    places = torch.arange(block).expand(count, block)
    return Batch(
        tokens[:, :-1], targets, places, torch.ones_like(places), int((targets != IGNORE).sum()), targets.numel()
    )


def parts(batch: Batch, micro: int) -> list[Batch]:
    pieces = zip(*(tensor.split(micro) for tensor in batch[:4]), strict=True)
    return [Batch(*piece, int((piece[1] != IGNORE).sum()), piece[1].numel()) for piece in pieces]


def trained(micro: int, steps: int = 3, **options) -> tuple[Transformer, list]:
    config = TrainConfig(steps=steps, **options)
    net = model()
    made = optimizers(net, config)
    return net, list(train(net, lambda n: parts(rows(n), micro), tokens_loss, config, made, CPU, steps))


@pytest.mark.parametrize("micro", [4, 1])
def test_micro_batches_of_unequal_counts_give_the_gradient_of_the_whole(micro):
    """Others divide each micro-batch by its own count, and so weigh the tokens of short rows more."""
    whole, split = trained(8)[1], trained(micro)[1]
    for a, b in zip(whole, split, strict=True):
        assert a.scored == b.scored == sum(range(1, 16, 2))
        assert a.loss == pytest.approx(b.loss, abs=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)


def test_the_loss_of_a_batch_that_is_learned_by_heart_falls():
    config = TrainConfig(steps=40, lr=1e-2, schedule="constant", warmup=0)
    net = model()
    batch = rows(0)
    losses = [s.loss for s in train(net, lambda n: [batch], tokens_loss, config, optimizers(net, config), CPU, 40)]
    assert losses[0] == pytest.approx(math.log(50), abs=0.2) and losses[-1] < 0.3 * losses[0]


def test_a_loss_that_is_no_number_stops_the_run():
    config = TrainConfig(steps=2)
    net = model()
    with torch.no_grad():
        net.decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="step 1"):
        next(train(net, lambda n: [rows(n)], tokens_loss, config, optimizers(net, config), CPU, 2))


def test_matrices_decay_and_vectors_do_not():
    groups = optimizers(model(), TrainConfig(steps=1, weight_decay=0.3))[0].param_groups
    assert [(group["weight_decay"], {p.ndim for p in group["params"]}) for group in groups] == [(0.3, {2}), (0.0, {1})]


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest_each_once():
    net = model()
    adamw, muon = optimizers(net, TrainConfig(steps=1, optimizer="muon"))
    names = {id(p): name for name, p in net.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    left = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert taken == {name for name in names.values() if ".layers." in name and "norm" not in name}
    assert taken | left == set(names.values()) and not taken & left


def test_muon_trains():
    assert trained(8, steps=20, optimizer="muon")[1][-1].loss < trained(8, steps=20, optimizer="muon")[1][0].loss + 0.1


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", {5: 0.5, 10: 1.0, 60: 1.0, 110: 1.0}),
        ("linear", {5: 0.5, 10: 1.0, 60: 0.55, 110: 0.1}),
        ("cosine", {5: 0.5, 10: 1.0, 60: 0.55, 110: 0.1}),
        ("wsd", {5: 0.5, 10: 1.0, 60: 1.0, 88: 1.0, 99: 0.55, 110: 0.1}),
    ],
)
def test_schedules_at_hand_computed_steps(schedule, shares):
    config = TrainConfig(steps=110, warmup=10, schedule=schedule, min_lr=0.1, decay=0.2)
    assert {step: round(config.rate(step, 110), 9) for step in shares} == shares


def test_lengths_in_steps_tokens_and_epochs():
    block, tokens = 16, 16 * 101 + 1  # 100 whole rows an epoch
    assert TrainConfig(steps=7).length(tokens, block) == 7
    assert TrainConfig(tokens=1600, batch_tokens=64).length(tokens, block) == 25
    assert TrainConfig(epochs=2, batch_tokens=64).length(tokens, block) == 50
    assert TrainConfig(batch_tokens=64).length(tokens, block) == 25
    with pytest.raises(UserError, match=r"--steps and --tokens|--steps.*--tokens"):
        TrainConfig(steps=1, tokens=1)


def test_what_is_dropped_differs_by_seed_and_by_step_and_is_the_same_again():
    """torch takes 32 bits of a CPU's seed: with the run's seed above them, each seed once dropped the same."""

    def losses(seed: int) -> list[float]:
        config = TrainConfig(steps=2, lr=1e-12)
        net = initialise(Transformer(replace(CONFIG, dropout=0.3), "cpu", torch.float32), 0).train()
        made = optimizers(net, config)
        steps = train(net, lambda n: parts(rows(0), 8), tokens_loss, config, made, CPU, 2, seed=seed)
        return [step.loss for step in steps]

    first = losses(0)
    assert losses(0) == first and first[0] != first[1]
    assert not set(losses(1)) & set(first)
