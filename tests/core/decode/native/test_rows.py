"""NativeRows are Rows: what they say does not depend on a few rows beside, on what was cut, kept, shared or known."""

from copy import deepcopy
from math import hypot

import pytest
import torch

from llmctl.core.decode.native.engine import EXACT, engine_of
from llmctl.core.decode.native.layout import PANEL
from llmctl.core.decode.native.rows import NativeRows
from llmctl.core.decode.rows import Rows, rows_of
from llmctl.errors import UserError
from tests.core.decode.native.conftest import GRIDS, as_rounded, in_few_bits, off, scores, small, tokens, variant

CLOSE = 3e-6  # sums of float32 in another order


def test_rows_of_a_packed_model_are_native():
    model = small()
    assert type(rows_of(model)) is Rows
    engine_of(model)
    assert type(rows_of(model)) is NativeRows


@pytest.mark.parametrize("scheme", ["bf16", "int8", "int4"])
def test_a_row_beside_a_few_others_gets_the_very_scores_that_it_gets_alone(scheme, target):
    model = small(torch.bfloat16) if scheme == "bf16" else in_few_bits(GRIDS[scheme], torch.bfloat16)[0]
    texts = [tokens(length, seed=length) for length in (3, 4, 1, 8)]
    assert sum(map(len, texts)) == EXACT
    news = [tokens(2, seed=40 + number) for number in range(4)]
    rows = NativeRows(model)
    first, second, third = rows.add(texts), rows.step([new[0] for new in news]), rows.read([new[1:] for new in news])
    for number, (text, new) in enumerate(zip(texts, news, strict=True)):
        alone = NativeRows(model)
        assert bool((alone.add([text])[0] == first[number]).all())
        assert bool((alone.step([new[0]])[0] == second[number]).all())
        assert bool((alone.read([new[1:]])[0, 0] == third[number, 0]).all())


@pytest.mark.parametrize("scheme", ["bf16", "int8", "int4"])
def test_a_row_beside_many_others_gets_scores_as_near_as_the_models_own_pass(scheme, target):
    model, exact = in_few_bits(GRIDS[scheme], torch.bfloat16) if scheme != "bf16" else (small(torch.bfloat16),) * 2
    exact, texts = deepcopy(exact).float(), [tokens(5, seed=number) for number in range(2 * EXACT)]
    wanted = torch.cat([scores(exact, text)[-1:] for text in texts])
    own = torch.cat([scores(model, text)[-1:] for text in texts])
    rounded = torch.cat([scores(as_rounded(model, exact), text)[-1:] for text in texts])
    rows = NativeRows(model)
    rows.add([text[:-1] for text in texts])
    lost = hypot(off(own, wanted), off(rounded, wanted))  # by bf16, and by bytes that meet four bits
    assert off(rows.step([text[-1] for text in texts]), wanted) < 1.2 * lost


def test_drafts_are_checked_with_the_very_scores_of_single_steps(target):
    model, ids = small(torch.bfloat16), tokens(40)
    one, other = NativeRows(model), NativeRows(model)
    one.add([ids[:30]])
    other.add([ids[:30]])
    steps = torch.cat([one.step([token]) for token in ids[30:]])
    assert bool((other.read([ids[30:]])[0] == steps).all())


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_rows_are_cut_kept_doubled_and_read_on(name):
    model = variant(name)
    words = [tokens(length, 61, seed=length) for length in (9, 17, 4)]
    rows = NativeRows(model)
    rows.add(words)
    rows.keep([1, 1, 0])
    rows.cut([12, 17, 2])
    found = rows.read([[5, 6], [7], [8, 9, 10]])
    texts = [[*words[1][:12], 5, 6], words[1] + [7], [*words[0][:2], 8, 9, 10]]
    assert rows.texts == texts
    for part, text, count in zip(found, texts, (2, 1, 3), strict=True):
        assert off(part[:count], scores(model, text)[-count:]) < CLOSE
    assert off(rows.step([1, 2, 3])[1], scores(model, [*texts[1], 2])[-1]) < CLOSE


