"""The cache: reading in parts equals reading at once, for every kind of position."""

from dataclasses import replace

import pytest
import torch

from llmctl.core.model.cache import KVCache, cache_for
from llmctl.core.model.init import initialise
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.slots import CHUNK, SLACK
from llmctl.core.model.transformer import Transformer
from tests.core.variants import DECODERS, ENCODER_DECODERS, VARIANTS

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # fp32; sums in another order


@pytest.fixture(params=DECODERS | ENCODER_DECODERS)
def model(request):
    with torch.no_grad():
        yield initialise(Transformer(VARIANTS[request.param]), 0).eval()


def drawn(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(2))


def sources(model: Transformer, rows: int) -> list[dict]:
    """What reading at once and reading with a cache take besides tokens: the same sources, of unequal lengths."""
    if model.encoder_embed is None:
        return [{}, {}]
    read = EncoderInput(drawn(rows, 6), None, (torch.arange(6) < 6 - torch.arange(rows)[:, None]).long())
    return [{"encoder": read}, {"memory": model.encode(*read)}]


@pytest.mark.parametrize("parts", [[1] * 20, [12, 1, 1, 6], [5, 5, 5, 5]], ids=["steps", "prefill", "chunks"])
def test_cached_equals_uncached(model, parts):
    tokens, (whole, kept) = drawn(3, 20), sources(model, 3)
    cache = cache_for(model.config, 3, 24)
    found = torch.cat([model(part, cache=cache, **kept) for part in tokens.split(parts, dim=1)], dim=1)
    torch.testing.assert_close(found, model(tokens, **whole), **CLOSE)
    assert cache.length == 20


def test_a_batch_padded_on_the_right_equals_its_rows_alone(model):
    rows, counts = [drawn(1, 9), drawn(1, 4), drawn(1, 1)], [9, 4, 1]
    tokens = torch.cat([torch.nn.functional.pad(row, (0, 9 - row.shape[1])) for row in rows])
    whole, kept = sources(model, 3)
    cache = cache_for(model.config, 3, 13)
    hidden = model(tokens, segments=(torch.arange(9) < torch.tensor(counts)[:, None]).long(), cache=cache, **kept)
    assert hidden.isfinite().all() and cache.lengths == counts
    steps = drawn(3, 4)
    later = [model(part, cache=cache, **kept) for part in steps.split([1, 1, 2], dim=1)]
    for i, row in enumerate(rows):
        own = {name: EncoderInput(one.tokens[i : i + 1], None, one.segments[i : i + 1]) for name, one in whole.items()}
        alone = model(torch.cat([row, steps[i : i + 1]], dim=1), **own)[0]
        torch.testing.assert_close(hidden[i, : row.shape[1]], alone[:-4], **CLOSE)
        torch.testing.assert_close(torch.cat(later, dim=1)[i], alone[-4:], **CLOSE)


def test_rows_that_are_taken_out_go_on_as_they_would_have(model):
    """As when texts end, and in beam search."""
    tokens, (_, kept) = drawn(3, 9), sources(model, 3)
    cache = cache_for(model.config, 3, 12)
    model(tokens[:, :6], cache=cache, **kept)
    left = torch.tensor([2, 0, 2, 1])
    memory = {name: one.select(left) for name, one in kept.items()}
    expected = model(tokens, **sources(model, 3)[0])[left, 6:]
    cache.keep(left.tolist())
    torch.testing.assert_close(model(tokens[left, 6:8], cache=cache, **memory), expected[:, :2], **CLOSE)
    cache.keep([1, 3])
    memory = {name: one.select(torch.tensor([0, 1])) for name, one in kept.items()}
    torch.testing.assert_close(model(tokens[:2, 8:], cache=cache, **memory), expected[[1, 3], 2:], **CLOSE)


@torch.no_grad()
def test_rows_that_move_both_ways_at_once_do_not_write_over_each_other():
    """Rows 1 to 3 were moved one after the other: the last found the row that the second had put in its place."""
    model, tokens = initialise(Transformer(VARIANTS["llama"]), 0).eval(), drawn(5, 7)
    expected = model(tokens)[:, 6]
    for places in ([1, 1, 2, 2, 3], [1, 2, 3, 4], [4, 0, 1, 2, 3], [0, 2, 4]):
        cache = cache_for(model.config, 5, 8)
        model(tokens[:, :6], cache=cache)
        cache.keep(places)
        torch.testing.assert_close(model(tokens[places, 6:], cache=cache)[:, 0], expected[places], **CLOSE)


