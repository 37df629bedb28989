"""Where guesses come from: a model with the same tokens, and layers that can be left out."""

from dataclasses import replace

import pytest
import tokenizers
import torch

from llmctl.core.checkpoint.directory import save_checkpoint
from llmctl.core.decode.graph import Recorded
from llmctl.core.decode.rows import Rows
from llmctl.core.decode.speculate.skip import least_layers, without_layers
from llmctl.core.decode.speculate.source import checked, other_tokens, sample_of, source_of
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.drafting import Drafting
from tests.core.decode.conftest import make_model


def renamed(tokenizer, at):
    """A tokenizer of the same size with another token at one place."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str().replace(*at))
    return Tokenizer(backend, dict(tokenizer.config))


def test_tokens_are_compared_by_what_they_are_and_not_by_how_many(byte_bpe, byte_fallback):
    assert other_tokens(byte_bpe, renamed(byte_bpe, ('"Ġthe"', '"Ġthe"'))) == ""
    other = renamed(byte_bpe, ("<|bos|>", "<|pad|>"))
    assert other.size == byte_bpe.size
    assert other_tokens(other, byte_bpe) == "1 differ, the first is 1: '<|pad|>' and '<|bos|>'"
    assert "differ" in other_tokens(byte_fallback, byte_bpe)


def test_a_draft_model_of_other_tokens_or_another_kind_is_a_misfit(byte_bpe, byte_fallback, tmp_path):
    saved = {}
    for name, model, tokenizer in (
        ("draft", make_model(vocab=320), byte_bpe),
        ("other", make_model(), byte_fallback),
        ("small", make_model(vocab=270), byte_bpe),
        ("sums", make_model(attention="linear"), byte_bpe),
    ):
        saved[name] = tmp_path / name
        saved[name].mkdir()
        save_checkpoint(saved[name], model, model.config)
        tokenizer.save(saved[name])
    config = make_model(layers=4).config

    def asked(name, config=config):
        return checked(Drafting(draft_model=saved[name]), byte_bpe, config)

    assert asked("draft").model().config.vocab == 320  # padded otherwise
    for name, said in (("other", "has other tokens than the model"), ("small", "270 tokens"), ("sums", "linear")):
        with pytest.raises(UserError, match=said) as caught:
            asked(name)
        assert caught.value.code == Exit.MISMATCH
    with pytest.raises(UserError, match="of kind decoder, but the model is of kind encoder-decoder"):
        asked("draft", replace(config, kind="encoder-decoder", position="relative"))


def test_what_a_model_cannot_do_is_said_before_its_weights_are_read(byte_bpe):
    config = make_model(layers=4).config
    assert checked(Drafting(lookup=True), byte_bpe, config) is None
    assert checked(Drafting(skip_layers=("auto",)), byte_bpe, config) is None
    for drafting, changes, said in (
        (Drafting(lookup=True), {"attention": "linear"}, "linear attention"),
        (Drafting(skip_layers=("3-5",)), {}, "names layer 5"),
        (Drafting(skip_layers=("auto",)), {"layers": 2}, "4 or more"),
    ):
        with pytest.raises(UserError, match=said):
            checked(drafting, byte_bpe, replace(config, **changes))


def test_a_model_without_layers_is_that_model_with_those_layers_passed_by():
    model = make_model(layers=4)
    text = torch.tensor([[5, 9, 3, 77, 8]])
    with torch.inference_mode():
        x, shared = model.enter("decoder", text)
        for number, layer in model.decoder.layers.items():
            x = x if number in ("1", "2") else layer(x, shared)
        wanted = model.head(model.decoder.norm(x))
        view = without_layers(model, frozenset({1, 2}))
        assert torch.equal(view.head(view(text)), wanted)
        assert len(model.decoder.layers) == 4
    shared = {id(p) for p in view.parameters()}
    assert shared < {id(p) for p in model.parameters()}


def test_reading_on_without_layers_leaves_no_trace():
    model = make_model(layers=4)
    rows = Rows(model)
    rows.add([[5, 9, 3], [7, 8, 1, 2]])
    before = [part.clone() for layer in range(4) for row in range(2) for part in rows._cache.held(row, layer)]
    whole = rows.step([4, 4])
    rows.cut([3, 4])
    rows.skip(frozenset({1, 2}))
    assert not torch.allclose(rows.step([4, 4]), whole)
    rows.step([6, 6])
    rows.cut([3, 4])
    rows.skip(frozenset())
    assert torch.equal(rows.step([4, 4]), whole)
    rows.cut([3, 4])
    after = [part for layer in range(4) for row in range(2) for part in rows._cache.held(row, layer)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_steps_that_are_recorded_are_so_for_the_layers_that_they_pass_through():
    model = make_model(layers=4)
    plain, rows = Rows(model), Rows(model)
    rows._recorded = Recorded(model, lambda work: work, after=0)
    for one in (plain, rows):
        one.add([[5, 9, 3], [7, 8, 1, 2]])
    for layers in (set(), {1, 2}, set(), {1, 2}, {3}, set()):
        found = []
        for one in (plain, rows):
            one.skip(frozenset(layers))
            found += [one.step([4, 4]), one.step([6, 2])]
            one.cut([3, 4])
        assert torch.allclose(found[0], found[2], atol=1e-5) and torch.allclose(found[1], found[3], atol=1e-5)
    assert len({id(recorded) for _, recorded in rows._ways.values()}) == 3


def test_layers_are_chosen_that_change_least():
    model = make_model(layers=6)
    with torch.no_grad():
        for number in ("1", "4"):
            model.decoder.layers[number].attention.out.weight *= 0.01
            model.decoder.layers[number].mlp.down.weight *= 0.01
    text = torch.tensor([[5, 9, 3, 77, 8, 120, 4, 250]])
    assert least_layers(model, text, 2) == {1, 4}
    drafter = source_of(Drafting(skip_layers=("auto",)), model, sample=text[0].tolist()).make(Rows(model))
    assert {1, 4} < drafter.skipped and len(drafter.skipped) == 3
    assert source_of(Drafting(skip_layers=("auto",)), model).make(Rows(model)).skipped == {1, 2, 3}  # no text to see


def test_a_sample_is_the_beginning_of_a_text(byte_bpe):
    assert sample_of(byte_bpe, "the list") == byte_bpe.encode("the list")
    assert len(sample_of(byte_bpe, "zq" * 5000)) == 256
    assert sample_of(byte_bpe, "\ud800") == []


def test_the_cost_of_a_guess_is_the_share_of_the_model_that_it_reads():
    model = make_model(layers=4)
    assert source_of(Drafting(draft_model="d"), model, model).cost == 1.0
    skipped = source_of(Drafting(skip_layers=("1-2",)), model).cost
    assert source_of(Drafting(draft_model="d"), model, make_model(layers=2)).cost == skipped
    assert source_of(Drafting(lookup=True), model).cost < skipped < 1