def test_doubled_rows_go_their_own_ways_over_the_ends_of_blocks():
    model, text = small(), tokens(PANEL + 5)
    rows = NativeRows(model)
    rows.add([text, text])
    rows.cut([PANEL - 2] * 2)
    rows.keep([0, 1, 0])
    news = [tokens(PANEL + 3, seed=seed) for seed in (2, 3, 4)]
    last = [rows.step([new[at] for new in news]) for at in range(PANEL + 3)][-1]
    for row, new in enumerate(news):
        assert off(last[row], scores(model, text[: PANEL - 2] + new)[-1]) < CLOSE


def test_beginnings_that_are_known_are_not_read_again(monkeypatch):
    model, same = small(), tokens(80)
    rows, read = NativeRows(model), []
    run = rows.engine.run
    monkeypatch.setattr(rows.engine, "run", lambda request, *rest: read.append(len(request.ids)) or run(request, *rest))
    found = rows.add([[*same, 1, 2], [*same, 3], [*same, 1, 2]])
    assert read == [82 + 81 - 80 // PANEL * PANEL]
    found = torch.cat((found, rows.add([[*same, 4, 5]])))
    for part, text in zip(found, [[1, 2], [3], [1, 2], [4, 5]], strict=True):
        assert off(part, scores(model, same + text)[-1]) < CLOSE
    held = rows.nbytes
    rows.keep([])
    assert rows.nbytes == 0 < held


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_prefixes_go_from_native_rows_to_others_and_back(dtype):
    model, ids = small(dtype, head_dim=40), tokens(70)
    native, stock = NativeRows(model), Rows(deepcopy(model))
    native.add([ids])
    stock.add([ids])
    one, other = native.snapshot(0, 67), stock.snapshot(0, 67)
    loss = {torch.float32: CLOSE, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for mine, theirs in zip(one.pairs, other.pairs, strict=True):
        assert all(x.dtype == dtype and off(x.float(), y.float()) < loss for x, y in zip(mine, theirs, strict=True))
    text = [*ids[:67], 9, 8]
    for prefix in (one, other):
        rows = NativeRows(model)
        rows.prefixes = [prefix]
        assert off(rows.add([text])[0], native.add([text])[0]) < loss
    stock.prefixes = [one]
    stock.keep([])
    assert off(stock.add([text])[0], native.add([text])[0]) < loss


def test_long_prompts_are_read_in_chunks():
    model, ids = small(context=2048), tokens(1200)
    assert off(NativeRows(model).add([ids])[0], scores(model, ids)[-1]) < 1e-5


def test_a_learned_position_too_many_is_an_error_of_the_user():
    model = variant("gpt2")
    rows = NativeRows(model)
    rows.add([tokens(32, 61)])
    with pytest.raises(UserError, match="positions end at 32"):
        rows.step([1])


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "neox", "bloom"])
def test_greedy_texts_are_those_of_the_stock_path(name):
    model = variant(name)
    prompts, texts = [[5, 9, 30], [7], [10, 4, 8, 2]], []
    for rows in (Rows(deepcopy(model)), NativeRows(model)):
        found = rows.add(prompts)
        for _ in range(40):
            found = rows.step(found.argmax(1).tolist())
        texts.append(rows.texts)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_what_is_out_of_a_window_is_let_go(name):
    model = variant(name)
    ids = tokens(300, 61)
    rows, texts = NativeRows(model), [ids, ids[:250], [*ids[:120], 3]]
    found = rows.add(texts)
    windowed = sum(model.config.window_of(layer) is not None for layer in range(2))
    before = rows.nbytes
    found = rows.step([7, 8, 9])
    for part, text, new in zip(found, texts, (7, 8, 9), strict=True):
        assert off(part, scores(model, [*text, new])[-1]) < CLOSE
    full = 2 * 2 * model.config.kv_heads * PANEL * PANEL * 4  # bytes of a block of both layers
    every = sum(-(-len(text) // PANEL) for text in rows.texts) * full
    assert before <= every * (1 - 0.4 * windowed / 2)
    rows.cut([290, 251, 100])
    assert off(rows.step([5, 6, 7])[0], scores(model, [*ids[:290], 5])[-1]) < CLOSE
    assert rows.snapshot(0, 250) is None
    with pytest.raises(ValueError, match="go back"):
        rows.cut([40, 40, 40])
    assert off(rows.add([[*ids[:280], 1]])[0], scores(model, [*ids[:280], 1])[-1]) < CLOSE
