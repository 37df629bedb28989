"""adapt: what is frozen, what is trained, and that a fresh adapter changes nothing."""

import pytest
import torch

from llmctl.core.adapt.inject import adapt, trained
from llmctl.core.adapt.lora import Lora
from llmctl.core.model.init import initialise
from llmctl.core.model.layers import Linear
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.adapt import AdaptConfig
from tests.core.variants import VARIANTS

IDS = torch.randint(3, 61, (2, 11), generator=torch.Generator().manual_seed(0))


def made(name: str, dtype: torch.dtype | None = None) -> Transformer:
    return initialise(Transformer(VARIANTS[name], dtype=dtype), 0)


def hidden(model: Transformer) -> torch.Tensor:
    """Logits where there is a head, states otherwise."""
    both = model.config.kind == "encoder-decoder"
    states = model(IDS, encoder=EncoderInput(IDS.flip(1)) if both else None)
    return states if model.head is None else model.head(states)


def names(model: Transformer) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "adapter"])
def test_a_fresh_adapter_changes_no_bit(name, method):
    model = made(name)
    with torch.no_grad():
        before = hidden(model)
        everywhere = ("*",) if method != "ia3" else ("layers",)
        adapt(model, AdaptConfig(method, targets=() if method == "adapter" else everywhere), seed=0)
        assert torch.equal(hidden(model), before)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_fresh_adapter_changes_no_bit_under_autocast_and_with_gradients(method):
    """DoRA's lengths, once computed in bfloat16 there, were off by half a percent, and so were its rows."""
    model = made("gpt2")
    with torch.autocast("cpu", torch.bfloat16):
        before = hidden(model)
        adapt(model, AdaptConfig(method), seed=0)
        assert torch.equal(hidden(model), before)
    assert torch.equal(hidden(model), hidden(made("gpt2")))


def test_the_courses_matrix_trains_4608_parameters_in_place_of_32768():
    layer = Linear(512, 64)
    layer.requires_grad_(False)
    layer.adapter = Lora(torch.nn.Parameter(torch.zeros(8, 512)), torch.zeros(64, 8), 2.0)
    assert sum(one.numel() for one in layer.parameters() if one.requires_grad) == 4608
    assert layer.weight.numel() == 32768


def test_attention_is_adapted_by_default_and_the_count_is_rank_times_both_sides():
    model = made("llama")
    whole = sum(parameter.numel() for parameter in model.parameters())
    adapt(model, AdaptConfig(rank=3), seed=0)
    count = 2 * 3 * ((24 + 24) + 2 * (24 + 12) + (24 + 24))  # q, k and v of 2 of 4 heads, out; two layers
    assert trained(model) == (count, whole + count)


def test_one_fused_matrix_has_one_a():
    attention = next(iter(made_adapted("gpt2").decoder.layers.values())).attention
    assert attention.q.adapter.a is attention.k.adapter.a is attention.v.adapter.a
    assert attention.out.adapter.a is not attention.q.adapter.a


def made_adapted(name: str, **options: object) -> Transformer:
    model = made(name)
    adapt(model, AdaptConfig(**options), seed=4)
    return model


def test_first_weights_depend_on_the_seed_and_the_name_alone():
    one, other = made_adapted("llama"), made_adapted("llama", targets=("layers",))
    alike = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, alike[name])
    a = one.decoder.layers["0"].attention.q.adapter.a
    assert a.abs().max() <= 24**-0.5
    assert a.std() > 0.1


def test_adapters_of_a_rounded_base_are_float32_and_outputs_keep_its_dtype():
    for method in ("lora", "dora", "ia3", "adapter"):
        model = made("qwen2", torch.bfloat16)
        adapt(model, AdaptConfig(method), seed=0)
        assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}
        assert hidden(model).dtype == torch.bfloat16


