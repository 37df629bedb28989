"""Quantized checkpoints against transformers, compressed-tensors and bitsandbytes: ours there, and others' here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.checkpoint.quantized import QuantWriter
from llmctl.core.compress.frozen import StandIn
from llmctl.core.compress.quant.grid import dense, quantise
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.families import read_config
from llmctl.spec.quant import QuantConfig
from llmctl.spec.sites import sites
from tests.parity import oracle, oracle_encoders
from tests.parity.oracle import LlamaConfig, gemma, gpt2, gpt_neox, llama_like, phi3
from tests.parity.oracle_quantized import Made, awq, compressed, gptq, llm_int8, requantized

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # what bitsandbytes' and mxfp4's blocks divide
MADE = {
    "llama": llama_like(LlamaConfig, attention_bias=True, **WIDE),
    "tied": llama_like(LlamaConfig, tie_word_embeddings=True, **WIDE),
    "phi3": phi3(**WIDE),
    "gpt2": gpt2(n_embd=64),
    "gpt_neox": gpt_neox(intermediate_size=128),
    "gemma3": gemma(oracle.Gemma3TextConfig, sliding_window=7, **WIDE),
}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def source(name: str, directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of transformers, saved."""
    oracle.CONFIGS.setdefault(f"quantized-{name}", MADE[name])
    model = oracle.make(f"quantized-{name}").to(dtype)
    model.save_pretrained(directory)
    return model


def written(source: Path, to: Path, quant: QuantConfig, head: bool = False) -> dict[str, Tensor]:
    """Quantize every matrix of the layers by rounding; what they stand for, by our names."""
    config = read_config(source)
    inner = [site for site in sites(config) if not site.table and (".layers." in site.ours[0] or head)]
    found = {}
    to.mkdir()
    with QuantWriter(to, source, quant, {name: quant.grid for site in inner for name in site.ours}) as writer:
        for name in writer.matrices:
            weight = writer.weight(name)
            codes = quantise(weight, quant.grid, writer.scale_dtype(name))
            found[name] = dense(codes, quant.grid, weight.dtype, tuple(weight.shape))
            writer.put(name, codes)
    return found


def logits(model: Transformer, ids: Tensor) -> Tensor:
    return model.head(model(ids))


