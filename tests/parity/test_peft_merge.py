"""lora-merge and merge against PEFT: the same weights, in checkpoints that transformers opens as PEFT's model."""

import json

import peft
import pytest
import torch
from peft.utils.merge_utils import ties
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from llmctl.core.adapt.combine import combine
from llmctl.core.adapt.merge import merge
from llmctl.core.checkpoint.carry import carry
from llmctl.spec.combine import CombineConfig, CombinePlan
from llmctl.spec.edits import Given
from llmctl.spec.merge_plan import MergePlan
from tests.parity import oracle, oracle_encoders

CLOSE = {"atol": 1e-6, "rtol": 1e-5}  # of float32 sums in another order
LORA = {
    "gpt2": ["c_attn", "mlp.c_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "bert-mlm": ["query", "output.dense"],
    "t5": ["q", "wo"],
    "bloom": ["query_key_value"],
    "phi3": ["qkv_proj"],
    "bart": ["k_proj", "fc2"],
}
IA3 = {
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "bert-mlm": (["key", "value", "output.dense"], ["output.dense"]),
    "t5": (["k", "v", "wo"], ["wo"]),
}
KINDS = {
    "lora": {"lora_alpha": 12},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {r".*\.0\..*": 2}, "alpha_pattern": {r".*\.1\..*": 3}},
}


def made(name: str, path) -> torch.nn.Module:
    return (oracle if name in oracle.CONFIGS else oracle_encoders).saved(name, path)


def adapted(model: torch.nn.Module, config, path) -> torch.nn.Module:
    """PEFT's model of random adapter weights, its adapter saved."""
    found = peft.get_peft_model(model, config).eval()
    chance = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=chance) * 0.1)
    found.save_pretrained(path)
    return found


def merged(base, adapters, out, dtype=None) -> MergePlan:
    plan = MergePlan.of(base, adapters, dtype)
    out.mkdir()
    merge(plan, out)
    carry(out, plan.json, [base])
    return plan


def same(out, model: torch.nn.Module) -> None:
    """The directory holds the model's weights, and transformers makes the model's scores of it."""
    again, report = type(model).from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    wanted = dict(model.named_parameters())
    for name, parameter in again.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], **CLOSE, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert-mlm", "t5"])
def test_a_merged_adapter_is_what_peft_merges(name, kind, tmp_path):
    model = made(name, tmp_path / "base")
    theirs = adapted(model, peft.LoraConfig(r=4, target_modules=LORA[name], **KINDS[kind]), tmp_path / "adapter")
    merged(tmp_path / "base", [Given(tmp_path / "adapter")], tmp_path / "out")
    same(tmp_path / "out", theirs.merge_and_unload())


@pytest.mark.parametrize("name", ["bloom", "phi3", "bart"])
def test_a_fused_matrix_is_merged_as_one(name, tmp_path):
    model = made(name, tmp_path / "base")
    theirs = adapted(model, peft.LoraConfig(r=4, target_modules=LORA[name], use_dora=True), tmp_path / "adapter")
    merged(tmp_path / "base", [Given(tmp_path / "adapter")], tmp_path / "out")
    same(tmp_path / "out", theirs.merge_and_unload())


@pytest.mark.parametrize("name", IA3)
def test_factors_are_merged_into_rows_or_columns(name, tmp_path):
    model, (targets, feeds) = made(name, tmp_path / "base"), IA3[name]
    config = peft.IA3Config(target_modules=targets, feedforward_modules=feeds)
    theirs = adapted(model, config, tmp_path / "adapter")
    merged(tmp_path / "base", [Given(tmp_path / "adapter")], tmp_path / "out")
    same(tmp_path / "out", theirs.merge_and_unload())


def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(4, 99, (2, 11), generator=torch.Generator().manual_seed(1))
    labels = "SequenceClassification" in type(model).__name__
    if labels:
        tokens[:, -1] = model.config.eos_token_id or 0  # T5's stands for the text
    more = {"decoder_input_ids": tokens[:, :5]} if model.config.is_encoder_decoder and not labels else {}
    with torch.no_grad():
        return model(tokens, attention_mask=torch.ones_like(tokens), **more).logits


TABLES = {"llama-tied": ("embed_tokens", "lm_head"), "gpt2": ("wte", "lm_head"), "t5": ("shared", "lm_head")}


@pytest.mark.parametrize("part", ["embedding", "head", "embedding whole", "head whole", "both whole"])
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_tied_embedding_or_head_that_an_adapter_changes_is_untied(name, part, tmp_path):
    model, (table, head) = made(name, tmp_path / "base"), TABLES[name]
    named = {"embedding": [table], "head": [head], "both": [table, head]}[part.split()[0]]
    whole = part.endswith("whole")
    how = {"modules_to_save": named} if whole else {}
    config = peft.LoraConfig(r=4, target_modules=LORA[name.removesuffix("-tied")] + named * (not whole), **how)
    theirs = adapted(model, config, tmp_path / "adapter")
    plan = merged(tmp_path / "base", [Given(tmp_path / "adapter")], tmp_path / "out")
    assert "tie_word_embeddings false" in plan.notes[0]
    again = type(model).from_pretrained(tmp_path / "out")
    assert again.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(again), logits(theirs), atol=1e-4, rtol=1e-5)


