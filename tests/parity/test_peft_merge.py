"""lora-merge against PEFT's merge_and_unload: the same weights, and a checkpoint that transformers opens as that model."""

import pytest
import torch

peft = pytest.importorskip("peft")
from safetensors.torch import load_file

from llmctl.core.adapt.merge import merge
from llmctl.core.checkpoint.carry import carry
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
        for name, parameter in found.named_parameters():
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