@pytest.mark.parametrize("model", DECODERS, indirect=True)
def test_rows_that_enter_later_and_rows_that_are_read_alone_are_as_if_they_had_been_alone(model):
    """As in continuous batching."""
    tokens = drawn(3, 9)
    expected = model(tokens)
    cache = cache_for(model.config, 1, 8)
    model(tokens[:1, :6], cache=cache)
    cache.grow(12)
    cache.add(2)
    part = cache.rows(1, 3)
    first = model(tokens[1:, :4], cache=part)
    cache.took(part, 1)
    assert cache.lengths == [6, 4, 4]
    torch.testing.assert_close(first, expected[1:, :4], **CLOSE)
    for step in range(3):
        ids = torch.stack([tokens[0, 6 + step], *tokens[1:, 4 + step]])
        found = model(ids[:, None], cache=cache)[:, 0]
        torch.testing.assert_close(found[0], expected[0, 6 + step], **CLOSE)
        torch.testing.assert_close(found[1:], expected[1:, 4 + step], **CLOSE)


def test_truncating_forgets_and_reading_on_equals_reading_that_from_the_start(model):
    tokens, other, (whole, kept) = drawn(2, 14), drawn(2, 20)[:, 14:], sources(model, 2)
    cache = cache_for(model.config, 2, 20)
    model(tokens, cache=cache, **kept)
    if model.config.attention == "linear":  # sums forget nothing, and say so
        with pytest.raises(ValueError, match=r"cannot go back to \[8, 8\]"):
            cache.truncate(8)
        return
    cache.truncate(8)
    found = model(other, cache=cache, **kept)
    torch.testing.assert_close(found, model(torch.cat([tokens[:, :8], other], dim=1), **whole)[:, 8:], **CLOSE)


def test_more_tokens_than_fit_are_refused_before_anything_is_written():
    model = initialise(Transformer(VARIANTS["llama"]), 0)
    cache = KVCache.allocate(model.config, 1, 4)
    with torch.no_grad():
        model(drawn(1, 3), cache=cache)
        with pytest.raises(ValueError, match="5 tokens do not fit in a cache of 4"):
            model(drawn(1, 2), cache=cache)
    assert cache.length == 3
    with pytest.raises(ValueError, match="cannot keep 4 of 3"):
        cache.truncate(4)


def test_its_size_is_two_tensors_of_layers_heads_slots_and_channels():
    cache = KVCache.allocate(VARIANTS["qwen3"], 3, 7, dtype=torch.bfloat16)
    assert [one.shape for one in (*cache.keys, *cache.values)] == [(3, 2, 7, 16)] * 4
    assert cache.keys[0].dtype == torch.bfloat16 and cache.capacity == 7


def windowed(rows: int = 1) -> tuple[Transformer, KVCache]:
    """A model of three layers, two with a window of 20, whose cache has room for more than they keep."""
    config = replace(VARIANTS["mistral"], layers=3, window=20, window_layers=(0, 2))
    model = initialise(Transformer(config), 0).eval()
    return model, KVCache.allocate(config, rows, 2000)


@torch.no_grad()
def test_layers_with_a_window_keep_no_more_than_they_see_and_give_what_they_gave():
    model, cache = windowed()
    assert [one.shape[2] for one in cache.keys] == [20 + SLACK + CHUNK, 2000, 20 + SLACK + CHUNK]
    tokens = drawn(1, 1400)
    found = [model(part, cache=cache) for part in tokens.split([500, 512, 1, 1, 100, 1, 1, 1, 283], dim=1)]
    torch.testing.assert_close(torch.cat(found, 1), model(tokens), **CLOSE)
    assert cache.first[0] > 0


@torch.no_grad()
def test_rows_of_unequal_length_drop_each_what_it_does_not_see_and_go_back_within_the_slack():
    model, cache = windowed(2)
    tokens = drawn(2, 1300)
    expected = model(tokens)
    part = cache.rows(0, 1)
    for piece in tokens[:1, :900].split(450, dim=1):
        model(piece, cache=part)
    cache.took(part, 0)
    for start in range(0, 400, 100):
        ids = torch.stack([tokens[0, 900 + start : 1000 + start], tokens[1, start : start + 100]])
        found = model(ids, cache=cache)
        torch.testing.assert_close(found[0], expected[0, 900 + start : 1000 + start], **CLOSE)
        torch.testing.assert_close(found[1], expected[1, start : start + 100], **CLOSE)
    cache.cut([1300 - SLACK, 400 - 7])
    ids = torch.stack([tokens[0, 1300 - SLACK], tokens[1, 400 - 7]])[:, None]
    found = model(ids, cache=cache)[:, 0]
    torch.testing.assert_close(found[0], expected[0, 1300 - SLACK], **CLOSE)
    torch.testing.assert_close(found[1], expected[1, 400 - 7], **CLOSE)
    with pytest.raises(ValueError, match=r"cannot go back from .* to 100 tokens"):
        cache.cut([100, 100])
