"""The native step computes what the model's own pass does: in every family, dtype and scheme that it takes."""

import threading
from copy import deepcopy
from math import hypot

import pytest
import torch

from llmctl.core.decode.native.build import Unavailable
from llmctl.core.decode.native.engine import Angles, engine_of, made
from llmctl.core.decode.native.rows import NativeRows
from llmctl.core.decode.rows import Rows, rows_of
from llmctl.core.model.attend import attend
from llmctl.core.model.layers import Linear
from llmctl.spec.model import RopeScaling
from llmctl.spec.quant import Grid
from tests.core.decode.native.conftest import GRIDS, as_rounded, in_few_bits, off, scores, small, tokens, variant
from tests.core.variants import VARIANTS

TAKEN = [
    "llama", "llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "neox", "smollm3", "gpt2", "bloom",
    "sinusoidal", "none", "odd",
]  # fmt: skip


def read_in_parts(rows, ids):
    """A text's scores from its fifth token on: a prompt, single steps, then many tokens at once."""
    parts = [rows.add([ids[:5]])] + [rows.step([token]) for token in ids[5:12]] + [rows.read([ids[12:]])[0]]
    return torch.cat(parts)


@pytest.mark.parametrize("name", TAKEN)
def test_every_family_is_computed_as_the_model_itself_does(name, target):
    model = variant(name)
    ids = tokens(30, model.config.vocab)
    wanted = scores(model, ids)[4:]
    found = read_in_parts(NativeRows(model), ids)
    assert off(found, wanted) < 3e-6  # sums of float32 in another order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3", "neox", "gpt2"])
def test_16_bits_lose_less_than_in_the_models_own_pass(name, dtype, target):
    model = variant(name, dtype)
    ids = tokens(30, model.config.vocab)
    exact = scores(deepcopy(model).float(), ids)[4:]
    own = off(scores(model, ids)[4:], exact)
    assert off(read_in_parts(NativeRows(model), ids), exact) < own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", GRIDS)
def test_few_bits_are_computed_as_the_dense_matrices_that_they_stand_for(name, dtype, target):
    model, exact = in_few_bits(GRIDS[name], dtype)
    own, ids = deepcopy(model), tokens(100)
    wanted, rounded = scores(exact, ids), scores(as_rounded(model, exact), ids)
    rows = NativeRows(model)
    few = read_in_parts(rows, ids[:20])
    rows.cut([0])
    some = rows.read([ids[:40]])[0]
    rows.cut([0])
    many = rows.read([ids])[0]
    if dtype == torch.float32:  # activations of 16 bits; of a reading of weights that the stock kernels round, 6e-3
        near = 3e-3 if GRIDS[name].bits <= 4 else 1e-3  # a number near a half may be rounded to the other side: of some
        assert off(few, rounded[4:20]) < near  # 3e-2 that bytes lose here, few are, and 4e-7 is left without
        assert off(some, rounded[:40]) < near
        assert off(many, rounded) < near
    else:  # what bf16 loses and what bytes do has nothing to do with each other: squares add up
        lost, bytes_lose = off(scores(own, ids), wanted), off(rounded, wanted)
        assert off(few, wanted[4:20]) < hypot(0.6 * lost, 1.2 * bytes_lose)
        assert off(some, wanted[:40]) < 1.2 * hypot(off(scores(own, ids[:40]), wanted[:40]), bytes_lose)
        assert off(many, wanted) < 1.2 * hypot(lost, bytes_lose)


def test_tokens_in_bytes_lose_little_beside_what_four_bits_themselves_do(target):
    sizes = {"width": 256, "heads": 8, "ff": 512, "init_std": 0.05, "tie": False}
    model, exact = in_few_bits(GRIDS["int4"], torch.float32, **sizes)
    ids = tokens(100)
    full, coded = scores(small(**sizes), ids), scores(exact, ids)
    found = read_in_parts(NativeRows(model), ids)
    assert off(found, coded[4:]) < 0.1 * off(coded, full)


