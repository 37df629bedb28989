"""tune_plan: what is trained, how long, and in what pieces."""

from dataclasses import replace

import pytest

from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.memory import estimate
from llmctl.spec.model import ModelConfig
from llmctl.spec.spent import spent_flops
from llmctl.spec.tune import TuneConfig
from llmctl.spec.tune_plan import TunePlan
from tests.spec.configs import RELEASED, t5

GIB = 2**30
LLAMA = RELEASED["Llama-3.2 1B"][0]


def plan(config=LLAMA, method="lora", tune=TuneConfig(), examples=1000, longest=300, mean=100.0, **more):
    method = method if isinstance(method, AdaptConfig) else AdaptConfig(method=method)
    given = {"scored": 0.5, "packed": False, "dtype": "bf16", "memory": 24 * GIB} | more
    return TunePlan.of(config, method, tune, examples, longest, mean, **given)


def test_the_courses_matrix_trains_4608_of_32768_and_its_adapter_has_that_many_floats():
    """A matrix of 512 x 64 at rank 8."""
    config = ModelConfig(vocab=64, width=64, layers=1, heads=1, ff=512, context=32, gated=False, position="learned")
    found = plan(config, AdaptConfig(targets=("mlp.up",)))
    assert (found.trained, found.adapter_bytes) == (4608, 4 * 4608)
    assert "trains 4,608 of" in str(found) and "an adapter of about 18 KiB" in str(found)


def test_facts_and_words_say_what_is_trained_for_how_long_and_what_it_takes():
    found = plan(tune=TuneConfig(epochs=2, batch_size=8))
    facts = found.facts()
    assert facts["steps"] == 250 and facts["epochs"] == 2 and facts["tokens"] == 250 * 8 * 100
    assert facts["trained_share"] == found.trained / (facts["parameters"] + found.trained)
    assert facts["bytes"]["total"] == found.memory.total == estimate(LLAMA, found.setting).total
    assert facts["flops"] == facts["tokens"] * spent_flops(LLAMA, found.setting)
    assert "0.138%" in str(found) and "250 steps of 8 examples" in str(found)


def test_a_whole_checkpoint_has_no_adapter():
    found = plan(method="full")
    assert found.adapter_bytes is None and "adapter" not in str(found) and "adapter_bytes" not in found.facts()
    assert found.trained == found.total and "100.000%" in str(found)


def test_the_largest_pieces_that_fit_are_taken_and_never_less_than_the_longest_row():
    room = [plan(memory=size * GIB, most_tokens=None, tune=TuneConfig(batch_size=512)) for size in (8, 16, 64)]
    assert room[0].micro_tokens < room[1].micro_tokens < room[2].micro_tokens <= 512 * 300
    assert all(one.memory.total <= 0.6 * size * GIB for one, size in zip(room, (8, 16, 64), strict=True))
    assert plan(memory=GIB).micro_tokens == 300
    assert plan(tune=TuneConfig(micro_tokens=50)).micro_tokens == 50
    assert plan(tune=TuneConfig(batch_size=4)).micro_tokens == 4 * 300
    assert plan(tune=TuneConfig(batch_size=4), packed=True).micro_tokens == 4 * 100
    assert plan(memory=None, tune=TuneConfig(batch_size=10_000)).micro_tokens <= 16384


def test_on_a_model_of_two_stacks_a_piece_counts_what_both_read():
    found = plan(t5(512, 6, 8, 1024), longest=30, source_longest=200, tune=TuneConfig(batch_size=8))
    assert found.micro_tokens == 8 * 230 and (found.setting.batch, found.setting.source) == (8, 200)


def test_fewer_bits_and_fewer_trained_parameters_take_less():
    short = TuneConfig(micro_tokens=300)
    sizes = [plan(method=method, tune=short).memory.total for method in ("qlora", "lora", "last-n", "full")]
    assert sizes == sorted(sizes) and sizes[0] < 0.2 * sizes[3]
    nested, single = (
        plan(method=replace(AdaptConfig(method="qlora"), double_quant=double)) for double in (True, False)
    )
    assert nested.memory.weights < single.memory.weights


@pytest.mark.parametrize("length", [TuneConfig(steps=0), TuneConfig(steps=5)])
def test_a_run_of_given_steps_has_the_epochs_that_follow(length):
    assert plan(tune=length, examples=40).epochs == length.steps * 16 / 40
