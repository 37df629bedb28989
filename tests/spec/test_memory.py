"""Memory of released models against what their papers and files say."""

import sys
from dataclasses import replace
from math import ceil
from subprocess import run

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec import activations
from llmctl.spec.kept import Rows
from llmctl.spec.memory import classic, estimate, kv_cache, solve, trainable_parameters
from llmctl.spec.setting import Setting
from llmctl.spec.sizes import flops_per_token, forward_flops, matrix_parameters, parameters
from llmctl.spec.spent import spent_flops
from tests.spec.configs import GPT_3, RELEASED, bart, bert, gemma, llama, plain, t5

LLAMA_3 = RELEASED["Llama-3 8B"][0]
LLAMA_2 = RELEASED["Llama-2 7B"][0]
GIB = 2**30


def states(memory):
    return memory.weights + memory.gradients + memory.optimizer + memory.master_weights


@pytest.mark.parametrize(
    ("setting", "per_parameter"),
    [
        (Setting(dtype="fp32"), (4, 4, 8, 0)),
        (Setting(), (4, 4, 8, 0)),
        (Setting(precision="mixed"), (2, 2, 8, 4)),
        (Setting(precision="mixed", gradients_fp32=True), (2, 4, 8, 4)),
        (Setting(precision="pure"), (2, 2, 4, 0)),
        (Setting(precision="mixed", optimizer="sgd-momentum"), (2, 2, 4, 4)),
        (Setting(precision="mixed", optimizer="sgd"), (2, 2, 0, 4)),
    ],
)
def test_states_have_the_published_bytes_a_parameter(setting, per_parameter):
    memory, count = estimate(LLAMA_2, setting), parameters(LLAMA_2)
    found = (memory.weights, memory.gradients, memory.optimizer, memory.master_weights)
    assert found == tuple(size * count for size in per_parameter)


def test_smaller_optimizers_hold_less():
    """8-bit Adam: 2 bytes and scales; Adafactor: a row and a column a matrix; Muon: one moment of a layer's matrix."""
    count = parameters(LLAMA_2)
    eight = estimate(LLAMA_2, Setting(optimizer="adamw8bit")).optimizer
    assert 2 * count < eight < 2.04 * count
    tiny = llama(64, 8, 1, 2, 2, 24, 16, tie=True)
    vectors = 3 * 8
    rows_and_columns = (64 + 8) + 4 * (8 + 8) + 3 * (24 + 8)
    assert estimate(tiny, Setting(optimizer="adafactor")).optimizer == 4 * (rows_and_columns + vectors)
    hidden = 4 * 8 * 8 + 3 * 24 * 8
    assert estimate(tiny, Setting(optimizer="muon")).optimizer == 4 * hidden + 8 * (64 * 8 + vectors)


def test_zero_shares_out_as_its_paper_says():
    """Rajbhandari et al., arXiv:1910.02054, figure 1: 7.5e9 parameters on 64 devices: 120, 31.4, 16.6 and 1.9 GB."""
    model = plain(51200, 4096, 36, 32, 2048, position="learned")  # 7.5e9 parameters
    scale = 7.5e9 / parameters(model)
    found = [
        states(estimate(model, Setting(precision="mixed", zero=stage, data_parallel=64))) * scale / 1e9
        for stage in range(4)
    ]
    assert found == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("Llama-2 7B", 524_288), ("Llama-2 13B", 819_200), ("Llama-2 70B", 327_680), ("Llama-3 8B", 131_072),
        ("Llama-3.1 405B", 516_096),
    ],
)  # fmt: skip
def test_a_token_in_the_cache_has_the_published_bytes(name, per_token):
    assert kv_cache(RELEASED[name][0], 1, 2) == per_token


def test_the_cache_of_whole_contexts():
    """Llama-2 7B at 4096 tokens: 2 GiB (and not the 1 GiB of a calculator that forgets that K and V are two);
    Llama-3 8B at 8192: 1 GiB; 405B at 131072: 63 GiB, with its 8 kv heads."""
    assert estimate(LLAMA_2, Setting(mode="inference", sequence=4096)).kv_cache == 2 * GIB
    assert estimate(LLAMA_3, Setting(mode="inference", sequence=8192, batch=3)).kv_cache == 3 * GIB
    assert kv_cache(RELEASED["Llama-3.1 405B"][0], 131072, 2) == 63 * GIB
    assert estimate(GPT_3, Setting(mode="inference", sequence=1)).kv_cache == 4_718_592


