"""Adapters against PEFT: ours open there, its open here, with equal logits and nothing left over; equal gradients."""

import json
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")
from peft import IA3Config, LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file

from llmctl.core.adapt.inject import adapt, trained
from llmctl.core.adapt.stored import load_adapter, save_adapter
from llmctl.errors import UserError
from llmctl.spec.adapt import AdaptConfig
from tests.parity.oracle_peft import Bases, adapted, here, opened, rows, shaken, there

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # of logits of size 1 to 10, in fp32
DECODERS = ("gpt2", "llama", "qwen2", "bloom", "gpt_neox", "phi3")
OTHERS = ("bert-mlm", "bert-sequence", "roberta-sequence", "llama-sequence", "t5", "t5-sequence", "bart")


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    return Bases(tmp_path_factory.mktemp("bases"))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_ours_there(bases: Bases, name: str, config: AdaptConfig, directory: Path, task: str | None = None) -> None:
    model, ids = bases.ours(name), rows()
    adapt(model, config, seed=1)
    shaken(model)
    save_adapter(directory, model, config, bases(name), task)
    with torch.no_grad():
        mine, base = here(model, ids), here(bases.ours(name), ids)
        theirs = there(opened(bases.theirs(name), directory), ids)
        again = bases.ours(name)
        load_adapter(again, directory)
        torch.testing.assert_close(mine, theirs, **CLOSE)
        assert torch.equal(here(again, ids), mine)
    assert (mine - base).abs().max() > 1e-2


def check_theirs_here(bases: Bases, name: str, config: object, directory: Path, kind: str | None = None) -> None:
    ids = rows()
    made = adapted(bases.theirs(name, kind), directory, config)
    model = bases.ours(name)
    load_adapter(model, directory)
    with torch.no_grad():
        mine = here(model, ids) if kind is None or "For" in kind else model(ids)
        torch.testing.assert_close(mine, there(made, ids), **CLOSE)


