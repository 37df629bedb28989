"""config.json of each family: released ones as they are, absent keys, both spellings, and what is refused."""

import json

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.families import FAMILIES, family_for, family_of, fitted, read_config
from llmctl.spec.model import ModelConfig, RopeScaling
from llmctl.spec.presets import shape
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
RELEASED = {  # and their published parameter counts
    "gpt2": (GPT2, 124_439_808),
    "TinyLlama-1.1B": (TINYLLAMA, 1_100_048_384),
    "SmolLM2-135M": (SMOLLM2, 134_515_008),
    "Llama-3.2-1B": (LLAMA32, 1_235_814_400),
    "Mistral-7B-v0.1": (MISTRAL, 7_241_732_096),
    "Qwen2.5-0.5B": (QWEN2, 494_032_768),
    "Qwen3-0.6B": (QWEN3, 596_049_920),
    "bloom-560m": (BLOOM, 559_214_592),
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
    (LLAMA32, {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
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
    with pytest.raises(UserError, match="model_type 'mamba'; llmctl knows gpt2, llama, mistral, qwen2, qwen3, bloom"):
        read_config(tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="has no model_type"):
        read_config(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
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
