"""Adapters merged into their base: sums by hand, what is refused, and memory that does not grow with the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.core.adapt import merge as module
from llmctl.core.adapt.merge import merge
from llmctl.core.adapt.stored import load_adapter
from llmctl.core.checkpoint.carry import carry
from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.errors import UserError
from llmctl.spec.edits import Given
from llmctl.spec.merge_plan import MergePlan
from tests.conftest import ROOT, environment

Q, UP = "model.layers.{}.self_attn.q_proj", "model.layers.{}.mlp.up_proj"  # of the variant llama: 24 -> 24, 24 -> 40


def lora(rank: int = 4, names=(Q.format(0), Q.format(1)), out: int = 24, size: float = 0.1) -> dict[str, torch.Tensor]:
    chance, tensors = torch.Generator().manual_seed(rank), {}
    for name in names:
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, 24, generator=chance)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, rank, generator=chance) * size
    return tensors


@pytest.fixture
def adapter(tmp_path):
    """adapter(tensors, **config) -> the directory of one: LoRA of rank 4 and alpha 8 unless the config says else."""

    def make(tensors=None, name="adapter", **config) -> Path:
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
        (path / "adapter_config.json").write_text(json.dumps(said))
        save_file(lora() if tensors is None else tensors, path / "adapter_model.safetensors")
        return path

    return make


def merged(base, given, out, dtype=None) -> dict[str, torch.Tensor]:
    plan = MergePlan.of(base, given, dtype)
    out.mkdir()
    merge(plan, out)
    carry(out, plan.json, [base])
    Checkpoint.open(out).model()
    return load_file(out / "model.safetensors")


def refused(base, path) -> str:
    with pytest.raises(UserError) as caught:
        MergePlan.of(base, [Given(path)])
    assert caught.value.code == 4 and caught.value.hint
    return caught.value.problem


@pytest.mark.parametrize("block", [1, 50, 1 << 18])
def test_the_sum_is_that_by_hand_whatever_the_blocks(block, written, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    base, path = written("llama"), adapter()
    before, tensors = load_file(base / "model.safetensors"), lora()
    found = merged(base, [Given(path, 1.5)], tmp_path / "out")
    for name, tensor in found.items():
        if "q_proj" not in name:
            assert torch.equal(tensor, before[name])
            continue
        a, b = (tensors[f"base_model.model.{name.removesuffix('weight')}lora_{part}.weight"].double() for part in "AB")
        torch.testing.assert_close(tensor.double(), before[name] + 1.5 * 8 / 4 * b @ a, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_an_adapter_that_changes_nothing_leaves_the_bytes_of_the_base(weight, written, adapter, tmp_path):
    base = written("gpt2", dtype=torch.bfloat16)
    names = [f"transformer.h.{i}.mlp.c_fc" for i in range(2)]
    tensors = lora(names=names, out=40)
    for name in tensors:
        tensors[name] *= 0 if weight and "lora_B" in name else 1
    found = merged(base, [Given(adapter(tensors, target_modules=["c_fc"]), weight)], tmp_path / "out")
    before = load_file(base / "model.safetensors")
    assert found.keys() == before.keys() and all(torch.equal(found[name], before[name]) for name in before)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((base / name).read_text())


def test_keys_may_lack_the_class_and_carry_the_adapters_name(written, adapter, tmp_path):
    base, plain = written("llama"), adapter()
    bare = {
        name.replace(".model.model.", ".model.").replace(".weight", ".default.weight"): tensor
        for name, tensor in lora().items()
    }
    other = adapter(bare, "other")
    one, two = (merged(base, [Given(path)], tmp_path / f"out-{path.name}") for path in (plain, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_patterns_of_ranks_and_scales_may_name_a_whole_module(written, adapter, tmp_path):
    """Merging knew modules without the class's prefix alone: such a pattern met nothing, and the scale was another."""
    base, tensors = written("llama"), lora(names=[Q.format(0)]) | lora(2, names=[Q.format(1)])
    patterns = {"rank_pattern": {f"^{Q.format(1)}": 2}, "alpha_pattern": {Q.format(0): 1}}
    before, given = load_file(base / "model.safetensors"), [Given(adapter(tensors, **patterns))]
    found = merged(base, given, tmp_path / "out")
    for number, scale in ((0, 1 / 4), (1, 8 / 2)):
        a, b = (tensors[f"base_model.model.{Q.format(number)}.lora_{part}.weight"] for part in "AB")
        name = f"{Q.format(number)}.weight"
        torch.testing.assert_close(found[name], before[name] + scale * b @ a, atol=1e-6, rtol=1e-6)


def test_a_module_under_two_names_is_refused(written, adapter):
    base, tensors = written("llama"), lora()
    again = {name.replace(".model.model.", ".model."): tensor for name, tensor in lora(names=[Q.format(0)]).items()}
    path = adapter(tensors | again)
    assert "layers.0.self_attn.q_proj" in (told := refused(base, path)) and "are one module" in told
    with pytest.raises(UserError, match="are one module"):
        load_adapter(Checkpoint.open(base).model(), path)


def test_what_an_adapter_has_and_the_base_does_not_is_refused_and_so_is_what_it_lacks(written, adapter):
    base, good = written("llama"), lora()
    a = f"base_model.model.{Q.format(0)}.lora_A.weight"
    b = a.replace("lora_A", "lora_B")
    assert "no place for layers.7" in refused(base, adapter(good | lora(names=["model.layers.7.self_attn.q_proj"])))
    assert "has lora_A alone" in refused(base, adapter({name: one for name, one in good.items() if name != b}))
    one = {name: tensor for name, tensor in good.items() if "layers.0" in name}
    assert "nothing for model.layers.1.self_attn.q_proj" in refused(base, adapter(one))
    assert "wanted rank 8" in refused(base, adapter(r=8))
    assert "lora_magnitude_vector" in refused(base, adapter(use_dora=True))
    assert "is [24, 4], wanted [40, 4]" in refused(base, adapter(lora(names=[UP.format(0)]), target_modules=None))
    assert "lora_A.weight is I64" in refused(base, adapter(good | {a: good[a].long()}))
    assert "use_qalora" in refused(base, adapter(use_qalora=True))


