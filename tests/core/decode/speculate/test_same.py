"""Guesses change nothing: the same texts as without, greedily and for the same seed, whatever guesses and how many."""

from pathlib import Path

import pytest
import torch

from llmctl.core.decode.batch import Desk
from llmctl.core.decode.ready import ready
from llmctl.core.decode.rows import Rows
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.speculate.desk import GuessingDesk
from llmctl.core.decode.speculate.source import source_of
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.drafting import Drafting
from llmctl.spec.model import ModelConfig, RopeScaling
from llmctl.spec.sample import Sampling
from tests.core.decode.conftest import SHAPE, SHAPES, make_model

from .conftest import PROMPTS, told, wishes_of, written

GREEDY = Sampling(max_tokens=30)
WARM = Sampling(temperature=0.8, top_p=0.9, top_k=40, max_tokens=30)
DRAFT = {"draft_model": Path("another")}
WAYS = {
    "draft": (DRAFT, {"layers": 2, "vocab": 310}),
    "draft-5": ({**DRAFT, "draft_tokens": 5}, {"layers": 2, "vocab": 290}),
    "itself": ({**DRAFT, "draft_tokens": 4}, {}),
    "lookup": ({"lookup": True}, None),
    "lookup-9": ({"lookup": True, "draft_tokens": 9}, None),
    "skip": ({"skip_layers": ("1-2",), "draft_tokens": 3}, None),
}
ENDS = frozenset(range(0, 300, 60))


def desk_of(model, way, rows=4, kind="llama", kv_bits=0, start=(), rules=None, **also):
    given, changes = WAYS[way]
    draft = None if changes is None else make_model(kind, **{"layers": 4, **also, **changes})
    source = source_of(Drafting(**given), model, draft, kv_bits, start)
    return GuessingDesk(model, source, rows, kv_bits, rules)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SHAPES)
def test_texts_are_those_without_guesses(kind, way):
    model = make_model(kind, layers=4)
    for sampling in (GREEDY, WARM):
        wanted = written(Desk(model, 4), sampling, eos=ENDS)
        assert written(desk_of(model, way, kind=kind), sampling, eos=ENDS) == wanted
    assert len({len(ids) for ids, _ in wanted}) > 2


@pytest.mark.parametrize("way", WAYS)
def test_the_native_step_guesses_and_checks_alike(way):
    given, changes = WAYS[way]
    model, draft = make_model(layers=4), None if changes is None else make_model(**{"layers": 4, **changes})
    wanted = [written(Desk(make_model(layers=4), 4), sampling, eos=ENDS) for sampling in (GREEDY, WARM)]
    for one in (model, draft):
        if one is not None:
            ready(one)  # where nothing can be built, by torch's kernels
    source = source_of(Drafting(**given), model, draft)
    for sampling, texts in zip((GREEDY, WARM), wanted, strict=True):
        desk = GuessingDesk(model, source, 4)
        assert written(desk, sampling, eos=ENDS) == texts
        assert desk.tally.drafted


def test_256_greedy_tokens_are_the_same_and_some_guesses_are_right():
    model = make_model(layers=4, context=300)
    prompts, sampling = PROMPTS[:2], Sampling(max_tokens=256)
    wanted = written(Desk(model), sampling, prompts=prompts)
    for way in WAYS:
        desk = desk_of(model, way, context=300)
        assert written(desk, sampling, prompts=prompts) == wanted, way
        assert 0 < desk.tally.accepted <= desk.tally.drafted


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_a_model_that_guesses_for_itself_is_always_right(sampling):
    model = make_model(layers=4)
    desk = desk_of(model, "itself")
    wishes = wishes_of(desk, sampling, eos=ENDS)
    events = told(desk)
    assert desk.tally.share == 1.0
    for wish in wishes:
        assert wish.drafted == wish.accepted > 0
        assert len(events[id(wish)]) >= wish.accepted + 1
    # one token of the prompt's scores, one without guesses, then 5 a pass, but for the last
    assert desk.tally.a_pass > 3


