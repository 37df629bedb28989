"""--explain: the chances before and after each filter are those that the token was chosen by."""

import io
import json

import pytest
import torch
from rich.console import Console as Rich

from llmctl.console import Console
from llmctl.core.decode.beam import Branch
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import keep_top_k, keep_top_p
from llmctl.core.text.texts import Texts
from llmctl.explained import branch_tables, branches, logprobs, step_tables, steps
from llmctl.flags import Shown
from llmctl.spec.sample import Sampling


def shown(tables) -> str:
    """The tables as a wide terminal has them."""
    out = io.StringIO()
    for table in tables:
        Rich(file=out, width=200, color_system=None).print(table)
    return out.getvalue()


def test_each_stage_has_the_chances_after_its_filter_and_those_that_did_nothing_are_left_out():
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0]])
    sampling = Sampling(temperature=1.0, top_k=4, top_p=0.7, repetition_penalty=2.0, no_repeat_ngram=3, explain=True)
    choice = Chooser(sampling, Rules(never=(1,)), 8, 7, frozenset([6]))
    line = choice.line([0], 3, 9)
    picked = choice.pick(logits, [line])[0]
    told = picked.shown
    penalised = torch.tensor([[1.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -torch.inf]])
    banned = penalised.clone()
    banned[0, 1] = -torch.inf
    fewer = keep_top_k(banned, 4)
    known = logits.clone()
    known[0, 7] = -torch.inf
    wanted = {
        "model": logits,
        "vocabulary": known,
        "repetition_penalty": penalised,
        "bad_word": banned,
        "top_k": fewer,
        "top_p": keep_top_p(fewer, 0.7),
    }
    assert [stage.name for stage in told.stages] == list(wanted)
    for stage, scores in zip(told.stages, wanted.values(), strict=True):
        chances = scores.softmax(-1)[0]
        assert stage.chances == pytest.approx(chances[list(told.candidates)].tolist())
        assert stage.left == int((chances > 0).sum())
    assert told.chosen == picked.id == line.written[0] and told.step == 0 and not told.greedy
    last = told.stages[-1].chances
    assert list(last) == sorted(last, reverse=True) and {0, 1, 2, 3, 4} <= set(told.candidates)


def test_records_and_tables_name_the_tokens(byte_bpe):
    the, new = byte_bpe.encode(" the")[0], byte_bpe.encode("\n")[0]
    logits = torch.zeros(1, 300)
    logits[0, [the, new, 130]] = torch.tensor([3.0, 2.0, 1.0])
    choice = Chooser(Sampling(explain=True, logprobs=3), Rules(), 300, byte_bpe.size, frozenset([0]))
    picked = choice.pick(logits, [choice.line([5], 0, 9)])
    texts = Texts(byte_bpe)
    step = json.loads(json.dumps(steps(picked, texts)))[0]
    assert step["chosen"] == {"id": the, "token": "Ġthe", "text": " the"} and step["greedy"]
    assert [one["text"] for one in step["candidates"]][:2] == [" the", "\n"]
    assert step["stages"][0] == {"name": "model", "setting": "", "left": 300}
    assert len(step["candidates"][0]["chances"]) == len(step["stages"])
    record = logprobs(picked, texts)[0]
    assert [one["id"] for one in record["top_logprobs"]] == [the, new, 130] and record["text"] == " the"
    table = shown(step_tables(Console(Shown()), picked, texts))
    assert "token 1: the likeliest" in table and "“ the”" in table and "“␊”" in table and "vocabulary" in table
    assert texts(130) == byte_bpe.token(130)  # no whole character


def test_a_search_is_shown_step_by_step(byte_bpe):
    a, b, c = (byte_bpe.encode(letter)[0] for letter in "abc")
    tree = [
        Branch(0, 0, -1, a, -0.5, -0.5, "kept"),
        Branch(0, 0, -1, b, -1.0, -1.0, "dropped"),
        Branch(1, 0, 0, c, -0.1, -0.6, "ended"),
    ]
    texts = Texts(byte_bpe)
    assert branches(tree, texts)[2] == {
        **{"step": 1, "group": 0, "parent": 0, "id": c, "logprob": -0.1, "score": -0.6, "fate": "ended"},
        **{"token": "c", "text": "c"},
    }
    table = shown(branch_tables(Console(Shown()), tree, texts))
    assert "token 2: 1 branches" in table and "“a”" in table and "ended" in table and "0.9048" in table


def test_the_first_token_of_a_sentencepiece_text_keeps_its_space(byte_fallback):
    texts = Texts(byte_fallback)
    assert texts(byte_fallback.id("▁the")) == " the" and texts(byte_fallback.id("<0xE4>")) == "<0xE4>"
    assert texts(4999) == "<4999>"