def test_soft_prompts_cannot_be_merged(written, adapter):
    path = adapter({"prompt_embeddings": torch.zeros(3, 24)}, peft_type="PROMPT_TUNING", num_virtual_tokens=3)
    said = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(
        json.dumps({key: said[key] for key in ("peft_type", "num_virtual_tokens")})
    )
    assert "PROMPT_TUNING" in refused(written("llama"), path)


def test_a_quantized_base_and_one_that_is_an_adapter_are_refused(written, adapter):
    base, path = written("llama"), adapter()
    said = json.loads((base / "config.json").read_text())
    quantized = {**said, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (base / "config.json").write_text(json.dumps(quantized))
    assert "quantized (bitsandbytes)" in refused(base, path)
    (path / "config.json").write_text(json.dumps(said))
    assert "is an adapter" in refused(path, path)


def test_a_tied_head_that_its_family_cannot_untie_stops_the_merge(written, adapter):
    tensors = {
        "base_model.model.model.shared.lora_embedding_A": torch.ones(4, 61),
        "base_model.model.model.shared.lora_embedding_B": torch.ones(24, 4),
    }
    assert "keeps the two apart" in refused(written("bart"), adapter(tensors, target_modules=["shared"]))


def test_weights_that_do_not_fit_the_type_are_refused(written, adapter, tmp_path):
    base = written("llama", dtype=torch.float16)
    (tmp_path / "out").mkdir()
    plan = MergePlan.of(base, [Given(adapter(lora(size=1e5)))])
    with pytest.raises(UserError, match="does not stay finite as F16"):
        merge(plan, tmp_path / "out")
    merged(base, [Given(tmp_path / "adapter")], tmp_path / "wide", "bf16")


def test_zeros_are_counted_before_and_after(written, adapter, tmp_path):
    base, path = written("llama"), adapter()
    tensors = load_file(base / "model.safetensors")
    for name in tensors:
        if "q_proj" in name:
            tensors[name][::2] = 0
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    (tmp_path / "out").mkdir()
    seen = merge(MergePlan.of(base, [Given(path)]), tmp_path / "out")
    assert (seen.elements, seen.zeros_before, seen.zeros_after) == (2 * 24 * 24, 24 * 24, 0)


MEASURED = """
import sys
from pathlib import Path
import torch
from llmctl.core.adapt.combine import combine
from llmctl.core.adapt.merge import merge
from llmctl.core.adapt.stored import load_adapter
from llmctl.spec.combine import CombineConfig, CombinePlan
from llmctl.spec.edits import Given
from llmctl.spec.merge_plan import MergePlan

def peak():  # of this program: what getrusage tells, a process has from the one that started it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

def run(base, adapter, out):
    out.mkdir()
    if adapter is None:
        plan = CombinePlan.of([base, base], base, CombineConfig("ties"))
        combine(plan, out)
    else:
        plan = MergePlan.of(base, [Given(adapter)])
        merge(plan, out)
    return plan

torch.set_num_threads(1)
root, adapter = Path(sys.argv[1]), sys.argv[2] == "lora" or None
run(root / "small", adapter and root / "small-adapter", root / "small-out")
before = peak()
plan = run(root / "large", adapter and root / "large-adapter", root / "large-out")
print(peak() - before, plan.bytes, max(one.bytes for one in plan.tensors))
"""


@pytest.mark.parametrize("command", ["lora", pytest.param("ties", marks=pytest.mark.slow)])
def test_memory_stays_by_the_largest_tensor_whatever_the_model(command, tmp_path):
    from llmctl.core.checkpoint.directory import save_checkpoint
    from llmctl.core.model.transformer import Transformer
    from llmctl.spec.model import ModelConfig

    for name, width, ff, layers in (("small", 64, 64, 1), ("large", 512, 32768, 2)):
        config = ModelConfig(vocab=100, context=64, width=width, layers=layers, heads=4, ff=ff, tie=True)
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}-adapter").mkdir()
        with torch.no_grad():
            model = Transformer(config, dtype=torch.bfloat16)
            for parameter in model.parameters():
                parameter.fill_(0.5)
        save_checkpoint(tmp_path / name, model, config)
        tensors = {}
        for i in range(layers):
            tensors[f"base_model.model.{UP.format(i)}.lora_A.weight"] = torch.ones(4, width)
            tensors[f"base_model.model.{UP.format(i)}.lora_B.weight"] = torch.ones(ff, 4)
            tensors[f"base_model.model.{UP.format(i)}.lora_magnitude_vector"] = torch.ones(ff)
        save_file(tensors, tmp_path / f"{name}-adapter" / "adapter_model.safetensors")
        said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"], "use_dora": True}
        (tmp_path / f"{name}-adapter" / "adapter_config.json").write_text(json.dumps(said))
    words = [sys.executable, "-c", MEASURED, str(tmp_path), command]
    done = subprocess.run(words, env=environment(), cwd=ROOT, check=True, capture_output=True, text=True)
    grown, whole, largest = map(int, done.stdout.split())
    assert whole > 200e6 and largest == 512 * 32768 * 2
    held = {"lora": 2, "ties": 4}[command]  # read and written; three read and one written
    assert grown < held * largest + 16 * 2**20  # blocks, and what the allocator keeps
