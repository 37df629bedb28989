"""inspect: what is told of checkpoints, tokens and tokenizers agrees with what made them; differences are found."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.commands.inspect import shape_rows
from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.checkpoint.values import difference, not_finite
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.manifest import versions
from llmctl.spec.safetensors import SINGLE, read_header
from tests.core.variants import VARIANTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """A copy of the tiny checkpoint that may be spoilt."""
    return shutil.copytree(tiny, tmp_path / "copy")


def changed(directory: Path, **tensors: torch.Tensor) -> None:
    """Writes other values, or other tensors, into model.safetensors; "." is "__" in the names."""
    found = load_file(directory / SINGLE) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file(found, directory / SINGLE, {"format": "pt"})


def told(call, *argv) -> dict:
    ended = call("inspect", *argv, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_a_checkpoint_is_told_as_torch_sees_it(call, tiny):
    report = told(call, tiny)
    model = Checkpoint.open(tiny).model()
    assert report["schema"] == "llmctl/inspect/1"
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert report["config"]["vocab"] == 300 and report["config"]["model_type"] == "llama"
    assert report["bytes"] == 4 * report["parameters"] == report["dtypes"]["F32"]
    stored = load_file(tiny / SINGLE)
    assert {one["name"]: one["shape"] for one in report["tensors"]} == {
        name: list(tensor.shape) for name, tensor in stored.items()
    }
    assert {(one["file"], one["dtype"]) for one in report["tensors"]} == {(SINGLE, "F32")}
    assert report["lineage"] == [] and report["made"] is None


@pytest.mark.parametrize("name", VARIANTS)
def test_checkpoints_of_every_kind_are_told_verified_and_planned_for(name, call, tmp_path):
    config, directory = VARIANTS[name], tmp_path / "model"
    directory.mkdir()
    model = initialise(Transformer(config), 0)
    save_checkpoint(directory, model, config)
    report = told(call, directory)
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert report["remarks"] == [] and report["config"]["kind"] == config.kind
    assert call("verify", directory, "--json").code == 0
    for mode in ("training", "inference"):
        planned = call("memcalc", directory, "--json", "--mode", mode)
        assert (planned.code, planned.err) == (0, "")
        assert json.loads(planned.out)["parameters"] == report["parameters"]


def test_people_are_shown_the_fields_that_mean_something_and_what_a_model_scores():
    rows = {name: dict(shape_rows(VARIANTS[name])) for name in VARIANTS}
    assert "rope_theta" in rows["llama"] and "rope_theta" not in rows["bert"]
    assert "relative_buckets" in rows["t5"] and "relative_buckets" not in rows["bart"]
    assert rows["llama"]["scores"] == "tokens (by a matrix of its own)"
    after = "tokens (by the embedding, after a layer of its own)"
    assert rows["bert"]["scores"] == f"{after}; whether a second text follows"
    assert rows["roberta"]["scores"] == "a text: one of no, yes"
    assert rows["distilbert"]["scores"] == "each token: one of O, B, I"
    assert rows["bart with labels"]["scores"] == "a text: any of a, b"
    bare = VARIANTS["bert"].resized(lm_head=False, next_sentence=False)
    assert dict(shape_rows(bare))["scores"] == "nothing: hidden states only"


def test_a_tied_head_counts_once_even_where_a_copy_is_stored(call, tiny, tmp_path):
    config = Checkpoint.open(tiny).config.resized(tie=True)
    state = Checkpoint.open(tiny).model().state_dict()
    state.pop("head.weight")
    (tmp_path / "tied").mkdir()
    save_checkpoint(tmp_path / "tied", state, config)
    once = told(call, tmp_path / "tied")["parameters"]
    assert once == sum(tensor.numel() for tensor in state.values())
    changed(tmp_path / "tied", lm_head__weight=state["embed.tokens.weight"].clone())
    twice = told(call, tmp_path / "tied")
    assert twice["parameters"] == once and twice["bytes"] == 4 * (once + 300 * 32)


def test_shards_are_told_with_their_files_and_a_single_file_without_config(call, tiny, tmp_path):
    opened = Checkpoint.open(tiny)
    (tmp_path / "shards").mkdir()
    save_checkpoint(tmp_path / "shards", opened.model(), opened.config, torch.bfloat16, shard_bytes=20_000)
    report = told(call, tmp_path / "shards")
    assert len({one["file"] for one in report["tensors"]}) > 1 and list(report["dtypes"]) == ["BF16"]
    assert report["parameters"] == told(call, tiny)["parameters"]
    alone = told(call, tiny / SINGLE)
    assert alone["kind"] == "tensors" and alone["config"] is None
    assert alone["parameters"] == report["parameters"] and alone["metadata"] == {"format": "pt"}


def test_an_unknown_model_is_told_with_its_own_config_and_every_element(call, copy):
    (copy / "config.json").write_text('{"model_type": "mamba3", "d_model": 32}')
    report = told(call, copy)
    assert report["config"] == {"model_type": "mamba3", "d_model": 32}
    assert report["parameters"] == report["bytes"] // 4
    assert "mamba3" in report["remarks"][0] and "mamba3" in call("inspect", copy).err


def test_a_config_alone_tells_the_parameters_and_that_weights_are_absent(call, tiny, copy):
    (copy / SINGLE).unlink()
    report = told(call, copy)
    assert report["parameters"] == told(call, tiny)["parameters"] and report["tensors"] == []
    assert "no weights" in report["remarks"][0]


def test_the_path_comes_from_stdin_and_the_parents_from_llmctl_json(call, copy):
    grandparent = {"path": "docs", "command": "corpus", "options": {}, "parents": []}
    parents = [{"path": "tok", "command": "tokenize", "metrics": {"vocab": 5}, "parents": [grandparent]}]
    made = {"schema": "llmctl/1", "command": "pretrain", "argv": ["pretrain"], "tool": versions(), "parents": parents}
    (copy / "llmctl.json").write_text(json.dumps(made | {"files": []}))
    report = json.loads(call("inspect", "-", stdin=f"{copy}\n".encode()).out)
    assert report["lineage"] == parents and report["made"]["command"] == "pretrain"


def test_a_tokenizer_and_a_token_directory_are_told_by_their_counts(run, tiny, corpus_file, tmp_path):
    assert run("tokenize", corpus_file, "--vocab-size", "400", "-o", "tok", "-q").returncode == 0
    report = json.loads(run("inspect", "tok").stdout)
    about = json.loads((tmp_path / "tok" / "tokens.json").read_text())
    assert report["kind"] == "tokens" and report["tensors"] == [] and report["parameters"] is None
    assert report["tokens"]["train"]["tokens"] == about["splits"]["train"]["tokens"]
    assert report["tokens"]["vocab"] == report["tokenizer"]["vocab"] == about["vocab"]
    assert report["made"]["command"] == "tokenize"
    made = run("train-tokenizer", corpus_file, "--vocab-size", "300", "-o", "words", "-q")
    assert made.returncode == 0, made.stderr
    words = json.loads(run("inspect", "words").stdout)
    assert (words["kind"], words["tokenizer"]["vocab"]) == ("tokenizer", 300)
    differ = json.loads(run("inspect", "words", "--diff", "words").stdout)
    assert differ["same"] is True


def test_torch_is_not_loaded(tiny, tmp_path):
    changed(shutil.copytree(tiny, tmp_path / "b"), model__norm__weight=torch.zeros(32))
    for words in (["inspect", tiny, "--diff", tmp_path / "b"], ["verify", tiny, "--values"]):
        command = [sys.executable, "-X", "importtime", "-m", "llmctl", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "numpy" in loaded and "torch" not in loaded


def test_a_truncated_file_and_an_empty_directory_are_refused(call, copy, tmp_path):
    with open(copy / SINGLE, "r+b") as file:
        file.truncate(5000)
    ended = call("inspect", copy)
    assert ended.code == 4 and SINGLE in ended.err and ended.out == ""
    (tmp_path / "empty").mkdir()
    ended = call("inspect", tmp_path / "empty")
    assert ended.code == 4 and "holds no config.json" in ended.err


def test_equal_checkpoints_are_the_same(call, tiny, copy):
    report = told(call, tiny, "--diff", copy)
    assert report["same"] is True and report["values"] == [] and report["config"] == {}
    assert report["equal"] == len(load_file(tiny / SINGLE))


def test_one_changed_tensor_is_found_and_measured(call, tiny, copy):
    name = "model.layers.1.mlp.up_proj.weight"
    weight = load_file(tiny / SINGLE)[name].clone()
    weight[3, :4] += 0.5
    weight[0, 0] -= 2.0
    changed(copy, **{name: weight})
    report = told(call, tiny, "--diff", copy)
    [one] = report["values"]
    assert (one["name"], one["changed"], one["dtypes"]) == (name, 5, ["F32", "F32"])
    assert one["share"] == 5 / weight.numel()
    largest = (load_file(tiny / SINGLE)[name].double() - weight.double()).abs().max().item()
    assert one["max_difference"] == largest
    assert report["equal"] == len(load_file(tiny / SINGLE)) - 1 and report["same"] is False


def test_other_names_shapes_dtypes_and_config_are_told(call, tiny, copy):
    changed(copy, extra=torch.zeros(2), model__norm__weight=torch.zeros(31))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.001}))
    report = told(call, copy, "--diff", tiny)
    assert report["only_here"] == ["extra"] and report["only_there"] == []
    assert report["shapes"] == [{"name": "model.norm.weight", "shapes": [[31], [32]]}]
    assert report["config"] == {"norm_eps": [0.001, 1e-05]}


def test_a_cast_checkpoint_differs_by_the_rounding(call, tiny, tmp_path):
    opened = Checkpoint.open(tiny)
    (tmp_path / "cast").mkdir()
    save_checkpoint(tmp_path / "cast", opened.model(), opened.config, torch.bfloat16)
    stored = load_file(tiny / SINGLE)
    report = told(call, tiny, "--diff", tmp_path / "cast")
    assert len(report["values"]) == len(stored)
    for one in report["values"]:
        gaps = (stored[one["name"]] - stored[one["name"]].bfloat16().float()).abs()
        assert one["max_difference"] == gaps.max().item() and one["changed"] == int((gaps > 0).sum())


def test_things_of_two_kinds_are_not_compared(call, tiny, tmp_path):
    (tmp_path / "words").mkdir()
    shutil.copy(tiny / "tokenizer.json", tmp_path / "words")
    ended = call("inspect", tiny, "--diff", tmp_path / "words")
    assert ended.code == 4 and "tokenizer" in ended.err


FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SMALL = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
         "F8_E5M2FNUZ": torch.float8_e5m2fnuz}  # fmt: skip


@pytest.mark.parametrize("dtype", [*FLOATS, *SMALL])
def test_what_is_not_finite_is_counted_as_torch_counts_it_over_all_codes(dtype, tmp_path):
    kind = (FLOATS | SMALL)[dtype]
    size = kind.itemsize
    raw = np.random.default_rng(0).integers(0, 256, (40_000, size), np.uint8)
    raw[:9_000, -2:] |= 0x7F  # many exponents of all ones
    tensor = torch.from_numpy(raw).view(kind).flatten()
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    info = read_header(tmp_path / "x.safetensors")[0]["x"]
    assert not_finite(tmp_path, info) == int((~torch.isfinite(tensor.double())).sum()) > 0


def test_differences_are_right_across_the_borders_of_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("llmctl.core.checkpoint.values.PIECE", 7)
    first = torch.randn(5, 9)
    second = first.clone()
    second.flatten()[[6, 7, 44]] += torch.tensor([1.0, -3.0, 2.0])
    for name, tensor in (("a", first), ("b", second), ("c", second.bfloat16())):
        save_file({"x": tensor}, tmp_path / name)
    a, b, c = (read_header(tmp_path / name)[0]["x"] for name in "abc")
    found = difference(tmp_path, a, tmp_path, b)
    assert (found.elements, found.changed, found.largest) == (
        45,
        3,
        (first.double() - second.double()).abs().max().item(),
    )
    assert difference(tmp_path, a, tmp_path, a) is None
    assert difference(tmp_path, b, tmp_path, c).changed == int((second != second.bfloat16().float()).sum())


@pytest.mark.parametrize(
    ("one", "other", "changed", "largest"),
    [
        ([1.0, float("nan")], [1.0, 2.0], 1, "nan"),
        ([1.0, float("inf")], [1.0, 2.0], 1, "inf"),
        ([1.0, -0.0], [1.0, 0.0], 1, 0.0),
    ],
)
def test_a_nan_an_infinity_and_a_negative_zero_count_as_changes(one, other, changed, largest, tmp_path):
    for name, values in (("a", one), ("b", other)):
        save_file({"x": torch.tensor(values)}, tmp_path / name)
    a, b = (read_header(tmp_path / name)[0]["x"] for name in "ab")
    found = difference(tmp_path, a, tmp_path, b)
    assert found.changed == changed and str(found.largest) == str(largest)


def test_tensors_of_integers_are_compared_by_their_bytes(tmp_path):
    save_file({"x": torch.arange(6)}, tmp_path / "a")
    save_file({"x": torch.arange(6) * 2}, tmp_path / "b")
    a, b = (read_header(tmp_path / name)[0]["x"] for name in "ab")
    found = difference(tmp_path, a, tmp_path, b)
    assert (found.changed, found.largest) == (5, None)
