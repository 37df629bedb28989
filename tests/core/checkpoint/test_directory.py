"""Checkpoint directories: bytes that come back the same, tensors all accounted for, memory mapped and not copied."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.safetensors import read_tensors
from tests.core.variants import VARIANTS


def rewrite(directory: Path, change) -> None:
    """Change the tensors of model.safetensors by `change(tensors)`."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def logits(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model(torch.arange(20)[None]))


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 9_000], ids=["whole", "sharded"])
@pytest.mark.parametrize("name", VARIANTS)
def test_saving_loading_and_saving_again_gives_the_same_bytes(name, shard_bytes, written, tmp_path):
    first = written(name, shard_bytes=shard_bytes)
    opened = Checkpoint.open(first)
    (tmp_path / "again").mkdir()
    save_checkpoint(tmp_path / "again", opened.model(), opened.config, shard_bytes=shard_bytes)
    files = sorted(file.name for file in first.iterdir())
    assert files == sorted(file.name for file in (tmp_path / "again").iterdir())
    assert (len(files) > 4) == (shard_bytes < 10_000)
    for file in files:
        assert (first / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_comes_back_as_it_was(name, tmp_path):
    model = initialise(Transformer(VARIANTS[name]), 3)
    save_checkpoint(tmp_path, model, VARIANTS[name])
    opened = Checkpoint.open(tmp_path)
    assert opened.config == VARIANTS[name]
    for writable in (False, True):
        back = opened.model(writable=writable)
        assert not back.training
        for (own, one), (_, other) in zip(model.named_parameters(), back.named_parameters(), strict=True):
            assert torch.equal(one, other) and other.requires_grad, own
            assert other.is_contiguous() or not writable


def test_the_files_are_those_that_other_readers_of_the_format_expect(written):
    directory = written("gpt2")
    with safe_open(directory / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in set(file.keys())
        assert file.get_tensor("transformer.h.0.attn.c_attn.weight").shape == (24, 72)
    config = json.loads((directory / "config.json").read_text())
    assert config["tie_word_embeddings"] is True and config["architectures"] == ["GPT2LMHeadModel"]


def test_the_index_of_shards_says_where_each_tensor_is_and_how_large_all_are(written):
    directory = written("llama", shard_bytes=9_000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    sizes = [path.stat().st_size for path in sorted(directory.glob("model-*.safetensors"))]
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{i + 1:05}-of-{len(sizes):05}.safetensors" for i in range(len(sizes))]
    assert index["metadata"]["total_size"] == sum(info.bytes for info in read_tensors(directory).values())
    assert Checkpoint.open(directory).model().head.weight.shape == (61, 24)


def test_missing_unexpected_and_misshapen_tensors_are_named_at_once(written):
    directory = written("llama")

    def spoil(tensors):
        del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["score.weight"] = torch.zeros(2, 24)
        tensors["model.norm.weight"] = torch.zeros(25)

    rewrite(directory, spoil)
    with pytest.raises(UserError) as caught:
        Checkpoint.open(directory).model()
    assert caught.value.code == Exit.MISMATCH
    assert "1 missing: model.layers.0.mlp.up_proj.weight" in caught.value.problem
    assert "1 unexpected: score.weight" in caught.value.problem
    assert "model.norm.weight is [25], wanted [24]" in caught.value.problem


def test_many_missing_tensors_are_counted_and_the_first_named(written):
    directory = written("llama")
    rewrite(directory, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".0." in name])
    with pytest.raises(UserError, match=r"9 missing: .* and 5 more"):
        Checkpoint.open(directory).model()


def test_an_untied_model_without_its_head_is_refused_with_the_way_to_tie_it(written):
    directory = written("llama")
    rewrite(directory, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(UserError, match=r"lm_head\.weight") as caught:
        Checkpoint.open(directory).model()
    assert "tie_word_embeddings" in caught.value.hint


def test_a_tied_head_stored_again_is_fine_when_it_is_equal(written):
    directory = written("gpt2")
    expected = logits(Checkpoint.open(directory).model())
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    model = Checkpoint.open(directory).model()
    assert model.config.tie and torch.equal(logits(model), expected)


def test_a_tied_head_that_differs_is_refused_and_not_chosen_silently(written):
    directory = written("gpt2")
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"] + 1}))
    with pytest.raises(UserError, match="they differ") as caught:
        Checkpoint.open(directory).model()
    assert "tie_word_embeddings to false" in caught.value.hint
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    model = Checkpoint.open(directory).model()
    assert not model.config.tie and not torch.equal(model.head.weight, model.embed.tokens.weight)


def test_a_tied_matrix_kept_under_the_name_of_the_head_is_found(written):
    """safetensors' save_model keeps the first of two shared names in the alphabet, and that is lm_head."""
    directory = written("gpt2")
    expected = logits(Checkpoint.open(directory).model())
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("transformer.wte.weight")}))
    assert torch.equal(logits(Checkpoint.open(directory).model()), expected)