def test_a_window_bounds_the_cache_in_the_layers_that_have_it():
    mistral = RELEASED["Mistral 7B"][0]
    assert kv_cache(mistral, 32768, 2) == kv_cache(mistral, 4096, 2)
    half = mistral.resized(window_layers=tuple(range(16)))
    assert kv_cache(half, 32768, 2) == (kv_cache(mistral, 4096, 2) + kv_cache(LLAMA_3, 32768, 2)) // 2


def test_an_encoder_keeps_no_cache_and_a_decoder_beside_one_keeps_its_sources_keys_too():
    model = bart(768, 6, 12)
    each = 2 * 2 * 768 * 6  # keys and values of a token, in 16 bits
    assert kv_cache(bert(30522, 768, 12, 12), 512, 2) == 0
    assert kv_cache(model, 100, 2, source=300) == 400 * each
    setting = Setting(mode="inference", sequence=100, source=300, batch=2)
    assert estimate(model, setting).kv_cache == 2 * 400 * each
    assert estimate(bert(30522, 768, 12, 12), Setting(mode="inference")).kv_cache == 0


def test_linear_attention_keeps_sums_whose_size_no_number_of_tokens_changes():
    model = LLAMA_3.resized(attention="linear")
    sums = 4 * 32 * 8 * (128 * 128 + 128)  # fp32: layers, heads, D x D and D
    assert kv_cache(model, 10, 2) == kv_cache(model, 10**6, 2) == sums
    assert sums < kv_cache(LLAMA_3, 150, 2)


def test_what_is_asked_for_decides_on_logits():
    """An encoder's loss meets 15 % of the tokens; a model without a head for tokens has no logits."""
    model, whole = bert(30522, 768, 12, 12), {"loss_chunk": 0, "batch": 8, "sequence": 512, "dtype": "fp32"}
    few, all_ = (estimate(model, Setting(**whole, scored=share)).logits for share in (None, 1.0))
    assert few == 12 * 30522 * ceil(0.15 * 4096) and all_ == 12 * 30522 * 4096
    bare = estimate(model.resized(lm_head=False), Setting(**whole))
    assert bare.logits == 0 and "gradient of the head" not in dict(bare.parts)
    assert estimate(model.resized(lm_head=False), Setting(mode="inference")).logits == 0


def test_capped_scores_are_all_kept_and_capped_logits_in_fp32():
    """Gemma 2: no fused kernel caps scores."""
    model = gemma(2304, 26, 8, 4, 9216)
    capped = model.resized(attention_softcap=50.0, logit_softcap=30.0)
    parts, more = (dict(estimate(one, Setting(sequence=4096)).parts) for one in (model, capped))
    assert "attention weights" not in parts
    assert more["attention weights"] == 26 * 8 * 4096**2 * 8  # layers, heads, pairs; tanh and weights
    pure = {"sequence": 4096, "precision": "pure"}
    assert 10 * estimate(capped, Setting(**pure)).logits == 12 * estimate(model, Setting(**pure)).logits


def test_adapters_are_on_cross_attention_too():
    model = t5(512, 6, 8, 2048)
    setting = Setting(lora_rank=2, lora_targets=("q",))
    assert trainable_parameters(model, setting) == 2 * (6 + 6 + 6) * (512 + 512)
    assert estimate(model, setting).optimizer == 8 * trainable_parameters(model, setting)
    lengths = {"sequence": 5, "source": 20}
    met = 6 * (20 + 5 + 5) / 25  # matrices that a token passes through, on average
    with_them, without = (spent_flops(model, replace(setting, **lengths, lora_targets=one)) for one in (("q",), ()))
    assert with_them - without == pytest.approx(6 * 2 * (512 + 512) * met, abs=1)


@pytest.mark.parametrize(
    ("scheme", "size"),
    [("int4", 5.70e9), ("q8_0", 7.95 * GIB), ("q6_k", 6.14 * GIB), ("q4_k_m", 4.58 * GIB), ("none", 16.06e9)],
)
def test_llama_3_8b_in_few_bits_has_the_size_of_its_files(scheme, size):
    """llama.cpp's README gives the sizes of the q formats; with int4 the embedding and the head stay in 16 bits."""
    weights = estimate(LLAMA_3, Setting(mode="inference", quantize=scheme)).weights
    assert weights == pytest.approx(size, rel=1.5e-3)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("int8", 8.004), ("int4", 4.125), ("int4-asym", 4.156), ("int4-g64", 4.25), ("int4-g32", 4.5), ("nf4", 4.5),
        ("nf4-dq", 4.127), ("mxfp4", 4.25), ("nvfp4", 4.5),
    ],
)  # fmt: skip
def test_formats_have_the_published_bits_a_weight(scheme, bits):
    config = LLAMA_3.resized(width=4096, ff=4096, kv_heads=32)  # every matrix 4096 x 4096
    weights = estimate(config, Setting(mode="inference", quantize=scheme)).weights
    matrices = matrix_parameters(config) - config.vocab * config.width
    rest = 2 * (parameters(config) - matrices)
    assert (weights - rest) * 8 / matrices == pytest.approx(bits, abs=5e-4)


