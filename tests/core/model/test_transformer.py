"""Transformer: names, packing, dropout, the tied head, and passes that never wait for the device."""

import copy
from typing import get_args

import pytest
import torch

from llmctl.core.model.cache import cache_for
from llmctl.core.model.init import initialise
from llmctl.core.model.layers import ACTIVATIONS, PLACES
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.norms import NORMS
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import Activation, Norm, NormPlace
from llmctl.spec.sizes import shapes
from tests.core.variants import DECODERS, ENCODER_DECODERS, ENCODERS, VARIANTS


def built(name: str, seed: int = 0) -> Transformer:
    return initialise(Transformer(VARIANTS[name]), seed).eval()


def drawn(rows: int, length: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def packed(documents: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, positions and segments of one row."""
    segments = torch.cat([torch.full((1, one.shape[1]), i + 1) for i, one in enumerate(documents)], dim=1)
    positions = torch.cat([torch.arange(one.shape[1])[None] for one in documents], dim=1)
    return torch.cat(documents, dim=1), positions, segments


def source(name: str, tokens: torch.Tensor) -> dict[str, EncoderInput]:
    """What else a pass of an encoder-decoder takes: a source for each row."""
    if name not in ENCODER_DECODERS:
        return {}
    return {"encoder": EncoderInput(tokens.new_tensor([[9, 3, 5, 3, 40]]).expand(len(tokens), -1))}


def scores(model: Transformer, hidden: torch.Tensor) -> torch.Tensor:
    """Of tokens, or of labels in a model that has no others."""
    return model.classify(hidden) if model.head is None else model.head(hidden)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_that_the_config_promises(name):
    model = Transformer(VARIANTS[name], device="meta")
    assert {name: tuple(one.shape) for name, one in model.named_parameters()} == shapes(VARIANTS[name])
    assert model.state_dict().keys() == shapes(VARIANTS[name]).keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_document_packed_with_others_has_the_hidden_states_it_has_alone(name):
    model, documents = built(name), [drawn(1, 7), drawn(1, 4), drawn(1, 9)]
    tokens, positions, segments = packed(documents)
    read = [drawn(1, length, 4) for length in (3, 8, 1)]
    together, apart = {}, [{}] * 3
    if name in ENCODER_DECODERS:
        together, apart = {"encoder": EncoderInput(*packed(read))}, [{"encoder": EncoderInput(one)} for one in read]
    found = model(tokens, positions=positions, segments=segments, **together)
    alone = torch.cat([model(one, **given) for one, given in zip(documents, apart, strict=True)], dim=1)
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_on_the_right_changes_nothing(name):
    model, tokens = built(name), drawn(1, 9)
    segments = torch.tensor([[1] * 6 + [0] * 3])
    given, alone = source(name, tokens), source(name, tokens)
    if given:
        read = torch.cat([given["encoder"].tokens, drawn(1, 4)], dim=1)
        given = {"encoder": EncoderInput(read, None, torch.tensor([[1] * 5 + [0] * 4]))}
    found = model(tokens, segments=segments, **given)
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, :6], model(tokens[:, :6], **alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS | ENCODER_DECODERS)
def test_a_token_changes_nothing_before_itself(name):
    model, tokens = built(name), drawn(1, 12)
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 61
    one, other = (model(given, **source(name, given)) for given in (tokens, changed))
    torch.testing.assert_close(one[:, :8], other[:, :8], rtol=0, atol=1e-6 if "linear" in name else 0)
    assert not torch.allclose(one[:, 8], other[:, 8])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_token_of_an_encoder_changes_those_before_it_and_those_after_it(name):
    model, tokens = built(name), drawn(1, 12)
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 61
    differs = (model(tokens) - model(changed)).abs().amax(-1)[0] > 1e-6
    assert differs[4:9].all()  # "both ways" has a window, through which two layers reach so far at least


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_token_of_a_source_changes_every_token_of_the_answer(name):
    model, tokens = built(name), drawn(1, 7)
    given = source(name, tokens)["encoder"].tokens
    one = model(tokens, encoder=EncoderInput(given))
    for place in range(given.shape[1]):
        changed = given.clone()
        changed[0, place] = 60
        assert ((one - model(tokens, encoder=EncoderInput(changed))).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "prefix"])
def test_a_prefix_is_seen_by_the_tokens_before_it_too_and_what_follows_is_not(name):
    model, tokens = built(name), drawn(1, 10)
    prefix = torch.tensor([[True] * 6 + [False] * 4])
    one = model(tokens, prefix=prefix)
    for place, first in ((5, 0), (7, 7)):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 61
        differs = (one - model(changed, prefix=prefix)).abs().amax(-1)[0] > 1e-6
        assert differs.tolist() == [slot >= first for slot in range(10)]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_pass_reads_no_value_back_from_the_device(name):
    """Tensors without data run through it: whatever would wait for a value raises there."""
    config, model = VARIANTS[name], Transformer(VARIANTS[name], device="meta")
    tokens = torch.zeros(2, 9, dtype=torch.int64, device="meta")
    given = {"encoder": EncoderInput(tokens, tokens, tokens)} if name in ENCODER_DECODERS else {}
    whole = len(config.labels) if config.labels else 61
    shape = (2, whole) if config.classifier == "sequence" else (2, 9, whole)
    assert scores(model, model(tokens, segments=tokens, **given)).shape == shape
    assert scores(model, model(tokens, **given)).shape == shape
    if config.next_sentence:
        assert model.next_sentence_scores(model(tokens, types=tokens)).shape == (2, 2)
    if name in ENCODERS:
        return
    cache = cache_for(config, 2, 16, device="meta")
    later = {"memory": model.encode(*given["encoder"])} if given else {}
    for part in tokens.split([7, 1, 1], dim=1):
        marks = None if config.attention == "linear" else part  # LinearState looks at them: documents end its sums
        cache.expect([part.shape[1]] * 2)
        assert model(part, segments=marks, cache=cache, **later).shape[:2] == part.shape


def test_no_positions_means_that_order_is_seen_by_the_mask_alone():
    model = built("none")
    tokens = torch.tensor([[5, 5, 5, 5]])
    hidden = model(tokens)
    torch.testing.assert_close(hidden[:, 0], hidden[:, 3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "sinusoidal", "bert", "t5", "bart", "both ways", "linear"])
def test_with_positions_a_repeated_token_is_not_the_same_token(name):
    tokens = torch.tensor([[5, 7, 5, 7]])
    hidden = built(name)(tokens, **source(name, tokens))
    assert not torch.allclose(hidden[:, 1], hidden[:, 3], atol=1e-3)


def test_rows_beyond_learned_positions_are_refused():
    with pytest.raises(UserError, match=r"33 tokens .* end at 32"):
        built("gpt2")(drawn(1, 33))


def test_a_tied_head_is_the_embedding_itself_in_copies_too():
    model = copy.deepcopy(built("gpt2"))
    assert model.head.weight is model.embed.tokens.weight
    assert not list(model.head.parameters())
    hidden = model(drawn(1, 5))
    model.embed.tokens.weight.data.zero_()
    assert not model.head(hidden).any()


def test_gradients_of_a_tied_matrix_come_from_both_its_uses():
    model = built("gpt2").train()
    model.head(model(torch.tensor([[1, 2]]))).square().sum().backward()
    touched = model.embed.tokens.weight.grad.abs().sum(1)
    assert (touched > 0).all()  # every row as head; rows 1 and 2 as embedding besides


def test_dropout_acts_in_training_only():
    config = VARIANTS["gpt2"].resized(dropout=0.5)
    model, tokens = initialise(Transformer(config), 0), drawn(1, 8)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))
    torch.testing.assert_close(model(tokens), built("gpt2")(tokens))


def test_a_model_not_yet_initialised_is_zeros_and_finite():
    model = Transformer(VARIANTS["llama"])
    assert not any(parameter.any() for parameter in model.parameters())
    assert model.head(model(drawn(1, 4))).isfinite().all()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_autocast_gives_bf16_logits_near_those_of_fp32(name, train):
    model, tokens = built(name).train(train), drawn(2, 16)
    segments = torch.tensor([[1] * 9 + [2] * 7, [1] * 16])
    given = source(name, tokens)
    if given:
        given["encoder"] = given["encoder"]._replace(segments=torch.tensor([[1, 1, 1, 2, 2], [1] * 5]))
    expected = scores(model, model(tokens, segments=segments, **given))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(train):
        found = scores(model, model(tokens, segments=segments, **given))
    assert found.dtype == torch.bfloat16 or model.config.logit_softcap
    assert (found.float() - expected).norm() < 0.03 * expected.norm()  # seen: 0.006 to 0.012


def test_every_choice_of_the_config_has_its_implementation():
    assert tuple(ACTIVATIONS) == get_args(Activation)
    assert tuple(NORMS) == get_args(Norm)
    assert tuple(PLACES) == get_args(NormPlace)
