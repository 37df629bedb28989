"""Desk and Rows: what is beside a text, when it enters, and what is known of its beginning, change nothing in it."""

from dataclasses import replace

import pytest
import torch

from llmctl.core.adapt.inject import adapt
from llmctl.core.decode.batch import Desk, Wish
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.ready import ready
from llmctl.core.decode.rows import Rows
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key
from llmctl.core.model.init import initialise
from llmctl.core.model.position import BY_ROW
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.model import RopeScaling
from llmctl.spec.sample import Sampling
from tests.core.variants import DECODERS, ENCODER_DECODERS, VARIANTS

CLOSE = {"atol": 2e-5, "rtol": 2e-5}  # fp32; sums in another order
WARM = Sampling(temperature=0.8, top_k=20)


def built(name: str) -> Transformer:
    return initialise(Transformer(VARIANTS[name]), 0).eval().requires_grad_(False)


def drawn(count: int, length: int, seed: int = 1) -> list[list[int]]:
    made = torch.randint(1, 61, (count, length), generator=torch.Generator().manual_seed(seed))
    return made.tolist()


def scores(model: Transformer, text: list[int], source: list[int] | None = None) -> torch.Tensor:
    """(V,) after a text, read at once; with a source, what its decoder would say."""
    given = {} if source is None else {"memory": model.encode(torch.tensor([source]))}
    if model.config.prefix_lm:
        given["prefix"] = torch.ones(1, len(text), dtype=torch.bool)
    return model.head(model(torch.tensor([text]), **given))[0, -1].float()


def wishes(model: Transformer, prompts: list[list[int]], limits: list[int], eos=frozenset(), rules=None) -> list[Wish]:
    chooser = Chooser(WARM, rules or Rules(), model.config.vocab, None, eos)
    pairs = enumerate(zip(prompts, limits, strict=True))
    return [Wish(prompt, chooser, stream_key(5, row, 0), limit, eos) for row, (prompt, limit) in pairs]


def written(desk: Desk, asked: list[Wish]) -> list[list[int]]:
    """The tokens of each wish, all asked at once."""
    found: dict[Wish, list[int]] = {wish: [] for wish in asked}
    ended = []
    for wish in asked:
        desk.ask(wish)
    while desk.busy:
        for wish, picked, finish in desk.step():
            assert wish not in ended
            if picked is not None:
                found[wish].append(picked.id)
            if finish:
                ended.append(wish)
    assert sorted(map(id, ended)) == sorted(map(id, asked))
    return list(found.values())


@pytest.mark.parametrize("name", [name for name in (*DECODERS, *ENCODER_DECODERS) if VARIANTS[name].lm_head])
@torch.no_grad()
def test_rows_that_enter_leave_move_and_double_say_what_each_says_alone(name):
    model = built(name)
    both, prefixed = name in ENCODER_DECODERS, model.config.prefix_lm
    rows = Rows(model, start=(3,) if both else ())
    sources = drawn(1, 9) + drawn(1, 4, 2) + drawn(1, 1, 3)
    texts = [[3] for _ in sources] if both else [list(one) for one in sources]

    def check(found: torch.Tensor) -> None:
        for row, text in enumerate(texts):
            source = sources[row] if both else None
            if not (prefixed and len(text) > len(sources[row])):
                torch.testing.assert_close(found[row], scores(model, text, source), **CLOSE)
        assert rows.texts == texts

    def step(tokens: list[int]) -> None:
        found = rows.step(tokens)
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        check(found)

    check(rows.add(sources))
    step([7, 8, 9])
    more = [[11, 12, 13, 14, 15, 16], [20, 21], [20, 21]]
    found = rows.add(more)
    sources += more
    texts += [[3] for _ in more] if both else [list(one) for one in more]
    for row in (3, 4, 5):
        torch.testing.assert_close(found[row - 3], scores(model, texts[row], sources[row] if both else None), **CLOSE)
    step([1, 2, 3, 4, 5, 6])
    places = [5, 1, 1, 4]
    rows.keep(places)
    sources, texts = [sources[place] for place in places], [list(texts[place]) for place in places]
    step([30, 31, 32, 33])


