"""Keys and values in 8 and 4 bits: what is read from the cache, what it takes, and what it costs."""

import math

import pytest
import torch
from torch import Tensor

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.data.shards import Tokens
from llmctl.core.model.cache import KVCache
from llmctl.core.model.coded import WINDOW, CodedCache
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig

CONFIG = ModelConfig(
    vocab=61, width=128, layers=2, heads=2, kv_heads=1, head_dim=64, ff=64, context=128, init_std=0.3, tie=False
)


def rounded(x: Tensor, bits: int) -> Tensor:
    """x (..., D) as its codes have it, by the formulas: 8 bits a head, 4 bits each 32 channels with a least value."""
    x, dtype = x.float(), x.dtype
    if bits == 8:
        scale = (x.abs().amax(-1, keepdim=True) / 127).half().float()
        return ((x * (1 / scale)).round().clamp(-127, 127) * scale).to(dtype)
    parts = x.unflatten(-1, (-1, 32))
    least = parts.amin(-1, keepdim=True).half().float()
    scale = ((parts.amax(-1, keepdim=True) - parts.amin(-1, keepdim=True)) / 15).half().float()
    return (((parts - least) * (1 / scale)).round().clamp(0, 15) * scale + least).flatten(-2).to(dtype)


def attending(bits: int):
    """Attention of a whole row in which each token sees those before its window as their codes have them."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask, scale: float, dropout: float, softcap: float | None) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        place = torch.arange(k.shape[2])
        far = place[None, :] < place[:, None] - WINDOW
        scores = torch.where(far, q @ rounded(k, bits).mT, q @ k.mT) * scale
        weights = scores.masked_fill(place[None, :] > place[:, None], -torch.inf).softmax(-1)
        return weights.masked_fill(far, 0) @ v + weights.masked_fill(~far, 0) @ rounded(v, bits)

    return attend


def read(model: Transformer, tokens: Tensor, cache: CodedCache | KVCache) -> Tensor:
    """(B, T, V) the scores after each token, read one by one."""
    rows = []
    for place in range(tokens.shape[1]):
        hidden = model(tokens[:, place : place + 1], positions=torch.tensor([[place]]), cache=cache)
        rows.append(model.head(hidden).float())
    return torch.cat(rows, 1)


@pytest.mark.parametrize("bits", [8, 4])
@torch.inference_mode()
def test_tokens_read_one_by_one_see_what_a_whole_row_with_rounded_keys_and_values_does(bits):
    model = initialise(Transformer(CONFIG), 0).eval().double()  # or a code in a thousand is rounded otherwise
    tokens = torch.randint(0, 61, (2, 56), generator=torch.Generator().manual_seed(1))
    cached = read(model, tokens, CodedCache.allocate(CONFIG, 2, 56, bits, dtype=torch.float64))
    plain = model.head(model(tokens)).float()
    for layer in model.decoder.layers.values():
        layer.attention.attend = attending(bits)
    whole = model.head(model(tokens)).float()
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(whole[:, : WINDOW + 1], plain[:, : WINDOW + 1], rtol=0, atol=1e-4)
    assert (whole - plain)[:, WINDOW + 1 :].abs().max() > 1e-3  # the rounding is there to be seen


@pytest.mark.parametrize("bits", [8, 4])
@torch.inference_mode()
def test_a_prompt_is_read_at_once_as_without_codes_and_rows_are_chosen_moved_and_grown(bits):
    model = initialise(Transformer(CONFIG), 0).eval()
    tokens = torch.randint(0, 61, (3, 70), generator=torch.Generator().manual_seed(2))
    cache, plain = CodedCache.allocate(CONFIG, 3, 50, bits), KVCache.allocate(CONFIG, 3, 50)
    one, other = (model(tokens[:, :50], cache=held) for held in (cache, plain))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    cache.grow(80)
    cache.keep([2, 0, 0])
    cache.keep([0, 2])
    steps = {"positions": torch.arange(50, 51)[None], "cache": cache}
    both = model(tokens[[2, 0], 50:51], **steps)
    for row, source in enumerate((2, 0)):
        alone = CodedCache.allocate(CONFIG, 1, 80, bits)
        model(tokens[source : source + 1, :50], cache=alone)
        single = model(tokens[source : source + 1, 50:51], positions=steps["positions"], cache=alone)
        torch.testing.assert_close(both[row : row + 1], single, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_what_is_forgotten_can_be_read_again():
    model = initialise(Transformer(CONFIG), 0).eval()
    tokens = torch.randint(0, 61, (1, 60), generator=torch.Generator().manual_seed(3))
    cache = CodedCache.allocate(CONFIG, 1, 60, 8)
    first = read(model, tokens[:, :50], cache)
    cache.truncate(45)
    again = model(tokens[:, 45:46], positions=torch.tensor([[45]]), cache=cache)
    assert cache.lengths == [46]
    torch.testing.assert_close(model.head(again).float()[:, 0], first[:, 45], rtol=0, atol=1e-5)  # as they were
    with pytest.raises(ValueError, match="cannot keep"):
        cache.truncate(50)


def test_eight_bits_take_half_of_sixteen_and_four_bits_a_third_beside_the_window():
    held = KVCache.allocate(CONFIG, 1, 8192, dtype=torch.bfloat16).nbytes

    def taken(bits: int) -> int:
        return CodedCache.allocate(CONFIG, 1, 8192, bits, dtype=torch.bfloat16).nbytes

    assert taken(8) < 0.53 * held
    assert taken(4) < 0.33 * held


@torch.inference_mode()
def test_text_is_as_likely_with_eight_bits_and_nearly_so_with_four(learned):
    """METHODS.md 1.1: perplexity rises by 0.1 % at most with 8 bits, by 0.5 % with 4."""
    model = Checkpoint.open(learned.path).model()
    ids = Tokens.open(learned.tokens).splits["heldout"].read(0, 8 * 129)
    tokens = torch.from_numpy(ids.astype("int64")).view(8, 129)

    def perplexity(cache: CodedCache | KVCache) -> float:
        scores = read(model, tokens[:, :-1], cache).log_softmax(-1)
        return math.exp(-float(scores.gather(2, tokens[:, 1:, None])[:, WINDOW:].mean()))

    before = perplexity(KVCache.allocate(model.config, 8, 128))
    assert perplexity(CodedCache.allocate(model.config, 8, 128, 8)) <= before * 1.001
    assert perplexity(CodedCache.allocate(model.config, 8, 128, 4)) <= before * 1.005


@pytest.mark.parametrize("bits", [8, 4])
@torch.inference_mode()
def test_a_short_row_beside_a_long_one_does_not_see_what_memory_held_before(bits):
    """Slots that no token was written to were left as they came, now and then NaN, of which nothing is 0 times."""
    model = initialise(Transformer(CONFIG), 0).eval()
    tokens = torch.randint(0, 61, (2, 60), generator=torch.Generator().manual_seed(4))
    torch.use_deterministic_algorithms(True)  # memory that is not set is full of NaN then
    try:
        assert torch.empty(3).isnan().all()
        cache = CodedCache.allocate(CONFIG, 1, 50, bits)
        model(tokens[:1, :50], cache=cache)
        cache.add(1)
        cache.grow(90)
        part = cache.rows(1, 2)
        model(tokens[1:, :3], cache=part)
        cache.took(part, 1)
        both = model(tokens[:, 50:51], cache=cache)
        alone = CodedCache.allocate(CONFIG, 1, 50, bits)
        model(tokens[1:, :3], cache=alone)
        torch.testing.assert_close(both[1:], model(tokens[1:, 50:51], cache=alone), rtol=0, atol=1e-5)
    finally:
        torch.use_deterministic_algorithms(False)
