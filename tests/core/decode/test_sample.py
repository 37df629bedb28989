"""Filters and choice of the next token: against transformers' processors, and by distribution."""

import math

import numpy as np
import pytest
import torch

from llmctl.core.decode import sample
from llmctl.core.decode.sample import choose, filtered, keep_top_p, penalise, row_uniforms, stream_key, uniforms
from llmctl.errors import UserError
from llmctl.spec.sample import Sampling

transformers = pytest.importorskip("transformers", reason="the oracle of the filters")

SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7),
    Sampling(temperature=1.6, top_k=5),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=1000),
    Sampling(temperature=0.9, top_p=0.8),
    Sampling(temperature=1.3, top_p=0.01),
    Sampling(temperature=1.3, min_p=0.2),
    Sampling(temperature=1.0, min_p=1.0),
    Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.05),
    Sampling(temperature=1.2, top_k=20, top_p=0.7, min_p=0.1, repetition_penalty=1.3),
    Sampling(temperature=1.2, repetition_penalty=0.7),
    Sampling(temperature=1.0, typical_p=0.3),
    Sampling(temperature=0.7, typical_p=0.95),
    Sampling(temperature=1.5, epsilon_cutoff=0.02),
    Sampling(temperature=1.0, epsilon_cutoff=0.9),
    Sampling(temperature=1.5, eta_cutoff=0.3),
    Sampling(temperature=1.0, eta_cutoff=0.001),
    Sampling(1.3, 30, 0.95, 0.01, 0.9, 0.01, 0.2, repetition_penalty=1.2),
]


def theirs(ids: torch.Tensor, logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities after transformers' processors, in the order in which its generate applies them."""
    settings = transformers.GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k or None,
        top_p=sampling.top_p if sampling.top_p < 1 else None,
        min_p=sampling.min_p or None,
        typical_p=sampling.typical_p,
        epsilon_cutoff=sampling.epsilon_cutoff,
        eta_cutoff=sampling.eta_cutoff,
        repetition_penalty=sampling.repetition_penalty,
    )
    config = transformers.GPT2Config(vocab_size=logits.shape[-1], n_embd=8, n_layer=1, n_head=1)
    processors = transformers.GPT2LMHeadModel(config)._get_logits_processor(settings, input_ids_seq_length=ids.shape[1])
    return processors(ids, logits.clone()).softmax(dim=-1)


@pytest.mark.parametrize("sampling", SETTINGS, ids=repr)
def test_the_filters_and_their_order_are_those_of_transformers(sampling):
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 64, generator=draw) * 3
    ids = torch.randint(0, 64, (6, 9), generator=draw)
    seen = torch.zeros(6, 64, dtype=torch.bool).scatter(1, ids, True)
    ours = filtered(penalise(logits, seen, sampling.repetition_penalty), sampling).softmax(dim=-1)
    wanted = theirs(ids, logits, sampling)
    assert torch.equal(ours > 0, wanted > 0)
    torch.testing.assert_close(ours, wanted, atol=1e-6, rtol=1e-5)  # fp32 rounding of the shifted logits


def test_top_k_keeps_what_ties_with_the_last_one():
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0]])
    assert sample.keep_top_k(logits, 2).isfinite().tolist() == [[True, True, True, False]]


def test_top_p_stops_at_the_token_that_makes_the_sum_whole():
    chances = torch.tensor([[0.25, 0.5, 0.125, 0.125]])
    for p, wanted in ((0.5, 1), (0.51, 2), (0.75, 2), (0.875, 3), (0.999, 4)):
        assert int((keep_top_p(chances.log(), p) > -torch.inf).sum()) == wanted


@pytest.mark.parametrize("vocab", [64, 5000])
def test_of_tokens_that_tie_at_the_border_as_many_are_kept_as_transformers_keeps_and_the_first(vocab):
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(3)).mul(2).round() / 2  # as bf16 often has
    for p in (0.1, 0.5, 0.9, 0.99):
        ours = keep_top_p(logits, p)
        wanted = transformers.TopPLogitsWarper(p)(None, logits)  # which of those that tie, its sort leaves to chance
        assert torch.equal(ours.sort(dim=-1).values, wanted.sort(dim=-1).values)
        for row, kept in zip(logits, ours > -torch.inf, strict=True):
            tied = kept[row == row[kept].min()]
            assert bool((tied[:-1] >= tied[1:]).all())


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    logits = torch.tensor([[1.0, 3.0, 2.0], [9.0, 0.0, -4.0]])
    keys = torch.tensor([1, 2])
    for cold in (1e-29, 1e-300):  # float32 can divide by the one, and not by the other
        assert choose(logits, Sampling(temperature=cold), keys, torch.zeros(2).long()).tolist() == [1, 0]


def test_a_row_of_nan_gives_no_token():
    logits = torch.tensor([[1.0, math.nan, 2.0], [1.0, 0.0, 2.0]])
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        ids = choose(
            torch.cat([logits, torch.zeros(2, 3000)], dim=1), sampling, torch.tensor([1, 2]), torch.ones(2).long()
        )
        assert ids[0] == -1 and ids[1] >= 0
        ids = choose(logits, sampling, torch.tensor([1, 2]), torch.zeros(2).long()).tolist()
        assert ids[0] == -1
        assert ids[1] in (0, 1, 2)


