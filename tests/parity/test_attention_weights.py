"""The weights of attention that `watch` records equal those that transformers gives out with output_attentions."""

import pytest
import torch

pytest.importorskip("transformers")

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.model.look import watch
from llmctl.core.model.memory import EncoderInput
from tests.parity import oracle, oracle_encoders

CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # fp32; weights of both are made by another order of sums


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def compare(views, theirs):
    assert len(views) == len(theirs)
    for view, weights in zip(views, theirs, strict=True):
        torch.testing.assert_close(view.weights, weights, **CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "mistral", "gemma2-low-caps", "olmo2"])
def test_a_decoders_weights(name, tmp_path):
    there = oracle.saved(name, tmp_path)
    there.set_attn_implementation("eager")  # the others give out no weights
    model = Checkpoint.open(tmp_path).model()
    ids, _ = oracle_encoders.rows()
    with watch(model, "decoder") as views:
        model(ids)
    compare(views, there(ids, output_attentions=True).attentions)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_an_encoders_weights_beside_padding(name, tmp_path):
    there = oracle_encoders.saved(name, tmp_path)
    there.set_attn_implementation("eager")
    model = Checkpoint.open(tmp_path).model()
    ids, mask = oracle_encoders.rows(padded=True)
    with watch(model, "encoder") as views:
        model(ids, segments=mask)
    theirs = there(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    real = mask[0].bool()  # what padding itself looks at is of no account
    compare([view._replace(weights=view.weights[:, :, real]) for view in views], [one[:, :, real] for one in theirs])


@pytest.mark.parametrize("name", ["t5", "t5-deeper-encoder", "bart", "bart-deeper-decoder"])
def test_all_three_kinds_of_an_encoder_decoder(name, tmp_path):
    there = oracle_encoders.saved(name, tmp_path)
    there.set_attn_implementation("eager")
    model = Checkpoint.open(tmp_path).model()
    (source, _), (target, _) = oracle_encoders.rows(), oracle_encoders.rows(length=9, seed=2)
    out = there(input_ids=source, decoder_input_ids=target, output_attentions=True)
    for side, cross, theirs in (
        ("encoder", False, out.encoder_attentions),
        ("decoder", False, out.decoder_attentions),
        ("decoder", True, out.cross_attentions),
    ):
        with watch(model, side, cross) as views:
            model(target, encoder=EncoderInput(source))
        compare(views, theirs)
