"""adapter_config.json: which keys are honoured, which mean nothing, which are refused; where the base is found."""

import json

import pytest

from llmctl.errors import UserError
from llmctl.spec.peft import Adapter, base_of, is_adapter, part_of, read_adapter, weights_of

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
# As peft 0.21 writes them, at their defaults.
TODAY = PLAIN | {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None, "auto_mapping": None,
    "base_model_name_or_path": "base", "bias": "none", "corda_config": None, "ensure_weight_tying": False,
    "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": None, "loftq_config": {}, "lora_bias": False, "lora_dropout": 0.1, "lora_ga_config": None,
    "megatron_config": None, "megatron_core": "megatron.core", "modules_to_save": None, "monteclora_config": None,
    "peft_version": "0.21.2", "qalora_group_size": 16, "rank_pattern": {}, "revision": None, "target_parameters": None,
    "task_type": "CAUSAL_LM", "trainable_token_indices": None, "use_bdlora": None, "use_dora": False,
    "use_qalora": False, "use_rslora": False, "velora_config": None,
}  # fmt: skip
OF_OLD = PLAIN | {"enable_lora": None, "merge_weights": False, "layers_pattern": "", "fan_in_fan_out": True}
CHANGING = {
    "target_parameters": ["mlp.experts.gate_up_proj"],
    "trainable_token_indices": [3, 4],
    "alora_invocation_tokens": [5],
    "layer_replication": [[0, 2], [1, 3]],
    "use_qalora": True,
    "use_bdlora": {"target_modules_bd_a": ["q_proj"]},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1.0},
    "velora_config": {"scale": 1.0},
    "monteclora_config": {"num_samples": 8},
    "megatron_config": {"tensor_parallel": 2},
    "ensure_weight_tying": True,
    "enable_lora": [True, False, True],
    "of_tomorrow": 1,
    "init_lora_weights": "pissa",
}


def written(directory, json_):
    (directory / "adapter_config.json").write_text(json.dumps(json_))
    return directory


def test_what_peft_writes_today_and_wrote_of_old_is_read(tmp_path):
    assert is_adapter(written(tmp_path, TODAY))
    assert read_adapter(tmp_path) == Adapter(
        "LORA", base="base", task="CAUSAL_LM", targets=("q_proj",), rank=4, alpha=8, dropout=0.1
    )
    assert read_adapter(written(tmp_path, OF_OLD)).layers_patterns == ()
    assert read_adapter(written(tmp_path, PLAIN)) == Adapter("LORA", targets=("q_proj",), rank=4, alpha=8)


def test_every_option_of_the_installed_peft_at_its_default_is_known(tmp_path):
    peft = pytest.importorskip("peft")
    for kind in (peft.LoraConfig, peft.IA3Config):
        config = kind(target_modules=["q_proj"], **({"feedforward_modules": []} if kind is peft.IA3Config else {}))
        config.save_pretrained(tmp_path)
        assert read_adapter(tmp_path).targets == ("q_proj",)


@pytest.mark.parametrize("key", CHANGING)
def test_what_changes_the_result_and_is_not_known_is_refused_by_name(key, tmp_path):
    with pytest.raises(UserError, match=key):
        read_adapter(written(tmp_path, TODAY | {key: CHANGING[key]}))


@pytest.mark.parametrize("first", ["pissa_niter_4", "olora", "corda", "loftq", "lora_ga", 7])
def test_first_weights_that_changed_the_base_are_refused(first, tmp_path):
    with pytest.raises(UserError, match="init_lora_weights"):
        read_adapter(written(tmp_path, TODAY | {"init_lora_weights": first}))


def test_values_of_no_sense_are_named_all_at_once(tmp_path):
    wrong = {"r": 0, "lora_alpha": "8", "use_dora": "yes", "bias": "some", "rank_pattern": {"(": 3}, "task_type": 4}
    with pytest.raises(UserError) as caught:
        read_adapter(written(tmp_path, PLAIN | wrong | {"target_modules": "(q"}))
    assert all(f"{key} is" in caught.value.problem for key in (*wrong, "target_modules"))


