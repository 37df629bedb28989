"""The cache: reading in parts equals reading at once, for every kind of position."""

import pytest
import torch

from llmctl.core.model.cache import KVCache, cache_for
from llmctl.core.model.init import initialise
from llmctl.core.model.memory import EncoderInput
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


def test_a_batch_padded_on_the_left_equals_its_rows_alone(model):
    rows = [drawn(1, 9), drawn(1, 4), drawn(1, 1)]
    longest = 9
    tokens = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in rows])
    lengths = torch.tensor([[row.shape[1]] for row in rows])
    slots = torch.arange(longest) - (longest - lengths)  # (3, 9)
    whole, kept = sources(model, 3)
    cache = cache_for(model.config, 3, 12)
    hidden = model(tokens, positions=slots.clamp(min=0), segments=(slots >= 0).long(), cache=cache, **kept)
    assert hidden.isfinite().all()
    steps = drawn(3, 3)
    later = [
        model(
            steps[:, i : i + 1],
            positions=lengths + i,
            segments=None if i else torch.ones(3, 1).long(),
            cache=cache,
            **kept,
        )
        for i in range(3)
    ]
    for i, row in enumerate(rows):
        own = {name: EncoderInput(one.tokens[i : i + 1], None, one.segments[i : i + 1]) for name, one in whole.items()}
        alone = model(torch.cat([row, steps[i : i + 1]], dim=1), **own)[0]
        torch.testing.assert_close(hidden[i, -row.shape[1] :], alone[:-3], **CLOSE)
        torch.testing.assert_close(torch.cat(later, dim=1)[i], alone[-3:], **CLOSE)


def test_rows_that_are_taken_out_go_on_as_they_would_have(model):
    """As when texts end, and in beam search."""
    tokens, (_, kept) = drawn(3, 9), sources(model, 3)
    cache = cache_for(model.config, 3, 12)
    model(tokens[:, :6], cache=cache, **kept)
    left = torch.tensor([2, 0, 2])
    fewer, memory = cache.select(left), {name: one.select(left) for name, one in kept.items()}
    expected = model(tokens[:, 6:], cache=cache, **kept)[left]
    torch.testing.assert_close(model(tokens[left, 6:], cache=fewer, **memory), expected, **CLOSE)


def test_truncating_forgets_and_reading_on_equals_reading_that_from_the_start(model):
    tokens, other, (whole, kept) = drawn(2, 14), drawn(2, 20)[:, 14:], sources(model, 2)
    cache = cache_for(model.config, 2, 20)
    model(tokens, cache=cache, **kept)
    if model.config.attention == "linear":  # sums forget nothing, and say so
        with pytest.raises(ValueError, match="cannot go back to 8"):
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
    assert cache.keys.shape == cache.values.shape == (2, 3, 2, 7, 16)
    assert cache.keys.dtype == torch.bfloat16 and cache.capacity == 7
