"""prune at the command line: what it prints, what it refuses, and what it leaves; zeros kept by what trains on."""

import json
import os

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.compress.prune.masks import matrices


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    words = ["the list", "of things", "that lists", "the thing", "lists of the"]
    lines = [json.dumps({"text": " ".join(words[(i * j) % 5] for j in range(9))}) for i in range(40)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def zeros(path):
    """Whether each weight of each matrix is zero."""
    return {name: module.weight == 0 for name, module in matrices(Checkpoint.open(path).model()).items()}


def test_a_model_down_a_pipe_is_pruned_on_text_judged_and_then_up_to_date(call, tiny, text, tmp_path):
    line = ["--score", "sparsegpt", "--calibration", text, "--eval", text, "-o", "out"]
    done = call("prune", "-", *line, stdin=f"{tiny}\n".encode())
    assert (done.code, done.out) == (0, "out\n")
    assert "save no time on cpu" in done.err and "before and after" in done.err
    said = json.loads((tmp_path / "out" / "llmctl.json").read_text())
    metrics = said["metrics"]
    assert {"before", "after", "ratios", "layers", "sparsity", "pattern", "saves_time"} <= metrics.keys()
    assert metrics["after"]["kl"] > 0 and metrics["saves_time"] is False and metrics["sparsity"] == 0.5
    assert [set(layer) for layer in metrics["layers"]] == [
        {"name", "shape", "pattern", "sparsity", "output_error"}
    ] * 14
    again = call("prune", tiny, *line, "--json", "--fail-under", "smaller=0.5")
    assert json.loads(again.out)["up_to_date"] is True and json.loads(again.out)["metrics"] == metrics
    assert call("prune", tiny, *line, "--fail-under", "1.5").code == 6
    assert "--sparsity" in call("prune", tiny, *line, "--sparsity", "0.6").err


def test_what_is_missed_or_cannot_be_leaves_nothing_behind(call, tiny, text, tmp_path):
    missed = call("prune", tiny, "--eval", text, "--speed-tokens", "0", "--fail-under", "kept=1.1", "-o", "out")
    assert missed.code == 6 and "kept is" in missed.err
    lacking = call("prune", tiny, "--score", "wanda", "-o", "out")
    assert lacking.code == 2 and "--calibration" in lacking.err
    (tmp_path / "packed").mkdir()
    config = json.loads((tiny / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    assert call("prune", "packed", "-o", "out").code == 4
    dry = call("prune", tiny, "--pattern", "4:8", "-o", "out", "--dry-run")
    facts = json.loads(dry.out)
    assert dry.code == 0 and facts["zeros"] == facts["weights"] // 2 and facts["matrices"] == 14
    assert sorted(os.listdir(tmp_path)) == ["packed", "text.jsonl"]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--damp 0.5", "--damp"),
        ("--rank random --reverse", "--rank, --reverse"),
        ("--recover-lr 0.1", "--recover-lr"),
        ("--heads 2 --rank weight --no-repair --score wanda --sparse", "--score, --sparse"),
        ("--seed 3", "--seed"),
        ("--eval-tokens 300", "--eval-tokens"),
        ("--calibration TEXT", "--calibration"),
    ],
)
def test_an_option_that_nothing_looks_at_is_refused_by_name(call, tiny, text, given, named):
    refused = call("prune", tiny, *given.replace("TEXT", str(text)).split(), "-o", "out")
    assert refused.code == 2 and refused.err.startswith(f"error: {named} say"), refused.err


def test_a_directory_cannot_be_written_to_stdout(call, tiny, tmp_path):
    refused = call("prune", tiny, "-o", "-")
    assert refused.code == 2 and not (tmp_path / "-").exists()


def test_the_sparse_form_is_smaller_generates_the_same_and_becomes_dense_again(call, tiny, tmp_path):
    assert call("prune", tiny, "--sparsity", "0.75", "-o", "dense").code == 0
    done = call("prune", tiny, "--sparsity", "0.75", "--sparse", "-o", "sparse", "--json")
    assert json.loads(done.out)["metrics"]["ratios"]["smaller"] > 1.5
    written = [call("generate", path, "-p", "the", "--max-tokens", "5", "--seed", "1") for path in ("dense", "sparse")]
    assert written[0].code == written[1].code == 0 and written[0].out == written[1].out
    assert call("verify", "sparse", "--values").code == 0
    assert call("prune", "sparse", "--sparsity", "0", "-o", "again").code == 0
    assert all((tmp_path / place / "model.safetensors").is_file() for place in ("dense", "again"))
    one, other = (Checkpoint.open(tmp_path / place).model().state_dict() for place in ("dense", "again"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_what_trains_a_sparse_model_on_keeps_its_zeros_if_asked_and_says_so_if_not(call, tiny, tmp_path):
    data = tmp_path / "tuning.jsonl"
    data.write_text('{"prompt": "the", "completion": " list"}\n{"prompt": "a", "completion": " thing"}\n')
    assert call("prune", tiny, "--sparsity", "0.6", "-o", "base").code == 0
    line = ["finetune", "base", data, "--method", "full", "--steps", "3", "--batch-size", "2"]
    kept = call(*line, "--keep-zeros", "-o", "kept", "--json")
    assert kept.code == 0 and json.loads(kept.out)["metrics"]["sparsity"] == pytest.approx(0.6, abs=1e-3)
    before, after = zeros(tmp_path / "base"), zeros(tmp_path / "kept")
    assert all(torch.equal(gone, after[name]) for name, gone in before.items())
    free = call(*line, "-o", "free")
    assert free.code == 0 and "--keep-zeros keeps them" in free.err
    lora = call("finetune", "base", data, "--method", "lora", "--steps", "3", "--keep-zeros", "-o", "ad")
    assert lora.code == 2 and "--method full" in lora.err and not (tmp_path / "ad").exists()


def test_recovery_goes_on_with_zeros_where_they_were(call, tiny, text, tmp_path):
    line = ["prune", tiny, "--pattern", "2:4", "--recover-data", text, "--recover-by", "text"]
    assert call(*line[:4], "-o", "plain").code == 0
    done = call(*line, "--recover-steps", "3", "--recover-batch-tokens", "128", "-o", "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["recovery"]["steps"] == 3
    before, after = zeros(tmp_path / "plain"), zeros(tmp_path / "out")
    assert all(torch.equal(gone, after[name]) for name, gone in before.items())
    moved = [Checkpoint.open(tmp_path / name).model().layers[0].mlp.up.weight for name in ("plain", "out")]
    assert not torch.equal(*moved)
