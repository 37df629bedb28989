"""Parts cut out: what does nothing goes without a trace, what matters least goes first, the rest makes up for it."""

import math
from dataclasses import replace

import pytest
import torch

from llmctl.core.compress.judge import texts
from llmctl.core.compress.slim.rank import contributions, influences, mean_loss
from llmctl.core.compress.slim.repair import Moments, refit
from llmctl.core.compress.slim.run import slim
from llmctl.core.model.layers import Linear
from llmctl.errors import UserError
from llmctl.spec.slim import SlimConfig, alike
from tests.core.compress.test_calibrate import batch_of, model_of
from tests.core.variants import VARIANTS

ALIKE = {"atol": 2e-5, "rtol": 2e-5}  # sums of fewer terms, in another order


def hidden(model, batch):
    """The hidden states of text that is read."""
    with torch.no_grad():
        x = model(batch.tokens, positions=batch.positions, segments=batch.segments, encoder=batch.encoder)
    return x[batch.segments != 0]


def halves(model):
    """Every half of every block: its path, its kind, and the module."""
    for stack in model.config.stacks:
        for name, block in model.get_submodule(stack).layers.items():
            for kind in ("attention", "cross_attention", "mlp"):
                if getattr(block, kind) is not None:
                    yield f"{stack}.{name}.{kind}", kind, getattr(block, kind)


