"""config.json of each family: released ones as they are, absent keys, both spellings, and what is refused."""

import json

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.families import FAMILIES, family_for, family_of, fitted, read_config
from llmctl.spec.model import ModelConfig, RopeScaling
from llmctl.spec.presets import FRESH, shape
from llmctl.spec.sizes import parameters

GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_type": "cls_index", "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
TINYLLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
    "max_position_embeddings": 2048, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 22,
    "num_key_value_heads": 4, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
    "eos_token_id": 0, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 49152,
}  # fmt: skip
LLAMA32 = {
    "attention_bias": False, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "head_dim": 64,
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "torch_dtype": "bfloat16", "vocab_size": 128256,
}  # fmt: skip
MISTRAL = {
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32000,
}  # fmt: skip
QWEN2 = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu",
    "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3 = {
    "attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
    "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
BLOOM = {
    "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "hidden_dropout": 0.0,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "model_type": "bloom",
    "n_embed": 1024, "n_inner": None, "n_layer": 24, "num_attention_heads": 16, "offset_alibi": 100,
    "pretraining_tp": 1, "seq_length": 2048, "skip_bias_add": True, "skip_bias_add_qkv": False, "vocab_size": 250880,
}  # fmt: skip
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
    "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32",
    "transformers_version": "4.42.4", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
PHI3 = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1, "embd_pdrop": 0.0,
    "eos_token_id": 32000, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
    "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
    "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0,
    "sliding_window": 2047, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.2", "use_cache": True, "vocab_size": 32064,
}  # fmt: skip
PHI4 = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 199999,
    "embd_pdrop": 0.0, "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072,
    "initializer_range": 0.02, "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "phi3", "num_attention_heads": 24,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "original_max_position_embeddings": 4096,
    "pad_token_id": 199999, "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1 + i for i in range(48)], "short_factor": [1.0] * 48, "type": "longrope"},
    "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0", "use_cache": True, "vocab_size": 200064,
}  # fmt: skip
OLMO2 = {
    "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 100257,
    "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
    "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 16, "num_hidden_layers": 16,
    "num_key_value_heads": 16, "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 500000, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 100352,
}  # fmt: skip
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 12, "num_hidden_layers": 12,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
SMOLLM3 = {
    "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None,
    "eos_token_id": 128012, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 11008, "layer_types": ["full_attention"] * 36, "max_position_embeddings": 65536,
    "max_window_layers": 28, "mlp_bias": False, "model_type": "smollm3", "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16, "num_hidden_layers": 36, "num_key_value_heads": 4,
    "pad_token_id": 128004, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 5000000.0, "sliding_window": None, "torch_dtype": "bfloat16", "use_cache": False,
    "use_sliding_window": False, "vocab_size": 128256,
}  # fmt: skip
RELEASED = {  # and their published parameter counts
    "gpt2": (GPT2, 124_439_808),
    "TinyLlama-1.1B": (TINYLLAMA, 1_100_048_384),
    "SmolLM2-135M": (SMOLLM2, 134_515_008),
    "Llama-3.2-1B": (LLAMA32, 1_235_814_400),
    "Mistral-7B-v0.1": (MISTRAL, 7_241_732_096),
    "Qwen2.5-0.5B": (QWEN2, 494_032_768),
    "Qwen3-0.6B": (QWEN3, 596_049_920),
    "bloom-560m": (BLOOM, 559_214_592),
    "gemma-2-2b": (GEMMA2, 2_614_341_888),
    "gemma-3-1b-it": (GEMMA3, 999_885_952),
    "Phi-3-mini-4k-instruct": (PHI3, 3_821_079_552),
    "Phi-4-mini-instruct": (PHI4, 3_836_021_760),
    "OLMo-2-0425-1B": (OLMO2, 1_484_916_736),
    "pythia-160m": (PYTHIA, 162_322_944),
    "SmolLM3-3B": (SMOLLM3, 3_075_098_624),
}


def read(json_: dict) -> ModelConfig:
    return family_of(json_).to_config(json_)


def without(json_: dict, *keys: str) -> dict:
    return {key: value for key, value in json_.items() if key not in keys}


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_give_the_parameters_they_are_known_for(name):
    json_, count = RELEASED[name]
    assert parameters(read(json_)) == count


@pytest.mark.parametrize("name", RELEASED)
def test_what_is_written_reads_back_as_the_same_config(name):
    config = read(RELEASED[name][0])
    family = family_for(config)
    again = family.to_config(json.loads(json.dumps(family.to_json(config))))
    assert again == config and fitted(config) == config