@pytest.mark.parametrize("name", [one for one in DECODERS if one != "prefix" and VARIANTS[one].attention != "linear"])
@torch.no_grad()
def test_rows_read_unequal_numbers_of_tokens_and_forget_them(name):
    model = built(name)
    rows = Rows(model)
    texts = drawn(1, 6) + drawn(1, 3, 2)
    rows.add(texts)
    news = [[5, 6, 7, 8], [9]]
    found = rows.read(news)
    for row, (text, new) in enumerate(zip(texts, news, strict=True)):
        for count in range(1, len(new) + 1):
            torch.testing.assert_close(found[row, count - 1], scores(model, text + new[:count]), **CLOSE)
    rows.cut([8, 3])
    texts = [texts[0] + [5, 6], texts[1]]
    found = rows.step([40, 41])
    for row, (text, token) in enumerate(zip(texts, (40, 41), strict=True)):
        torch.testing.assert_close(found[row], scores(model, [*text, token]), **CLOSE)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "linear", "t5", "prefix"])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_what_is_written_does_not_depend_on_how_many_are_written_side_by_side(name, rows):
    model = built(name)
    rules = Rules(start=(3,)) if name == "t5" else Rules()
    prompts = [*drawn(3, 5), *drawn(2, 2, 4), *drawn(2, 9, 7)]
    limits, eos = [4, 12, 1, 7, 0, 12, 9], frozenset(range(0, 61, 9))
    together = written(Desk(model, rows, rules=rules), wishes(model, prompts, limits, eos, rules))
    alone = [written(Desk(model, rules=rules), [one])[0] for one in wishes(model, prompts, limits, eos, rules)]
    assert together == alone
    assert [len(ids) <= limit for ids, limit in zip(alone, limits, strict=True)] == [True] * 7


def test_settings_of_each_wish_are_its_own():
    model = built("llama")
    prompts = drawn(3, 5)
    greedy = Chooser(Sampling(), Rules(), model.config.vocab, None, frozenset())
    warm = Chooser(WARM, Rules(), model.config.vocab, None, frozenset())

    def asked() -> list[Wish]:
        return [Wish(prompt, how, 7, 6) for prompt, how in zip(prompts, (greedy, warm, greedy), strict=True)]

    assert written(Desk(model), asked()) == [written(Desk(model), [wish])[0] for wish in asked()]


def read_by(model: Transformer, seen: list[int]) -> None:
    """Count the tokens of each pass of a model."""
    model.embed.tokens.register_forward_hook(lambda module, given, out: seen.append(given[0].numel()))


def test_a_beginning_that_prompts_share_is_read_once():
    model, seen = built("llama"), []
    read_by(model, seen)
    shared = drawn(1, 40)[0]
    prompts = [shared + tail for tail in drawn(4, 3, 9)]
    for rows in (1, 4):
        seen.clear()
        desk = Desk(model, rows)
        found = written(desk, wishes(model, prompts, [1] * 4))
        # one after the other, the second shows what it shares with the first, and is the last that reads it
        assert sum(seen) == (2 * 43 + 2 * 3 if rows == 1 else 40 + 4 * 3)
        assert found == [written(Desk(model), [one])[0] for one in wishes(model, prompts, [1] * 4)]


def test_long_texts_are_read_in_chunks_and_give_what_they_give_at_once(monkeypatch):
    monkeypatch.setattr("llmctl.core.decode.rows.CHUNK", 8)
    model, seen = built("mistral"), []
    with torch.no_grad():
        expected = scores(model, drawn(1, 30)[0])
    read_by(model, seen)
    torch.testing.assert_close(Rows(model).add(drawn(1, 30))[0], expected, **CLOSE)
    assert seen == [8, 8, 8, 6]


@pytest.mark.parametrize("what", ["prefix", "prompt", "dynamic", "longrope"])
@torch.no_grad()
def test_a_long_text_is_read_where_layers_with_a_window_drop_tokens(what):
    """It was refused as too many tokens for one pass: with virtual tokens before it, or read at once for its angles."""
    config = replace(VARIANTS["mistral"], context=300)
    if what in BY_ROW:
        scaling = RopeScaling(what, 4.0, 300, short_factor=(1.0,) * 3, long_factor=(2.0,) * 3)
        model = initialise(Transformer(replace(config, rope_scaling=scaling)), 0).eval()
    else:
        model = initialise(Transformer(config), 0).eval()
        adapt(model, AdaptConfig(what, virtual_tokens=3), seed=1)
    for text in (drawn(1, 700)[0], drawn(1, 298)[0]):
        rows = Rows(model)
        torch.testing.assert_close(rows.add([text])[0], scores(model, text), **CLOSE)
        for token in () if what == "dynamic" else (5, 6, 7):  # whose angles change with every token
            text = [*text, token]
            torch.testing.assert_close(rows.step([token])[0], scores(model, text), **CLOSE)


