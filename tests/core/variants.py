"""Small configs that between them have every field of ModelConfig both ways."""

from llmctl.spec.model import ModelConfig, RopeScaling

BASE = {"vocab": 61, "width": 24, "layers": 2, "heads": 4, "ff": 40, "context": 32, "init_std": 0.2}
PLAIN = {"norm": "layer", "activation": "gelu_tanh", "gated": False}
BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}

VARIANTS: dict[str, ModelConfig] = {
    "llama": ModelConfig(**BASE, kv_heads=2, tie=False),
    "llama3": ModelConfig(**BASE, kv_heads=1, head_dim=8, rope_scaling=RopeScaling("llama3", 4.0, 8)),
    "mistral": ModelConfig(**BASE, kv_heads=2, window=5, tie=False, model_type="mistral"),
    "qwen2": ModelConfig(**BASE, qkv_bias=True, window=3, window_layers=(1,), model_type="qwen2"),
    "qwen3": ModelConfig(**BASE, qk_norm=True, head_dim=16, kv_heads=2, model_type="qwen3"),
    "gpt2": ModelConfig(**BASE, **PLAIN, **BIASED, position="learned", model_type="gpt2"),
    "bloom": ModelConfig(
        **{**BASE, "ff": 96, "heads": 6}, **PLAIN, **BIASED, position="alibi", embed_norm=True, model_type="bloom"
    ),
    "sinusoidal": ModelConfig(**BASE, **PLAIN, position="sinusoidal", model_type="llmctl"),
    "none": ModelConfig(**BASE, position="none", kv_heads=2, tie=False, model_type="llmctl"),
    "odd": ModelConfig(
        **BASE, norm="layer", position="alibi", window=4, kv_heads=2, qk_norm=True, out_bias=True, model_type="llmctl"
    ),
}
