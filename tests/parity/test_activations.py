"""The formula for the activations of transformers' Llama beside what that keeps."""

import pytest
import torch

from llmctl.spec.memory import estimate
from llmctl.spec.setting import Setting
from tests.core.train.test_memory_measured import LLAMA, kept_storages

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("kind", "kv_heads"), [("Llama", 2), ("Qwen2", 2), ("Mistral", 4)])
def test_transformers_keeps_what_the_formula_says(kind, kv_heads, dtype, attention):
    rows, block = 4, 64
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=LLAMA.vocab,
        hidden_size=LLAMA.width,
        num_hidden_layers=LLAMA.layers,
        num_attention_heads=LLAMA.heads,
        num_key_value_heads=kv_heads,
        intermediate_size=LLAMA.ff,
        attn_implementation=attention,
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[dtype],
        use_cache=False,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).train()
    tokens = torch.randint(0, LLAMA.vocab, (rows, block))
    setting = Setting(
        implementation="hf",
        batch=rows,
        sequence=block,
        dtype=dtype,
        precision="pure",
        fused_attention=attention == "sdpa",
    )
    kept = sum(storage.nbytes() for storage in kept_storages(model, lambda: model(tokens)))
    wanted = sum(size for name, size in estimate(LLAMA.resized(kv_heads=kv_heads), setting).parts)
    assert kept == pytest.approx(wanted, rel=0.01)  # cosines and sines, and a mask, are shared by all rows