def test_all_rules_and_penalties_hold_for_guesses_too():
    model = make_model(layers=4)
    ruled = Sampling(
        temperature=0.9, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, min_p=0.02, max_tokens=30
    )
    rules = Rules(never=(17, 4), never_after=((5, 9),), ngram=2, least=6, last=(3,), never_first=(9, 11))
    for sampling in (Sampling(repetition_penalty=1.3, max_tokens=30), ruled):
        wanted = written(Desk(model, rules=rules), sampling, eos=ENDS, rules=rules)
        for way in WAYS:
            assert written(desk_of(model, way, rules=rules), sampling, eos=ENDS, rules=rules) == wanted, way
        itself = desk_of(model, "itself", rules=rules)
        written(itself, sampling, eos=ENDS, rules=rules)
        assert itself.tally.share == 1.0  # the rules are those of the guess's own place


def test_log_probabilities_are_those_without_guesses():
    model = make_model(layers=4)
    sampling = Sampling(temperature=0.9, logprobs=3, max_tokens=20)
    for way in ("itself", "skip", "lookup-9"):
        found = []
        for desk in (Desk(model), desk_of(model, way)):
            wishes = wishes_of(desk, sampling)
            events = told(desk)
            found.append([[one.picked for one in events[id(wish)]] for wish in wishes])
        for one, other in zip(*found, strict=True):
            assert [p.id for p in one] == [p.id for p in other]
            for mine, theirs in zip(one, other, strict=True):
                assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
                assert [token for token, _ in mine.top] == [token for token, _ in theirs.top]


def test_a_text_ends_with_its_stop_even_among_right_guesses():
    model = make_model(layers=4)
    (free, _), *_ = written(Desk(model), GREEDY, prompts=PROMPTS[:1])
    for number in range(2, 9):
        (ids, end), *_ = written(
            desk_of(model, "itself"),
            GREEDY,
            prompts=PROMPTS[:1],
            stopped=lambda token, stop=free[number]: token == stop,
        )
        assert ids == free[: free.index(free[number]) + 1] and end == "stop"


def test_a_text_ends_at_its_limit_even_among_right_guesses():
    model = make_model(layers=4)
    free = written(Desk(model), GREEDY, limits=[30] * len(PROMPTS))
    for most in range(5):
        limits = [most + row for row in range(len(PROMPTS))]
        found = written(desk_of(model, "itself", rows=8), GREEDY, limits=limits)
        assert found == [(ids[:limit], "length") for (ids, _), limit in zip(free, limits, strict=True)]


def test_texts_can_be_let_go_of():
    model = make_model(layers=4)
    wanted = written(Desk(model), GREEDY)
    for way in ("draft-5", "lookup-9", "skip"):
        desk = desk_of(model, way)
        wishes = wishes_of(desk, GREEDY)
        found = {id(wish): [] for wish in wishes}
        for step in range(100):
            if step == 3:
                desk.cancel(wishes[1])
                desk.cancel(wishes[5])
            for event in desk.step():
                found[id(event.wish)].append(event.picked.id)
        assert not desk.busy
        for row in (0, 2, 3, 4):
            assert found[id(wishes[row])] == wanted[row][0]
        assert len(found[id(wishes[1])]) < len(wanted[1][0]) and not found[id(wishes[5])]


@pytest.mark.parametrize("way", WAYS)
def test_learned_positions_end_the_guesses_before_they_end_the_text(way):
    model = make_model("gpt2", layers=4)
    prompts = [list(range(50)), [1], list(range(3, 20))]
    long = Sampling(max_tokens=70)
    limits = [15, 64, 40]  # the first and the second fill all 64 positions
    wanted = written(Desk(model), long, prompts=prompts, limits=limits)
    small = desk_of(model, way, kind="gpt2")
    assert written(small, long, prompts=prompts, limits=limits) == wanted
    if way.startswith("draft"):
        shorter = desk_of(model, way, kind="gpt2", context=32)
        assert written(shorter, long, prompts=prompts, limits=limits) == wanted
        assert 0 < shorter.tally.drafted < small.tally.drafted


