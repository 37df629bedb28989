"""Attention under watch: what is recorded is what the model computes, and the model does not notice."""

import pytest
import torch

from llmctl.core.model.attend import attend
from llmctl.core.model.init import initialise
from llmctl.core.model.look import attentions, pooled, watch
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from tests.core.variants import BASE, VARIANTS

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # fp32; sums in another order
BOTH = ModelConfig(**BASE, kind="encoder-decoder", encoder_layers=3, position="relative", kv_heads=2)
CONFIGS = VARIANTS | {
    "encoder": ModelConfig(**BASE, kind="encoder", norm_place="post", position="learned"),
    "capped": ModelConfig(**BASE, attention_softcap=2.0, kv_heads=2, window=4, window_layers=(0,)),
    "linear": ModelConfig(**BASE, attention="linear", kv_heads=2, model_type="llmctl"),
}
CONFIGS = {name: config for name, config in CONFIGS.items() if config.kind != "encoder-decoder"}


def made(config: ModelConfig) -> Transformer:
    return initialise(Transformer(config), 0).eval()


def tokens_of(length: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CONFIGS)
def model(request):
    with torch.no_grad():
        yield made(CONFIGS[request.param])


def test_a_watched_model_computes_the_same_bits(model):
    tokens = tokens_of(12)
    side = model.config.kind
    before = {layer: one.attend for layer, one in attentions(model, side).items()}
    expected = model(tokens)
    with watch(model, side) as views:
        found = model(tokens)
    assert torch.equal(found, expected)
    assert [view.layer for view in views] == [0, 1]
    assert {layer: one.attend for layer, one in attentions(model, side).items()} == before


def test_the_recorded_weights_make_the_outputs_of_the_fast_kernel(model):
    """weights v, by hand, against what `attend` gave the model."""
    given = []
    for one in attentions(model, model.config.kind).values():

        def listening(*args, attend=one.attend):
            given.append((args, attend(*args)))
            return given[-1][1]

        one.attend = listening
    with watch(model, model.config.kind) as views:
        model(tokens_of(12))
    for (args, out), view in zip(given, views, strict=True):
        v = args[1] if model.config.attention == "linear" else args[2]
        v = v.repeat_interleave(model.config.heads // v.shape[1], dim=1)
        torch.testing.assert_close(view.weights @ v, out, **CLOSE)


def test_scores_become_masked_scores_become_weights(model):
    config = model.config
    with watch(model, config.kind) as views:
        model(tokens_of(12))
    for view in views:
        assert view.scores.shape == view.masked.shape == view.weights.shape == (2, config.heads, 12, 12)
        assert view.scores.isfinite().all()
        hidden = view.weights == 0
        later = torch.ones(12, 12).triu(1).bool()
        assert config.kind == "encoder" or hidden[..., later].all()
        if config.attention == "linear":
            assert config.kind == "encoder" or (view.masked[..., later] == 0).all()
            continue
        torch.testing.assert_close(view.masked.softmax(-1), view.weights)
        torch.testing.assert_close(view.weights.sum(-1), torch.ones(2, config.heads, 12))
        if config.attention_softcap is None and config.position != "alibi":
            seen = view.masked > -torch.inf
            torch.testing.assert_close(view.masked[seen], view.scores[seen])


def test_some_heads_of_some_layers_are_those_of_all(model):
    with watch(model, model.config.kind) as whole:
        model(tokens_of(9))
    with watch(model, model.config.kind, layers=[1], heads=[3, 1]) as part:
        model(tokens_of(9))
    (view,) = part
    assert view.layer == 1
    for one, other in zip(view[1:], whole[1][1:], strict=True):
        torch.testing.assert_close(one, other[:, [1, 3]], **CLOSE)


@pytest.mark.parametrize(("side", "cross", "shape"), [("encoder", False, (7, 7)), ("decoder", True, (5, 7))])
def test_each_attention_of_an_encoder_decoder_can_be_watched(side, cross, shape):
    with torch.no_grad():
        model, source, tokens = made(BOTH), tokens_of(7), tokens_of(5, 3)
        segments = torch.ones(2, 7).long()
        segments[1, 5:] = 0
        expected = model(tokens, encoder=EncoderInput(source, segments=segments))
        with watch(model, side, cross) as views:
            found = model(tokens, encoder=EncoderInput(source, segments=segments))
    assert torch.equal(found, expected)
    assert [view.layer for view in views] == list(range(model.config.stacks[side]))
    for view in views:
        assert view.weights.shape[2:] == shape
        assert (view.weights[1, :, :5, 5:] == 0).all() and (view.masked[1, :, :5, 5:] == -torch.inf).all()
        assert (view.weights[0] > 0).all()
        torch.testing.assert_close(view.weights.sum(-1), torch.ones(view.weights.shape[:3]))


def test_attend_is_put_back_after_an_error():
    model = made(CONFIGS["llama"])
    with pytest.raises(RuntimeError), watch(model, "decoder"):
        raise RuntimeError
    assert all(one.attend is attend for one in attentions(model, "decoder").values())


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"side": "encoder"}, "no attention of encoders"),
        ({"side": "decoder", "cross": True}, "no cross-attention of decoders"),
        ({"side": "decoder", "layers": [0, 2]}, r"no layers \[2\]"),
        ({"side": "decoder", "heads": [4]}, r"no heads \[4\]"),
    ],
)
def test_what_is_not_there_cannot_be_watched(wanted, told):
    with pytest.raises(ValueError, match=told), watch(made(CONFIGS["llama"]), **wanted):
        pass


def test_pooling_by_hand():
    weights = torch.tensor([[1.0, 0, 0, 0, 0], [0.5, 0.5, 0, 0, 0], [0.25, 0.25, 0.5, 0, 0]])
    assert pooled(weights, 1, 1).equal(weights)
    assert pooled(weights, 2, 3).tolist() == [[1, 0], [1, 0]]
    assert pooled(weights, 1, 2).tolist() == [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0]]
    assert pooled(weights, 2, 1).tolist() == [[0.75, 0.25, 0, 0, 0], [0.25, 0.25, 0.5, 0, 0]]