@pytest.mark.parametrize("name", DECODERS + OTHERS)
def test_lora_on_every_matrix_opens_in_peft(bases, name, tmp_path):
    check_ours_there(bases, name, AdaptConfig(targets=("layers",), rank=4, alpha=6), tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom", "phi3", "t5", "bert-mlm"])
@pytest.mark.parametrize("method", ["rslora", "dora", "ia3"])
def test_each_method_opens_in_peft(bases, name, method, tmp_path):
    check_ours_there(bases, name, AdaptConfig(method, rank=4), tmp_path)


PEFTS = {
    "list": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "expression": ("llama", {"target_modules": r".*layers\.1\..*(k|up)_proj"}),
    "all-linear": ("bloom", {"target_modules": "all-linear"}),
    "all-linear-gpt2": ("gpt2", {"target_modules": "all-linear", "fan_in_fan_out": True}),
    "all-linear-neox": ("gpt_neox", {"target_modules": "all-linear"}),
    "all-linear-bert": ("bert-sequence", {"target_modules": "all-linear", "task_type": TaskType.SEQ_CLS}),
    "all-linear-t5": ("t5", {"target_modules": "all-linear"}),
    "rslora": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "use_rslora": True}),
    "dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "dora-heads": ("bloom", {"target_modules": ["query_key_value"], "use_dora": True}),
    "dora-bias": ("qwen2", {"target_modules": ["q_proj", "v_proj", "o_proj"], "use_dora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"q_proj": 3, r"layers\.1\.self_attn\.k_proj": 5},
            "alpha_pattern": {"self_attn.q_proj": 1, r".*\.0\.mlp\.up_proj": 11},
            "use_rslora": True,
        },
    ),
    "layers": ("qwen2", {"target_modules": ["v_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    "layer": ("gpt2", {"target_modules": ["c_attn"], "layers_to_transform": 0}),
    "exclude": (
        "bart",
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*encoder_attn.*|.*decoder.*0.*"},
    ),
    "exclude-ends": ("t5", {"target_modules": ["q", "wo"], "exclude_modules": ["EncDecAttention.q"]}),
    "lora-bias": ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "lora_bias": True}),
    "all-biases": ("bert-mlm", {"target_modules": ["query"], "bias": "all"}),
    "its-biases": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "fused-biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "lora_only"}),
    "norms-too": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "lm_head"]}),
    "fused-too": ("gpt2", {"target_modules": ["c_fc"], "modules_to_save": ["c_attn", "wpe"]}),
    "tied-head": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]}),
    "tied-table": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["wte"]}),
    "tied-both": ("gpt2", {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]}),
    "on-head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "on-tied-head": ("gpt2", {"target_modules": ["c_attn", "lm_head"]}),
    "dora-on-head": ("llama", {"target_modules": ["lm_head"], "use_dora": True}),
    "on-table": ("llama", {"target_modules": ["embed_tokens", "v_proj"]}),
    "on-tied-table": ("gpt2", {"target_modules": ["wte", "wpe"]}),
    "dora-on-table": ("llama", {"target_modules": ["embed_tokens"], "use_dora": True}),
    "on-types": ("bert-mlm", {"target_modules": ["token_type_embeddings", "word_embeddings"]}),
    "on-distances": ("t5", {"target_modules": ["relative_attention_bias"]}),
    "text-labels": ("llama-sequence", {"target_modules": ["q_proj"], "task_type": TaskType.SEQ_CLS}),
    "dense-labels": ("roberta-sequence", {"target_modules": ["dense"], "task_type": TaskType.SEQ_CLS}),
    "t5-labels": ("t5-sequence", {"target_modules": ["q"], "modules_to_save": ["classification_head"]}),
    "biases-of-what-is-stored-whole": (
        "bert-sequence",
        {"target_modules": ["query"], "bias": "all", "modules_to_save": ["classifier"]},
    ),
    "head-by-its-name-of-today": ("gpt_neox", {"target_modules": ["dense", "lm_head"]}),
    "orthogonal": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
}


@pytest.mark.parametrize("case", PEFTS)
def test_lora_of_peft_opens_here(bases, case, tmp_path):
    name, options = PEFTS[case]
    options = {"r": 4, "lora_alpha": 3, "init_lora_weights": False, "lora_dropout": 0.1, **options}
    check_theirs_here(bases, name, LoraConfig(**options), tmp_path)


IA3S = {
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "bloom": (["query_key_value", "dense_4h_to_h"], ["dense_4h_to_h"]),
    "phi3": (["qkv_proj", "gate_up_proj"], ["gate_up_proj"]),
    "t5": (["k", "v", "wo"], ["wo"]),
    "bert-sequence": (["key", "value", "output.dense"], ["output.dense"]),
}


@pytest.mark.parametrize("name", IA3S)
def test_ia3_of_peft_opens_here(bases, name, tmp_path):
    targets, feeds = IA3S[name]
    check_theirs_here(bases, name, IA3Config(target_modules=targets, feedforward_modules=feeds), tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"), [("gpt2", "GPT2Model"), ("llama", "LlamaModel"), ("bert-sequence", "BertModel")]
)
def test_an_adapter_of_a_model_without_its_head_opens_here(bases, name, kind, tmp_path):
    config = LoraConfig(r=4, target_modules=".*(c_attn|q_proj|query)", init_lora_weights=False)
    check_theirs_here(bases, name, config, tmp_path, kind)


