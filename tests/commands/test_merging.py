"""lora-merge and merge at the command line: what they print, which base they take, and what they leave."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.core.compress.nf4 import pack, unpack
from llmctl.spec.manifest import Input
from llmctl.spec.safetensors import read_tensors

Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def adapter(tmp_path, tiny):
    """adapter(name, base, **config) -> an adapter's directory, LoRA on the queries of the tiny model."""

    def make(name: str = "adapter", base: Path = tiny, tensors: dict | None = None, **config: object) -> Path:
        path, chance = tmp_path / name, torch.Generator().manual_seed(1)
        path.mkdir()
        shapes = {"A": (2, 32), "B": (32, 2)}
        drawn = {Q.format(i, p): torch.randn(shape, generator=chance) for i in range(2) for p, shape in shapes.items()}
        save_file(drawn | (tensors or {}), path / "adapter_model.safetensors")
        said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], **config}
        (path / "adapter_config.json").write_text(json.dumps({**said, "base_model_name_or_path": str(base)}))
        return path

    return make


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def test_adapters_are_merged_down_a_pipe_into_a_model_that_generates(call, adapter, tiny, tmp_path):
    done = call("lora-merge", "-", "-o", "tuned", "--check", stdin=f"{adapter()}\n".encode())
    assert (done.code, done.out) == (0, "tuned\n")
    assert "2 of 21 tensors merged" in done.err and "rounding explains" in done.err
    said = json.loads((tmp_path / "tuned" / "llmctl.json").read_text())
    assert [one["path"] for one in said["inputs"]] == [str(tiny), str(tmp_path / "adapter")]
    assert said["options"]["weights"] == [1.0] and said["metrics"]["merged"] == 2
    written = call("generate", "tuned", "-p", "the", "--max-tokens", "3", "--seed", "1")
    beside = call("generate", "adapter", "-p", "the", "--max-tokens", "3", "--seed", "1")
    assert written.code == beside.code == 0 and written.out == beside.out
    again = call("lora-merge", "adapter", "-o", "tuned", "--json")
    assert json.loads(again.out)["up_to_date"] is True and json.loads(again.out)["metrics"]["merged"] == 2
    other = call("lora-merge", "adapter:0.5", "-o", "tuned")
    assert other.code == 1 and "--weights [1.0] there, [0.5] here" in other.err


def test_a_dry_run_says_what_it_would_make_and_makes_nothing(call, adapter, tmp_path):
    adapter()
    done = call("lora-merge", "adapter", "-o", "tuned", "--dry-run", "--dtype", "bf16")
    facts = json.loads(done.out)
    assert (facts["merged"], facts["tensors"], facts["bytes"]) == (2, 21, 2 * facts["parameters"])
    assert not (tmp_path / "tuned").exists()


def test_a_base_that_is_not_the_one_recorded_ends_with_4_unless_it_is_named(call, adapter, tiny, tmp_path):
    path = adapter()
    recorded = {"command": "finetune", "inputs": [{"path": "base", "bytes": 1, "sha256": Input.of(tiny).sha256}]}
    (path / "llmctl.json").write_text(json.dumps(recorded))
    assert call("lora-merge", path, "-o", "right").code == 0
    recorded["inputs"][0]["sha256"] = "0" * 64
    (path / "llmctl.json").write_text(json.dumps(recorded))
    done = call("lora-merge", path, "-o", "wrong")
    assert done.code == 4 and f"--base {tiny}" in done.err and not (tmp_path / "wrong").exists()
    done = call("lora-merge", path, "--base", tiny, "-o", "named")
    assert done.code == 0 and "warning" in done.err
    assert all(torch.equal(one, weights(tmp_path / "right")[name]) for name, one in weights(tmp_path / "named").items())


