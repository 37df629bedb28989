"""Beam search: groups against a plain search of everything, drawn beams by their distribution, ends, and the tree."""

import math
import re
from collections import Counter

import pytest
import torch

from llmctl.core.decode.beam import Branch
from llmctl.core.decode.beam_desk import BeamDesk, Quest
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.guide import Grammar
from llmctl.core.decode.native.engine import engine_of
from llmctl.core.decode.native.rows import NativeRows
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key
from llmctl.core.decode.text import TextStream
from llmctl.core.model.init import initialise
from llmctl.core.model.memory import Memory
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling
from llmctl.spec.search import Search
from tests.core.decode.conftest import make_model

PROMPT = [5, 2, 3]


def found(model, search, prompts=(PROMPT,), tokens=6, eos=(), rules=None, most=16, keys=None, streams=None, **how):
    """The quests for each prompt, once they are over."""
    rules = rules or Rules()
    chooser = Chooser(Sampling(max_tokens=tokens, **how), rules, model.config.vocab, None, frozenset(eos))
    desk = BeamDesk(model, search.filled({}), most, 0, rules)
    quests = []
    for number, prompt in enumerate(prompts):
        key, stream = keys[number] if keys else 0, streams[number] if streams else None
        quests.append(Quest(prompt, chooser, key, tokens, frozenset(eos), stream=stream))
        desk.ask(quests[-1])
    while desk.busy:
        desk.step()
    return quests


def logprobs(model, ids):
    """Of the token after these, (V,)."""
    with torch.inference_mode():
        return model.head(model(torch.tensor([ids])))[0, -1].float().log_softmax(-1).tolist()


def plain(model, groups, width, diversity, tokens, eos):
    """Diverse beam search, of everything, one text at a time, to the last token: [(ids, sum)], the best first."""
    going = [[((), 0.0)] for _ in range(groups)]
    ended = [[] for _ in range(groups)]
    for step in range(tokens):
        written = Counter()
        for group in range(groups):
            every = [
                ((*ids, token), total + logprob - diversity * written[token])
                for ids, total in going[group]
                for token, logprob in enumerate(logprobs(model, [*PROMPT, *ids]))
            ]
            every.sort(key=lambda one: -one[1])
            over = [one for one in every if one[0][-1] in eos or step == tokens - 1]
            ended[group] = sorted(ended[group] + [one for one in every[:width] if one in over], key=lambda o: -o[1])
            ended[group] = ended[group][:width]
            going[group] = [one for one in every if one not in over][:width]
            written.update(ids[-1] for ids, _ in going[group])
    return sorted((one for group in ended for one in group), key=lambda one: -one[1])


@pytest.mark.parametrize(("groups", "diversity"), [(1, 0.0), (3, 0.7), (2, 5.0)])
def test_groups_of_beams_find_what_a_plain_search_of_everything_finds(groups, diversity):
    model = make_model(vocab=40)
    eos = {7, 21, 30, 31, 2}
    search = Search(
        beams=2 * groups,
        length_penalty=0.0,
        early_stopping="never",
        **({"beam_groups": groups, "diversity": diversity} if groups > 1 else {}),
    )
    (one,) = found(model, search, tokens=5, eos=eos)
    wanted = plain(model, groups, 2, diversity, 5, eos)
    assert [text.ids for text in one.texts] == [ids for ids, _ in wanted]
    assert [text.score for text in one.texts] == pytest.approx([score for _, score in wanted], abs=1e-4)
    firsts = {text.ids[0] for text in one.texts}
    assert groups == 1 or diversity < 5 or len(firsts) >= groups


@pytest.mark.parametrize("kind", ["llama", "window"])
def test_the_native_step_finds_what_torch_finds(kind):
    prompts, eos = [PROMPT, [8, 1], list(range(20, 60))], set(range(0, 300, 11))
    torchs = found(make_model(kind), Search(beams=4), prompts, 20, eos)
    packed = make_model(kind)
    engine_of(packed)
    assert type(BeamDesk(packed, Search(beams=4).filled({})).rows) is NativeRows
    for one, other in zip(found(packed, Search(beams=4), prompts, 20, eos), torchs, strict=True):
        assert [text.ids for text in one.texts] == [text.ids for text in other.texts]
        assert [text.score for text in one.texts] == pytest.approx([text.score for text in other.texts], abs=1e-4)