def test_gradients_reach_adapters_and_nothing_else():
    for method in ("lora", "dora", "ia3", "adapter"):
        for autocast in (False, True):
            model = made_adapted("t5", method=method)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                hidden(model).float().pow(2).sum().backward()
            assert all((one.grad is not None) == one.requires_grad for one in model.parameters())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_are_those_of_the_formula(dora, bias):
    torch.manual_seed(0)
    layer, rows = Linear(20, 30, bias=bias), torch.randn(2, 8, 20)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape)
    magnitude = torch.rand(30) if dora else None
    lora = Lora(torch.nn.Parameter(torch.randn(4, 20)), torch.randn(30, 4), 0.7, magnitude=magnitude)

    def gradients(product) -> list[torch.Tensor]:
        layer.zero_grad()
        lora.zero_grad()
        x = rows.clone().requires_grad_()
        y = product(x)
        y.pow(3).sum().backward()
        return [y, x.grad, *(one.grad for one in (*layer.parameters(), *lora.parameters()))]

    def formula(x: torch.Tensor) -> torch.Tensor:
        weight = layer.weight + 0.7 * lora.b @ lora.a
        if dora:
            weight = lora.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True).detach()
        return torch.nn.functional.linear(x, weight, layer.bias)

    for mine, wanted in zip(gradients(lambda x: lora(layer, x)), gradients(formula), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


def test_dropout_takes_what_enters_a_in_training_alone():
    model = made_adapted("llama", dropout=0.5)
    for module in model.modules():
        if isinstance(module, Lora):
            module.b.data.normal_(0, 0.3)
    with torch.no_grad():
        assert torch.equal(hidden(model.eval()), hidden(model))
        assert not torch.equal(hidden(model.train()), hidden(model))


def test_a_head_with_an_adapter_says_the_same_by_its_projection():
    for name in ("llama", "gpt2", "bert"):
        model = made_adapted(name, targets=("head",))
        model.head.adapter.b.data.normal_()
        with torch.no_grad():
            states = model(IDS)
            weight, bias, cap = model.head.projection
            logits = torch.nn.functional.linear(model.head.features(states), weight, bias)
            assert cap is None
            torch.testing.assert_close(model.head(states), logits, atol=1e-5, rtol=1e-5)


def test_selective_methods_train_what_they_say():
    assert all(name.endswith("bias") for name in names(made_adapted("gpt2", method="bitfit")))
    assert "decoder.norm.bias" in names(made_adapted("gpt2", method="bitfit"))
    last = names(made_adapted("llama", method="last-n"))
    assert {name.split(".")[2] for name in last if ".layers." in name} == {"1"}
    assert {"decoder.norm.weight", "head.weight"} <= last
    assert "embed.tokens.weight" not in last
    some = names(made_adapted("llama", method="full", train=("layers.0.mlp", "decoder.norm")))
    assert some == {*(f"decoder.layers.0.mlp.{one}.weight" for one in ("gate", "up", "down")), "decoder.norm.weight"}
    assert names(made_adapted("llama", method="full")) == names(made("llama"))
    assert "classifier.out.weight" in names(made_adapted("roberta", method="bitfit"))
    assert "classifier.out.weight" in names(made_adapted("roberta"))


def test_a_matrix_that_is_trained_has_no_adapter_nor_have_those_fused_with_it():
    model = made_adapted("gpt2", train=("layers.0.attention.k",))
    layers = model.decoder.layers
    assert [getattr(layers["0"].attention, one).adapter is None for one in ("q", "k", "v", "out")] == [True] * 3 + [
        False
    ]
    assert layers["1"].attention.k.adapter is not None


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("llama", {"targets": ("q_proj",)}, ("--targets q_proj", "attention.q")),
        ("llama", {"train": ("layers.7",)}, ("--train layers.7", "mlp.up.weight")),
        ("llama", {"method": "bitfit"}, ("no", "biases", "none")),
        ("llama", {"method": "last-n", "last": 3}, ("--last is 3", "2 layers")),
        ("llama", {"method": "ia3", "targets": ("embed",)}, ("ia3", "embed.tokens")),
    ],
)
def test_what_names_nothing_is_refused_with_what_there_is(name, options, words):
    with pytest.raises(UserError) as caught:
        made_adapted(name, **options)
    said = caught.value.problem + caught.value.hint
    assert all(word in said for word in words), said


def test_a_second_adapter_is_refused():
    model = made_adapted("llama")
    with pytest.raises(UserError, match="already"):
        adapt(model, AdaptConfig(), seed=0)