def test_absent_keys_take_the_defaults_of_transformers():
    bare = without(
        TINYLLAMA, "num_key_value_heads", "tie_word_embeddings", "rms_norm_eps", "rope_theta", "eos_token_id"
    )
    config = read(bare)
    assert (config.kv_heads, config.tie, config.norm_eps, config.rope_theta) == (32, False, 1e-6, 10000.0)
    assert (config.bos, config.eos, config.head_dim) == (1, (2,), 64)
    assert read({**TINYLLAMA, "num_key_value_heads": None}).kv_heads == 32
    assert read({**TINYLLAMA, "eos_token_id": None}).eos == ()
    assert read(without(MISTRAL, "sliding_window", "num_key_value_heads")).window == 4096
    assert read({**MISTRAL, "sliding_window": None}).window is None
    assert read(without(QWEN3, "head_dim")).head_dim == 128
    assert read(GPT2).ff == 3072 and read({**GPT2, "n_inner": None}).ff == 3072
    assert read({**GPT2, "n_inner": 100}).ff == 100
    assert read(GPT2).tie and not read({**GPT2, "tie_word_embeddings": False}).tie
    assert read(without(BLOOM, "n_embed") | {"hidden_size": 1024}) == read(BLOOM)


def test_absent_keys_of_gemma_take_the_defaults_of_transformers():
    absent = ("head_dim", "num_key_value_heads", "query_pre_attn_scalar", "sliding_window", "rms_norm_eps",
              "rope_theta", "attn_logit_softcapping", "final_logit_softcapping", "bos_token_id", "eos_token_id",
              "pad_token_id", "hidden_act", "hidden_activation", "max_position_embeddings")  # fmt: skip
    assert read(without(GEMMA2, *absent)) == read(GEMMA2)
    bare = read(without(GEMMA3, *absent, "rope_local_base_freq", "sliding_window_pattern"))
    assert (bare.kv_heads, bare.window, bare.context, bare.logit_softcap) == (4, 4096, 131072, None)
    assert (bare.rope_theta, bare.rope_local_theta) == (1e6, 1e4)
    gemma = {**without(GEMMA2, *absent), "model_type": "gemma", "num_attention_heads": 16}
    assert (read(gemma).kv_heads, read(gemma).norm_place, read(gemma).activation) == (16, "pre", "gelu_tanh")
    assert read({**gemma, "hidden_act": "gelu"}) == read(gemma)  # what the first files say, and mean tanh


def test_absent_keys_of_other_decoders_take_the_defaults_of_transformers():
    phi = read(without(PHI3, "num_key_value_heads", "rms_norm_eps", "sliding_window", "bos_token_id", "eos_token_id"))
    assert (phi.kv_heads, phi.norm_eps, phi.window, phi.bos, phi.eos) == (32, 1e-5, None, 1, (32000,))
    olmo = read(without(OLMO2, "num_key_value_heads", "rms_norm_eps", "eos_token_id", "pad_token_id"))
    assert (olmo.kv_heads, olmo.norm_eps, olmo.eos, olmo.pad) == (16, 1e-5, (50279,), 1)
    neox = without(PYTHIA, "rotary_emb_base", "rotary_pct", "use_parallel_residual", "hidden_act", "layer_norm_eps")
    assert read(neox) == read(PYTHIA) and read(PYTHIA).rotary_dim == 16
    assert read(without(PYTHIA, "bos_token_id", "eos_token_id")).eos == (2,)
    smol = read(without(SMOLLM3, "no_rope_layers", "layer_types", "num_key_value_heads", "tie_word_embeddings"))
    assert smol == read(SMOLLM3) and smol.rope_skip == tuple(range(3, 36, 4)) and smol.tie
    assert read(without(SMOLLM3, "rope_theta")).rope_theta == 2e6


def test_special_ids_may_be_one_or_a_list():
    assert read(LLAMA32).eos == (128001, 128008, 128009)
    written = family_for(read(LLAMA32)).to_json(read(LLAMA32))
    assert written["eos_token_id"] == [128001, 128008, 128009]
    assert family_for(read(TINYLLAMA)).to_json(read(TINYLLAMA))["eos_token_id"] == 2
    assert read({**TINYLLAMA, "pad_token_id": -1}).pad is None