def by_matrices(model: Transformer) -> Transformer:
    """The same model with products of its matrices made dense: what files say, whatever the kernels."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, StandIn):
                plain = Linear(child.in_features, child.out_features, bias=False, device="meta")
                plain.weight, plain.bias = torch.nn.Parameter(child.dense()), child.bias
                setattr(module, name, plain)
    return model


SCHEMES = {
    "llama": QuantConfig(scheme="int4", group_size=32),
    "phi3": QuantConfig(scheme="int4", group_size=16, symmetric=False),
    "gpt_neox": QuantConfig(scheme="int8"),
    "tied": QuantConfig(scheme="fp8"),
    "gemma3": QuantConfig(scheme="int3", group_size=32),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_transformers_computes_with_our_quantized_weights_what_we_do(name, tmp_path):
    source(name, tmp_path / "dense")
    weights = written(tmp_path / "dense", tmp_path / "few", SCHEMES[name], head=name == "llama")
    theirs, ours = AutoModelForCausalLM.from_pretrained(tmp_path / "few"), Checkpoint.open(tmp_path / "few").model()
    for module, weight in weights.items():
        held = ours.head if module == "head" else ours.get_submodule(module)
        torch.testing.assert_close(held.dense(), weight, rtol=0, atol=0)
    ids = oracle.tokens()
    torch.testing.assert_close(logits(by_matrices(ours), ids), theirs(ids).logits, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "quant", [QuantConfig(scheme="mxfp4"), QuantConfig(scheme="int2", group_size=32)], ids=["mxfp4", "int2"]
)
def test_of_a_checkpoint_in_bfloat16_transformers_reads_the_same_weights(quant, tmp_path):
    source("llama", tmp_path / "dense", torch.bfloat16)
    weights = written(tmp_path / "dense", tmp_path / "few", quant)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "few")
    theirs(oracle.tokens())  # unpacks them
    assert theirs.dtype == torch.bfloat16
    found = theirs.model.layers[1].mlp.down_proj.weight
    torch.testing.assert_close(found.data, weights["decoder.layers.1.mlp.down"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_bitsandbytes_reads_our_nf4_and_transposed_and_fused_matrices_too(name, tmp_path):
    source(name, tmp_path / "dense")
    written(tmp_path / "dense", tmp_path / "few", QuantConfig(scheme="nf4"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "few").dequantize()  # its own kernels round inputs
    ids = oracle.tokens()
    ours = Checkpoint.open(tmp_path / "few").model()
    torch.testing.assert_close(logits(ours, ids), theirs(ids).logits, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert-sequence", "roberta", "t5", "bart"])
def test_encoders_and_those_with_decoders_are_read_by_transformers_too(name, tmp_path):
    model = oracle_encoders.saved(name, tmp_path / "dense")
    written(tmp_path / "dense", tmp_path / "few", QuantConfig(scheme="int4", group_size=8))
    ids, mask = oracle_encoders.rows()
    theirs, ours = type(model).from_pretrained(tmp_path / "few"), Checkpoint.open(tmp_path / "few").model()
    from tests.parity.test_encoders import answers_here, answers_there

    target = ids[:, :9]
    found, wanted = answers_here(by_matrices(ours), ids, mask, target), answers_there(theirs, ids, mask, target)
    for key in wanted.keys() & found.keys():
        torch.testing.assert_close(found[key], wanted[key], atol=3e-5, rtol=1e-5)


def test_gpt2_whose_matrices_compressed_tensors_does_not_know_is_written_for_us_and_says_so(tmp_path):
    source("gpt2", tmp_path / "dense")
    quant = QuantConfig(scheme="int4", group_size=32)
    weights = written(tmp_path / "dense", tmp_path / "few", quant)
    ours = Checkpoint.open(tmp_path / "few").model()
    assert all(torch.equal(ours.get_submodule(name).dense(), weight) for name, weight in weights.items())
    from llmctl.spec.quant_files import QuantFiles

    (note,) = QuantFiles.of(tmp_path / "dense", quant, dict.fromkeys(weights, quant.grid)).notes
    assert "Conv1D" in note


def group(made: dict, targets: tuple[str, ...] = ("Linear",), **more: object) -> dict:
    return {"targets": list(targets), "weights": {"type": "int", "symmetric": True, "dynamic": False, **made}, **more}


FIRST, SECOND = ("model.layers.0.", "model.layers.1.")
GROUPS = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "first": group({"num_bits": 4, "strategy": "group", "group_size": 32}, ("Linear",), input_activations=None),
        "second": group(
            {"num_bits": 8, "strategy": "channel", "symmetric": False, "observer": "minmax"},
            ("re:.*self_attn.(q|k|v)_proj",),
        ),
        "third": group({"num_bits": 3, "strategy": "group", "group_size": 8}, ("model.layers.1.mlp.up_proj",)),
    },
    "ignore": ["lm_head", "re:model.layers.1.self_attn.*"],
    "kv_cache_scheme": None,
    "sparsity_config": {},
}


def grouped(module: str) -> Made | None:
    if module == "lm_head" or "embed" in module or module.startswith(f"{SECOND}self_attn"):
        return None
    if module.endswith(("q_proj", "k_proj", "v_proj")):
        return compressed(8, 0, zeros=True)
    return compressed(3, 8) if module == f"{SECOND}mlp.up_proj" else compressed(4, 32)


def everywhere(made: Made, head: bool = False):
    return lambda module: made if ".layers." in module or (head and module == "lm_head") else None


SAID = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}
LAID = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
OTHERS = {
    "compressed-tensors, several groups": ("llama", GROUPS, grouped),
    "gptq": ("llama", {**SAID, "checkpoint_format": "gptq"}, everywhere(gptq(4, 16))),
    "gptq, any order": ("llama", {**SAID, "desc_act": True}, everywhere(gptq(4, 16, ordered=True), head=True)),
    "gptq v2 of 3 bits": ("phi3", {**SAID, "bits": 3, "checkpoint_format": "gptq_v2"}, everywhere(gptq(3, 16, False))),
    "gptq of 8 bits, whole rows": ("tied", {**SAID, "bits": 8, "group_size": -1}, everywhere(gptq(8, 0))),
    "awq": ("phi3", LAID, everywhere(awq(32))),
    "LLM.int8": ("llama", INT8, everywhere(llm_int8)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_checkpoints_that_other_tools_quantized_are_opened_on_their_codes(case, tmp_path):
    name, config, chosen = OTHERS[case]
    model = source(name, tmp_path / "dense")
    (tmp_path / "few").mkdir()
    model.load_state_dict(requantized(tmp_path / "dense", tmp_path / "few", config, chosen), strict=False)
    ours = Checkpoint.open(tmp_path / "few").model()
    ids, matrices = oracle.tokens(), [one for one in ours.modules() if isinstance(one, Linear)]
    plain = sum(one.weight is not None for one in matrices)
    assert plain == (4 if case.startswith("compressed") else 0)
    torch.testing.assert_close(logits(by_matrices(ours), ids), model(ids).logits, atol=3e-5, rtol=1e-5)


def test_compressed_tensors_reads_a_file_made_by_hand_as_we_do(tmp_path):
    """The oracle's own oracle: its layout is the library's."""
    model = source("llama", tmp_path / "dense")
    (tmp_path / "few").mkdir()
    config = json.loads(json.dumps(GROUPS))
    del config["config_groups"]["second"], config["config_groups"]["third"]
    chosen = {False: compressed(4, 32), True: None}
    state = requantized(
        tmp_path / "dense",
        tmp_path / "few",
        config,
        lambda module: chosen[module.startswith(f"{SECOND}self_attn") or ".layers." not in module],
    )
    model.load_state_dict(state, strict=False)
    ids = oracle.tokens()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "few")
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, atol=1e-6, rtol=1e-6)


UNKNOWN = {
    "quant_method 'exl2'": {"quant_method": "exl2"},
    "bnb_4bit_quant_type 'fp4'": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "checkpoint_format 'marlin'": {**SAID, "checkpoint_format": "marlin"},
    "bits 5": {**SAID, "bits": 5},
    "version 'gemv'": {**LAID, "version": "gemv"},
    "kv_cache_scheme": {**GROUPS, "kv_cache_scheme": {"num_bits": 8}},
    "sparsity_config of format 'sparse-24-bitmask'": {**GROUPS, "sparsity_config": {"format": "sparse-24-bitmask"}},
    "first: output_activations": {
        **GROUPS,
        "config_groups": {"first": group({"num_bits": 8}, output_activations={"num_bits": 8})},
    },
    "first: actorder 'group'": {**GROUPS, "config_groups": {"first": group({"num_bits": 4, "actorder": "group"})}},
    "dynamic [1]": {**SAID, "dynamic": [1]},
    "group_size 'y'": {**GROUPS, "config_groups": {"first": group({"num_bits": 4, "group_size": "y"})}},
    "quant_method ['gptq']": {"quant_method": ["gptq"]},
    "sparsity_config of format [3]": {**GROUPS, "sparsity_config": [3]},
    "'re:(', which is no pattern": {**GROUPS, "config_groups": {"first": group({"num_bits": 8}, ("re:(",))}},
    "strategy 'tensor_group'": {
        **GROUPS,
        "config_groups": {"first": group({"num_bits": 4, "strategy": "tensor_group", "group_size": 16})},
    },
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_understood_of_a_quantization_is_refused_by_name(what, tmp_path):
    source("tied", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": UNKNOWN[what]}))
    with pytest.raises(UserError) as caught:
        Checkpoint.open(tmp_path).model()
    assert what in caught.value.problem


def test_each_tensor_of_a_quantized_checkpoint_is_accounted_for(tmp_path):
    from safetensors.torch import load_file, save_file

    source("tied", tmp_path / "dense")
    written(tmp_path / "dense", tmp_path / "few", QuantConfig(scheme="int4", group_size=32))
    file, place = tmp_path / "few" / "model.safetensors", "model.layers.0.mlp.up_proj"
    whole, zeros = load_file(file), torch.zeros(16, 2, dtype=torch.int32)
    changes = {
        f"1 missing: {place}.weight_scale": {f"{place}.weight_scale": None},
        f"1 unexpected: {place}.weight_zero_point": {f"{place}.weight_zero_point": zeros},
        "wanted [128, 8]": {f"{place}.weight_packed": torch.zeros(128, 7, dtype=torch.int32)},
        f"{place}.weight_packed is F32": {f"{place}.weight_packed": torch.zeros(128, 8)},
        "weight_shape is [128, 65], wanted [128, 64]": {f"{place}.weight_shape": torch.tensor([128, 65])},
    }
    for said, changed in changes.items():
        state = {name: one for name, one in {**whole, **changed}.items() if one is not None}
        save_file(state, file, metadata={"format": "pt"})
        with pytest.raises(UserError) as caught:
            Checkpoint.open(tmp_path / "few").model()
        assert said in caught.value.problem


def test_a_matrix_of_a_fused_site_is_written_with_the_others_or_not_at_all(tmp_path):
    source("phi3", tmp_path / "dense")
    quant = QuantConfig(scheme="int8")
    with pytest.raises(UserError, match="one matrix of the files"):
        QuantWriter(tmp_path, tmp_path / "dense", quant, {"decoder.layers.0.attention.q": quant.grid})


def test_matrices_come_in_any_order_and_with_groups_of_their_own(tmp_path):
    source("llama", tmp_path / "dense")
    quant = QuantConfig(scheme="int4", group_size=32)
    config = read_config(tmp_path / "dense")
    names = [name for site in sites(config) if ".layers." in site.ours[0] for name in site.ours]
    grids = {name: replace(quant.grid, group=16) if name.endswith("down") else quant.grid for name in names}
    (tmp_path / "few").mkdir()
    with QuantWriter(tmp_path / "few", tmp_path / "dense", quant, grids) as writer:
        for name in reversed(names):
            writer.put(name, quantise(writer.weight(name), grids[name], torch.float32))
        writer.plain("decoder.norm.weight", torch.full((64,), 2.0))
    theirs, ours = AutoModelForCausalLM.from_pretrained(tmp_path / "few"), Checkpoint.open(tmp_path / "few").model()
    ids = oracle.tokens()
    assert (ours.decoder.norm.weight == 2).all()
    torch.testing.assert_close(logits(by_matrices(ours), ids), theirs(ids).logits, atol=3e-5, rtol=1e-5)
