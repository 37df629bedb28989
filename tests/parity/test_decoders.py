"""Decoders against transformers: its checkpoints here, ours there, in fp32 and bf16, padded and cached."""

import json

import pytest
import torch

pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.decode.generate import generate
from llmctl.core.model.cache import KVCache
from llmctl.spec.sample import Sampling
from tests.parity.oracle import CONFIGS, VOCAB, saved, tokens

FP32 = {"atol": 1e-5, "rtol": 1e-5}  # the acceptance of issue 2; logits here reach 20


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_of_transformers_gives_its_logits(name, tmp_path):
    theirs = saved(name, tmp_path)
    ours = Checkpoint.open(tmp_path).model()
    torch.testing.assert_close(ours.head(ours(tokens())), theirs(tokens()).logits, **FP32)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_of_ours_loads_in_transformers_with_no_key_missing_or_left(name, tmp_path):
    theirs = saved(name, tmp_path / "theirs")
    opened = Checkpoint.open(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_checkpoint(tmp_path / "ours", opened.model(), opened.config)
    back, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert type(back) is type(theirs)
    assert torch.equal(back.eval()(tokens()).logits, theirs(tokens()).logits)
    assert Checkpoint.open(tmp_path / "ours").config == opened.config


@pytest.mark.parametrize("name", CONFIGS)
def test_in_bf16_both_are_as_far_from_the_truth(name, tmp_path):
    truth = saved(name, tmp_path)(tokens()).logits
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()(tokens()).logits
    ours = Checkpoint.open(tmp_path).model(dtype=torch.bfloat16)
    found = ours.head(ours(tokens()))
    assert found.dtype == torch.bfloat16

    def distance(logits: torch.Tensor) -> float:
        return float((logits.float() - truth).norm() / truth.norm())

    # Two roundings of the same sums: errors of the same size (1 to 3 % of the logits here), not the same errors.
    # 1.3 leaves room for chance; BLOOM in transformers also rounds its biases of distance.
    assert distance(found) < 1.3 * distance(theirs) < 0.1


PADDED = ["llama", "llama-yarn", "mistral", "qwen3", "gpt2", "bloom", "gemma", "gemma2", "gemma3", "phi3", "olmo2",
          "phi3-longrope-short", "gpt_neox", "smollm3-window"]  # fmt: skip


@pytest.mark.parametrize("name", PADDED)
def test_rows_padded_on_the_left_give_what_transformers_gives(name, tmp_path):
    theirs = saved(name, tmp_path)
    ours = Checkpoint.open(tmp_path).model()
    seen = torch.ones(2, 20, dtype=torch.int64)
    seen[0, :6] = 0
    ids = tokens(2, 20) * seen
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    there = {} if name == "bloom" else {"position_ids": positions}  # BLOOM counts by the mask
    expected = theirs(ids, attention_mask=seen, **there).logits
    found = ours.head(ours(ids, positions=positions, segments=seen))
    assert found.isfinite().all()
    torch.testing.assert_close(found[0, 6:], expected[0, 6:], **FP32)
    torch.testing.assert_close(found[1], expected[1], **FP32)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cached_pass_gives_what_the_cache_of_transformers_gives(name, tmp_path):
    theirs = saved(name, tmp_path)
    opened = Checkpoint.open(tmp_path)
    ours = opened.model()
    cache = KVCache.allocate(opened.config, 2, 48)
    past = None
    parts = [20, *[1] * 10, 18] if name == "llama-dynamic" else [30, 1, 17]  # there the length at each step matters
    for part in tokens().split(parts, dim=1):
        answer = theirs(part, past_key_values=past, use_cache=True)
        past = answer.past_key_values
        torch.testing.assert_close(ours.head(ours(part, cache=cache)), answer.logits, **FP32)


GENERATED = ["gemma", "gemma2-low-caps", "gemma3-linear", "phi3-window-tied", "phi3-longrope-partial", "olmo2",
             "gpt_neox", "gpt_neox-serial", "smollm3-window"]  # fmt: skip


@pytest.mark.parametrize("name", GENERATED)
def test_a_batch_generates_what_transformers_generates_of_each_row(name, tmp_path):
    theirs = saved(name, tmp_path)
    theirs.generation_config.eos_token_id = None
    model = Checkpoint.open(tmp_path).model()
    prompts = [tokens(3, 30)[row, :length].tolist() for row, length in enumerate((3, 19, 30))]
    ids: list[list[int | None]] = [[] for _ in prompts]
    for token in generate(model, prompts, Sampling(max_tokens=14), [0, 0, 0]):
        ids[token.row].append(token.id)
    for prompt, found in zip(prompts, ids, strict=True):
        row = torch.tensor([prompt])
        answer = theirs.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=14, do_sample=False)
        assert found == answer[0, len(prompt) :].tolist()


def test_rows_that_grow_past_longropes_first_context_are_read_again_in_whole(tmp_path):
    saved("phi3-longrope-long", tmp_path)  # its context begins at 24
    model = Checkpoint.open(tmp_path).model()
    prompts = [tokens(2, 20)[row, :length].tolist() for row, length in enumerate((20, 9))]
    ids: list[list[int | None]] = [[] for _ in prompts]
    for token in generate(model, prompts, Sampling(max_tokens=20), [0, 0]):
        ids[token.row].append(token.id)
    for prompt, found in zip(prompts, ids, strict=True):
        row = list(prompt)
        for _ in range(20):
            row.append(int(model.head(model(torch.tensor([row])))[0, -1].argmax()))
        assert found == row[len(prompt) :]