ROPES = {
    "linear": ({"factor": 2.0}, RopeScaling("linear", 2.0)),
    "dynamic": ({"factor": 3}, RopeScaling("dynamic", 3.0)),
    "llama3": (LLAMA32["rope_scaling"], RopeScaling("llama3", 32.0, 8192, 1.0, 4.0)),
    "yarn": (
        {"factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": None, "attention_factor": 0.9},
        RopeScaling("yarn", 4.0, 32768, attention_factor=0.9),
    ),
    "longrope": (
        {"short_factor": [1] * 32, "long_factor": [2.5] * 32, "original_max_position_embeddings": 32768},
        RopeScaling("longrope", 4.0, 32768, short_factor=(1.0,) * 32, long_factor=(2.5,) * 32),
    ),
}


@pytest.mark.parametrize("kind", ROPES)
def test_rope_is_read_from_its_old_and_its_new_spelling_and_written_in_both(kind):
    values, scaling = ROPES[kind]
    base = without(LLAMA32, "rope_theta", "rope_scaling")
    old = {**base, "rope_theta": 7.0, "rope_scaling": {**without(values, "rope_type"), "type": kind}}
    middle = {**base, "rope_theta": 7.0, "rope_scaling": {**values, "rope_type": kind}}
    new = {**base, "rope_parameters": {**values, "rope_type": kind, "rope_theta": 7.0}}
    expected = read(base).resized(rope_theta=7.0, rope_scaling=scaling)
    assert read(old) == read(middle) == read(new) == expected
    written = family_for(expected).to_json(expected)
    assert read(without(written, "rope_parameters")) == read(without(written, "rope_scaling", "rope_theta")) == expected


def test_plain_scalings_are_written_for_the_first_readers_with_type_and_factor_alone():
    config = read(TINYLLAMA).resized(rope_scaling=RopeScaling("linear", 2.0))
    assert family_for(config).to_json(config)["rope_scaling"] == {"type": "linear", "factor": 2.0}


def test_a_context_that_scaling_began_from_defaults_to_the_models_and_the_outer_key_counts_first():
    rope = {"rope_type": "yarn", "factor": 4.0}
    assert read({**LLAMA32, "rope_scaling": rope}).rope_scaling.original_context == 131072
    nested = {**rope, "original_max_position_embeddings": 4096}
    assert read({**LLAMA32, "rope_scaling": nested}).rope_scaling.original_context == 4096
    outer = {**LLAMA32, "rope_scaling": nested, "original_max_position_embeddings": 2048}
    assert read(outer).rope_scaling.original_context == 2048


def test_longrope_of_phi_is_written_for_the_first_readers_with_type_and_lists_alone():
    config = read(PHI4)
    assert config.rotary_dim == 96 and config.rope_scaling.factor == 32 and config.rope_scaling.original_context == 4096
    written = family_for(config).to_json(config)
    assert set(written["rope_scaling"]) == {"type", "short_factor", "long_factor"}
    assert written["original_max_position_embeddings"] == 4096 and written["partial_rotary_factor"] == 0.75
    for name in ("su", "yarn"):  # what it was first called
        assert read({**PHI4, "rope_scaling": {**PHI4["rope_scaling"], "type": name}}) == config
    other = config.resized(
        rope_scaling=RopeScaling("longrope", 9.0, 4096, short_factor=(1.0,) * 48, long_factor=(2.0,) * 48)
    )
    assert read(family_for(other).to_json(other)) == other  # a factor that is not the ratio of contexts is said


@pytest.mark.parametrize("turning", range(2, 96, 2))
def test_the_share_that_turns_survives_its_spelling(turning):
    config = read(PYTHIA).resized(width=12 * 96, head_dim=96, rotary_dim=turning)
    family = family_for(config)
    assert family is FAMILIES["gpt_neox"]
    written = family.to_json(config)
    assert int(96 * written["rotary_pct"]) == turning
    assert read(without(written, "rope_parameters", "partial_rotary_factor", "rope_theta")) == config
    assert read(without(written, "rotary_pct", "rotary_emb_base", "partial_rotary_factor", "rope_theta")) == config