OURS = {
    "norms": ("llama", {"train": ("attention_norm", "decoder.norm")}),
    "norms-bert": ("bert-mlm", {"train": ("embed.norm,mlp_norm",)}),
    "tied-table": ("gpt2", {"train": ("embed.tokens",)}),
    "tied-table-bert": ("bert-mlm", {"train": ("embed",)}),
    "tied-table-t5": ("t5", {"train": ("embed.tokens",)}),
    "tied-table-bart": ("bart", {"train": ("embed.tokens",)}),
    "own-head": ("llama", {"train": ("head", "embed.tokens")}),
    "biases": ("gpt2", {"train": ("bias",)}),
    "biases-heads": ("bloom", {"train": ("attention.k.bias",)}),
    "biases-bert": ("bert-mlm", {"train": ("bias",), "method": "ia3"}),
    "last-biases-bart": ("bart", {"train": ("head.bias",)}),
    "fused": ("gpt2", {"train": ("decoder.layers.1.attention.k",)}),
    "some-of-fused": ("phi3", {"targets": ("attention.v", "mlp.up")}),
    "some-of-heads": ("bloom", {"targets": ("attention.v",), "method": "dora"}),
    "some-layers": ("qwen2", {"targets": ("decoder.layers.1.mlp", "layers.0.attention.q")}),
    "on-table": ("llama", {"targets": ("embed.tokens", "attention.q")}),
    "on-tied-table": ("gpt2", {"targets": ("embed", "attention.q")}),
    "dora-on-table": ("bert-mlm", {"targets": ("embed.tokens",), "method": "dora"}),
    "on-head": ("llama", {"targets": ("head", "attention.q")}),
    "on-tied-head": ("gpt2", {"targets": ("head",)}),
    "on-tied-head-bert": ("bert-mlm", {"targets": ("head",)}),
    "on-head-of-another-name-than-in-files": ("gpt_neox", {"targets": ("head", "attention.q")}),
    "own-head-of-another-name-than-in-files": ("gpt_neox", {"train": ("head",)}),
    "tied-table-of-another-name-than-in-files": ("gpt_neox-tied-no-biases", {"train": ("embed.tokens",)}),
    "on-table-t5": ("t5", {"targets": ("embed.tokens", "relative")}),
    "on-table-bart": ("bart", {"targets": ("embed.tokens",)}),
}


@pytest.mark.parametrize("case", OURS)
def test_what_is_trained_besides_or_elsewhere_opens_in_peft(bases, case, tmp_path):
    name, options = OURS[case]
    check_ours_there(bases, name, AdaptConfig(**{"rank": 4, **options}), tmp_path)