def test_a_beam_for_every_text_finds_the_likeliest_of_all():
    model = make_model(vocab=8)
    (one,) = found(model, Search(beams=64), tokens=3)
    every = {}
    for a, first in enumerate(logprobs(model, PROMPT)):
        for b, second in enumerate(logprobs(model, [*PROMPT, a])):
            for c, third in enumerate(logprobs(model, [*PROMPT, a, b])):
                every[a, b, c] = first + second + third
    best = sorted(every, key=lambda ids: -every[ids])[:64]
    assert [text.ids for text in one.texts] == best
    assert one.texts[0].logprob == pytest.approx(every[best[0]], abs=1e-5)
    assert one.texts[0].score == pytest.approx(every[best[0]] / 3, abs=1e-5)
    assert {text.finish for text in one.texts} == {"length"}


def chi_square(seen, chances):
    """Of the counts of outcomes against their chances, and the degrees of freedom; rare outcomes together."""
    total = sum(seen.values())
    common = [one for one in chances if chances[one] * total >= 8]
    rest = 1 - sum(chances[one] for one in common)
    pairs = [(seen[one], chances[one] * total) for one in common]
    pairs.append((total - sum(seen[one] for one in common), rest * total))
    return sum((count - mean) ** 2 / mean for count, mean in pairs if mean > 1), len(pairs) - 1


def test_drawn_beams_are_drawn_without_putting_back_and_a_wrong_draw_is_seen():
    model = make_model(vocab=8)
    temperature, draws = 1.5, 3000
    scaled = torch.tensor(logprobs(model, PROMPT)) / temperature
    p = scaled.softmax(-1).tolist()
    pairs = Counter()  # the two that are drawn first, in whatever order, are those that end
    for a in range(8):
        for b in set(range(8)) - {a}:
            pairs[frozenset((a, b))] += p[a] * p[b] / (1 - p[a])
    keys = [stream_key(4, 0, number) for number in range(draws)]
    every = found(model, Search(beams=2), [PROMPT] * draws, 1, keys=keys, temperature=temperature, most=2 * draws)
    seen = Counter(frozenset(text.ids[0] for text in one.texts) for one in every)
    value, degrees = chi_square(seen, pairs)
    assert value < degrees + 5 * math.sqrt(2 * degrees)
    flat = torch.tensor(logprobs(model, PROMPT)).softmax(-1).tolist()  # as if the temperature had been forgotten
    wrong = Counter()
    for a in range(8):
        for b in set(range(8)) - {a}:
            wrong[frozenset((a, b))] += flat[a] * flat[b] / (1 - flat[a])
    value, degrees = chi_square(seen, wrong)
    assert value > degrees + 20 * math.sqrt(2 * degrees)


def test_drawn_beams_keep_to_the_filters_and_depend_on_their_key_alone():
    model = make_model()
    how = {"temperature": 1.0, "top_k": 3}
    prompts, keys = [PROMPT, [8, 1], PROMPT], [1, 2, 3]
    together = found(model, Search(beams=2), prompts, keys=keys, most=50, explain=True, **how)
    for one, prompt, key in zip(together, prompts, keys, strict=True):
        (alone,) = found(model, Search(beams=2), [prompt], keys=[key], **how)
        assert [text.ids for text in alone.texts] == [text.ids for text in one.texts]
    assert together[0].texts != together[2].texts
    best = sorted(range(300), key=lambda token: -logprobs(model, PROMPT)[token])[:3]
    assert {branch.id for branch in together[0].tree if branch.step == 0} == set(best)


def test_a_text_may_end_with_a_string(byte_bpe):
    model = make_model()
    letters = {token for token in range(290) if byte_bpe.decode([token]).isalpha()}
    how = {"tokens": 8, "rules": Rules(never=tuple(set(range(300)) - letters))}
    (free,) = found(model, Search(beams=3, length_penalty=0.0), streams=[TextStream(byte_bpe, PROMPT)], **how)
    stop = byte_bpe.decode(list(free.texts[0].ids))[2]
    streams = [TextStream(byte_bpe, PROMPT, [stop])]
    (one,) = found(model, Search(beams=3, length_penalty=0.0), streams=streams, **how)
    stopped = [text for text in one.texts if text.finish == "stop"]
    assert stopped
    for text in stopped:
        assert stop in byte_bpe.decode(list(text.ids)) and stop not in byte_bpe.decode(list(text.ids[:-1]))
    for text in one.texts:
        assert text.finish == "stop" or stop not in byte_bpe.decode(list(text.ids))
    assert streams[0].text == ""  # each beam has its own


