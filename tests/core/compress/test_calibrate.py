"""The walk block by block: it computes what the model computes, and shows matrices what they are given."""

import pytest
import torch

from llmctl.core.compress.calibrate import inputs, moments, walk
from llmctl.core.data.batch import Batch
from llmctl.core.model.init import initialise
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from tests.core.variants import VARIANTS


def model_of(config):
    return initialise(Transformer(config), 0).eval()


def batch_of(config, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, config.vocab, (2, 12), generator=draw)
    segments = torch.tensor([[1] * 5 + [2] * 7, [1] * 9 + [0] * 3])
    positions = torch.tensor([[*range(5), *range(7)], [*range(9), 0, 0, 0]])
    encoder = None
    if config.kind == "encoder-decoder":
        source = torch.randint(5, config.vocab, (2, 10), generator=draw)
        places = torch.tensor([[*range(4), *range(6)], [*range(8), 0, 0]])
        encoder = EncoderInput(source, places, torch.tensor([[1] * 4 + [2] * 6, [1] * 8 + [0] * 2]))
    return Batch(tokens, tokens, positions, segments, 24, 24, encoder=encoder)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_walk_that_changes_nothing_passes_what_the_model_passes(name):
    model, batch = model_of(VARIANTS[name]), batch_of(VARIANTS[name])
    visits = []
    walk(model, [batch], visits.append)
    assert [visited.block for visited in visits] == model.layers
    assert all(model.get_submodule(visited.path) is visited.block for visited in visits)
    last = visits[-1]
    with torch.no_grad():
        x = last.block(last.passes[0].x, last.passes[0].shared)
        norm = model.last_stack.norm
        given = {"positions": batch.positions, "segments": batch.segments, "encoder": batch.encoder}
        wanted = model(batch.tokens, **given)
    assert torch.equal(x if norm is None else norm(x), wanted)


def test_moments_are_those_of_the_rows_that_are_text():
    config = VARIANTS["llama"]
    model, batch = model_of(config), batch_of(config)
    seen = {}
    model.layers[1].mlp.down.register_forward_pre_hook(lambda _, given: seen.setdefault("down", given[0]))
    with torch.no_grad():
        model(batch.tokens, positions=batch.positions, segments=batch.segments)
    found = {}
    walk(model, [batch, batch], lambda visited: found.update({visited.number: moments(visited)}))
    rows = seen["down"][batch.segments != 0]
    assert torch.allclose(found[1]["mlp.down"], 2 * rows.t() @ rows / len(rows), atol=1e-6)
    assert found[1]["attention.q"] is found[1]["attention.v"]
    assert found[0].keys() == {f"attention.{name}" for name in ("q", "k", "v", "out")} | {
        f"mlp.{name}" for name in ("gate", "up", "down")
    }


def test_cross_attention_is_given_the_text_of_the_source():
    config = VARIANTS["t5"]
    model, batch, sizes = model_of(config), batch_of(config), {}

    def visit(visited):
        inputs(
            visited,
            lambda names, x: sizes.update({f"{visited.path}.{name}": len(x) for name in names}),
            visited.linears,
        )

    walk(model, [batch], visit)
    assert sizes["decoder.layers.0.cross_attention.k"] == 18
    assert sizes["decoder.layers.0.cross_attention.q"] == 21
    assert sizes["encoder.layers.0.attention.q"] == 18


def test_what_a_visit_changes_the_next_block_is_given():
    config = VARIANTS["gpt2"]
    model, batch, given = model_of(config), batch_of(config), []

    def visit(visited):
        given.append(visited.passes[0].x.clone())
        visited.block.mlp.down.weight.zero_()

    walk(model, [batch], visit)
    with torch.no_grad():
        x, shared = model.enter("decoder", batch.tokens, batch.positions, batch.segments)
        assert torch.equal(given[1], model.layers[0](x, shared))
