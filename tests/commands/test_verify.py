"""verify: sound directories are sound; every kind of damage and misfit is found, named, and ends as it should."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.data.shards import ShardWriter, write_tokens
from llmctl.core.text.tokenizer import Tokenizer, token_dtype
from llmctl.spec.files import sha256_of
from llmctl.spec.manifest import MANIFEST, files_of, name_in
from llmctl.spec.safetensors import SINGLE


def seal(directory: Path) -> Path:
    """Writes an llmctl.json that lists all files there are."""
    files = [
        {"name": name_in(path, directory), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in files_of(directory)
        if path.name != MANIFEST
    ]
    (directory / MANIFEST).write_text(json.dumps({"schema": "llmctl/1", "command": "pretrain", "files": files}))
    return directory


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    """A checkpoint as llmctl makes it, that may be spoilt."""
    return seal(shutil.copytree(tiny, tmp_path / "model"))


@pytest.fixture
def bare(tiny, tmp_path) -> Path:
    """A checkpoint without llmctl.json."""
    return shutil.copytree(tiny, tmp_path / "bare")


@pytest.fixture
def tokens(tiny, tmp_path) -> Path:
    """A token directory of two files of training and one of held-out tokens, without llmctl.json."""
    directory = tmp_path / "tokens"
    directory.mkdir()
    tokenizer = Tokenizer.open(tiny)
    entries = {}
    for split, documents in (("train", 6), ("heldout", 2)):
        writer = ShardWriter(directory, split, token_dtype(tokenizer.size), shard_tokens=15)
        for number in range(documents):
            ids = np.array([number + 2, 7, 8, 9, tokenizer.eos])
            writer.write(ids, np.array([5]), 8)
        entries[split] = writer.close()
    write_tokens(directory, tokenizer, tokenizer.eos, entries)
    return directory


def verified(call, *argv) -> tuple[int, dict, str]:
    ended = call("verify", *argv, "--json")
    return ended.code, json.loads(ended.out), ended.err


def kinds(report: dict) -> list[str]:
    return [one["kind"] for one in report["problems"]]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_what_llmctl_makes_is_sound(run, corpus_file):
    assert run("tokenize", corpus_file, "--vocab-size", "400", "--held-out", "0.1", "-o", "tok", "-q").returncode == 0
    shape = ["--width", "16", "--layers", "1", "--heads", "2", "--context", "16"]
    trained = run("pretrain", "tok", *shape, "--steps", "2", "-o", "base", "-q")
    assert trained.returncode == 0, trained.stderr
    done = run("verify", "tok", "base", "base/best", "--values")
    report = json.loads(done.stdout)
    assert (done.returncode, report["schema"], report["ok"]) == (0, "llmctl/verify/1", True)
    assert report["problems"] == report["warnings"] == []
    assert [(one["path"], one["kind"], one["hashes"]) for one in report["checked"]] == [
        ("tok", "tokens", True),
        ("base", "checkpoint", True),
        ("base/best", "checkpoint", True),
        ("base/best", "checkpoint", True),
    ]
    assert "error" not in done.stderr


def test_a_checkpoint_of_others_is_checked_but_for_hashes(call, bare):
    code, report, err = verified(call, bare, "--values")
    assert (code, report["ok"]) == (0, True)
    assert report["checked"] == [{"path": str(bare), "kind": "checkpoint", "hashes": False, "problems": 0}]
    assert "hashes were not checked" in err


def test_a_flipped_byte_is_found_and_ends_with_1(call, model):
    flip(model / SINGLE, -3)
    code, report, err = verified(call, model)
    assert (code, report["ok"], kinds(report)) == (1, False, ["hash"])
    assert report["problems"][0]["path"] == str(model / SINGLE)
    assert err.count("error: ") == 1 and SINGLE in err


def test_a_flipped_byte_in_best_is_found_from_either_directory_once(call, tiny, tmp_path):
    out = shutil.copytree(tiny, tmp_path / "out")
    shutil.copytree(tiny, out / "best")
    seal(out)
    assert verified(call, out)[0] == verified(call, out / "best")[0] == 0
    flip(out / "best" / SINGLE, -3)
    for path in (out, out / "best"):
        code, report, _ = verified(call, path)
        assert (code, kinds(report)) == (1, ["hash"])
        assert report["problems"][0]["path"] == str(out / "best" / SINGLE)


def test_all_that_is_missing_cut_short_or_unlisted_is_told_at_once(call, model):
    (model / "tokenizer_config.json").unlink()
    (model / "generation_config.json").write_text("{}")
    (model / "notes.txt").write_text("mine")
    with open(model / SINGLE, "r+b") as file:
        file.truncate(5000)
    code, report, err = verified(call, model)
    assert code == 1 and sorted(kinds(report)) == ["header", "missing", "size", "size"]
    assert any("notes.txt" in warning for warning in report["warnings"]) and "notes.txt" in err


def test_a_header_that_lies_ends_with_4(call, bare):
    raw = (bare / SINGLE).read_bytes()
    assert raw.count(b'"shape":[300,32]') == 2
    (bare / SINGLE).write_bytes(raw.replace(b'"shape":[300,32]', b'"shape":[301,32]', 1))
    code, report, _ = verified(call, bare)
    assert (code, kinds(report)) == (4, ["header"])


def test_a_renamed_a_missing_and_a_misshapen_tensor_end_with_4(call, bare):
    tensors = load_file(bare / SINGLE)
    tensors["model.layers.0.mlp.upp.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    tensors["model.norm.weight"] = torch.ones(31)
    save_file(tensors, bare / SINGLE)
    code, report, _ = verified(call, bare)
    assert (code, kinds(report)) == (4, ["tensors"])
    for name in ("mlp.upp.weight", "mlp.up_proj.weight", "model.norm.weight"):
        assert name in report["problems"][0]["problem"]


def test_a_shard_that_is_not_there_is_found(call, tiny, tmp_path):
    opened = Checkpoint.open(tiny)
    (tmp_path / "shards").mkdir()
    save_checkpoint(tmp_path / "shards", opened.model(), opened.config, shard_bytes=40_000)
    assert verified(call, tmp_path / "shards")[0] == 0
    gone = sorted((tmp_path / "shards").glob("model-*.safetensors"))[1]
    gone.unlink()
    code, report, _ = verified(call, tmp_path / "shards")
    assert code == 4 and gone.name in report["problems"][0]["problem"]


def test_a_tied_head_that_differs_from_the_embedding_is_found(call, bare):
    edit(bare / "config.json", tie_word_embeddings=True)
    code, report, _ = verified(call, bare)
    assert (code, kinds(report)) == (4, ["tensors"]) and "lm_head.weight differs" in report["problems"][0]["problem"]


def test_a_tokenizer_and_special_ids_beyond_the_vocabulary_are_found(call, tiny, tmp_path):
    opened = Checkpoint.open(tiny)
    size = Tokenizer.open(tiny).size
    state = opened.model().state_dict()
    for name in ("embed.tokens.weight", "head.weight"):
        state[name] = state[name][: size - 1].clone()
    small = tmp_path / "small"
    small.mkdir()
    save_checkpoint(small, state, opened.config.resized(vocab=size - 1), tokenizer_from=tiny)
    edit(small / "generation_config.json", eos_token_id=[0, size - 1], pad_token_id=-1)
    code, report, _ = verified(call, small)
    assert (code, kinds(report)) == (4, ["vocabulary", "vocabulary"])
    told = " ".join(one["problem"] for one in report["problems"])
    assert f"eos_token_id is {size - 1}" in told and f"ids up to {size - 1}" in told


def test_the_vocab_txt_of_a_bert_is_checked_as_any_tokenizer_is(call, bare, tmp_path):
    words = tmp_path / "words"
    words.mkdir()
    for place in (bare, words):
        (place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]))
    (bare / "tokenizer.json").unlink()
    (bare / "config.json").write_text('{"model_type": "mamba3", "vocab_size": 10}')
    code, report, _ = verified(call, bare)
    assert (code, kinds(report)) == (4, ["vocabulary"]) and "ids up to 10" in report["problems"][0]["problem"]
    assert verified(call, words)[0] == 0
    (words / "vocab.txt").write_text("a")
    assert verified(call, words)[0] != 0


def test_nan_and_infinity_are_looked_for_when_asked(call, bare):
    tensors = load_file(bare / SINGLE)
    tensors["model.norm.weight"][:2] = torch.tensor([float("nan"), float("inf")])
    save_file(tensors, bare / SINGLE)
    assert verified(call, bare)[0] == 0
    for path in (bare, bare / SINGLE):
        code, report, _ = verified(call, path, "--values")
        assert (code, kinds(report)) == (1, ["values"])
        assert "model.norm.weight has 2 values" in report["problems"][0]["problem"]


def test_an_unknown_model_is_checked_as_far_as_it_goes(call, bare):
    (bare / "config.json").write_text('{"model_type": "mamba3", "vocab_size": 10, "bos_token_id": 11}')
    code, report, err = verified(call, bare)
    assert (code, kinds(report)) == (4, ["vocabulary", "vocabulary"]) and "mamba3" in err


def test_a_broken_llmctl_json_and_one_that_points_outside_are_told(call, model):
    (model / MANIFEST).write_text(json.dumps({"files": [{"name": "../x", "bytes": 1, "sha256": "0"}]}))
    code, report, _ = verified(call, model)
    assert (code, kinds(report)) == (1, ["unreadable"])
    for text in ("{", "{}"):
        (model / MANIFEST).write_text(text)
        code, report, _ = verified(call, model)
        assert (code, kinds(report)) == (1, ["unreadable"])


def test_a_config_that_names_no_model_is_warned_of(call, bare):
    (bare / "config.json").write_text("{}")
    code, report, _ = verified(call, bare)
    assert code == 0 and any("has no model_type" in warning for warning in report["warnings"])


def test_sound_tokens_are_sound(call, tokens):
    code, report, _ = verified(call, tokens)
    assert (code, report["problems"]) == (0, [])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: shorter(path / "train-00001.ds"), ["train-00001.ds has 28 bytes"]),
        (lambda path: poke(path / "train-00001.ds", 6, 60_000, "<u2"), ["1 ids", "first is 60000, token 6"]),
        (lambda path: poke(path / "train-00000.ds", 9, 5, "<u2"), ["1 documents do not end", "ends at token 10"]),
        (lambda path: poke(path / "train-00000.ds.index", 1, 5, "<u8"), ["document 1 ends where it begins"]),
        (lambda path: poke(path / "heldout-00000.ds.index", 1, 99, "<u8"), ["ends at token 99, but there are 10"]),
        (lambda path: edit(path / "tokens.json", eos=70_000), ["eos is 70000"]),
        (lambda path: edit(path / "tokens.json", vocab=9_999), ["tokens.json says 9999"]),
        (lambda path: edit(path / "tokens.json", eos="0"), ["eos is '0'"]),
        (lambda path: edit(path / "tokens.json", tokenizer_sha256="0"), ["another than the one that made"]),
    ],
)
def test_tokens_that_do_not_fit_are_found_and_end_with_4(spoil, words, call, tokens):
    spoil(tokens)
    code, report, _ = verified(call, tokens)
    told = " ".join(one["problem"] for one in report["problems"])
    assert code == 4 and all(word in told for word in words), told


def shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def poke(path: Path, at: int, value: int, dtype: str) -> None:
    numbers = np.fromfile(path, dtype)
    numbers[at] = value
    numbers.tofile(path)


def test_damage_and_misfit_together_end_with_1_and_errors_are_said_in_quiet(call, model, tokens):
    flip(model / SINGLE, -3)
    edit(tokens / "tokens.json", eos=70_000)
    ended = call("verify", tokens, model, "-q")
    assert ended.code == 1 and not json.loads(ended.out)["ok"]
    assert ended.err.startswith("error: ") and "warning" not in ended.err


def test_a_directory_that_holds_nothing_known_is_refused(call, tmp_path):
    (tmp_path / "empty").mkdir()
    ended = call("verify", tmp_path / "empty")
    assert ended.code == 4 and ended.out == "" and "holds no config.json" in ended.err


def test_the_path_comes_from_stdin(call, model):
    ended = call("verify", "-", stdin=f"{model}\n".encode())
    assert ended.code == 0 and json.loads(ended.out)["checked"][0]["path"] == str(model)