def test_rope_of_gemma3_is_read_from_its_old_and_its_new_spelling_and_written_in_both():
    scaled = {"factor": 8.0, "rope_type": "linear"}
    old = {**GEMMA3, "rope_scaling": scaled, "rope_local_base_freq": 500.0}
    new = {
        **without(GEMMA3, "rope_scaling", "rope_theta", "rope_local_base_freq", "sliding_window_pattern"),
        "rope_parameters": {
            "full_attention": {**scaled, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
        "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(26)],
    }
    config = read(old)
    assert (
        config == read(new) and config.rope_local_theta == 500.0 and config.rope_scaling == RopeScaling("linear", 8.0)
    )
    assert [config.rotation_of(i) for i in range(4, 7)] == ["local", "global", "local"]
    written = family_for(config).to_json(config)
    assert written["sliding_window_pattern"] == 6
    assert read(without(written, "rope_parameters", "layer_types")) == config
    assert (
        read(without(written, "rope_scaling", "rope_theta", "rope_local_base_freq", "sliding_window_pattern")) == config
    )
    uneven = read({**new, "layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 24})
    assert "sliding_window_pattern" not in family_for(uneven).to_json(uneven)


def test_windows_of_gemma_alternate_unless_layer_types_says_otherwise():
    assert read(GEMMA2).window_layers == tuple(range(0, 26, 2))
    assert read(GEMMA3).window_layers == tuple(i for i in range(26) if i % 6 != 5)
    assert read({**GEMMA3, "sliding_window_pattern": 2}).window_layers == tuple(range(0, 26, 2))
    assert read({**GEMMA2, "layer_types": ["sliding_attention"] * 26}).window_layers is None
    full = read({**GEMMA3, "layer_types": ["full_attention"] * 26, "sliding_window": None})
    assert full.window is None and full.rope_local_theta is None


def test_windows_of_smollm3_follow_the_layers_without_positions_unless_layer_types_says_otherwise():
    on = {**without(SMOLLM3, "layer_types"), "use_sliding_window": True, "sliding_window": 100}
    assert read(on).window_layers == read(on).rope_skip == tuple(range(3, 36, 4))
    types = ["sliding_attention"] + ["full_attention"] * 35
    assert read({**on, "layer_types": types}).window_layers == (0,)
    assert read({**on, "no_rope_layers": [1] * 36}).window is None
    assert read({**on, "use_sliding_window": False}).window is None


def test_windows_of_qwen_follow_their_switch_then_layer_types_then_the_first_layer():
    on = {**QWEN2, "use_sliding_window": True, "sliding_window": 100, "max_window_layers": 20}
    assert read(on).window == 100 and read(on).window_layers == (20, 21, 22, 23)
    assert read({**on, "max_window_layers": 0}).window_layers is None
    assert read({**on, "max_window_layers": 24}).window is None
    assert read({**on, "use_sliding_window": False}).window is None
    types = ["sliding_attention" if i % 2 else "full_attention" for i in range(24)]
    assert read({**on, "layer_types": types}).window_layers == tuple(range(1, 24, 2))
    written = family_for(read(on)).to_json(read(on))
    assert written["max_window_layers"] == 20 and written["layer_types"].count("sliding_attention") == 4


REFUSED = [
    (LLAMA32, {"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "proportional"),
    (LLAMA32, {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "mrope"),
    (LLAMA32, {"rope_parameters": {"full_attention": {"rope_type": "default"}}, "rope_scaling": None}, "its own"),
    (LLAMA32, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    (LLAMA32, {"hidden_act": "relu2"}, "hidden_act 'relu2'"),
    (LLAMA32, {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    (LLAMA32, {"is_causal": False}, "is_causal"),
    (LLAMA32, {"layer_types": ["sliding_attention"] * 16}, "layer_types 'sliding_attention'"),
    (QWEN3, {"layer_types": ["linear_attention"] * 28}, "linear_attention"),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    (GPT2, {"scale_attn_weights": False}, "scale_attn_weights"),
    (GPT2, {"add_cross_attention": True}, "add_cross_attention"),
    (GPT2, {"activation_function": "tanh"}, "tanh"),
    (BLOOM, {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    (BLOOM, {"slow_but_exact": True}, "slow_but_exact"),
    (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
    (GEMMA3, {"rope_parameters": {"rope_type": "default"}}, "rope_parameters rope_type"),
    (
        GEMMA3,
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "'linear' of sliding_attention",
    ),
    ({**GEMMA2, "model_type": "gemma"}, {"hidden_activation": "relu"}, "hidden_activation 'relu'"),
    (PHI3, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear'"),
    (PHI4, {"lm_head_bias": True}, "lm_head_bias"),
    (OLMO2, {"clip_qkv": 8.0}, "clip_qkv"),
    (PYTHIA, {"num_key_value_heads": 4}, "num_key_value_heads 4"),
    (PYTHIA, {"rope_theta": 500.0}, "rope_theta 500.0 beside rotary_emb_base 10000"),
    (PYTHIA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 beside rotary_pct 0.25"),
    (SMOLLM3, {"partial_rotary_factor": 0.25}, "partial_rotary_factor 0.25"),
]


@pytest.mark.parametrize(("base", "change", "named"), REFUSED, ids=[named for _, _, named in REFUSED])
def test_what_would_change_the_function_is_refused_by_name(base, change, named):
    with pytest.raises(UserError, match=named) as caught:
        read({**base, **change})
    assert caught.value.code == Exit.MISMATCH and caught.value.hint


HARMLESS = [
    (LLAMA32, {"pretraining_tp": 4, "auto_map": {"AutoModel": "x.y"}, "partial_rotary_factor": 1.0}),
    (LLAMA32, {"sliding_window": 4096, "layer_types": ["full_attention"] * 16, "is_causal": True}),
    (GPT2, {"reorder_and_upcast_attn": True, "summary_type": "last", "scale_attn_weights": True}),
    (MISTRAL, {"layer_types": ["sliding_attention"] * 32, "attention_bias": True}),
    (BLOOM, {"pretraining_tp": 4, "quantization_config": None}),
    (GEMMA2, {"use_bidirectional_attention": False, "hidden_act": "relu", "tie_word_embeddings": True}),
    (PHI4, {"layer_types": ["sliding_attention"] * 32, "resid_pdrop": 0}),
    (PYTHIA, {"rope_theta": 10000.0, "partial_rotary_factor": 0.25, "is_decoder": True, "classifier_dropout": 0.1}),
]


@pytest.mark.parametrize(("base", "change"), HARMLESS)
def test_keys_that_change_nothing_are_ignored(base, change):
    assert read({**base, **change}) == read(base)


WRONG = [
    ({"hidden_size": "big"}, "hidden_size is 'big'"),
    ({"hidden_size": -5}, "hidden_size is -5"),
    ({"hidden_size": 10**30}, "hidden_size is 1"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    ({"num_hidden_layers": 10**9}, "layers is 1000000000"),
    ({"num_attention_heads": 3}, "does not divide"),
    ({"num_key_value_heads": 5}, "kv_heads 5"),
    ({"head_dim": 63}, "odd"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_theta": "1e6"}, "rope_theta is '1e6'"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ({"rope_scaling": {"rope_type": "linear"}}, "lacks rope factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "low_freq_factor, rope high_freq_factor"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ({"eos_token_id": [1, [2]]}, "eos_token_id"),
    ({"attention_dropout": 1.5}, "dropout"),
    ({"layer_types": "full_attention"}, "layer_types"),
]


WRONG_THERE = [
    (GEMMA2, {"num_attention_heads": 7}, "does not divide by num_attention_heads 7"),
    (GEMMA2, {"sliding_window": None}, "sliding_window is null"),
    (GEMMA3, {"sliding_window": None}, "sliding_window is null"),
    (GEMMA3, {"rope_local_base_freq": 0}, "rope_local_base_freq is 0"),
    (GEMMA3, {"rope_parameters": {"sliding_attention": 5}}, "sliding_attention is 5"),
    (PHI4, {"partial_rotary_factor": 0}, "partial_rotary_factor is 0"),
    (PHI4, {"partial_rotary_factor": 1.0}, "48 numbers; wanted 64"),
    (PHI4, {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48}}, "lacks rope long_factor"),
    (PHI4, {"rope_scaling": {**PHI4["rope_scaling"], "long_factor": ["a"] * 48}}, "long_factor is"),
    (PHI4, {"rope_scaling": {**PHI4["rope_scaling"], "long_factor": [0] * 48}}, "more than 0"),
    (PHI4, {"original_max_position_embeddings": 1}, "original_context 1"),
    (PYTHIA, {"rotary_pct": 1.5}, "rotary_pct is 1.5"),
    (PYTHIA, {"rotary_pct": 0.001}, "leaves no channel"),
    (PYTHIA, {"num_attention_heads": 11}, "does not divide"),
    (SMOLLM3, {"no_rope_layers": [1, 0]}, "no_rope_layers is not a list of 36"),
    (SMOLLM3, {"layer_types": ["sliding_attention"] * 36}, "sliding_window is off"),
]


@pytest.mark.parametrize(("base", "change", "said"), WRONG_THERE, ids=[said for _, _, said in WRONG_THERE])
def test_absurd_values_of_other_decoders_are_refused_with_what_was_found(base, change, said):
    with pytest.raises(UserError, match=said) as caught:
        read({**base, **change})
    assert caught.value.code == Exit.MISMATCH


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[said for _, said in WRONG])
def test_absurd_values_are_refused_with_what_was_found(change, said):
    with pytest.raises(UserError, match=said) as caught:
        read({**LLAMA32, **change})
    assert caught.value.code == Exit.MISMATCH


def test_missing_keys_are_named_all_at_once():
    with pytest.raises(UserError, match="lacks hidden_size, num_hidden_layers, num_attention_heads, vocab_size, inter"):
        read({"model_type": "llama"})
    with pytest.raises(UserError, match="lacks n_embd, vocab_size, n_layer, n_head"):
        read({"model_type": "gpt2"})


def test_a_directory_without_a_config_that_can_be_read_is_said_plainly(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path / "absent")
    with pytest.raises(UserError, match=r"has no config\.json"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    with pytest.raises(UserError, match="is not a directory"):
        path.write_text("{}")
        read_config(path)
    for text in ("", "{", "[]", "null", '"x"', "[" * 99999):
        path.write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            read_config(tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)
    path.write_text('{"model_type": "mamba"}')
    with pytest.raises(UserError, match="model_type 'mamba'; llmctl knows gpt2, llama, mistral, qwen2, qwen3"):
        read_config(tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="has no model_type"):
        read_config(tmp_path)


@pytest.mark.parametrize("family", FRESH)
def test_fresh_configs_are_written_in_the_family_they_are_made_for(family):
    config = shape("1m", 100, family)
    assert family_for(config) is FAMILIES[family]
    assert fitted(config).model_type == config.model_type


FITTING = [
    ({}, "llama"),
    ({"window": 9}, "mistral"),
    ({"qkv_bias": True}, "qwen2"),
    ({"qkv_bias": True, "out_bias": True}, "llama"),
    ({"window": 9, "window_layers": (1,), "qkv_bias": True}, "qwen2"),
    ({"qk_norm": True}, "qwen3"),
    ({"heads": 3, "kv_heads": 3, "head_dim": 16}, "mistral"),  # transformers 5 wants llama's width to divide
    ({"rope_skip": (1,)}, "smollm3"),
    ({"norm_place": "output", "qk_norm": True, "qk_norm_whole": True}, "olmo2"),
    ({"norm_place": "output"}, "llmctl"),
    ({"norm_place": "sandwich", "norm_plus_one": True, "embed_scale": True, "logit_softcap": 9.0}, "gemma2"),
    ({"norm_plus_one": True, "embed_scale": True}, "gemma"),
    ({"rotary_dim": 8}, "phi3"),
    ({"rotary_dim": 8, "qk_norm": True}, "llmctl"),
    ({"position": "sinusoidal"}, "llmctl"),
    ({"position": "none"}, "llmctl"),
    ({"position": "learned"}, "llmctl"),
    ({"norm": "layer"}, "llmctl"),
    ({"gated": False}, "llmctl"),
    ({"embed_norm": True}, "llmctl"),
]


@pytest.mark.parametrize(("changes", "model_type"), FITTING)
def test_a_config_is_written_as_a_model_type_that_can_say_all_of_it(changes, model_type):
    config = fitted(shape("1m", 100, "llama", changes))
    assert config.model_type == model_type
    family = family_for(config)
    assert family.to_config(json.loads(json.dumps(family.to_json(config)))) == config


def test_fields_that_mean_nothing_in_a_model_do_not_make_it_native():
    config = shape("1m", 100, "gpt2", {"rope_theta": 5.0})
    assert fitted(config).model_type == "gpt2"


def test_a_native_config_with_unknown_or_missing_keys_is_refused():
    good = FAMILIES["native"].to_json(shape("1m", 100, "native"))
    with pytest.raises(UserError, match="lacks vocab, heads and has unknown keys wdith"):
        read({**without(good, "vocab", "heads"), "wdith": 3})
    for change in (
        {"norm": "batch"},
        {"gated": 1},
        {"eos": 5},
        {"rope_scaling": {"kind": "x"}},
        {"window_layers": [9]},
    ):
        with pytest.raises(UserError):
            read({**good, **change})