def test_an_adapter_of_qlora_is_merged_into_what_four_bits_leave_of_the_base(call, adapter, tiny, tmp_path):
    path = adapter()
    said = {"command": "finetune", "options": {"method": "qlora", "base_dtype": "auto", "double_quant": True}}
    (path / "llmctl.json").write_text(json.dumps(said))
    done = call("lora-merge", path, "-o", "stored")
    assert done.code == 0 and "--base-precision nf4-dq" in done.err
    done = call("lora-merge", path, "-o", "packed", "--base-precision", "nf4-dq", "--check")
    assert done.code == 0 and "--base-precision" not in done.err
    name, head = "model.layers.1.mlp.up_proj.weight", "lm_head.weight"
    before, found = weights(tiny), weights(tmp_path / "packed")
    assert torch.equal(found[name], unpack(pack(before[name], True), before[name].shape, torch.float32))
    assert not torch.equal(found[name], before[name]) and torch.equal(found[head], before[head])


def test_fewer_threads_than_none_are_refused(call, adapter, tiny):
    for argv in (("lora-merge", adapter()), ("merge", tiny, tiny)):
        done = call(*argv, "-o", "out", "--threads", "-1")
        assert done.code == 2 and "--threads is -1" in done.err


def test_adapters_of_two_bases_need_one_to_be_named(call, adapter, tiny, tmp_path):
    (tmp_path / "other").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    adapter("one"), adapter("two", tmp_path / "other")
    done = call("lora-merge", "one", "two", "-o", "out")
    assert done.code == 4 and "different bases" in done.err
    assert call("lora-merge", "one", "two", "--base", tiny, "-o", "out").code == 0
    assert call("lora-merge", "one", "two:2", "--base", tiny, "-o", "checked", "--check").code == 2


def test_a_sparse_base_that_becomes_dense_is_said(call, adapter, tiny, tmp_path):
    (tmp_path / "sparse").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "sparse" / file.name).write_bytes(file.read_bytes())
    tensors = weights(tiny)
    for name in tensors:
        tensors[name][..., ::2] = 0
    save_file(tensors, tmp_path / "sparse" / "model.safetensors", {"format": "pt"})
    done = call("lora-merge", adapter(), "--base", "sparse", "-o", "out")
    assert done.code == 0 and "50.0% were zero, 0.0% are" in done.err


def test_a_check_that_finds_another_model_ends_with_1(call, adapter, tmp_path):
    path = adapter()
    assert call("lora-merge", path, "-o", "out").code == 0
    name = "model.layers.1.self_attn.q_proj.weight"
    info = read_tensors(tmp_path / "out")[name]
    with open(tmp_path / "out" / info.file, "r+b") as file:
        file.seek(info.start)
        file.write((weights(tmp_path / "out")[name] * 1.01).numpy().tobytes())
    done = call("lora-merge", path, "-o", "out", "--check")
    assert done.code == 1 and "is not base and adapter" in done.err


def test_the_adapters_tokenizer_goes_before_the_bases_and_the_chat_template_stays(call, adapter, tiny, tmp_path):
    path = adapter()
    text = (tiny / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text + "\n")
    (path / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    (tmp_path / "base").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    assert call("lora-merge", path, "--base", "base", "-o", "out").code == 0
    out = tmp_path / "out"
    assert (out / "tokenizer.json").read_text() == text + "\n"
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [0, 1]


def test_whole_checkpoints_are_merged_at_the_command_line(call, adapter, tiny, tmp_path):
    call("lora-merge", adapter(), "-o", "tuned")
    done = call("merge", "tuned", tiny, "-o", "mean", "--weights", "1,3")
    assert (done.code, done.out) == (0, "mean\n")
    name = "model.layers.0.self_attn.q_proj.weight"
    wanted = (weights(tmp_path / "tuned")[name] + 3 * weights(tiny)[name]) / 4
    torch.testing.assert_close(weights(tmp_path / "mean")[name], wanted)
    done = call("merge", "-", "--base", tiny, "--method", "ties", "--density", "1", "-o", "ties", stdin=b"tuned\n")
    assert done.code == 0
    assert all(torch.equal(one, weights(tmp_path / "tuned")[key]) for key, one in weights(tmp_path / "ties").items())
    assert call("generate", "ties", "-p", "the", "--max-tokens", "2").code == 0
    facts = json.loads(call("merge", "tuned", tiny, "--method", "slerp", "-o", "none", "--dry-run").out)
    assert facts["models"] == 2 and not (tmp_path / "none").exists()
    assert call("merge", "tuned", "--method", "ties", "-o", "none").code == 2