@pytest.mark.parametrize(
    ("name", "prefix", "buffers"),
    [
        ("gpt2", "transformer.", {"h.0.attn.bias": (1, 1, 32, 32), "h.1.attn.masked_bias": ()}),
        ("llama", "model.", {"layers.1.self_attn.rotary_emb.inv_freq": (3,)}),
        ("bloom", "transformer.", {}),
    ],
)
@pytest.mark.parametrize("bare", [False, True])
def test_names_without_prefix_and_buffers_that_follow_from_the_config_are_accepted(
    name, prefix, buffers, bare, written
):
    directory = written(name)
    expected = logits(Checkpoint.open(directory).model())

    def older(tensors):
        for key in list(tensors):
            tensors[key.removeprefix(prefix) if bare else key] = tensors.pop(key)
        for key, shape in buffers.items():
            tensors[key if bare else prefix + key] = torch.zeros(shape)

    rewrite(directory, older)
    assert torch.equal(logits(Checkpoint.open(directory).model()), expected)


def test_a_tensor_both_with_and_without_prefix_is_unexpected(written):
    directory = written("gpt2")
    rewrite(directory, lambda tensors: tensors.update({"wpe.weight": tensors["transformer.wpe.weight"].clone()}))
    with pytest.raises(UserError, match=r"1 unexpected: wpe\.weight"):
        Checkpoint.open(directory).model()


def test_quantized_weights_are_not_read_as_plain_ones(written):
    directory = written("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(directory, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(UserError, match=r"up_proj\.weight is F8_E4M3"):
        Checkpoint.open(directory).model()


def test_a_dtype_may_be_asked_for(written):
    model = Checkpoint.open(written("gpt2")).model(dtype=torch.bfloat16)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert all(one.is_contiguous() for one in model.parameters())


def test_files_of_several_dtypes_become_a_model_of_the_one_that_holds_most(written):
    directory = written("llama", dtype=torch.bfloat16)
    rewrite(directory, lambda tensors: tensors.update({n: t.float() for n, t in tensors.items() if "norm" in n}))
    assert {info.dtype for info in read_tensors(directory).values()} == {"BF16", "F32"}
    model = Checkpoint.open(directory).model()
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}


def test_saving_in_another_dtype_says_so_in_the_config(written):
    directory = written("llama", dtype=torch.bfloat16)
    assert {info.dtype for info in read_tensors(directory).values()} == {"BF16"}
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("writable", [False, True])
def test_writing_to_parameters_never_alters_the_file(writable, written):
    directory = written("gpt2")
    before = (directory / "model.safetensors").read_bytes()
    model = Checkpoint.open(directory).model(writable=writable)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    del model
    assert (directory / "model.safetensors").read_bytes() == before


def test_writable_parameters_outlive_the_file(written):
    directory = written("gpt2")
    model = Checkpoint.open(directory).model(writable=True)
    expected = logits(model)
    (directory / "model.safetensors").write_bytes(b"")
    assert torch.equal(logits(model), expected)


def test_data_that_its_file_does_not_align_is_read_all_the_same(written):
    """Headers of old files are not padded to eight bytes."""
    directory = written("llama")
    path = directory / "model.safetensors"
    expected, data = logits(Checkpoint.open(directory).model()), path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip() + b" "
    header += b" " * (len(header) % 2 == 0)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert torch.equal(logits(Checkpoint.open(directory).model()), expected)