def test_lora_trains_what_its_paper_counts_and_holds_states_for_that_alone():
    """GPT-3 175B, q and v, rank 1: 4.7 million, rank 4: 18.9 million (Hu et al., arXiv:2106.09685, table 4)."""
    setting = Setting(lora_rank=1, lora_targets=("q", "v"))
    assert trainable_parameters(GPT_3, setting) == 96 * 2 * 2 * 12288
    assert trainable_parameters(GPT_3, setting) / 1e6 == pytest.approx(4.72, abs=0.005)
    assert trainable_parameters(GPT_3, replace(setting, lora_rank=4)) / 1e6 == pytest.approx(18.9, abs=0.05)
    memory, adapters = estimate(GPT_3, setting), trainable_parameters(GPT_3, setting)
    assert states(memory) == 2 * parameters(GPT_3) + 16 * adapters


def test_megatron_activations_are_those_of_its_paper():
    """Korthikanti et al., arXiv:2205.05198, for GPT-3 175B on 8 tensor parallel devices, one row of 2048 tokens."""
    base = Setting(
        implementation="megatron", precision="mixed", sequence=2048, tensor_parallel=8, fused_attention=False
    )
    fused, apart = {"fused_attention": True}, {"sequence_parallel": True}

    def gibs(**changes):
        sums = activations.of_layers(GPT_3, replace(base, **changes), Rows("decoder", 2048), range(96))
        return sum(sums.values()) * 2048 / GIB

    found = [gibs(), gibs(**apart), gibs(**fused), gibs(**fused, **apart)]
    assert found == pytest.approx([51.8, 32.1, 29.2, 9.6], abs=0.06)
    assert activations.boundary(GPT_3, base) * 96 * 2048 / GIB == pytest.approx(4.5, abs=0.01)
    one = activations.of_layers(GPT_3, replace(base, tensor_parallel=1), Rows("decoder", 2048), range(1))
    assert one["attention weights"] / 12288 == 80  # 5 a s / h; figure 7's 70 % saving is 80 / 114
    assert sum(one.values()) / 12288 == 34 + 80


def test_llama_of_transformers_keeps_what_was_measured():
    """Bytes a token of a layer of width 256, measured in bf16: 11,048 with fused attention, 24,072 without."""
    model = llama(1000, 256, 1, 8, 2, 704, 256)
    setting = Setting(implementation="hf", precision="pure")
    rows = Rows("decoder", 256)
    fused = activations.of_layers(model, setting, rows, range(1))
    eager = activations.of_layers(model, replace(setting, fused_attention=False), rows, range(1))
    assert (sum(fused.values()), sum(eager.values())) == (11_048, 24_072)


def test_logits_of_a_long_row_take_more_than_the_layers_unless_they_come_in_chunks():
    """Llama-3 at 8192 tokens: 10 bytes a logit at the peak, 9.8 GiB."""
    whole = estimate(LLAMA_3, Setting(sequence=8192, loss_chunk=0)).logits
    assert whole / GIB == pytest.approx(9.8, abs=0.05)
    assert estimate(LLAMA_3, Setting(sequence=8192, loss_chunk=512)).logits == whole // 16
    assert estimate(LLAMA_3, Setting(sequence=8192)).logits < 0.01 * whole


def test_the_classic_rule_is_24_bytes_a_parameter():
    memory, count = classic(LLAMA_2), parameters(LLAMA_2)
    assert memory.total == 24 * count
    assert (memory.weights, memory.gradients, memory.optimizer, memory.activations) == (
        4 * count, 4 * count, 8 * count, 8 * count,
    )  # fmt: skip


def test_a_pipeline_shares_out_weights_and_its_first_stage_holds_a_batch_for_every_stage():
    one, four = (estimate(LLAMA_2, Setting(sequence=2048, pipeline_parallel=stages)) for stages in (1, 4))
    assert states(four) < 0.27 * states(one)
    assert dict(four.parts)["mlp"] == dict(one.parts)["mlp"]  # 4 batches of 8 layers


