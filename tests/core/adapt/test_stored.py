"""Adapters written and read again: every method, the same bytes for the same adapter, files of other tools refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.core.adapt.inject import adapt
from llmctl.core.adapt.stored import load_adapter, save_adapter
from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.adapt import WHOLE, AdaptConfig, Method
from llmctl.spec.edits import Given
from llmctl.spec.merge_plan import MergePlan
from llmctl.spec.peft import base_of
from tests.core.adapt.test_inject import hidden
from tests.core.variants import VARIANTS

METHODS = [method for method in Method.__args__ if method not in WHOLE]


def made(name: str, **options: object) -> Transformer:
    """A model with an adapter, its numbers moved at random."""
    model = initialise(Transformer(VARIANTS[name]), 0)
    adapt(model, AdaptConfig(**options), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "roberta", "t5", "t5 of old", "bart"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_read_again_bit_for_bit(name, method, tmp_path):
    options = {"method": method, "virtual_tokens": 3, "bottleneck": 5, "train": ("decoder.norm",)}
    if name in ("roberta", "bart"):
        options["train"] = ("attention_norm",)
    model = made(name, **options)
    save_adapter(tmp_path, model, AdaptConfig(**options), tmp_path, None)
    again = initialise(Transformer(VARIANTS[name]), 0)
    with torch.no_grad():
        before = hidden(again)
        load_adapter(again, tmp_path)
        assert torch.equal(hidden(again), hidden(model))
        assert not torch.equal(hidden(again), before)


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        save_adapter(tmp_path / name, made("phi" if "phi" in VARIANTS else "gpt2"), AdaptConfig(), tmp_path, "lm")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_the_config_has_the_keys_that_every_peft_knows(tmp_path):
    save_adapter(tmp_path, made("llama", rank=4), AdaptConfig(rank=4), tmp_path / "base", "lm")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(tmp_path / "base"),
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": ["k_proj", "o_proj", "q_proj", "v_proj"],
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def test_targets_are_the_shortest_ends_that_name_nothing_else(tmp_path):
    options = {"targets": ("layers.1.attention.q", "mlp.up", "attention.out"), "method": "lora"}
    save_adapter(tmp_path, made("bert", **options), AdaptConfig(**options), tmp_path, None)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert said["target_modules"] == ["1.attention.self.query", "attention.output.dense", "intermediate.dense"]


def test_an_adapter_of_several_ranks_and_scales_is_read_and_written_again(tmp_path):
    model = made("llama", rank=4, targets=("attention.q", "mlp.up"))
    up = model.decoder.layers["1"].mlp.up.adapter
    up.a, up.b = torch.nn.Parameter(up.a[:2].detach()), torch.nn.Parameter(up.b[:, :2].detach())
    model.decoder.layers["0"].mlp.up.adapter.scale = 0.3
    save_adapter(tmp_path, model, AdaptConfig(rank=4), tmp_path, None)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert said["rank_pattern"] == {"model.layers.1.mlp.up_proj": 2}
    again = initialise(Transformer(VARIANTS["llama"]), 0)
    load_adapter(again, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(hidden(again), hidden(model), atol=1e-6, rtol=1e-6)


def test_a_checkpoint_opens_with_its_adapter_and_a_moved_base_is_asked_for(written, tmp_path):
    base, adapter = written("llama"), tmp_path / "adapter"
    adapter.mkdir()
    model = Checkpoint.open(base).model()
    adapt(model, AdaptConfig(), seed=0)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "magnitude"):
                module.b.normal_(0, 0.1)
        save_adapter(adapter, model, AdaptConfig(), base, "lm")
        assert torch.equal(hidden(Checkpoint.open(adapter).model()), hidden(model))
    base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="written-llama"):
        Checkpoint.open(adapter)


def test_bf16_adapters_are_read_as_float32_and_names_with_the_adapters_own_are_known(tmp_path):
    save_adapter(tmp_path, made("gpt2"), AdaptConfig(), tmp_path, None)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("lora_A", "lora_A.default"): tensor.bfloat16() for name, tensor in tensors.items()}, file)
    model = initialise(Transformer(VARIANTS["gpt2"]), 0)
    load_adapter(model, tmp_path)
    assert model.decoder.layers["0"].attention.q.adapter.b.dtype == torch.float32


@pytest.fixture
def stored(written, tmp_path):
    """An adapter's directory, and its base."""
    base, adapter = written("llama"), tmp_path / "adapter"
    adapter.mkdir()
    model = Checkpoint.open(base).model()
    adapt(model, AdaptConfig(), seed=0)
    save_adapter(adapter, model, AdaptConfig(), base, "lm")
    return adapter, base


def changed(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_how_the_base_was_held_in_training_says_nothing_of_the_base_that_is_here(stored):
    """Others write the config.json of their base, then in 4 bits, beside an adapter."""
    adapter, base = stored
    (adapter / "config.json").write_text((base / "config.json").read_text())
    changed(adapter / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert Checkpoint.open(adapter).config == Checkpoint.open(base).config
    changed(adapter / "config.json", vocab_size=7)
    with pytest.raises(UserError, match="of another model than the base") as caught:
        Checkpoint.open(adapter).model()
    assert caught.value.code == 4


@pytest.mark.parametrize(("rows", "problem"), [(1, "regression"), (3, "single_label")])
def test_a_head_that_an_adapter_brings_is_the_same_beside_the_base_and_merged(rows, problem, stored):
    """One number had been the only label of a choice, which always has it."""
    adapter, base = stored
    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.score.weight": torch.ones(rows, VARIANTS["llama"].width)}, file)
    changed(adapter / "adapter_config.json", task_type="SEQ_CLS", modules_to_save=["classifier", "score"])
    config = Checkpoint.open(adapter).config
    assert (config.problem, len(config.labels)) == (problem, rows)
    assert Checkpoint.open(adapter).model().config == config == MergePlan.of(base, [Given(adapter)]).config


def test_an_adapter_stands_on_no_adapter_and_not_on_itself(stored):
    adapter, base = stored
    (adapter / "config.json").write_text((base / "config.json").read_text())
    changed(adapter / "adapter_config.json", base_model_name_or_path="adapter")
    with pytest.raises(UserError, match="which is not here") as caught:
        Checkpoint.open(adapter)
    assert "lora-merge" in caught.value.hint and "ln -s" in caught.value.hint
    with pytest.raises(UserError, match="is an adapter, not a checkpoint"):
        base_of(adapter, adapter)


def test_an_adapter_whose_training_diverged_is_refused(stored):
    """Attention would make zeros of NaN without a word."""
    adapter, _ = stored
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="not finite"):
        Checkpoint.open(adapter).model()
