"""Random tiny models made by transformers, one for each way in which the families' configs differ."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.bloom import BloomConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

VOCAB, LENGTH = 99, 48
IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}


def llama_like(kind: type, **changes: object) -> Callable[[], object]:
    shape = {
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return lambda: kind(**{**IDS, **shape, **changes})


def scaled(rope_type: str, **values: object) -> Callable[[], object]:
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "factor": 4.0, **values}
    return llama_like(LlamaConfig, max_position_embeddings=24 if rope_type == "dynamic" else 96, rope_parameters=rope)


def gpt2(**changes: object) -> Callable[[], object]:
    return lambda: GPT2Config(**{**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **changes})


def bloom(**changes: object) -> Callable[[], object]:
    return lambda: BloomConfig(**{**IDS, "hidden_size": 32, "n_layer": 2, "n_head": 4, **changes})


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
CONFIGS: dict[str, Callable[[], object]] = {
    "llama": llama_like(LlamaConfig, rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
    "llama-tied": llama_like(LlamaConfig, tie_word_embeddings=True, rms_norm_eps=1e-3),
    "llama-all-heads": llama_like(LlamaConfig, num_key_value_heads=None, hidden_act="gelu_pytorch_tanh"),
    "llama-biases": llama_like(LlamaConfig, attention_bias=True, mlp_bias=True, hidden_act="relu"),
    "llama-head-dim": llama_like(LlamaConfig, head_dim=16, num_key_value_heads=1, hidden_act="gelu"),
    "llama-linear": scaled("linear"),
    "llama-dynamic": scaled("dynamic"),
    "llama-llama3": scaled("llama3", **LLAMA3),
    "llama-yarn": scaled("yarn", original_max_position_embeddings=24),
    "llama-yarn-options": scaled(
        "yarn", original_max_position_embeddings=24, beta_fast=8.0, beta_slow=2.0, truncate=False, attention_factor=0.7
    ),
    "llama-yarn-mscale": scaled("yarn", original_max_position_embeddings=24, mscale=0.8, mscale_all_dim=0.5),
    "mistral": llama_like(MistralConfig, sliding_window=7),
    "mistral-no-window": llama_like(MistralConfig, sliding_window=None, head_dim=16, tie_word_embeddings=True),
    "qwen2": llama_like(Qwen2Config),
    "qwen2-tied-window": llama_like(
        Qwen2Config, tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": llama_like(Qwen3Config, head_dim=16, tie_word_embeddings=True),
    "qwen3-biases-window": llama_like(
        Qwen3Config,
        head_dim=24,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt2": gpt2(),
    "gpt2-untied": gpt2(tie_word_embeddings=False, n_inner=40, activation_function="relu", layer_norm_epsilon=1e-3),
    "bloom": bloom(),
    "bloom-untied-6-heads": bloom(tie_word_embeddings=False, n_head=6, hidden_size=48),
}


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """The model, in fp32 and eval mode, every parameter random: norms and biases too, else a swap would not show."""
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * 0.3 + (parameter.dim() == 1))
    return model


def saved(name: str, directory: Path, **how: object) -> PreTrainedModel:
    """The model, once transformers has written it to `directory`."""
    model = make(name)
    model.save_pretrained(directory, **how)
    return model


def tokens(rows: int = 2, length: int = LENGTH) -> torch.Tensor:
    """Random ids, (rows, length) int64."""
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))