def test_dynamic_scaling_follows_the_length_of_each_row(tmp_path):
    theirs = saved("llama-dynamic", tmp_path)
    ours = Checkpoint.open(tmp_path).model()
    for length in (10, 24, 25, 48):  # 24 is the context that was trained
        alone = ours.head(ours(tokens(1, length)))
        torch.testing.assert_close(alone, saved("llama-dynamic", tmp_path)(tokens(1, length)).logits, **FP32)
    assert theirs.config.max_position_embeddings == 24


@pytest.mark.parametrize("length", [10, 24, 25, 48])  # 24 is the context that came first
def test_longrope_follows_the_length_of_each_row(length, tmp_path):
    theirs = saved("phi3-longrope-long", tmp_path)
    ours = Checkpoint.open(tmp_path).model()
    torch.testing.assert_close(ours.head(ours(tokens(1, length))), theirs(tokens(1, length)).logits, **FP32)


@pytest.mark.parametrize("head", ["embed_out", "lm_head"])
def test_the_head_of_gpt_neox_is_found_under_both_names_and_written_as_it_was_published(head, tmp_path):
    theirs = saved("gpt_neox", tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    stored = {
        name: tensor for name, tensor in load_file(path).items() if "lm_head" not in name and "embed_out" not in name
    }
    buffers = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril(),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
    }
    save_file({**stored, **buffers, f"{head}.weight": theirs.lm_head.weight.detach()}, path, {"format": "pt"})
    opened = Checkpoint.open(tmp_path / "theirs")
    ours = opened.model()
    torch.testing.assert_close(ours.head(ours(tokens())), theirs(tokens()).logits, **FP32)
    (tmp_path / "ours").mkdir()
    save_checkpoint(tmp_path / "ours", ours, opened.config)
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert set(written) == {*stored, "embed_out.weight"}


@pytest.mark.parametrize("name", ["phi3-longrope-partial", "gemma3-linear", "gpt_neox-linear", "llama-longrope"])
def test_old_and_new_readers_find_the_same_positions_of_other_decoders(name, tmp_path):
    saved(name, tmp_path / "theirs")
    opened = Checkpoint.open(tmp_path / "theirs")
    ours = opened.model()
    (tmp_path / "ours").mkdir()
    save_checkpoint(tmp_path / "ours", ours, opened.config)
    path = tmp_path / "ours" / "config.json"
    whole = json.loads(path.read_text())
    old = ("rope_scaling", "rope_theta", "rope_local_base_freq", "rotary_pct", "rotary_emb_base")
    for dropped in (old, ("rope_parameters",)):
        path.write_text(json.dumps({key: value for key, value in whole.items() if key not in dropped}))
        assert Checkpoint.open(tmp_path / "ours").config == opened.config
        back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
        torch.testing.assert_close(ours.head(ours(tokens())), back(tokens()).logits, **FP32)


def test_sharded_checkpoints_load_in_both_directions(tmp_path):
    theirs = saved("llama", tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 2
    opened = Checkpoint.open(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_checkpoint(tmp_path / "ours", opened.model(), opened.config, shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 2
    back, report = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(back(tokens()).logits, theirs(tokens()).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read_and_written_as_they_are(dtype, tmp_path):
    saved("gpt2", tmp_path / "fp32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "fp32", dtype=dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    opened = Checkpoint.open(tmp_path / "theirs")
    assert {parameter.dtype for parameter in opened.model().parameters()} == {dtype}
    (tmp_path / "ours").mkdir()
    save_checkpoint(tmp_path / "ours", opened.model(), opened.config)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == str(dtype).removeprefix("torch.")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    for (name, one), (_, other) in zip(theirs.named_parameters(), back.named_parameters(), strict=True):
        assert one.dtype == other.dtype == dtype and torch.equal(one, other), name


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "bloom"])
def test_a_model_saved_without_its_head_opens_where_the_head_is_tied(name, tmp_path):
    theirs = saved(name, tmp_path)
    theirs.base_model.save_pretrained(tmp_path)
    ours = Checkpoint.open(tmp_path).model()
    torch.testing.assert_close(ours.head(ours(tokens())), theirs(tokens()).logits, **FP32)


def test_old_and_new_readers_find_the_same_rope(tmp_path):
    saved("llama-llama3", tmp_path / "theirs")
    opened = Checkpoint.open(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_checkpoint(tmp_path / "ours", opened.model(), opened.config)
    path = tmp_path / "ours" / "config.json"
    whole = json.loads(path.read_text())
    for dropped in (("rope_scaling", "rope_theta"), ("rope_parameters",)):
        path.write_text(json.dumps({key: value for key, value in whole.items() if key not in dropped}))
        assert Checkpoint.open(tmp_path / "ours").config == opened.config
        back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
        ours = opened.model()
        torch.testing.assert_close(ours.head(ours(tokens())), back(tokens()).logits, **FP32)


def test_the_vocabulary_of_the_oracle_is_what_the_tests_draw_from():
    assert int(tokens().max()) < VOCAB
