"""Linear attention: three forms of one sum; a state that stands for all tokens before, in the model too."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.decode.generate import generate
from llmctl.core.model.cache import KVCache, LinearState, cache_for
from llmctl.core.model.init import initialise
from llmctl.core.model.linear import Features, chunked, parallel, phi, recurrent
from llmctl.core.model.position import Rotary, rotate
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.families import fitted, native
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # fp32; sums in another order
HEADS = [(4, 4), (4, 2), (4, 1)]
LENGTHS = [1, 5, 8, 9, 30]  # chunks of 8: within one, one, one and a bit, several
BASE = {"vocab": 61, "width": 24, "layers": 2, "heads": 4, "ff": 40, "context": 32, "init_std": 0.2}
LINEAR = BASE | {"attention": "linear", "model_type": "llmctl"}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given(heads: int, kv_heads: int, tokens: int, segments: Tensor | None = None, turned: bool = False):
    """Features of queries and keys, and values, of two rows; heads of 6 channels."""
    q, k, v = (drawn(2, n, tokens, 6, seed=seed) for seed, n in enumerate((heads, kv_heads, kv_heads)))
    turn = None
    if turned:
        rotary = Rotary(ModelConfig(**(LINEAR | {"width": 24})), "global")
        angles = rotary(torch.arange(tokens)[None], torch.float32)
        turn = lambda x: rotate(x, angles)  # noqa: E731
    return Features.of(q, k, segments, turn), v


def rows(tokens: int) -> dict[str, Tensor | None]:
    """Segments of two rows: none, documents, padding on either side and between, a row of nothing but padding."""
    packed = torch.arange(tokens).mul(5).div(tokens, rounding_mode="floor").long() + 1
    gaps = packed * (torch.arange(tokens) % 4 != 1)
    left = (torch.arange(tokens) >= tokens // 3).long()
    return {
        "one document": None,
        "packed": torch.stack([packed, packed.clamp(max=2)]),
        "padded": torch.stack([left, left.flip(0)]),
        "gaps": torch.stack([gaps, torch.zeros_like(gaps)]),
    }


def test_phi_is_elu_plus_one_and_so_is_its_gradient():
    x = torch.linspace(-5, 5, 41).requires_grad_()
    torch.testing.assert_close(phi(x), F.elu(x) + 1)
    ours, theirs = (torch.autograd.grad(made.sum(), x)[0] for made in (phi(x), F.elu(x) + 1))
    torch.testing.assert_close(ours, theirs)
    assert phi(torch.tensor(-60.0)) > 0  # elu + 1 in two steps would be 0


def test_a_case_by_hand():
    q, k = torch.tensor([[0.0], [1.0]])[None, None], torch.tensor([[0.0], [2.0]])[None, None]  # phi: 1, 2 and 1, 3
    v = torch.tensor([[10.0], [20.0]])[None, None]
    seen = parallel(Features.of(q, k), v)
    assert seen.weights.flatten().tolist() == [1, 0, 0.25, 0.75]
    assert seen.out.flatten().tolist() == [10, 17.5]
    assert seen.scores.flatten().tolist() == [1, 3, 2, 6] and seen.masked.flatten().tolist() == [1, 0, 2, 6]


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_parallel_equals_recurrent_equals_chunked(heads, kv_heads, tokens, turned):
    for segments in rows(tokens).values():
        f, v = given(heads, kv_heads, tokens, segments, turned)
        expected = parallel(f, v, segments).out
        torch.testing.assert_close(recurrent(f, v, segments)[0], expected, **CLOSE)
        torch.testing.assert_close(chunked(f, v, segments, size=8)[0], expected, **CLOSE)


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "rotary"])
@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_both_ways_chunked_equals_parallel(heads, kv_heads, tokens, turned):
    for segments in rows(tokens).values():
        f, v = given(heads, kv_heads, tokens, segments, turned)
        found, _ = chunked(f, v, segments, causal=False, size=8)
        torch.testing.assert_close(found, parallel(f, v, segments, causal=False).out, **CLOSE)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["one document", "packed", "padded", "gaps"])
def test_gradients_of_the_chunked_form_are_those_of_the_parallel_form(kind, causal):
    segments = rows(30)[kind]
    leaves = [drawn(2, n, 30, 6, seed=n).requires_grad_() for n in (4, 2, 2)]
    toward = drawn(2, 4, 30, 6, seed=9)

    def gradients(form) -> tuple[Tensor, ...]:
        out = form(Features.of(*leaves[:2], segments), leaves[2])
        return torch.autograd.grad((out * toward).sum(), leaves)

    ours = gradients(lambda f, v: chunked(f, v, segments, causal, size=8)[0])
    theirs = gradients(lambda f, v: parallel(f, v, segments, causal).out)
    for one, other in zip(ours, theirs, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("cut", [1, 8, 13, 29])
@pytest.mark.parametrize("form", [recurrent, chunked])
def test_reading_on_from_the_sums_equals_reading_all(form, cut):
    f, v = given(4, 2, 30, turned=True)
    parts = [(Features(*(x[:, :, part] for x in f)), v[:, :, part]) for part in (slice(0, cut), slice(cut, 30))]
    first, start = form(*parts[0])
    found = torch.cat([first, form(*parts[1], start=start)[0]], dim=2)
    torch.testing.assert_close(found, parallel(f, v).out, **CLOSE)


def test_tiny_features_still_give_a_mean_of_the_values():
    """Channels at -12 make normalisers of 1e-9, which an epsilon of 1e-6 would drown."""
    q, v = torch.full((1, 1, 20, 4), -12.0), torch.ones(1, 1, 20, 4)
    f = Features.of(q, q)
    for out in (parallel(f, v).out, recurrent(f, v)[0], chunked(f, v, size=8)[0]):
        torch.testing.assert_close(out, v, **CLOSE)


def test_it_works_in_bf16_and_keeps_its_sums_in_fp32():
    f, v = given(4, 2, 300)
    exact = parallel(f, v).out
    half = Features(*(x.bfloat16() for x in f))
    found, sums = chunked(half, v.bfloat16())
    assert found.dtype == torch.bfloat16 and sums.values.dtype == sums.keys.dtype == torch.float32
    torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)  # bf16 has 8 bits


# In the model

CONFIGS = {
    "rope": ModelConfig(**LINEAR, kv_heads=2),
    "none": ModelConfig(**LINEAR, position="none", qk_norm=True),
    "learned": ModelConfig(**LINEAR, position="learned", norm="layer", gated=False),
    "sinusoidal": ModelConfig(**LINEAR, position="sinusoidal", kv_heads=1, out_bias=True),
}


@pytest.fixture(params=CONFIGS)
def model(request):
    with torch.no_grad():
        yield initialise(Transformer(CONFIGS[request.param]), 0).eval()


def tokens_of(rows: int, length: int) -> Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("parts", [[1] * 20, [12, 1, 1, 6], [5, 5, 5, 5]], ids=["steps", "prefill", "chunks"])
def test_cached_equals_uncached(model, parts):
    tokens = tokens_of(3, 20)
    cache = cache_for(model.config, 3, 24)
    found = torch.cat([model(part, cache=cache) for part in tokens.split(parts, dim=1)], dim=1)
    torch.testing.assert_close(found, model(tokens), **CLOSE)
    assert cache.length == 20


def test_a_batch_padded_on_the_right_equals_its_rows_alone(model):
    prompts = [tokens_of(1, 9), tokens_of(1, 4), tokens_of(1, 1)]
    tokens = torch.cat([F.pad(row, (0, 9 - row.shape[1]), value=7) for row in prompts])
    counts = torch.tensor([[row.shape[1]] for row in prompts])
    cache = cache_for(model.config, 3, 12)
    hidden = model(tokens, segments=(torch.arange(9) < counts).long(), cache=cache)
    steps = tokens_of(3, 3)
    later = [model(steps[:, i : i + 1], cache=cache) for i in range(3)]
    for i, row in enumerate(prompts):
        alone = model(torch.cat([row, steps[i : i + 1]], dim=1))[0]
        torch.testing.assert_close(hidden[i, : row.shape[1]], alone[:-3], **CLOSE)
        torch.testing.assert_close(torch.cat(later, dim=1)[i], alone[-3:], **CLOSE)


def test_packed_documents_equal_the_documents_alone(model):
    tokens, lengths = tokens_of(1, 24), (11, 6, 7)
    segments = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    found = model(tokens, positions=positions, segments=segments)
    alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(found, alone, **CLOSE)


def test_an_encoder_sees_both_ways_and_no_padding():
    with torch.no_grad():
        model = initialise(Transformer(ModelConfig(**LINEAR, kind="encoder")), 0).eval()
        tokens = tokens_of(2, 10)
        segments = torch.ones(2, 10).long()
        segments[1, 6:] = 0
        found = model(tokens, segments=segments)
        torch.testing.assert_close(found[0], model(tokens[:1])[0], **CLOSE)
        torch.testing.assert_close(found[1, :6], model(tokens[1:, :6])[0], **CLOSE)
        other = tokens.clone()
        other[0, 9] += 1
        assert (model(other)[0, 0] - model(tokens)[0, 0]).abs().max() > 1e-4


def test_an_encoder_decoder_reads_its_source_by_softmax_and_itself_by_sums():
    from llmctl.core.model.memory import EncoderInput

    with torch.no_grad():
        model = initialise(Transformer(ModelConfig(**LINEAR, kind="encoder-decoder")), 0).eval()
        source, tokens = tokens_of(2, 7), tokens_of(2, 9)
        whole = model(tokens, encoder=EncoderInput(source))
        memory, cache = model.encode(source), cache_for(model.config, 2, 9)
        steps = [model(tokens[:, i : i + 1], cache=cache, memory=memory) for i in range(9)]
        torch.testing.assert_close(torch.cat(steps, dim=1), whole, **CLOSE)


def test_positions_that_are_rotary_turn_distances_alone():
    """Source: Su et al., arXiv:2104.09864: a shift of all positions changes nothing."""
    with torch.no_grad():
        model = initialise(Transformer(CONFIGS["rope"]), 0).eval()
        tokens = tokens_of(1, 12)
        shifted = model(tokens, positions=torch.arange(12)[None] + 17)
        torch.testing.assert_close(shifted, model(tokens), **CLOSE)
        spread = model(tokens, positions=torch.arange(12)[None] * 3)
        assert (spread - model(tokens)).abs().max() > 1e-3


def test_the_size_of_the_state_knows_nothing_of_the_length():
    config = CONFIGS["rope"]
    state = cache_for(config, 3, 7, dtype=torch.bfloat16)
    assert isinstance(state, LinearState) and isinstance(cache_for(ModelConfig(**BASE), 1, 7), KVCache)
    assert state.values.shape == (2, 3, 2, 6, 6) and state.keys.shape == (2, 3, 2, 6)
    assert state.values.dtype == state.keys.dtype == torch.float32
    with torch.no_grad():
        model = initialise(Transformer(config), 0).eval()
        model(tokens_of(3, 31), cache=state)
    assert state.values.shape == (2, 3, 2, 6, 6) and state.length == 31 < state.capacity


def test_a_state_does_not_go_back():
    state = cache_for(CONFIGS["none"], 1, 8)
    state.open(5, None, torch.device("cpu"))
    state.advance()
    state.truncate(5)
    with pytest.raises(ValueError, match=r"of \[5\] tokens cannot go back to \[4\]"):
        state.truncate(4)
    with pytest.raises(ValueError, match="one document"):
        state.open(2, torch.tensor([[1, 2]]), torch.device("cpu"))


def test_generation_in_a_batch_equals_generation_alone(model):
    prompts = [[5, 6, 7, 8, 9], [11], [5, 6, 7, 8, 9], [20, 21, 22]]
    sampling = Sampling(max_tokens=12, temperature=0)

    def written(prompts: list[list[int]]) -> list[list[int]]:
        rows: list[list[int]] = [[] for _ in prompts]
        for token in generate(model, prompts, sampling, [1] * len(prompts), eos=frozenset({3, 14, 15})):
            rows[token.row].append(token.id)
        return rows

    assert written(prompts) == [written([prompt])[0] for prompt in prompts]


def test_training_reduces_the_loss():
    model = initialise(Transformer(ModelConfig(**(LINEAR | {"init_std": 0.05}))), 0)
    tokens = tokens_of(4, 30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        logits = model.head(model(tokens[:, :-1]))
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses


@pytest.mark.parametrize(
    "field",
    [{"position": "alibi"}, {"position": "relative"}, {"window": 4}, {"attention_softcap": 5.0}, {"prefix_lm": True}],
    ids=str,
)
def test_what_needs_a_score_for_each_pair_is_refused(field):
    with pytest.raises(UserError, match="linear attention has no"):
        ModelConfig(**LINEAR, **field)


def test_a_prefix_is_refused():
    model = Transformer(CONFIGS["none"])
    with pytest.raises(ValueError, match="prefix"):
        model(tokens_of(1, 4), prefix=torch.ones(1, 4, dtype=torch.bool))


def test_a_model_with_linear_attention_is_written_as_native():
    config = fitted(ModelConfig(**BASE, attention="linear", model_type="llama"))
    assert config.model_type == "llmctl" and native.to_config(native.to_json(config)) == config
