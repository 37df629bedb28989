"""attention: maps that people read, numbers that programs read, and what is refused."""

import json
import sys

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig

TEXT = "the list of things"  # four tokens of the tiny tokenizer
SHAPE = {"vocab": 300, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 64, "context": 64, "init_std": 0.3}


@pytest.fixture(scope="session")
def translator(tiny, tmp_path_factory):
    """A random encoder-decoder with three layers of encoder; its tokenizer is tiny's."""
    config = ModelConfig(**SHAPE, kind="encoder-decoder", encoder_layers=3, decoder_start=0, model_type="llmctl")
    path = tmp_path_factory.mktemp("both") / "model"
    path.mkdir()
    save_checkpoint(path, initialise(Transformer(config), seed=5), config, tokenizer_from=tiny)
    return path


def numbers(done) -> dict:
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


def test_a_map_has_a_row_and_a_column_a_token(call, tiny):
    done = call("attention", tiny, "-p", TEXT, "--head", 2)
    assert (done.code, done.err) == (0, "") and "\x1b" not in done.out
    title, scale, *header = done.out.splitlines()
    assert title == "decoder layer 1, attention" and scale.startswith("head 2, @ is ")
    header, rows = header[:-4], header[-4:]
    named = ["".join(line.ljust(16)[8 + 2 * i] for line in header).strip() for i in range(4)]
    assert named == ["the", "list", "of", "things"]
    assert [row.split()[0] for row in rows] == named
    cells = [row[8:] for row in rows]
    assert cells[0] == "@@" and [len(row) for row in cells] == [2, 4, 6, 8]  # a causal triangle


def test_characters_grow_with_the_weights(call, tiny):
    from llmctl.commands.attention import LEVELS

    found = numbers(call("attention", tiny, "-p", TEXT, "--head", 2, "--json"))
    drawn = [line[8::2] for line in call("attention", tiny, "-p", TEXT, "--head", 2).out.splitlines()[-4:]]
    weights = found["weights"][0][0]
    pairs = sorted((weights[i][j], LEVELS.index(mark)) for i, row in enumerate(drawn) for j, mark in enumerate(row))
    assert [level for _, level in pairs] == sorted(level for _, level in pairs)


def test_every_head_has_a_small_map_where_none_is_named(call, tiny):
    done = call("attention", tiny, "-p", TEXT, "--layer", "all")
    for head in range(4):
        assert done.out.count(f" {head}: @ is ") == 2
    assert "decoder layer 0" in done.out and "decoder layer 1" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("width", [40, 100])
@pytest.mark.parametrize("head", ["all", "1"])
def test_a_long_text_is_drawn_together_and_fits(call, tiny, width, head):
    text = "the list of the things that the thing lists " * 6
    done = call("attention", tiny, "-p", text, "--head", head, "--width", width)
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= width
    assert "a cell is" in done.out or width == 100
    assert len(lines) < 140


def test_the_numbers_are_those_that_the_model_computes(call, tiny):
    found = numbers(call("attention", tiny, "-p", TEXT, "--layer", "0,1", "--head", "3,1", "--json"))
    assert found["schema"] == "llmctl/attention/1" and found["layers"] == [0, 1] and found["heads"] == [1, 3]
    assert found["texts"] == ["the", " list", " of", " things"] and found["tokens"][1] == "Ġlist"
    assert (found["stack"], found["cross"]) == ("decoder", False) and found["keys"]["ids"] == found["ids"]
    weights = torch.tensor(found["weights"])
    assert weights.shape == (2, 2, 4, 4)
    hidden = torch.ones(4, 4).triu(1).bool()
    rows = [row for layer in found["masked"] for head in layer for row in head]
    masked = torch.tensor([[-torch.inf if x is None else x for x in row] for row in rows]).view(2, 2, 4, 4)
    assert (masked[..., hidden] == -torch.inf).all() and masked[..., ~hidden].isfinite().all()
    torch.testing.assert_close(masked.softmax(-1), weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(found["scores"])[..., ~hidden], masked[..., ~hidden])
    model = Checkpoint.open(tiny).model()
    block = model.decoder.layers["0"].attention
    x = model.decoder.layers["0"].attention_norm(model.embed.tokens(torch.tensor([found["ids"]])))
    v = block.heads(block.v(x))[0, 0]  # (T, D) of heads 0 and 1
    given = []
    block.out.register_forward_hook(lambda module, args, out: given.append(args[0]))
    model(torch.tensor([found["ids"]]))
    torch.testing.assert_close(weights[0, 0] @ v, given[0][0, :, 8:16], atol=1e-5, rtol=1e-4)


SOURCE = ["the", " list", " of", " things", "<|endoftext|>"]  # ended as in training