def test_what_an_encoder_made_stays_where_it_is_while_beams_change_places(monkeypatch):
    config = ModelConfig(
        **{"kind": "encoder-decoder", "vocab": 120, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 64},
        **{"context": 64, "init_std": 0.3, "tie": False, "decoder_start": 0},
    )
    model, moved = initialise(Transformer(config), seed=5).eval(), []
    select = Memory.select
    monkeypatch.setattr(Memory, "select", lambda self, rows: moved.append(len(rows)) or select(self, rows))
    prompts = [PROMPT, [7, 1], [11, 30, 4]]
    together = found(model, Search(beams=4), prompts, 12, rules=Rules(start=(0,)), most=20)
    assert moved == [12, 0]  # when each gets its beams, and when all are over
    for one, prompt in zip(together, prompts, strict=True):
        (alone,) = found(model, Search(beams=4), [prompt], 12, rules=Rules(start=(0,)))
        assert [text.ids for text in one.texts] == [text.ids for text in alone.texts]


@pytest.mark.parametrize("eos", [frozenset(), frozenset([0])])
def test_beams_keep_to_a_grammar(byte_bpe, eos):
    grammar = Grammar(byte_bpe, eos, "regex", "(ab|th)[a-e]{2,4}x")
    chooser = Chooser(Sampling(max_tokens=12), Rules(), 300, byte_bpe.size, eos, "cpu", grammar)
    desk = BeamDesk(make_model(), Search(beams=3).filled({}))
    quest = Quest(PROMPT, chooser, 0, 12, eos)
    desk.ask(quest)
    while desk.busy:
        desk.step()
    assert len(quest.texts) == 3 and {text.finish for text in quest.texts} == {"stop"}
    for text in quest.texts:
        assert re.fullmatch("(ab|th)[a-e]{2,4}x", byte_bpe.decode(list(text.ids)))


def test_the_tree_holds_every_text_and_says_what_became_of_each_branch():
    model, eos = make_model(), set(range(0, 300, 7))
    (one,) = found(model, Search(beams=4, beam_groups=2, diversity=0.5), eos=eos, explain=True)
    tree = one.tree
    for text in one.texts:
        path, at = [], text.branch
        while at >= 0:
            path.append(tree[at])
            at = tree[at].parent
        assert tuple(branch.id for branch in reversed(path)) == text.ids
        assert sum(branch.logprob for branch in path) == pytest.approx(text.logprob, abs=1e-4)
        assert path[0].fate == "ended" and {branch.fate for branch in path[1:]} <= {"kept"}
    kept = Counter((branch.step, branch.group) for branch in tree if branch.fate == "kept")
    assert max(kept.values()) == 2
    assert all(isinstance(branch, Branch) and branch.parent < number for number, branch in enumerate(tree))


def test_each_token_has_its_logprob_and_those_of_the_likeliest_beside_it():
    model = make_model()
    (one,) = found(model, Search(beams=3), logprobs=2)
    for text in one.texts:
        assert tuple(token.id for token in text.picked) == text.ids
        assert sum(token.logprob for token in text.picked) == pytest.approx(text.logprob, abs=1e-4)
        for step, token in enumerate(text.picked):
            known = logprobs(model, [*PROMPT, *text.ids[:step]])
            assert token.logprob == pytest.approx(known[token.id], abs=1e-4)
            assert [id for id, _ in token.top] == sorted(range(300), key=lambda id: -known[id])[:2]
    assert found(model, Search(beams=3))[0].texts[0].picked == ()


def test_rules_that_leave_fewer_texts_than_beams_leave_fewer_beams():
    model = make_model(vocab=8)
    (one,) = found(model, Search(beams=5), tokens=2, rules=Rules(never=(0, 1, 2, 3, 4, 5)))
    assert sorted(text.ids for text in one.texts) == [(6, 6), (6, 7), (7, 6), (7, 7)]
    (one,) = found(model, Search(beams=2), tokens=4, rules=Rules(never=tuple(range(8))))
    assert [(text.ids, text.finish) for text in one.texts] == [((), "stop")]


def test_no_tokens_are_no_search_and_scores_that_are_no_numbers_are_refused():
    model = make_model()
    assert [text.ids for text in found(model, Search(beams=2), tokens=0)[0].texts] == [()]
    with torch.no_grad():
        model.decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        found(model, Search(beams=2))
