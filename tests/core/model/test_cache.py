"""The cache: reading in parts equals reading at once, for every kind of position."""

import pytest
import torch

from llmctl.core.model.cache import KVCache
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from tests.core.variants import VARIANTS

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # fp32; sums in another order


@pytest.fixture(params=VARIANTS)
def model(request):
    with torch.no_grad():
        yield initialise(Transformer(VARIANTS[request.param]), 0).eval()


def drawn(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("parts", [[1] * 20, [12, 1, 1, 6], [5, 5, 5, 5]], ids=["steps", "prefill", "chunks"])
def test_cached_equals_uncached(model, parts):
    tokens = drawn(3, 20)
    cache = KVCache.allocate(model.config, 3, 24)
    found = torch.cat([model(part, cache=cache) for part in tokens.split(parts, dim=1)], dim=1)
    torch.testing.assert_close(found, model(tokens), **CLOSE)
    assert cache.length == 20


def test_a_batch_padded_on_the_left_equals_its_rows_alone(model):
    rows = [drawn(1, 9), drawn(1, 4), drawn(1, 1)]
    longest = 9
    tokens = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in rows])
    lengths = torch.tensor([[row.shape[1]] for row in rows])
    slots = torch.arange(longest) - (longest - lengths)  # (3, 9)
    cache = KVCache.allocate(model.config, 3, 12)
    hidden = model(tokens, positions=slots.clamp(min=0), segments=(slots >= 0).long(), cache=cache)
    assert hidden.isfinite().all()
    steps = drawn(3, 3)
    later = [
        model(steps[:, i : i + 1], positions=lengths + i, segments=None if i else torch.ones(3, 1).long(), cache=cache)
        for i in range(3)
    ]
    for i, row in enumerate(rows):
        alone = model(torch.cat([row, steps[i : i + 1]], dim=1))[0]
        torch.testing.assert_close(hidden[i, -row.shape[1] :], alone[:-3], **CLOSE)
        torch.testing.assert_close(torch.cat(later, dim=1)[i], alone[-3:], **CLOSE)


def test_truncating_forgets_and_reading_on_equals_reading_that_from_the_start(model):
    tokens, other = drawn(2, 14), drawn(2, 20)[:, 14:]
    cache = KVCache.allocate(model.config, 2, 20)
    model(tokens, cache=cache)
    cache.truncate(8)
    found = model(other, cache=cache)
    torch.testing.assert_close(found, model(torch.cat([tokens[:, :8], other], dim=1))[:, 8:], **CLOSE)


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