@pytest.mark.parametrize("kind", ["ADALORA", "LOHA", "VERA", "OFT", None, 3])
def test_other_kinds_are_refused_and_named(kind, tmp_path):
    with pytest.raises(UserError, match="peft_type"):
        read_adapter(written(tmp_path, {"peft_type": kind}))


def test_names_are_matched_as_peft_matches_them():
    layered = Adapter("LORA", targets=("q_proj", "mlp.up"), layers=(1,), excluded=("self.q_proj",), saved=("score",))
    assert layered.targeted("model.layers.1.attn.q_proj")
    assert not layered.targeted("model.layers.2.attn.q_proj")
    assert not layered.targeted("q_proj")  # it has no layer
    assert not layered.targeted("model.layers.1.self.q_proj")
    assert not layered.targeted("model.layers.1.attn.my_q_proj")
    assert not layered.targeted("score.layers.1.q_proj")
    within = Adapter("LORA", targets=("q",), layers=(0,), layers_patterns=("h",))
    assert within.targeted("t.h.0.q")
    assert not within.targeted("t.block.0.q")
    assert Adapter("LORA", targets=r".*\.q").targeted("a.q")
    assert not Adapter("LORA", targets=r"a\.q").targeted("b.a.q")


def test_the_first_pattern_that_ends_a_name_gives_rank_and_alpha():
    adapter = Adapter("LORA", rank=8, alpha=8, ranks=(("q", 4), (r".*\.1\.k", 2)), alphas=(("a.q", 2),), rslora=True)
    assert [adapter.rank_of(name) for name in ("x.q", "x.my_q", "h.1.k", "h.2.k")] == [4, 8, 2, 8]
    assert adapter.scale_of("b.a.q") == 2 / 2
    assert adapter.scale_of("b.q") == 8 / 2


def test_names_of_tensors_are_taken_apart():
    for name, parts in {
        "base_model.model.h.0.c_attn.lora_A.weight": ("h.0.c_attn", "lora_A"),
        "base_model.model.h.0.c_attn.lora_B.default.weight": ("h.0.c_attn", "lora_B"),
        "base_model.model.h.0.c_attn.lora_B.bias": ("h.0.c_attn", "lora_B.bias"),
        "base_model.model.q.lora_magnitude_vector": ("q", "lora_magnitude_vector"),
        "base_model.model.wte.lora_embedding_A": ("wte", "lora_embedding_A"),
        "base_model.model.wte.base_layer.weight": ("wte", "base.weight"),
        "base_model.model.score.modules_to_save.default.weight": ("score", "weight"),
        "base_model.prompt_embeddings": ("", "prompt_embeddings"),
    }.items():
        assert part_of(name) == parts


def test_the_base_is_where_it_is_named_or_beside_the_adapter_and_never_fetched(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    written(adapter, PLAIN | {"base_model_name_or_path": "someone/base"})
    with pytest.raises(UserError, match="someone/base") as caught:
        base_of(adapter)
    assert "--base" in caught.value.hint
    for place in (tmp_path / "base", tmp_path / "other"):
        place.mkdir()
        (place / "config.json").write_text("{}")
    assert base_of(adapter) == tmp_path / "base"
    assert base_of(adapter, tmp_path / "other") == tmp_path / "other"
    written(adapter, PLAIN | {"base_model_name_or_path": str(tmp_path / "other")})
    assert base_of(adapter) == tmp_path / "other"
    with pytest.raises(UserError, match="--base"):
        base_of(adapter, tmp_path)
    with pytest.raises(UserError, match="does not say"):
        base_of(written(adapter, PLAIN))


def test_a_pickle_is_not_read(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickle"):
        weights_of(tmp_path)