@torch.no_grad()
def deaden(model, left: int):
    """Half of the units of each half of a block, other ones in each, add nothing any more."""
    config = model.config
    for path, kind, half in halves(model):
        end, units = (half.down, config.ff) if kind == "mlp" else (half.out, config.kv_heads)
        alive = torch.randperm(units, generator=torch.Generator().manual_seed(sum(path.encode())))[:left]
        if kind == "mlp":
            alive = torch.arange(0, units, 2)
        elif kind == "attention" and config.position == "relative":
            alive = torch.tensor([1, 2][:left])
        elif kind == "attention" and config.position == "alibi":
            alive = torch.tensor(alike(config, left * config.heads // config.kv_heads))
        dead = torch.ones(units, dtype=torch.bool)
        dead[alive] = False
        end.weight[:, dead.repeat_interleave(end.weight.shape[1] // units)] = 0


ALL = [name for name in VARIANTS if name not in ("odd", "odder")]  # whose slopes and shared heads do not fit


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rank", ["activation", "loss"])
def test_heads_and_neurons_that_add_nothing_go_without_a_trace(name, rank):
    config = replace(VARIANTS[name], model_type="llmctl")
    config = config if config.kv_heads > 1 else replace(config, kv_heads=2)
    model, batch = model_of(config), batch_of(config)
    if rank == "loss" and model.head is None:
        with pytest.raises(UserError, match="--rank loss"):
            slim(model, SlimConfig(heads=0.5, rank=rank), [batch])
        return
    deaden(model, config.kv_heads // 2)
    smaller, records = slim(model, SlimConfig(heads=0.5, ff=0.5, rank=rank), [batch])
    assert (smaller.config.heads, smaller.config.ff) == (config.heads // 2, config.ff // 2)
    if not config.qk_norm_whole:  # whose norm counts the queries of all heads
        torch.testing.assert_close(hidden(smaller, batch), hidden(model, batch), **ALIKE)
        assert all(value < 1e-9 for record in records for key, value in record.items() if key.endswith("error"))
    assert len(records) == sum(config.stacks.values())


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "smollm3", "t5", "t5 of old"])
def test_channels_that_are_always_zero_go_without_a_trace(name):
    config = replace(VARIANTS[name], norm_eps=1e-12)
    model, batch = model_of(config), batch_of(config)
    dead = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:12]
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith(("embed.tokens.weight",)):
                parameter[:, dead] = 0
            elif path.endswith(("attention.out.weight", "mlp.down.weight", "out_norm.weight")):
                parameter[dead] = 0 if "norm" not in path else -1.0
            elif config.norm_place == "output" and path.endswith(("attention_norm.weight", "mlp_norm.weight")):
                parameter[dead] = 0
    smaller, _ = slim(model, SlimConfig(width=0.5), [batch])
    assert smaller.config.width == 12 and smaller.config.heads == config.heads
    with torch.no_grad():
        torch.testing.assert_close(smaller.head(hidden(smaller, batch)), model.head(hidden(model, batch)), **ALIKE)


def test_layers_that_add_nothing_go_first_and_windows_stay_with_their_layers():
    config = replace(VARIANTS["smollm3"], layers=5, rope_skip=(1, 3), window=4, window_layers=(2, 3))
    model, batch = model_of(config), batch_of(config)
    with torch.no_grad():
        for layer in (0, 2):
            block = model.layers[layer]
            for linear in (block.attention.out, block.mlp.down):
                linear.weight.zero_()
    smaller, records = slim(model, SlimConfig(layers=3, rank="activation"), [batch])
    assert [record["kept"] for record in records] == [False, True, False, True, True]
    assert (smaller.config.rope_skip, smaller.config.window_layers) == ((0, 1), (1,))
    torch.testing.assert_close(hidden(smaller, batch), hidden(model, batch), **ALIKE)
    assert records[0]["influence"] == pytest.approx(0, abs=1e-6) and records[1]["influence"] > 1e-3


def test_named_layers_go_and_the_model_itself_stays():
    config = replace(VARIANTS["t5"], layers=3)
    model = model_of(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    smaller, records = slim(model, SlimConfig(drop_layers=("encoder.0", "1", "decoder.2"), ff=0.5), [batch_of(config)])
    assert smaller.config.stacks == {"encoder": 2, "decoder": 1}
    assert [record["layer"] for record in records if not record["kept"]] == [
        "encoder.layers.0", "decoder.layers.1", "decoder.layers.2",
    ]  # fmt: skip
    assert torch.equal(smaller.encoder.layers["0"].attention.q.weight, before["encoder.layers.1.attention.q.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_repair_is_least_squares_with_the_bias_among_what_is_fitted():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 6, generator=draw) @ torch.randn(6, 6, generator=draw) + 1.5
    linear = Linear(6, 3)
    with torch.no_grad():
        linear.weight.normal_(generator=draw), linear.bias.normal_(generator=draw)
        wanted = linear(x)
        plain, kept = torch.nn.functional.linear(x[:, :4], linear.weight[:, :4], linear.bias), torch.arange(4)
        error = refit(linear, kept, Moments(x.t() @ x / len(x), x.mean(0)), True)
        given = torch.cat((x[:, :4], torch.ones(len(x), 1)), 1)
        best = given @ torch.linalg.lstsq(given, wanted).solution
        off, least, unfitted = ((y - wanted).square().sum() for y in (linear(x), best, plain))
    assert least <= off < 1.1 * least + 0.02 * unfitted  # held back a little
    assert torch.equal(linear.weight[:, 4:], torch.zeros(3, 2))
    energy = (x @ linear.weight.t()).square().sum()
    assert error == pytest.approx(float(off.detach() / energy.detach()), rel=0.5)


def test_a_unit_that_others_can_stand_in_for_counts_little_with_repair():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 4, generator=draw)
    x[:, 3] = 3 * x[:, 2]
    weight = torch.ones(5, 4)
    second = x.t() @ x / len(x)
    plain, repaired = contributions(weight, second, 1), contributions(weight, second, 1, repair=True)
    assert plain.argmax() == 3 and plain[:3].max() < plain[3] / 5
    assert repaired[2:].max() < repaired[:2].min() / 3
    assert contributions(weight, second, 2)[0] == pytest.approx(float((x[:, :2].sum(1).square().mean()) * 5), rel=1e-4)


@pytest.fixture(scope="module")
def measured(learned):
    """The learned model, calibration text, and how to find a model's perplexity on held-out text."""
    model = learned.model().requires_grad_(False)
    from llmctl.core.checkpoint.directory import Checkpoint

    tokenizer = Checkpoint.open(learned.path).tokenizer()
    calibration = list(texts(str(learned.tokens), model.config, tokenizer, 4000, "train", 128)())
    heldout = list(texts(str(learned.tokens), model.config, tokenizer, 4000, "heldout", 128)())
    return model, calibration, lambda one: math.exp(mean_loss(one, heldout))


@pytest.mark.parametrize(
    "parts", [{"ff": 0.5}, {"heads": 0.5}, {"layers": 3}, {"width": 0.75}], ids=lambda p: next(iter(p))
)
def test_what_matters_least_is_missed_less_than_what_chance_takes_and_that_less_than_what_matters_most(parts, measured):
    model, calibration, perplexity = measured
    least, most = (
        perplexity(slim(model, SlimConfig(**parts, reverse=reverse), calibration)[0]) for reverse in (False, True)
    )
    by_chance = [perplexity(slim(model, SlimConfig(**parts, rank="random"), calibration, seed)[0]) for seed in (1, 2)]
    assert least <= min(by_chance) and sum(by_chance) / 2 <= most and least < most


def test_repair_lowers_the_loss(measured):
    model, calibration, perplexity = measured
    plain, repaired = (
        perplexity(slim(model, SlimConfig(ff=0.5, repair=repair), calibration)[0]) for repair in (False, True)
    )
    assert perplexity(model) < repaired < plain


def test_the_layer_that_turns_the_stream_most_is_missed_most(measured):
    model, calibration, perplexity = measured
    turned = influences(model, calibration)["decoder"]
    missed = [perplexity(slim(model, SlimConfig(drop_layers=(str(i),)), [])[0]) for i in range(4)]
    assert turned.index(max(turned)) == missed.index(max(missed))