def test_tensor_parallel_devices_share_matrices_but_not_norms():
    one, eight = (estimate(LLAMA_3, Setting(tensor_parallel=degree)) for degree in (1, 8))
    norms = 4 * (2 * 32 + 1) * 4096
    assert eight.weights == (one.weights - norms) // 8 + norms


@pytest.mark.parametrize(
    ("what", "budget", "setting"),
    [
        ("batch", 80 * 10**9, Setting(sequence=2048, precision="pure")),
        ("sequence", 24 * GIB, Setting(mode="inference")),
        ("sequence", 80 * GIB, Setting(precision="pure", recompute=True)),
        ("lora-rank", 24 * GIB, Setting(quantize="int4", lora_rank=1, sequence=2048)),
    ],
)
def test_the_largest_that_fits_fits_and_one_more_does_not(what, budget, setting):
    value, found, memory = solve(LLAMA_3, setting, budget, what)
    name = what.replace("-", "_")
    assert getattr(found, name) == value >= 1
    assert memory.total == estimate(LLAMA_3, found).total <= budget
    assert estimate(LLAMA_3, replace(found, **{name: value + 1})).total > budget


def test_what_never_fits_is_said_with_what_it_lacks():
    with pytest.raises(UserError) as caught:
        solve(LLAMA_3, Setting(), 24 * GIB, "batch")
    assert caught.value.code == Exit.SPACE
    assert "24.00 GiB" in caught.value.problem and "--batch 1" in caught.value.problem
    assert "--lora-rank" in caught.value.hint


def test_settings_that_exclude_each_other_are_refused():
    for options, words in [
        ({"quantize": "int4"}, "--quantize"),
        ({"implementation": "hf"}, "--implementation hf"),
        ({"batch": 0, "zero": 4}, "--batch is 0"),
        ({"lora_targets": ("query",)}, "--lora-targets"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            Setting(**options)
        assert caught.value.code == Exit.USAGE
    with pytest.raises(UserError, match="--tensor-parallel 3"):
        estimate(LLAMA_3, Setting(tensor_parallel=3))
    with pytest.raises(UserError, match="--pipeline-parallel 33"):
        estimate(LLAMA_3, Setting(pipeline_parallel=33))
    with pytest.raises(UserError, match="--source is 5"):
        estimate(LLAMA_3, Setting(source=5))
    with pytest.raises(UserError, match="--pipeline-parallel 2 splits one stack"):
        estimate(t5(512, 6, 8, 2048), Setting(pipeline_parallel=2))
    for options, words in (
        ({"scored": 0}, "--scored is 0"),
        ({"scored": 1.5}, "--scored"),
        ({"source": 0}, "--source"),
    ):
        with pytest.raises(UserError, match=words):
            Setting(**options)


@pytest.mark.parametrize("model", [GPT_3, bert(100, 8, 1, 2), t5(8, 1, 2, 16), gemma(64, 1, 2, 1, 176)])
def test_other_implementations_refuse_layers_that_are_not_theirs(model):
    with pytest.raises(UserError, match="Llama, Mistral and Qwen2 only") as caught:
        estimate(model, Setting(implementation="hf", precision="pure"))
    assert caught.value.code == Exit.MISMATCH
    if model is not GPT_3:
        with pytest.raises(UserError, match="--implementation megatron knows the layers of GPT only"):
            estimate(model, Setting(implementation="megatron"))


def test_operations_of_lora_recompute_and_inference():
    full = spent_flops(LLAMA_3, Setting())
    assert full == flops_per_token(LLAMA_3, 8192)
    again = spent_flops(LLAMA_3, Setting(recompute=True))
    assert again - full == forward_flops(LLAMA_3, 8192) - 2 * LLAMA_3.vocab * LLAMA_3.width
    adapters = spent_flops(LLAMA_3, Setting(lora_rank=8)) - 6 * trainable_parameters(LLAMA_3, Setting(lora_rank=8))
    assert full - adapters == 2 * matrix_parameters(LLAMA_3)  # no gradients of frozen weights: 4 N D
    assert spent_flops(LLAMA_3, Setting(mode="inference")) == forward_flops(LLAMA_3, 8192)


def test_it_needs_the_standard_library_only():
    code = "import sys, llmctl.spec.memory, llmctl.spec.presets; print({'torch', 'numpy', 'typer'} & set(sys.modules))"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