def p_value(observed: torch.Tensor, chances: torch.Tensor) -> float:
    """The chi-square test's, of counts (V,) against probabilities (V,)."""
    expected = chances.double() * observed.sum()
    kept = expected > 0
    if observed[~kept].sum() > 0:
        return 0.0
    statistic = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    freedom = torch.tensor((int(kept.sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def counts(sampling: Sampling, logits: torch.Tensor, draws: int = 20000) -> torch.Tensor:
    """How often each token was chosen by `draws` records, one draw each."""
    keys = torch.tensor([stream_key(7, record, 0) for record in range(draws)])
    ids = choose(logits.expand(draws, -1), sampling, keys, torch.zeros(draws).long())
    return torch.bincount(ids, minlength=logits.shape[-1]).double()


LOGITS = torch.tensor([[2.0, 1.5, 1.2, 0.3, 0.0, -0.5, -1.0, -2.0]])


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=1.0), Sampling(temperature=1.5, top_k=6), Sampling(temperature=0.8, top_p=0.9)],
    ids=repr,
)
def test_tokens_are_drawn_with_their_probabilities(sampling):
    chances = filtered(LOGITS, sampling).softmax(dim=-1)[0]
    assert p_value(counts(sampling, LOGITS), chances) > 1e-3


def test_the_test_of_the_distribution_catches_injected_bugs(monkeypatch):
    sampling = Sampling(temperature=1.5, top_p=0.9)
    chances = filtered(LOGITS, sampling).softmax(dim=-1)[0]
    assert p_value(counts(Sampling(temperature=1.3, top_p=0.9), LOGITS), chances) < 1e-6
    monkeypatch.setitem(sample.WARPERS, "top_p", lambda logits, p: keep_top_p(logits, 0.99))
    assert p_value(counts(sampling, LOGITS), chances) < 1e-6
    monkeypatch.undo()
    monkeypatch.setattr(sample, "uniforms", lambda *a: uniforms(*a) / 2 + 0.5)  # noise of another law
    assert p_value(counts(sampling, LOGITS), chances) < 1e-6


def test_long_rows_are_drawn_from_one_by_one_with_the_same_noise(monkeypatch):
    logits = torch.randn(40, 3000, generator=torch.Generator().manual_seed(1))
    keys, steps = torch.arange(40) * 977, torch.arange(40)
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=30)):
        alone = choose(logits, sampling, keys, steps)
        monkeypatch.setattr(sample, "LONG", 3000)
        assert torch.equal(alone, choose(logits, sampling, keys, steps))
        monkeypatch.undo()


def test_steps_and_tokens_of_one_stream_are_independent():
    """Pairs of consecutive draws of one record fall on the 8 x 8 table as independence wants."""
    sampling = Sampling(temperature=1.0)
    keys = torch.tensor([stream_key(1, record, 0) for record in range(20000)])
    rows = LOGITS.expand(len(keys), -1)
    first, second = (choose(rows, sampling, keys, torch.full_like(keys, step)) for step in (4, 5))
    pairs = torch.bincount(first * 8 + second, minlength=64).double()
    chances = LOGITS.softmax(dim=-1)[0].double()
    assert p_value(pairs, torch.outer(chances, chances).flatten()) > 1e-3
    noise = uniforms(keys[:200], torch.zeros(200).long(), 500)
    assert abs(torch.corrcoef(noise.T).triu(1)).max() < 0.4  # 125,000 pairs of columns of 200; chance alone gives 0.33


def test_the_generator_is_splitmix64():
    """The published sequence of seed 0, by the finaliser that `uniforms` uses."""
    gamma = torch.tensor([1, 2, 3]) * sample.GAMMA
    unsigned = [value % 2**64 for value in sample._mix(gamma).tolist()]
    assert unsigned == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_noise_depends_on_key_step_and_token_alone():
    keys = torch.tensor([5, 6, 7])
    steps = torch.tensor([0, 3, 9])
    whole = uniforms(keys, steps, 100)
    assert torch.equal(whole[1:2], uniforms(keys[1:2], steps[1:2], 100))
    assert torch.equal(whole[:, :40], uniforms(keys, steps, 40))
    assert whole.min() > 0 and whole.max() < 1
    for row, key, step in zip(whole.numpy(), keys.tolist(), steps.tolist(), strict=True):
        assert (row_uniforms(key, step, 100) == row).all()
        assert (row_uniforms(key, step, 100, np.array([3, 99, 0])) == row[[3, 99, 0]]).all()
    assert len({stream_key(s, r, n) for s in range(5) for r in range(5) for n in range(5)}) == 125


def test_a_temperature_left_out_follows_from_the_rest():
    assert Sampling().greedy
    assert Sampling(top_k=5).temperature == Sampling(top_p=0.5).temperature == Sampling(n=2).temperature == 1
    assert Sampling(temperature=0, top_k=5).greedy


def test_values_out_of_range_are_named_all_at_once():
    with pytest.raises(UserError) as caught:
        Sampling(temperature=-1, top_p=0, n=0)
    assert caught.value.code == 2
    for word in ("--temperature is -1", "--top-p is 0", "--n is 0"):
        assert word in caught.value.problem
    with pytest.raises(UserError):
        Sampling(temperature=math.nan)
