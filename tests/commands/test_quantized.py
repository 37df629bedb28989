"""Quantized checkpoints under the other commands: what works on them, and what needs plain weights and says so."""

import json
from pathlib import Path

import pytest

from llmctl.core.checkpoint.quantized import QuantWriter
from llmctl.core.compress.quant.grid import quantise
from llmctl.spec.families import read_config
from llmctl.spec.quant import QuantConfig
from llmctl.spec.sites import sites
from llmctl.spec.sizes import parameters


@pytest.fixture
def few(tmp_path, tiny) -> Path:
    """The tiny model in 4 bits, its head too."""
    path, quant = tmp_path / "few", QuantConfig(scheme="int4", group_size=16)
    names = [name for site in sites(read_config(tiny)) if not site.table for name in site.ours]
    path.mkdir()
    with QuantWriter(path, tiny, quant, dict.fromkeys(names, quant.grid)) as writer:
        for name in names:
            writer.put(name, quantise(writer.weight(name), quant.grid, writer.scale_dtype(name)))
    return path


def test_inspect_and_verify_tell_how_matrices_are_held(call, few):
    said = json.loads(call("inspect", few, "--json").out)
    (group,) = said["quantization"]["groups"]
    assert (group["bits"], group["group_size"], group["layout"]) == (4, 16, "packed")
    count = parameters(read_config(few))
    assert said["parameters"] == count and not said["remarks"]
    assert said["quantization"]["bits_per_parameter"] == round(8 * said["bytes"] / count, 4)
    assert call("verify", few, "--values").code == 0


def test_a_quantized_model_generates_scores_and_embeds(call, few, tmp_path):
    assert call("generate", few, "-p", "the", "--max-tokens", "3").code == 0
    (tmp_path / "text.txt").write_text("the list of the things\n" * 20)
    scored = call("eval-ppl", few, "text.txt", "--json")
    assert scored.code == 0 and json.loads(scored.out)["tokens"] > 0
    assert len(json.loads(call("embed", few, "-", stdin=b'{"text": "the thing"}\n').out)["embedding"]) == 32


def test_an_adapter_is_trained_beside_its_codes_and_all_else_asks_for_plain_weights(call, few, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"prompt": "the", "completion": " thing"}\n' * 8)
    made = call("finetune", few, "data.jsonl", "--method", "lora", "--steps", "2", "-o", "adapter")
    assert made.code == 0, made.err
    assert call("generate", "adapter", "-p", "the", "--max-tokens", "3").code == 0
    refused = [
        ("finetune", few, "data.jsonl", "--method", "full", "--steps", "2", "-o", "whole"),
        ("lora-merge", "adapter", "-o", "whole"),
        ("merge", few, few, "-o", "whole"),
        ("quantize", few, "-o", "whole"),
    ]
    for argv in refused:
        ended = call(*argv)
        assert ended.code == 4 and "quantized" in ended.err and "hint:" in ended.err, ended.err
    assert not (tmp_path / "whole").exists()
