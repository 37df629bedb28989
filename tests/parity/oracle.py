"""Random tiny models made by transformers, one for each way in which the families' configs differ."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.bloom import BloomConfig
from transformers.models.gemma import GemmaConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.olmo2 import Olmo2Config
from transformers.models.phi3 import Phi3Config
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config
from transformers.models.smollm3 import SmolLM3Config

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


def gemma(kind: type, **changes: object) -> Callable[[], object]:
    return llama_like(kind, **{"head_dim": 16, "pad_token_id": 0, **changes})


def phi3(**changes: object) -> Callable[[], object]:
    return llama_like(Phi3Config, **{"pad_token_id": None, **changes})


def gpt_neox(**changes: object) -> Callable[[], object]:
    shape = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    return lambda: GPTNeoXConfig(**{**IDS, **shape, "max_position_embeddings": 64, **changes})


def smollm3(**changes: object) -> Callable[[], object]:
    return llama_like(SmolLM3Config, **{"num_hidden_layers": 4, "pad_token_id": None, **changes})


def longrope(pairs: int, **values: object) -> dict:
    short, long = [1.0 + i / 8 for i in range(pairs)], [2.0 + i for i in range(pairs)]
    return {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long, **values}


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
    "gemma": gemma(GemmaConfig),
    "gemma-untied-biases": gemma(GemmaConfig, tie_word_embeddings=False, attention_bias=True, hidden_act="relu"),
    "gemma2": gemma(Gemma2Config, sliding_window=7, num_hidden_layers=3),
    "gemma2-no-caps": gemma(
        Gemma2Config,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        query_pre_attn_scalar=16,
        layer_types=["full_attention", "full_attention"],
        tie_word_embeddings=False,
        attention_bias=True,
    ),
    "gemma2-low-caps": gemma(
        Gemma2Config,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
        query_pre_attn_scalar=24,
        sliding_window=5,
        layer_types=["full_attention", "sliding_attention"],
        hidden_activation="silu",
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
    ),
    "gemma3": gemma(Gemma3TextConfig, sliding_window=7, num_hidden_layers=7),
    "gemma3-linear": gemma(
        Gemma3TextConfig,
        sliding_window=5,
        num_hidden_layers=3,
        sliding_window_pattern=2,
        query_pre_attn_scalar=24,
        final_logit_softcapping=9.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "gemma3-no-window": gemma(
        Gemma3TextConfig,
        layer_types=["full_attention"] * 2,
        tie_word_embeddings=False,
        attention_bias=True,
        hidden_activation="gelu",
    ),
    "gemma3-all-windows": gemma(Gemma3TextConfig, sliding_window=6, layer_types=["sliding_attention"] * 2),
    "phi3": phi3(),
    "phi3-window-tied": phi3(sliding_window=7, tie_word_embeddings=True, num_key_value_heads=None, hidden_act="gelu"),
    "phi3-partial": phi3(
        hidden_size=64, rope_parameters={"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.75}
    ),
    "phi3-longrope-short": phi3(
        max_position_embeddings=256, original_max_position_embeddings=64, rope_parameters=longrope(4)
    ),
    "phi3-longrope-long": phi3(
        max_position_embeddings=96, original_max_position_embeddings=24, rope_parameters=longrope(4)
    ),
    "phi3-longrope-partial": phi3(
        hidden_size=64,
        max_position_embeddings=96,
        original_max_position_embeddings=24,
        rope_parameters=longrope(6, partial_rotary_factor=0.75, factor=3.0),
    ),
    "phi3-longrope-attention": phi3(
        max_position_embeddings=96,
        original_max_position_embeddings=24,
        rope_parameters=longrope(4, attention_factor=0.8),
    ),
    "llama-longrope": llama_like(
        LlamaConfig,
        max_position_embeddings=96,
        rope_parameters=longrope(4, factor=2.0, original_max_position_embeddings=24),
    ),
    "olmo2": llama_like(Olmo2Config, pad_token_id=None),
    "olmo2-tied-biases": llama_like(
        Olmo2Config,
        pad_token_id=None,
        num_key_value_heads=None,
        tie_word_embeddings=True,
        attention_bias=True,
        rms_norm_eps=1e-3,
        hidden_act="gelu_pytorch_tanh",
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "gpt_neox": gpt_neox(),
    "gpt_neox-serial": gpt_neox(use_parallel_residual=False, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-3),
    "gpt_neox-tied-no-biases": gpt_neox(
        tie_word_embeddings=True,
        attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
    ),
    "gpt_neox-linear": gpt_neox(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5}
    ),
    "gpt_neox-dynamic": gpt_neox(
        max_position_embeddings=24,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0, "partial_rotary_factor": 0.5},
    ),
    "smollm3": smollm3(),
    "smollm3-window": smollm3(
        use_sliding_window=True,
        sliding_window=6,
        no_rope_layers=[0, 1, 1, 0],
        tie_word_embeddings=False,
        attention_bias=True,
        mlp_bias=True,
    ),
    "smollm3-layer-types": smollm3(
        use_sliding_window=True,
        sliding_window=6,
        no_rope_layer_interval=2,
        num_key_value_heads=None,
        layer_types=["sliding_attention", "full_attention", "full_attention", "full_attention"],
    ),
}


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """The model, in fp32 and eval mode, every parameter random: norms and biases too, else a swap would not show."""
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    generator = torch.Generator().manual_seed(seed)
    scale = 0.3 * min(1.0, (32 / model.config.hidden_size) ** 0.5)
    middle = 0.0 if "gemma" in model.config.model_type else 1.0  # of norms: Gemma's multiply by 1 + weight
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * scale + middle * (parameter.dim() == 1))
    return model


def saved(name: str, directory: Path, **how: object) -> PreTrainedModel:
    """The model, once transformers has written it to `directory`."""
    model = make(name)
    model.save_pretrained(directory, **how)
    return model


def tokens(rows: int = 2, length: int = LENGTH) -> torch.Tensor:
    """Random ids, (rows, length) int64."""
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(1))