def test_a_pickle_is_refused_with_the_way_to_convert_it(written):
    directory = written("llama")
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle") as caught:
        Checkpoint.open(directory).model()
    assert "save_pretrained" in caught.value.hint


def test_generation_settings_and_tokenizer_files_travel(written, tmp_path):
    source = written("llama")
    (source / "tokenizer.json").write_text("{}")
    (source / "chat_template.jinja").write_text("{{ x }}")
    (tmp_path / "next").mkdir()
    kept = {"eos_token_id": [5, 7], "temperature": 0.5}
    opened = Checkpoint.open(source)
    save_checkpoint(tmp_path / "next", opened.model(), opened.config, tokenizer_from=source, generation=kept)
    assert Checkpoint.open(tmp_path / "next").generation == kept
    assert (tmp_path / "next" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "next" / "chat_template.jinja").read_text() == "{{ x }}"
    config = VARIANTS["llama"].resized(bos=1, eos=(2, 3))
    save_checkpoint(tmp_path / "next", opened.model(), config)
    assert Checkpoint.open(tmp_path / "next").generation == {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": None,
    }
    (tmp_path / "next" / "generation_config.json").unlink()
    assert Checkpoint.open(tmp_path / "next").generation == {}


def test_a_model_that_does_not_fit_its_config_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="does not fit its config"):
        save_checkpoint(tmp_path, Transformer(VARIANTS["gpt2"]), VARIANTS["llama"])
    assert not list(tmp_path.iterdir())


LARGE = {  # 168 and 200 MB
    "llama": ModelConfig(vocab=16000, width=1024, layers=1, heads=16, ff=2816, context=64, kv_heads=4, tie=False),
    "gpt2": VARIANTS["gpt2"].resized(vocab=16000, width=1024, heads=16, head_dim=64, kv_heads=16, ff=4096),
}
MEMORY = """
import re
import sys
import torch
from pathlib import Path
from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint

def memory(field, file="smaps_rollup"):
    return 1024 * int(re.search(rf"^{field}:\\s*(\\d+)", Path(f"/proc/self/{file}").read_text(), re.M)[1])

directory, out = map(Path, sys.argv[1:])
torch.set_num_threads(1)
with torch.no_grad():
    torch.nn.functional.linear(torch.ones(8, 64), torch.ones(64, 64))  # what the first product alone sets up
"""


def measured(script: str, *paths: Path) -> list[int]:
    """The numbers that a script prints; in a process of its own, whose allocator has nothing freed to reuse."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", MEMORY + script, *map(str, paths)]
    return [int(word) for word in subprocess.run(command, env=env, check=True, capture_output=True).stdout.split()]


@pytest.fixture(scope="module", params=LARGE)
def large(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    save_checkpoint(directory, initialise(Transformer(LARGE[request.param]), 0), LARGE[request.param])
    return directory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's account of memory")
def test_opening_and_running_a_model_makes_no_second_copy_of_it(large, tmp_path):
    size = (large / "model.safetensors").stat().st_size
    assert size > 160_000_000
    script = """
before = memory("Anonymous")
model = Checkpoint.open(directory).model()
with torch.no_grad():
    model.head(model(torch.arange(8)[None]))
print(memory("Anonymous") - before)
copied = Checkpoint.open(directory).model(writable=True)
print(memory("Anonymous") - before)
"""
    mapped, copied = measured(script, large, tmp_path)
    assert mapped < 0.1 * size  # the process's own memory; the map's clean pages are the file's
    assert copied > 0.9 * size  # and the measure does see copies


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
def test_saving_holds_no_more_than_a_tensor_besides_the_model(large, tmp_path):
    script = """
model = Checkpoint.open(directory).model(writable=True)
for parameter in model.parameters():
    parameter.data = parameter.data.clone()
before = memory("VmRSS", "status")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
save_checkpoint(out, model, model.config)
print(memory("VmHWM", "status") - before, max(parameter.nbytes for parameter in model.parameters()))
"""
    more, largest = measured(script, large, tmp_path)
    assert more < 1.5 * largest
