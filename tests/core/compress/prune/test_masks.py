"""Which weights stay: exact counts, whatever the scores; and weights that are held at zero while others learn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.core.compress.prune.masks import chosen, hold, magnitude, nonzero, smallest, wanda
from llmctl.core.compress.prune.sparsegpt import corrected, refit, sparsegpt
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.optim import optimizers
from llmctl.spec.model import ModelConfig
from llmctl.spec.train import TrainConfig


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moment_of(columns, tokens=400, seed=1, dtype=torch.float64):
    x = drawn(tokens, columns, seed=seed, dtype=dtype) @ drawn(columns, columns, seed=seed + 1, dtype=dtype)
    return 2 * x.t() @ x / tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-40, 1e-3, 1.0, 1.0 + 2**-23, 7.5, 3e38, math.inf]), min_size=1), st.data())
def test_the_smallest_are_those_that_a_stable_sort_puts_first(values, data):
    scores = torch.tensor(values)
    count = data.draw(st.integers(0, len(values)))
    wanted = torch.zeros(len(values), dtype=torch.bool)
    wanted[scores.argsort(stable=True)[:count]] = True
    assert torch.equal(smallest(scores, count), wanted)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.99])
def test_zeros_are_exactly_as_many_as_the_share_says_even_of_equal_scores(share):
    for scores in (magnitude(drawn(6, 52)), torch.ones(6, 52)):
        row, tensor = (~chosen(scores, share, per) for per in ("row", "tensor"))
        assert row.sum(1).tolist() == [math.floor(share * 52)] * 6
        assert tensor.sum() == math.floor(share * 6 * 52)
        kept = scores[~tensor]
        assert not tensor.any() or scores[tensor].max() <= kept.min()


@pytest.mark.parametrize("group", [(2, 4), (4, 8)])
def test_every_run_of_a_row_loses_its_smallest(group):
    scores = magnitude(drawn(5, 48))
    runs, kept = scores.unflatten(1, (-1, group[1])), chosen(scores, 0.5, group=group).unflatten(1, (-1, group[1]))
    assert (kept.sum(2) == group[1] - group[0]).all()
    assert (runs.masked_fill(~kept, 0).amax(2) == runs.amax(2)).all()
    assert (runs.masked_fill(kept, 0).amax(2) <= runs.masked_fill(~kept, math.inf).amin(2)).all()
    assert (chosen(torch.ones(2, 8), 0.5, group=group).sum(1) == 4).all()
    with pytest.raises(ValueError, match="50 columns"):
        chosen(torch.ones(2, 50), 0.5, group=group)


def test_wanda_looks_at_the_product_so_that_scaling_an_input_up_and_its_weights_down_changes_nothing():
    weight, norm = drawn(8, 32), drawn(32).abs() + 0.1
    scale = torch.ones(32)
    scale[[3, 17]] = 32.0
    one, other = wanda(weight, norm), wanda(weight / scale, norm * scale)
    assert torch.equal(chosen(one, 0.5, "row"), chosen(other, 0.5, "row"))
    assert not torch.equal(chosen(magnitude(weight), 0.5, "row"), chosen(magnitude(weight / scale), 0.5, "row"))


def test_sparsegpt_of_inputs_that_have_nothing_in_common_is_magnitude_block_by_block():
    weight = drawn(16, 320)
    made = sparsegpt(weight, torch.eye(320), 0.6)
    for start in (0, 128, 256):
        block = weight[:, start : start + 128]
        size = block.shape[1]
        zeros = math.floor(0.6 * 16 * (start + size)) - math.floor(0.6 * 16 * start)
        kept = ~smallest(magnitude(block).flatten(), zeros).view_as(block)
        assert torch.equal(made[:, start : start + 128], block * kept)
    assert torch.equal(
        sparsegpt(weight, torch.eye(320), 0.5, group=(2, 4)), weight * chosen(weight.abs(), 0, "row", (2, 4))
    )


def test_sparsegpt_without_sparsity_leaves_the_matrix_as_it_is():
    weight, moment = drawn(8, 160), moment_of(160, dtype=torch.float32)
    assert torch.equal(sparsegpt(weight, moment, 0.0), weight)
    assert torch.equal(corrected(weight, moment, moment.clone(), 0.01), weight)
    assert torch.equal(refit(weight, weight, moment, 0.01), weight)


def test_sparsegpt_is_the_solution_column_by_column_that_the_inverse_gives():
    """Of one row and one pruned weight the best others are known: w - w_p H^-1_p / H^-1_pp, of those after it."""
    weight, moment = drawn(1, 6, dtype=torch.float64), moment_of(6)
    weight[0, 0] = 1e-3  # the one that goes
    made = sparsegpt(weight, moment, 1.01 / 6, "row", damp=1e-9)
    inverse = torch.linalg.inv(moment)
    wanted = weight - weight[0, 0] * inverse[0] / inverse[0, 0]
    assert torch.allclose(made, wanted, atol=1e-6) and made[0, 0] == 0


@pytest.mark.parametrize("per", ["row", "tensor"])
def test_sparsegpt_has_exact_counts_and_less_error_than_wanda_and_a_refit_less_still(per):
    weight, moment = drawn(24, 200, dtype=torch.float64), moment_of(200)
    moment[:, 7] = moment[7] = 0  # an input that is always zero
    made = sparsegpt(weight, moment, 0.5, per)
    zeros = (made == 0).sum(1)
    assert int(zeros.sum()) == 24 * 100 and (per == "tensor" or (zeros == 100).all())
    assert (made[:, 7] == 0).all()

    def error(other):
        gone = weight - other
        return float(((gone @ moment) * gone).sum())

    plain = weight * chosen(wanda(weight, moment.diagonal().sqrt().float()), 0.5, "row")
    again = refit(weight, made, moment, 0.0, steps=300)
    assert error(again) < error(made) < 0.8 * error(plain)
    assert torch.equal(again == 0, made == 0)
    row, kept = 3, made[3] != 0  # against the normal equations of one row
    exact = torch.linalg.solve(moment[kept][:, kept], (weight[row] @ moment)[kept])
    assert torch.allclose(again[row, kept], exact, atol=1e-3)


def test_a_moment_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="not finite"):
        sparsegpt(drawn(2, 4), torch.full((4, 4), math.nan), 0.5)


CONFIG = ModelConfig(vocab=40, width=32, layers=1, heads=4, ff=64, context=16)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_that_are_held_stay_zero_whatever_the_optimizer_and_its_moments_do(optimizer):
    model = initialise(Transformer(CONFIG, "cpu", torch.float32), 0).train()
    made = optimizers(model, TrainConfig(steps=9, optimizer=optimizer, weight_decay=0.3))
    tokens = torch.arange(12)[None]

    def step():
        loss = model.head(model(tokens)).logsumexp(-1).square().mean()
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        for one in made:
            one.step()
            one.zero_grad()
        return grads

    step()  # moments of weights that are pruned only then
    path, weight = "decoder.layers.0.mlp.up", model.decoder.layers["0"].mlp.up.weight
    with torch.no_grad():
        weight.masked_fill_(~chosen(magnitude(weight), 0.8), 0)
    masks = nonzero(model)
    assert list(masks) == [path]
    before, after = weight.detach().clone(), hold(model, masks)
    for number in range(3):
        assert (step()[f"{path}.weight"][~masks[path]] == 0).all()
        after(number)
        assert torch.equal(weight != 0, masks[path])
    assert not torch.equal(weight, before)