def test_codes_and_weights_come_back_from_their_packed_form():
    model, _ = in_few_bits(GRIDS["int4 with zeros"], torch.bfloat16)
    codes = [module.codes() for module in model.modules() if hasattr(module, "codes")]
    head, table = model.head.weight.clone(), model.embed.tokens.weight.clone()
    NativeRows(model)
    packed = [module.codes() for module in model.modules() if hasattr(module, "codes")]
    assert len(codes) == len(packed) - 1 or len(codes) == len(packed)
    for one, other in zip(codes, packed, strict=False):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert torch.equal(model.head.dense(), head)
    assert torch.equal(model.embed.tokens.weight, table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_packed_model_still_computes_by_itself(dtype):
    model = small(dtype)
    ids = tokens(40)
    before, table = scores(model, ids), model.embed.tokens.weight.clone()
    NativeRows(model)
    assert torch.equal(model.embed.tokens.weight, table)
    assert torch.equal(model.head.weight, table)
    assert off(scores(model, ids), before) < 1e-6


def test_weights_are_not_held_twice():
    model = small(torch.bfloat16, width=256, ff=512, heads=8, kv_heads=8)
    size = sum(parameter.nbytes for parameter in model.parameters())
    engine = engine_of(model)
    packed = {id(module.packed): module.packed.codes.nbytes for module in model.modules() if hasattr(module, "packed")}
    others = sum(parameter.nbytes for parameter in model.parameters())
    assert sum(packed.values()) + others <= 1.05 * size
    assert engine is engine_of(model)
    assert all(type(module) is not Linear for module in model.modules())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_computes_the_same(threads):
    model, ids = variant("llama"), tokens(30, 61)
    wanted, before = scores(model, ids)[4:], torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert off(read_in_parts(NativeRows(model), ids), wanted) < 3e-6
    finally:
        torch.set_num_threads(before)


def test_models_and_rows_of_one_process_do_not_disturb_each_other():
    models = [variant("llama"), variant("gpt2")]
    ids = tokens(30, 61)
    wanted = [scores(model, ids)[4:] for model in models for _ in range(2)]
    found = [None] * 4

    def work(number):
        for _ in range(5):
            found[number] = read_in_parts(NativeRows(models[number // 2]), ids)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert max(off(one, other) for one, other in zip(found, wanted, strict=True)) < 3e-6


def test_angles_that_another_thread_puts_there_meanwhile_are_not_taken_for_ones_own():
    class Shared(Angles):
        def __setattr__(self, name, value):
            held = tuple(one[:1] for one in value) if name == "tables" else value  # the other's are shorter
            super().__setattr__(name, held)

    assert len(Shared(None, 8).of(300)[0]) >= 300


def test_what_is_not_a_number_stays_none(target):
    for model in (small(torch.bfloat16), in_few_bits(Grid("int", 8), torch.bfloat16)[0]):
        with torch.no_grad():
            model.embed.tokens.weight[7, 3] = float("nan")
        rows = NativeRows(model)
        assert not bool(rows.add([[1, 2]]).isnan().all())
        assert bool(rows.step([7]).isnan().any())


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in TAKEN])
def test_what_it_cannot_do_is_refused_with_a_reason(name):
    if VARIANTS[name].kind == "encoder" and not VARIANTS[name].lm_head:
        return
    with pytest.raises(Unavailable, match=r"."):
        NativeRows(variant(name))


def test_what_stands_in_or_looks_on_is_refused():
    def hooked(model):
        model.layers[0].mlp.register_forward_hook(lambda *_: None)

    def watched(model):
        model.layers[1].attention.attend = lambda *given: attend(*given)

    for change, said in ((hooked, "looks"), (watched, "attention")):
        model = small()
        change(model)
        with pytest.raises(Unavailable, match=said):
            NativeRows(model)
    with pytest.raises(Unavailable, match="8 bits"):
        NativeRows(in_few_bits(Grid("int", 8, dynamic=True), torch.bfloat16)[0])
    with pytest.raises(Unavailable, match="4 bits"):
        NativeRows(small(), kv_bits=4)
    with pytest.raises(Unavailable, match="dynamic"):
        NativeRows(small(rope_scaling=RopeScaling("dynamic", 2.0)))


def test_a_model_that_changes_once_it_is_packed_goes_back_to_torch():
    model = small()
    NativeRows(model)
    assert made(model)
    model.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not made(model)
    assert type(rows_of(model)) is Rows


def test_the_environment_can_want_none(monkeypatch):
    monkeypatch.setenv("LLMCTL_NATIVE", "0")
    with pytest.raises(Unavailable, match="LLMCTL_NATIVE"):
        NativeRows(small())


def test_matrices_of_one_layer_may_be_held_in_different_ways(target):
    model, exact = in_few_bits(GRIDS["int4"], torch.bfloat16)
    plain, eight = small(torch.bfloat16, tie=False), in_few_bits(GRIDS["int8"], torch.bfloat16)
    for source, wide, path in ((plain, deepcopy(plain).float(), "v"), (*eight, "k"), (*eight, "out")):
        for number in range(2):
            for mixed, taken in ((model, source), (exact, wide)):
                setattr(mixed.layers[number].attention, path, getattr(taken.layers[number].attention, path))
    ids = tokens(100)
    wanted, rows = scores(exact, ids), NativeRows(model)
    bytes_lose = off(scores(as_rounded(model, exact), ids), wanted)
    assert off(read_in_parts(rows, ids[:20]), wanted[4:20]) < hypot(1e-2, 1.2 * bytes_lose)  # keys and values in bf16
    rows.cut([0])
    assert off(rows.read([ids])[0], wanted) < hypot(3e-2, 1.2 * bytes_lose)