@pytest.mark.parametrize("way", ["draft-5", "lookup-9", "skip"])
@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_guesses_do_not_turn_earlier_places_of_a_text(scaling, way):
    factors = {"short_factor": (1.0,) * 4, "long_factor": (4.0,) * 4} if scaling == "longrope" else {}
    model = make_model(layers=4, rope_scaling=RopeScaling(scaling, 4.0, original_context=24, **factors), context=96)
    sampling = Sampling(max_tokens=60)
    wanted = written(Desk(model), sampling)
    assert written(desk_of(model, way), sampling) == wanted


@pytest.mark.parametrize("way", ["draft-5", "lookup-9", "skip"])
def test_a_window_that_has_dropped_tokens_takes_guesses_back(way):
    model = make_model(layers=4, window=8, window_layers=(0, 2), context=2048)
    prompts = [list(range(i, 280)) * 3 for i in (0, 7)]
    sampling = Sampling(max_tokens=80)
    wanted = written(Desk(model), sampling, prompts=prompts)
    assert written(desk_of(model, way, context=2048), sampling, prompts=prompts) == wanted


def test_an_encoder_decoder_can_be_guessed_for():
    def made(layers):
        config = ModelConfig(**SHAPE | {"layers": layers}, kind="encoder-decoder", position="relative", decoder_start=0)
        return initialise(Transformer(config), seed=5).eval()

    model, rules = made(4), Rules(start=(0,))
    wanted = written(Desk(model, rules=rules), GREEDY, eos=ENDS, rules=rules)
    for given, changes in WAYS.values():
        draft = None if changes is None else made(changes.get("layers", 4))
        desk = GuessingDesk(model, source_of(Drafting(**given), model, draft, start=(0,)), 4, rules=rules)
        assert written(desk, GREEDY, eos=ENDS, rules=rules) == wanted, given


def test_linear_attention_cannot_take_guesses_back():
    model = make_model(attention="linear")
    with pytest.raises(UserError, match="linear attention"):
        source_of(Drafting(lookup=True), model)


@pytest.mark.parametrize("way", ["draft-5", "lookup-9", "skip"])
def test_after_each_pass_the_rows_hold_what_was_written_and_nothing_else(way):
    model = make_model(layers=4)
    desk = desk_of(model, way)
    wishes = wishes_of(desk, GREEDY)
    found = {id(wish): list(wish.prompt) for wish in wishes}
    refused = 0
    while desk.busy:
        drafted, accepted = desk.tally.drafted, desk.tally.accepted
        for event in desk.step():
            found[id(event.wish)].append(event.picked.id)
        refused += desk.tally.drafted - drafted > desk.tally.accepted - accepted
        texts = [found[id(wish)] for wish in desk._wishes]
        assert desk.rows.texts == [text[:-1] for text in texts]
        if texts:
            lengths = [len(text) - 1 for text in texts]
            cached = desk.rows.step([text[-1] for text in texts])
            desk.rows.cut(lengths)
            assert torch.allclose(cached, Rows(model).add(texts), atol=1e-4)
    assert refused


@pytest.mark.parametrize("kv_bits", [0, 8])
def test_memory_bounds_what_the_model_that_guesses_keeps_as_well(kv_bits):
    """Its keys and values were not counted."""
    model, sampling = make_model(layers=4), Sampling(temperature=0.8, max_tokens=40)
    wanted = written(Desk(model, 6, kv_bits), sampling)
    free = desk_of(model, "itself", 6, kv_bits=kv_bits)
    wishes_of(free, sampling)
    source, memory = free.source, 2 * free._bytes(1, 20 + 40)
    desk, running = GuessingDesk(model, source, 6, kv_bits, memory=memory), []
    wishes = wishes_of(desk, sampling)
    found = {id(wish): [] for wish in wishes}
    while desk.busy:
        for wish, picked, _ in desk.step():
            found[id(wish)].append(picked.id)
        running.append(desk.running)
        assert desk.rows.nbytes + desk._drafter.own.nbytes <= memory
    assert max(running) < 6
    assert list(found.values()) == [ids for ids, _ in wanted]
