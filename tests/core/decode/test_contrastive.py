"""Contrastive search: equation 5 of its paper, token by token, without a cache; and its limits."""

import pytest
import torch

from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.contrastive import Watched, contrastive_search
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


def written(model, search, prompts=PROMPTS, tokens=10, eos=(), start=(), most=16, penalty=1.0):
    """The ids of each row, and how each ended."""
    rules = Rules(start=start)
    sampling = Sampling(max_tokens=tokens, repetition_penalty=penalty)
    chooser = Chooser(sampling, rules, model.config.vocab, None, frozenset(eos))
    lines = [chooser.line(prompt, 0, tokens) for prompt in prompts]
    ids, ends = [[] for _ in prompts], {}
    every = contrastive_search(
        Watched(model, start=start), chooser, search.filled({}), prompts, lines, frozenset(eos), most
    )
    for row, token, finish in every:
        ids[row] += [] if token is None else [token]
        if finish:
            ends[row] = finish
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
    ids, _ = written(model, Search(contrastive=0.5), start=(0,))
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
    rules = Rules(never=tuple(range(1, 300)))
    chooser = Chooser(Sampling(max_tokens=3), rules, 300, None, frozenset())
    search = Search(contrastive=1.0).filled({})
    rows = Watched(model)
    every = list(contrastive_search(rows, chooser, search, [[5, 9]], [chooser.line([5, 9], 0, 3)], frozenset()))
    assert every == [(0, 0, None), (0, 0, None), (0, 0, "length")]


def test_scores_that_are_no_numbers_are_refused():
    model = make_model()
    with torch.no_grad():
        model.decoder.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="not numbers"):
        written(model, Search(contrastive=0.6))
    assert written(make_model(), Search(contrastive=0.6), tokens=0) == ([[], [], [], []], ["length"] * 4)
