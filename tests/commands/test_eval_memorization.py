"""eval-memorization: a model that learned a few texts by heart, beside texts that it never saw."""

import json
import random

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from llmctl.core.checkpoint.directory import save_checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.spec.model import ModelConfig

WORDS = ["red", "green", "blue", "black", "white", "grey", "brown", "pink", "gold"]
MAIL = " mail jo@quarz.com"
SIZES = ["--prefix", "4", "--prefix", "8", "--suffix", "8"]
SHAPE = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 128, "context": 64}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with `model`, trained on `train.txt` until it knew it, and `other.txt` of the same words."""
    place, chance = tmp_path_factory.mktemp("memorised"), random.Random(0)
    texts = [["".join(f" {chance.choice(WORDS)}" for _ in range(36)) for _ in range(6)] for _ in "ab"]
    first = texts[0][0].split(" ")
    texts[0][0] = " ".join(first[:9]) + MAIL + " ".join(["", *first[9:]])  # after a prefix of 8 words
    for name, some in zip(("train.txt", "other.txt"), texts, strict=True):
        (place / name).write_text("\n".join(some) + "\n")
    tokenizer = byte_level([*texts[0], *texts[1], *[MAIL] * 20])
    config = ModelConfig(vocab=tokenizer.size, tie=False, **SHAPE)
    windows = [
        ids[at : at + 20] for text in texts[0] for ids in [tokenizer.encode(text)] for at in range(len(ids) - 19)
    ]
    (place / "model").mkdir()
    save_checkpoint(place / "model", learned(config, torch.tensor(windows)), config)
    tokenizer.save(place / "model")
    return place


def byte_level(texts):
    """A tokenizer of bytes and of the words of some texts."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = {"special_tokens": ["<|endoftext|>"], "show_progress": False}
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, **special))
    return Tokenizer(backend, {"eos_token": "<|endoftext|>"})


def learned(config, windows):
    """A model that has seen each window, (N, T), often enough to know how it goes on after a few tokens."""
    model = initialise(Transformer(config), seed=0)
    adam = torch.optim.Adam(model.parameters(), lr=4e-3)
    chance = torch.Generator().manual_seed(0)
    for _ in range(150):
        batch = windows[torch.randint(len(windows), (48,), generator=chance)]
        scores = model.head(model(batch[:, :-1]))
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch[:, 1:].flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model


def asked(call, made, *more, text="train.txt"):
    return call("eval-memorization", made / "model", made / text, "--documents", "line", *SIZES, *more)


def test_what_was_learned_by_heart_is_told_from_what_is_guessed(call, made):
    report = json.loads(asked(call, made, "--control", made / "other.txt").out)
    assert report["memorized"] > 0.9 and report["control_memorized"] < 0.1
    assert report["excess"] == report["memorized"] - report["control_memorized"]
    assert report["matched_tokens"] > 7 > 3 > report["prefixes"][1]["control"]["matched_tokens"]
    assert [row["prefix"] for row in report["prefixes"]] == [4, 8] and report["prefix"] == 8
    assert report["prefixes"][0]["memorized"] <= report["memorized"]
    assert "|prefix:4+8|suffix:8|" in report["signature"]
    call("tokenize", made / "train.txt", "--tokenizer", made / "model", "--documents", "line", "-o", "tokens", "-q")
    tokens = json.loads(call("eval-memorization", made / "model", "tokens", *SIZES).out)
    assert tokens["memorized"] == report["memorized"] and tokens["control_memorized"] is None


def test_an_untrained_model_recalls_nothing(call, tiny, made):
    report = json.loads(call("eval-memorization", tiny, made / "train.txt", *SIZES).out)
    assert report["memorized"] == 0 and report["passages"] > 0


def test_personal_data_of_the_training_text_are_told(call, made, tmp_path):
    done = asked(call, made, "--pii", "--fail-over", "pii_recalled=0", "--samples", "out.jsonl")
    report = json.loads(done.out)
    assert done.code == 6 and "pii_recalled" in done.err and report["pii"] >= report["pii_recalled"] > 0
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    told = [one for one in kept if one["scores"]["pii_recalled"]]
    assert told and all("jo@quarz.com" in one["completion"] and "@" not in one["prefix"] for one in told)


def test_samples_hold_what_was_written(call, made, tmp_path):
    report = json.loads(asked(call, made, "--samples", "out.jsonl").out)
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["doc_id"] for one in kept] == list(range(report["passages"]))
    for name, value in {"memorized": report["memorized"], "memorized@4": report["prefixes"][0]["memorized"]}.items():
        assert sum(one["scores"][name] for one in kept) / len(kept) == pytest.approx(value)
    assert all((one["completion"] == one["suffix"]) == (one["scores"]["memorized"] == 1) for one in kept)
    assert any(one["prefix"] + one["suffix"] in (made / "train.txt").read_text() for one in kept)


def test_thresholds_and_what_does_not_fit_are_told(call, made):
    over = asked(call, made, "--fail-over", "0.5")
    assert over.code == 6 and json.loads(over.out)["memorized"] > 0.5
    needed = asked(call, made, "--fail-over", "excess=0.5")
    assert needed.code == 2 and needed.out == "" and "wants a control" in needed.err
    short = call("eval-memorization", made / "model", made / "train.txt", "--prefix", "400")
    assert short.code == 1 and "no passage of 450 tokens" in short.err
    assert asked(call, made, "--prefix", "0").code == 2
    assert asked(call, made, "--fail-over", "perplexity=3").code == 2
