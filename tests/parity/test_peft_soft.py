"""Soft prompts against PEFT: its directories here, ours there, with equal logits."""

import pytest
import torch

peft = pytest.importorskip("peft")
from llmctl.core.adapt.inject import adapt
from llmctl.core.adapt.stored import load_adapter, save_adapter
from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.spec.adapt import AdaptConfig
from tests.parity import oracle, oracle_encoders

FP32 = {"atol": 1e-5, "rtol": 1e-5}  # the acceptance of issue 4
COUNT = 3
TASKS = {
    **dict.fromkeys(("gpt2", "llama", "llama-head-dim", "mistral", "qwen3", "gemma2", "gemma3", "bloom", "gpt_neox", "phi3", "smollm3"), "lm"),
    **dict.fromkeys(("t5", "t5-1.1", "bart"), "seq2seq"),
    **dict.fromkeys(("bert-sequence", "roberta-sequence"), "classify"),
    "bert-token": "tag",
    "bert-mlm": "mask",
}  # fmt: skip
TYPES = {"lm": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "classify": "SEQ_CLS", "tag": "TOKEN_CLS"}
TYPES["mask"] = "FEATURE_EXTRACTION"
PAIRS = [(name, method) for name in TASKS for method in ("prompt", "prefix")]
GATED = [(name, "llama-adapter") for name in ("gpt2", "llama", "mistral")]  # there PEFT knows no other


def made(name: str, path) -> torch.nn.Module:
    module = oracle if name in oracle.CONFIGS else oracle_encoders
    return module.saved(name, path)


def theirs_of(name: str, method: str, model: torch.nn.Module, **how) -> torch.nn.Module:
    """PEFT's model, its soft prompt random and its gates open."""
    kind = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
    if method == "llama-adapter":
        config = peft.AdaptionPromptConfig(task_type=TYPES[TASKS[name]], adapter_len=COUNT, adapter_layers=1)
    else:
        config = kind[method](task_type=TYPES[TASKS[name]], num_virtual_tokens=COUNT, **how)
    found = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, parameter in found.named_parameters():
            if "prompt" in key or "adaption" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return found


def logits(name: str, model: torch.nn.Module) -> torch.Tensor:
    """What a model, ours or theirs, makes of two rows, of their own tokens."""
    tokens = torch.randint(4, 99, (2, 11), generator=torch.Generator().manual_seed(1))
    both, ours = TASKS[name] == "seq2seq", isinstance(model, Transformer)
    with torch.no_grad():
        if not ours:
            more = {"decoder_input_ids": tokens[:, :5]} if both else {}
            found = model(tokens, attention_mask=torch.ones_like(tokens), **more).logits
            return found if found.dim() == 2 else found[:, -(5 if both else 11) :]
        hidden = model(tokens[:, :5], encoder=EncoderInput(tokens)) if both else model(tokens)
        return model.classify(hidden) if model.config.labels else model.head(hidden)


def loaded(base, adapter) -> Transformer:
    model = Checkpoint.open(base).model()
    load_adapter(model, adapter)
    return model.eval()


@pytest.mark.parametrize(("name", "method"), PAIRS + GATED)
def test_a_soft_prompt_of_peft_gives_its_logits(name, method, tmp_path):
    theirs = theirs_of(name, method, made(name, tmp_path / "base"))
    theirs.save_pretrained(tmp_path / "adapter")
    model = loaded(tmp_path / "base", tmp_path / "adapter")
    torch.testing.assert_close(logits(name, model), logits(name, theirs), **FP32)


@pytest.mark.parametrize(("name", "method"), PAIRS + GATED)
def test_a_soft_prompt_of_ours_loads_in_peft_with_equal_logits(name, method, tmp_path):
    base = made(name, tmp_path / "base")
    model = Checkpoint.open(tmp_path / "base").model()
    config = AdaptConfig(method, virtual_tokens=COUNT)
    adapt(model, config, seed=0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(key)))
    (tmp_path / "adapter").mkdir()
    save_adapter(tmp_path / "adapter", model, config, tmp_path / "base", TASKS[name])
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(name, model), logits(name, theirs), **FP32)
    again = loaded(tmp_path / "base", tmp_path / "adapter")
    assert torch.equal(logits(name, again), logits(name, model))
