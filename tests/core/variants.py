"""Small configs that between them have every field of ModelConfig both ways."""

from llmctl.spec.model import ModelConfig, RopeScaling

BASE = {"vocab": 61, "width": 24, "layers": 2, "heads": 4, "ff": 40, "context": 32, "init_std": 0.2}
PLAIN = {"norm": "layer", "activation": "gelu_tanh", "gated": False}
BIASED = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
GEMMA = {"norm_plus_one": True, "norm_place": "sandwich", "embed_scale": True, "activation": "gelu_tanh"}
POST = {"norm_place": "post", "embed_norm": True, "position": "learned", **PLAIN, **BIASED, "activation": "gelu"}
ENCODER = {"kind": "encoder", **POST}
BOTH = {"kind": "encoder-decoder", "decoder_start": 0}
PAIRS = {"token_types": 2, "pooler": True, "next_sentence": True}
PARTS = {"head_transform": True, "head_bias": True}

VARIANTS: dict[str, ModelConfig] = {
    "llama": ModelConfig(**BASE, kv_heads=2, tie=False),
    "llama3": ModelConfig(**BASE, kv_heads=1, head_dim=8, rope_scaling=RopeScaling("llama3", 4.0, 8)),
    "mistral": ModelConfig(**BASE, kv_heads=2, window=5, tie=False, model_type="mistral"),
    "qwen2": ModelConfig(**BASE, qkv_bias=True, window=3, window_layers=(1,), model_type="qwen2"),
    "qwen3": ModelConfig(**BASE, qk_norm=True, head_dim=16, kv_heads=2, model_type="qwen3"),
    "gemma2": ModelConfig(
        **BASE, **GEMMA, kv_heads=2, attention_scale=0.25, attention_softcap=3.0, logit_softcap=2.0, window=4,
        window_layers=(0,), model_type="gemma2",
    ),
    "gemma3": ModelConfig(
        **BASE, **GEMMA, qk_norm=True, window=4, window_layers=(0,), rope_theta=1e6, rope_local_theta=1e4,
        rope_scaling=RopeScaling("linear", 8.0), model_type="gemma3_text",
    ),
    "olmo2": ModelConfig(
        **BASE, norm_place="output", qk_norm=True, qk_norm_whole=True, kv_heads=2, tie=False, model_type="olmo2"
    ),
    "neox": ModelConfig(
        **BASE, **{**PLAIN, "activation": "gelu"}, **BIASED, parallel=True, rotary_dim=2, tie=False,
        model_type="gpt_neox",
    ),
    "smollm3": ModelConfig(**BASE, kv_heads=2, rope_skip=(1,), model_type="smollm3"),
    "gpt2": ModelConfig(**BASE, **PLAIN, **BIASED, position="learned", model_type="gpt2"),
    "bloom": ModelConfig(
        **{**BASE, "ff": 96, "heads": 6}, **PLAIN, **BIASED, position="alibi", embed_norm=True, model_type="bloom"
    ),
    "bert": ModelConfig(**BASE, **ENCODER, **PAIRS, **PARTS, model_type="bert"),
    "roberta": ModelConfig(
        **BASE, **ENCODER, lm_head=False, **PARTS, token_types=1, position_offset=2, pad=1, classifier="sequence",
        classifier_dense="tanh", labels=("no", "yes"), model_type="roberta",
    ),
    "distilbert": ModelConfig(
        **BASE, **ENCODER, lm_head=False, **PARTS, norm_eps=1e-12, classifier="token", labels=("O", "B", "I"),
        model_type="distilbert",
    ),
    "t5": ModelConfig(
        **BASE, **BOTH, encoder_layers=3, activation="gelu_tanh", position="relative", relative_buckets=8,
        relative_distance=9, attention_scale=1.0, head_dim=8, tie=False, norm_eps=1e-6, model_type="t5",
    ),
    "t5 of old": ModelConfig(
        **BASE, **BOTH, activation="relu", gated=False, position="relative", relative_buckets=8, relative_distance=9,
        attention_scale=1.0, logit_scale=24**-0.5, norm_eps=1e-6, model_type="t5",
    ),
    "bart": ModelConfig(**BASE, **BOTH, **POST, position_offset=2, head_bias=True, model_type="bart"),
    "bart with labels": ModelConfig(
        **BASE, **BOTH, **POST, position_offset=2, lm_head=False, classifier="sequence", classifier_dense="tanh",
        classifier_pool="last", problem="multi_label", labels=("a", "b"), model_type="bart",
    ),
    "sinusoidal": ModelConfig(**BASE, **PLAIN, position="sinusoidal", model_type="llmctl"),
    "vaswani": ModelConfig(
        **BASE, **BOTH, **{**PLAIN, "activation": "relu"}, norm_place="post", position="sinusoidal", encoder_layers=1,
        model_type="llmctl",
    ),
    "none": ModelConfig(**BASE, position="none", kv_heads=2, tie=False, model_type="llmctl"),
    "odd": ModelConfig(
        **BASE, norm="layer", position="alibi", window=4, kv_heads=2, qk_norm=True, out_bias=True, model_type="llmctl"
    ),
    "odder": ModelConfig(
        **BASE, **BOTH, **GEMMA, position="alibi", window=4, kv_heads=2, qk_norm=True, attention_softcap=3.0,
        model_type="llmctl",
    ),
    "both ways": ModelConfig(
        **BASE, kind="encoder", kv_heads=2, window=4, window_layers=(1,), parallel=True, tie=False, model_type="llmctl"
    ),
    "prefix": ModelConfig(**BASE, prefix_lm=True, model_type="llmctl"),
    "linear": ModelConfig(**BASE, attention="linear", kv_heads=2, model_type="llmctl"),
    "linear both ways": ModelConfig(
        **BASE, kind="encoder", attention="linear", position="sinusoidal", model_type="llmctl"
    ),
    "linear to linear": ModelConfig(**BASE, **BOTH, attention="linear", model_type="llmctl"),
}  # fmt: skip
DECODERS = {name: config for name, config in VARIANTS.items() if config.kind == "decoder"}
ENCODERS = {name: config for name, config in VARIANTS.items() if config.kind == "encoder"}
ENCODER_DECODERS = {name: config for name, config in VARIANTS.items() if config.kind == "encoder-decoder"}