def test_a_tied_head_that_is_scaled_has_the_scale_in_its_weights_once_it_is_untied(tmp_path):
    model = made("t5", tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q"], modules_to_save=["lm_head"])
    theirs = adapted(model, config, tmp_path / "adapter")
    merged(tmp_path / "base", [Given(tmp_path / "adapter")], tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(theirs), atol=1e-4, rtol=1e-5)


def test_embedding_and_head_that_an_adapter_stores_with_the_same_bytes_stay_tied(tmp_path):
    model = made("llama-tied", tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted(model, config, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    table, head = (next(name for name in tensors if part in name) for part in ("embed_tokens", "lm_head"))
    save_file({**tensors, head: tensors[table].clone()}, file)
    plan = merged(tmp_path / "base", [Given(tmp_path / "adapter")], tmp_path / "out")
    assert not plan.notes and plan.config.tie
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"], tensors[table])


@pytest.mark.parametrize(
    "how",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"target_modules": ["wte", "c_fc"], "use_dora": True, "r": 3},
        {"modules_to_save": ["ln_f", "wpe"]},
        {"modules_to_save": ["c_fc"], "bias": "all", "target_modules": ["c_attn"]},
        {"layers_to_transform": [1], "layers_pattern": "h"},
        {"target_modules": "all-linear", "exclude_modules": ["c_fc"]},
    ],
    ids=["bias", "own bias", "lora bias", "table", "modules", "biases of modules", "layers", "all"],
)
def test_biases_tables_and_whole_modules_are_merged(how, tmp_path):
    model = made("gpt2", tmp_path / "base")
    theirs = adapted(model, peft.LoraConfig(**{"r": 4, "target_modules": LORA["gpt2"], **how}), tmp_path / "adapter")
    merged(tmp_path / "base", [Given(tmp_path / "adapter")], tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(theirs), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "task"),
    [("llama", "SEQ_CLS"), ("gpt2", "SEQ_CLS"), ("bert", "SEQ_CLS"), ("t5", "SEQ_CLS"), ("bert", "TOKEN_CLS")],
)
def test_a_head_that_an_adapter_brings_becomes_the_models(name, task, tmp_path):
    made(name, tmp_path / "base")
    kind = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}[task]
    model = kind.from_pretrained(tmp_path / "base", num_labels=3, pad_token_id=0)
    targets = LORA["bert-mlm" if name == "bert" else name]
    head = {"modules_to_save": ["classification_head"]} if name == "t5" else {}  # else PEFT saves no head of T5's
    config = peft.LoraConfig(r=4, target_modules=targets, task_type=task, **head)
    theirs = adapted(model, config, tmp_path / "adapter")
    merged(tmp_path / "base", [Given(tmp_path / "adapter")], tmp_path / "out")
    again = kind.from_pretrained(tmp_path / "out", pad_token_id=0)
    assert again.config.num_labels == 3
    torch.testing.assert_close(logits(again), logits(theirs), atol=1e-4, rtol=1e-5)
    said = json.loads((tmp_path / "base" / "config.json").read_text())
    said |= {"architectures": [type(model).__name__], "id2label": {"0": "a", "1": "b", "2": "c"}}
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(said))
    merged(tmp_path / "base", [Given(tmp_path / "adapter")], tmp_path / "named")
    assert kind.from_pretrained(tmp_path / "named").config.id2label == {0: "a", 1: "b", 2: "c"}


def test_several_adapters_add_up_by_their_weights(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    before = dict(made("llama", tmp_path / "base").named_parameters())
    parts = []
    for path, how in ((one, {"use_dora": True}), (two, {"use_rslora": True, "r": 2})):
        config = peft.LoraConfig(**{"r": 4, "target_modules": LORA["llama"], **how})
        parts.append(
            dict(adapted(made("llama", tmp_path / "base"), config, path).merge_and_unload().named_parameters())
        )
    merged(tmp_path / "base", [Given(one, 0.7), Given(two, -0.3)], tmp_path / "out")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        changes = [part[name] - before[name] for part in parts]
        torch.testing.assert_close(tensor, before[name] + 0.7 * changes[0] - 0.3 * changes[1], **CLOSE)
    merged(tmp_path / "base", [Given(one, 0.0), Given(two, 0.0)], tmp_path / "none")
    for name, tensor in load_file(tmp_path / "none" / "model.safetensors").items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_bf16_base_is_the_fp32_merge_cast_once(kind, tmp_path):
    model = made("llama", tmp_path / "fp32").bfloat16()
    model.save_pretrained(tmp_path / "base")
    model.float().save_pretrained(tmp_path / "fp32")
    config = peft.LoraConfig(r=4, target_modules=LORA["llama"], **KINDS[kind])
    adapted(model, config, tmp_path / "adapter")
    given = [Given(tmp_path / "adapter")]
    merged(tmp_path / "fp32", given, tmp_path / "wide")
    merged(tmp_path / "base", given, tmp_path / "narrow")
    merged(tmp_path / "base", given, tmp_path / "cast", "fp32")
    wide, narrow, cast = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "narrow", "cast"))
    for name, tensor in wide.items():
        assert torch.equal(tensor.bfloat16(), narrow[name]) and torch.equal(tensor, cast[name]), name


def test_ties_is_pefts_ties_of_the_changes(tmp_path):
    models = []
    for number in range(4):
        torch.manual_seed(number)
        models.append(tmp_path / f"model{number}")
        oracle.make("llama").save_pretrained(models[-1])
    (tmp_path / "out").mkdir()
    how = CombineConfig("ties", density=("0.3",), scale=0.7)
    combine(CombinePlan.of(models[1:], models[0], how), tmp_path / "out")
    before, *after = (load_file(path / "model.safetensors") for path in models)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == before.keys()
    for name, tensor in before.items():
        changes = [(one[name].double() - tensor.double()).float() for one in after]
        wanted = tensor + 0.7 * ties(changes, torch.ones(3), 0.3)
        torch.testing.assert_close(found[name], wanted, **CLOSE)