@pytest.mark.parametrize("name", ["llama-sequence", "bert-sequence", "roberta-sequence", "t5-sequence"])
def test_an_adapter_with_its_classifier_opens_in_peft(bases, name, tmp_path):
    check_ours_there(bases, name, AdaptConfig(rank=4), tmp_path, "classify")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2", {"target_modules": ["c_attn", "c_fc"]}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
        ("bloom", {"target_modules": ["query_key_value"], "use_dora": True}),
        ("qwen2", {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_dora": True, "use_rslora": True}),
        ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"], "lora_bias": True}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj", "lm_head"]}),
        ("t5", {"target_modules": ["q", "wo"], "modules_to_save": ["final_layer_norm"]}),
    ],
)
def test_gradients_are_those_of_peft(bases, name, options, tmp_path):
    made = adapted(bases.theirs(name), tmp_path, LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **options))
    there(made, rows()).pow(2).mean().backward()
    gradients = {name: one.grad for name, one in made.named_parameters() if one.requires_grad}
    model = bases.ours(name)
    model.requires_grad_(False)
    load_adapter(model, tmp_path)
    for kept in options.get("modules_to_save", ()):
        for parameter in (one for name, one in model.named_parameters() if "norm" in name):
            parameter.requires_grad_(kept == "final_layer_norm")
    here(model, rows()).pow(2).mean().backward()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.grad
    method = "dora" if options.get("use_dora") else "lora"
    save_adapter(tmp_path, model, AdaptConfig(method, rank=4), tmp_path, None)
    mine = load_file(tmp_path / "adapter_model.safetensors")
    assert len(gradients) >= 4
    for name, gradient in gradients.items():
        plain = name.replace(".modules_to_save.default", "").replace(".default", "")
        plain = plain.removesuffix(".weight") if "magnitude" in plain else plain
        torch.testing.assert_close(mine[plain], gradient, atol=1e-5 * gradient.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert-sequence", "t5"])
def test_as_many_parameters_are_trained_as_in_peft(bases, name):
    ends = {"gpt2": "c_attn|attn.c_proj", "llama": "[qkvo]_proj", "t5": "(Self|EncDec)Attention.[qkvo]"}
    targets = f".*({ends.get(name, 'query|key|value|attention.output.dense')})"
    task = TaskType.SEQ_CLS if name == "bert-sequence" else None
    theirs = get_peft_model(bases.theirs(name), LoraConfig(r=8, target_modules=targets, task_type=task))
    model = bases.ours(name)
    whole = sum(one.numel() for one in {id(one): one for one in model.parameters()}.values())
    adapt(model, AdaptConfig(), seed=0)
    count, total = trained(model)
    assert count == theirs.get_nb_trainable_parameters()[0]
    assert total == whole + count - sum(one.numel() for one in (model.classifier or torch.nn.Module()).parameters())


def written(bases: Bases, directory: Path, **changes: object) -> None:
    """An adapter of PEFT's on llama's q, its config changed by hand afterwards."""
    adapted(bases.theirs("llama"), directory, LoraConfig(r=4, target_modules=["q_proj"]))
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, "v_proj is targeted, but has no tensors"),
        ({"target_modules": ["v_proj"]}, "q_proj has an adapter, but"),
        ({"rank_pattern": {"q_proj": 5}}, r"lora_A is \[4, 32\], wanted \[5, 32\]"),
        ({"use_dora": True}, "no lora_magnitude_vector"),
        ({"lora_bias": True}, "no lora_B.bias"),
        ({"modules_to_save": ["model.norm"]}, "model.norm.weight is in modules_to_save"),
        ({"peft_type": "IA3", "feedforward_modules": []}, "not known here: bias"),
    ],
)
def test_a_config_that_its_tensors_do_not_fit_is_refused(bases, changes, word, tmp_path):
    written(bases, tmp_path, **changes)
    with pytest.raises(UserError, match=word):
        load_adapter(bases.ours("llama"), tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"q_proj.lora_B.weight": None}, "no lora_B"),
        ({"layers.9.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}, "layers.9.self_attn.q_proj is nothing"),
        ({"layers.0.self_attn.q_proj.lora_E": torch.ones(4, 1)}, "lora_E is nothing"),
        ({"embed_tokens.weight": torch.ones(107, 32)}, r"embed_tokens.weight is \[107, 32\], wanted \[99, 32\]"),
        ({"norm.weight": torch.ones(32, dtype=torch.int8)}, "no float"),
        ({"": None}, "no adapter"),
    ],
)
def test_a_tensor_too_many_or_too_few_is_refused(bases, change, word, tmp_path):
    written(bases, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for name, tensor in change.items():
        if tensor is None:
            tensors = {one: kept for one, kept in tensors.items() if not one.endswith(name)}
        else:
            tensors[f"base_model.model.model.{name}"] = tensor
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    model = bases.ours("llama")
    before = here(model, rows())
    with pytest.raises(UserError, match=word):
        load_adapter(model, tmp_path)
    assert torch.equal(here(model, rows()), before)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["shared"]},  # without effect in transformers, whose stacks read their own names of it
        {"target_modules": ["embed_tokens"]},  # of which PEFT trains two, that are one table here
        {"target_modules": ["q"], "modules_to_save": ["shared"]},
        {"target_modules": ["q"], "modules_to_save": ["encoder.embed_tokens"]},
    ],
)
def test_tables_of_t5_that_peft_tells_apart_are_refused(bases, options, tmp_path):
    adapted(bases.theirs("t5"), tmp_path, LoraConfig(r=4, init_lora_weights=False, **options))
    with pytest.raises(UserError, match=r"same table|one table"):
        load_adapter(bases.ours("t5"), tmp_path)