def test_memory_decides_how_many_are_written_side_by_side():
    model = built("llama")
    config = model.config
    row = 2 * config.layers * config.kv_heads * config.head_dim * 4 * (5 + 11)  # bytes of 5 tokens read and 11 more
    desk = Desk(model, 16, memory=2 * row + 1)
    asked = wishes(model, drawn(5, 5), [12] * 5)
    for wish in asked:
        desk.ask(wish)
    together = []
    while desk.busy:
        desk.step()
        together.append(desk.running)
        assert desk.rows.nbytes <= 2 * row
    assert max(together) == 2
    with pytest.raises(UserError, match=r"17 tokens take .* but .* are left") as refused:
        Desk(model, memory=row).ask(wishes(model, drawn(1, 5), [13])[0])
    assert "--max-tokens" in refused.value.hint


@pytest.mark.parametrize("kv_bits", [0, 8])
def test_memory_is_kept_to_where_short_texts_and_long_ones_come_in_turn(kv_bits):
    """Rows for many short texts were stretched for one long one, and those of a long one multiplied for short ones."""
    model = built("llama")
    long = wishes(model, drawn(1, 40), [300])[0]
    memory = 2 * Desk(model, kv_bits=kv_bits)._bytes(1, 340)
    alone = [written(Desk(model, kv_bits=kv_bits), [one])[0] for one in wishes(model, drawn(12, 5), [6] * 12)]
    desk, asked = Desk(model, 16, kv_bits, memory=memory), wishes(model, drawn(12, 5), [6] * 12)
    found: dict[Wish, list[int]] = {}
    for wish in (*asked[:6], long, *asked[6:]):
        desk.ask(wish)
    while desk.busy:
        for wish, picked, _ in desk.step():
            found.setdefault(wish, []).append(picked.id)
        assert desk.rows.nbytes <= memory
    assert [found[wish] for wish in asked] == alone and len(found[long]) == 300


def test_one_that_is_cancelled_is_not_heard_of_again_and_the_others_go_on():
    model = built("llama")
    alone = [written(Desk(model), [one])[0] for one in wishes(model, drawn(4, 5), [8] * 4)]
    desk, asked, found = Desk(model, 3), wishes(model, drawn(4, 5), [8] * 4), {}
    for wish in asked:
        desk.ask(wish)
    for step in range(20):
        if step == 3:
            desk.cancel(asked[1])
            desk.cancel(asked[3])
        for wish, picked, _ in desk.step() if desk.busy else ():
            found.setdefault(asked.index(wish), []).append(picked.id)
    assert (found[0], found[2]) == (alone[0], alone[2]) and len(found[1]) == 3 and 3 not in found


@pytest.mark.parametrize("name", [name for name in DECODERS if VARIANTS[name].lm_head])
@pytest.mark.parametrize("native", [False, True])
def test_a_long_prompt_holds_up_no_one_and_is_answered_as_it_is_alone(name, native, monkeypatch):
    """Two long prompts come while two texts are written: those go on by a token each step, as the prompts are read."""
    monkeypatch.setattr("llmctl.core.decode.batch.PART", 4)
    model = built(name)
    if native:
        ready(model)  # what the native step does not run is read by torch's kernels once more
    prompts = [*drawn(2, 3), *drawn(1, 26, 7), *drawn(1, 22, 8)]
    alone = [written(Desk(model), [one])[0] for one in wishes(model, prompts, [12, 9, 6, 6])]
    desk, asked, found = Desk(model, 4), wishes(model, prompts, [12, 9, 6, 6]), {}
    for wish in asked[:2]:
        desk.ask(wish)
    desk.step()
    for wish in asked[2:]:
        desk.ask(wish)
    parts = 1
    while desk.busy:
        heard = [wish for wish, picked, _ in desk.step() if not found.setdefault(wish, []).append(picked.id)]
        assert asked[0] in heard or len(found[asked[0]]) == 11
        parts += not found.get(asked[2])
    assert [found[wish] for wish in asked] == [one[skip:] for one, skip in zip(alone, (1, 1, 0, 0), strict=True)]
    assert parts == (7 if desk.rows.divisible else 1)


def test_one_whose_prompt_is_being_read_is_let_go_of(monkeypatch):
    monkeypatch.setattr("llmctl.core.decode.batch.PART", 4)
    model = built("llama")
    first, long = wishes(model, [*drawn(1, 3), *drawn(1, 40, 7)], [12, 6])
    alone = written(Desk(model), wishes(model, drawn(1, 3), [12]))[0]
    desk = Desk(model, 4)
    desk.ask(first)
    found = [desk.step()[0].picked.id]
    desk.ask(long)
    for step in range(11):
        if step == 3:
            desk.cancel(long)
        found += [picked.id for _, picked, _ in desk.step()]
    assert found == alone and not desk.busy
