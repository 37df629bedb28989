"""Contrastive search: equation 5 of its paper, token by token, without a cache; and its limits."""

import pytest
import torch

from llmctl.core.decode.batch import Wish
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.contrastive import ContrastiveDesk
from llmctl.core.decode.rules import Rules
from llmctl.core.model.init import initialise
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling
from llmctl.spec.search import Search
from tests.core.decode.conftest import make_model

PROMPTS = [[5, 9, 3], [7], [11, 110, 30, 4, 8, 12, 77, 2], [7, 1, 100, 9]]


def written(model, search, prompts=PROMPTS, tokens=10, eos=(), rules=None, most=16):
    """The ids of each row, and how each ended."""
    rules = rules or Rules()
    chooser = Chooser(Sampling(max_tokens=tokens), rules, model.config.vocab, None, frozenset(eos))
    desk = ContrastiveDesk(model, search.filled({}), most, 0, rules)
    wishes = [Wish(prompt, chooser, 0, tokens, frozenset(eos)) for prompt in prompts]
    for wish in wishes:
        desk.ask(wish)
    ids, ends = [[] for _ in prompts], {}
    while desk.busy:
        for event in desk.step():
            row = wishes.index(event.wish)
            ids[row] += [] if event.picked is None else [event.picked.id]
            if event.finish:
                ends[row] = event.finish
    return ids, [ends[row] for row in range(len(prompts))]


@torch.inference_mode()
def plain(model, prompt, alpha, k, tokens, start=()):
    """The same by reading every text anew, with each of its candidates."""
    source = {"encoder": EncoderInput(torch.tensor([prompt]))} if start else {}
    ids = list(start or prompt)
    first = len(ids)
    for _ in range(tokens):
        p = model.head(model(torch.tensor([ids]), **source))[0, -1].softmax(-1)
        worth = {}
        for token in p.topk(k).indices.tolist():
            states = model(torch.tensor([[*ids, token]]), **source)[0]
            alike = torch.cosine_similarity(states[:-1], states[-1:], dim=-1).max()
            worth[token] = float((1 - alpha) * p[token] - alpha * alike)
        ids.append(max(worth, key=worth.get))
    return ids[first:]


@pytest.mark.parametrize("kind", ["llama", "window", "gpt2", "bloom"])
def test_each_token_is_the_best_by_the_equation(kind):
    model = make_model(kind)
    ids, ends = written(model, Search(contrastive=0.6, candidates=5))
    assert ids == [plain(model, prompt, 0.6, 5, 10) for prompt in PROMPTS]
    assert set(ends) == {"length"}
    greedy, _ = written(model, Search(contrastive=1e-9, candidates=5))
    assert ids != greedy


def test_an_encoder_decoder_is_contrasted_with_what_its_decoder_wrote():
    config = ModelConfig(
        **{"kind": "encoder-decoder", "vocab": 120, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 64},
        **{"context": 64, "init_std": 0.3, "tie": False, "decoder_start": 0},
    )
    model = initialise(Transformer(config), seed=5).eval()
    ids, _ = written(model, Search(contrastive=0.5), rules=Rules(start=(0,)))
    assert ids == [plain(model, prompt, 0.5, 4, 10, start=(0,)) for prompt in PROMPTS]


def test_prompts_are_independent_and_end_where_they_end():
    model, eos = make_model(), set(range(0, 300, 9))
    search = Search(contrastive=0.6)
    together, ends = written(model, search, eos=eos, tokens=14)
    assert len(set(ends)) == 2 or len({len(row) for row in together}) > 1
    for most in (1, 8):
        assert written(model, search, eos=eos, tokens=14, most=most) == (together, ends)
    for row, end in zip(together, ends, strict=True):
        assert not set(row[:-1]) & eos and (row[-1] in eos) == (end == "stop")


def test_tokens_that_are_banned_are_not_taken_however_unlike_they_are():
    model = make_model()
    search = Search(contrastive=1.0)
    assert written(model, search, [[5, 9]], 3, rules=Rules(never=tuple(range(1, 300)))) == ([[0, 0, 0]], ["length"])


def test_a_completion_ends_with_the_table_of_positions():
    ids, ends = written(make_model("gpt2", context=12), Search(contrastive=0.6), tokens=50)
    assert ([len(row) for row in ids], set(ends)) == ([12 - len(prompt) for prompt in PROMPTS], {"length"})


def test_a_completion_that_is_cancelled_leaves_the_others_as_they_are():
    model, rules = make_model(), Rules()
    chooser = Chooser(Sampling(), rules, 300, None, frozenset())
    desk = ContrastiveDesk(model, Search(contrastive=0.6).filled({}))
    first, second = (Wish(prompt, chooser, 0, 10) for prompt in PROMPTS[:2])
    desk.ask(first)
    desk.ask(second)
    heard = desk.step()
    desk.cancel(first)
    while desk.busy:
        heard += desk.step()
    alone, _ = written(model, Search(contrastive=0.6), PROMPTS[1:2])
    assert [event.picked.id for event in heard if event.wish is second] == alone[0]


def test_scores_that_are_no_numbers_are_refused():
    model = make_model()
    with torch.no_grad():
        model.decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        written(model, Search(contrastive=0.6))
    assert written(make_model(), Search(contrastive=0.6), tokens=0) == ([[], [], [], []], ["length"] * 4)