@pytest.mark.parametrize(
    ("options", "stack", "rows", "columns"),
    [
        ([], "encoder", SOURCE, 5),
        (["--target", "the thing"], "decoder", ["<|endoftext|>", "the", " thing"], 3),
        (["--target", "the thing", "--cross"], "decoder", ["<|endoftext|>", "the", " thing"], 5),
        (["--target", "the thing", "--stack", "encoder"], "encoder", SOURCE, 5),
    ],
    ids=["encoder", "decoder", "cross", "encoder beside a target"],
)
def test_each_attention_of_an_encoder_decoder(call, translator, options, stack, rows, columns):
    found = numbers(call("attention", translator, "-p", TEXT, *options, "--json"))
    assert (found["stack"], found["texts"], len(found["keys"]["ids"])) == (stack, rows, columns)
    assert found["layers"] == [2 if stack == "encoder" else 1]
    weights = torch.tensor(found["weights"])
    assert weights.shape == (1, 4, len(rows), columns)
    both_ways = stack == "encoder" or "--cross" in options
    assert (weights > 0).all() == both_ways
    drawn = call("attention", translator, "-p", TEXT, *options)
    assert drawn.code == 0
    assert ("columns: the list of things" in drawn.out) == ("--cross" in options)


def test_a_model_with_linear_attention_is_shown_too(call, tiny, tmp_path):
    config = ModelConfig(**SHAPE, attention="linear", position="none", model_type="llmctl")
    (tmp_path / "linear").mkdir()
    save_checkpoint(tmp_path / "linear", initialise(Transformer(config), seed=5), config, tokenizer_from=tiny)
    found = numbers(call("attention", "linear", "-p", TEXT, "--json"))
    weights = torch.tensor(found["weights"])
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 4))
    assert (weights.triu(1) == 0).all() and (torch.tensor(found["scores"]) > 0).all()


def test_a_prompt_of_a_prefix_model_is_seen_both_ways(call, tiny, tmp_path):
    config = ModelConfig(**SHAPE, prefix_lm=True, model_type="llmctl")
    (tmp_path / "prefix").mkdir()
    save_checkpoint(tmp_path / "prefix", initialise(Transformer(config), seed=5), config, tokenizer_from=tiny)
    found = numbers(call("attention", "prefix", "-p", TEXT, "--json"))
    assert (torch.tensor(found["weights"]) > 0).all()


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.json", b'{"schema"')])
def test_a_file_is_written_and_not_replaced_unasked(call, tiny, tmp_path, name, begins):
    line = ["attention", tiny, "-p", TEXT, "-o", name]
    assert call(*line)[:2] == (0, f"{name}\n")
    assert (tmp_path / name).read_bytes().startswith(begins)
    again = call(*line)
    assert (again.code, again.out) == (1, "") and f"{name} exists" in again.err
    assert call(*line, "--force").code == 0


def test_without_matplotlib_the_extra_is_named(call, tiny, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = call("attention", tiny, "-p", TEXT, "-o", "a.png")
    assert (done.code, done.out) == (1, "") and "llmctl[plot]" in done.err
    assert not (tmp_path / "a.png").exists()


def test_a_token_that_would_move_the_cursor_is_shown_as_a_sign(call, tiny):
    done = call("attention", tiny, "-p", "a\n\t\x1b[2Jb", "--head", 0)
    assert done.code == 0 and "\x1b" not in done.out and "↵" in done.out and "⇥" in done.out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--layer", "2"], 2, ["--layer", "no 2", "0 to 1"]),
        (["--layer", "0,x"], 2, ["--layer", "no x"]),
        (["--head", "-1"], 2, ["--head", "no -1", "0 to 3"]),
        (["--head", "last"], 2, ["--head", "no last"]),
        (["-o", "a.gif"], 2, [".png"]),
        (["--cross"], 2, ["--cross", "decoder"]),
        (["--stack", "encoder"], 2, ["--stack encoder", "decoder"]),
        (["--target", "a"], 2, ["--target", "decoder"]),
        (["--prompt", "the list " * 200], 1, ["401 tokens", "64"]),
    ],
    ids=lambda one: " ".join(one)[:16] if isinstance(one, list) else None,
)
def test_what_cannot_be_shown_is_said_in_two_lines(call, tiny, options, code, words):
    done = call("attention", tiny, "-p", TEXT, *options)
    assert (done.code, done.out) == (code, "")
    assert done.err.count("\n") == 2 and all(word in done.err for word in words), done.err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--cross"], "--target"),
        (["--stack", "decoder"], "--target"),
        (["--cross", "--stack", "encoder", "--target", "a"], "--stack is encoder"),
        (["--stack", "encoder", "--layer", "3"], "3 layers of the encoder"),
    ],
)
def test_what_an_encoder_decoder_cannot_show_is_said(call, translator, options, word):
    done = call("attention", translator, "-p", TEXT, *options)
    assert (done.code, done.out) == (2, "")
    assert word in done.err and done.err.count("\n") == 2
