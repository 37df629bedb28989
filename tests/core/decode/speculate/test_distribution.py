"""Sampling with guesses: tokens are distributed as the model's own, and a test that tells them apart tells when not."""

import pytest
import torch

from llmctl.core.decode.batch import Wish
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import drawn, stream_key
from llmctl.core.decode.speculate import desk as desk_module
from llmctl.core.decode.speculate import verify as verify_module
from llmctl.core.decode.speculate.desk import GuessingDesk
from llmctl.core.decode.speculate.draft import Draft, Guess
from llmctl.core.decode.speculate.pace import expected
from llmctl.core.decode.speculate.source import source_of
from llmctl.core.decode.speculate.verify import verified
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.drafting import Drafting
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling

VOCAB, TEXTS = 6, 6000
WARM = Sampling(temperature=1.5, top_k=5, top_p=0.98, max_tokens=6)  # after the first three tokens, two are guessed


def tiny(seed, layers=1):
    shape = {"vocab": VOCAB, "width": 16, "layers": layers, "heads": 2, "ff": 16, "context": 32, "init_std": 0.3}
    return initialise(Transformer(ModelConfig(**shape, tie=False)), seed=seed).eval()


def p_value(model, source):
    """That the fourth and fifth tokens of so many texts are distributed as the model has them: by chi-square."""
    desk = GuessingDesk(model, source, TEXTS)
    chooser = Chooser(WARM, Rules(), VOCAB, None, frozenset())
    for number in range(TEXTS):
        desk.ask(Wish([1, 4], chooser, stream_key(0, number, 0), WARM.max_tokens))
    texts: dict[int, list[int]] = {}
    while desk.busy:
        for event in desk.step():
            texts.setdefault(id(event.wish), []).append(event.picked.id)
    assert desk.tally.drafted > TEXTS and 0.1 < desk.tally.share < 0.95
    counts = torch.zeros(VOCAB, VOCAB)
    for *_, fourth, fifth, _ in texts.values():
        counts[fourth, fifth] += 1
    wanted = TEXTS * exact(model, chooser)
    assert float(counts[wanted == 0].sum()) == 0, "a token that the filters drop"
    common = wanted > 5  # rarer ones together
    seen = torch.cat((counts[common], counts[~common].sum()[None])).double()
    means = torch.cat((wanted[common], wanted[~common].sum()[None])).double()
    statistic = ((seen - means)[means > 0] ** 2 / means[means > 0]).sum()
    freedom = torch.tensor((int((means > 0).sum()) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


@torch.inference_mode()
def exact(model, chooser):
    """(V, V): the probability of the fourth and the fifth token after [1, 4], over all that may be before them."""
    texts, chance = torch.tensor([[1, 4]]), torch.ones(1)
    for _ in range(5):
        logits = model.head(model(texts))[:, -1].float()
        p = chooser.scores(logits, [None] * len(logits)).softmax(-1)
        chance = (chance[:, None] * p).flatten()
        every = torch.arange(VOCAB).repeat(len(texts))[:, None]
        texts = torch.cat((texts.repeat_interleave(VOCAB, 0), every), 1)
    return chance.view(VOCAB**3, VOCAB, VOCAB).sum(0)


WAYS = {
    "draft": Drafting(draft_model="another", draft_tokens=2),
    "lookup": Drafting(lookup=True, draft_tokens=2),
    "skip": Drafting(skip_layers=("1",), draft_tokens=2),
}


@pytest.mark.parametrize("accept", ["same", "most"])
@pytest.mark.parametrize("way", WAYS)
def test_sampled_tokens_are_distributed_as_without_guesses(way, accept):
    model = tiny(0, layers=2)
    drafting = Drafting(**{**vars(WAYS[way]), "draft_accept": accept})
    assert p_value(model, source_of(drafting, model, tiny(7) if way == "draft" else None)) > 1e-3


def test_a_draw_from_p_where_a_guess_was_wrong_would_be_noticed(monkeypatch):
    monkeypatch.setattr(verify_module, "left", lambda p, q: p)
    model = tiny(0, layers=2)
    drafting = Drafting(draft_model="another", draft_tokens=2, draft_accept="most")
    assert p_value(model, source_of(drafting, model, tiny(7))) < 1e-6


def test_guesses_that_nobody_checks_would_be_noticed(monkeypatch):
    def unchecked(logits, drafts, guesses, accept):
        logits = logits.clone()
        for row, guess in enumerate(guesses):
            for place, scores in enumerate(guess.scores):
                logits[row, place] = scores
        return verified(logits, drafts, guesses, accept)

    monkeypatch.setattr(desk_module, "verified", unchecked)
    model = tiny(0, layers=2)
    assert p_value(model, source_of(WAYS["draft"], model, tiny(7))) < 1e-6


def passes_of(accept, p, q, count, texts=4000):
    """How many tokens a pass brings where each guess is drawn from q and checked against p, (V,) scores each."""
    chooser = Chooser(Sampling(temperature=1.0), Rules(), len(p), None, frozenset())
    lines = [chooser.line([0], stream_key(1, number, 0), 100) for number in range(texts)]
    keys = torch.tensor([line.key for line in lines])
    guesses = [Guess([], [q] * count) for _ in lines]
    for step in range(count):
        for guess, token in zip(
            guesses, drawn(q.expand(texts, -1), keys, torch.full_like(keys, step)).tolist(), strict=True
        ):
            guess.tokens.append(token)
    drafts = [Draft([0], count, line, chooser, frozenset()) for line in lines]
    found = verified(p.expand(texts, count + 1, -1), drafts, guesses, accept)
    return sum(map(len, found)) / texts


def test_the_tokens_of_a_pass_are_as_many_as_the_formulas_say():
    chance = torch.Generator().manual_seed(0)
    p, q = (torch.randn(12, generator=chance) for _ in range(2))
    share = float(torch.minimum(p.softmax(0), q.softmax(0)).sum())
    assert 0.3 < share < 0.8
    assert passes_of("most", p, q, 4) == pytest.approx(expected(share, 4), rel=0.05)
    least = share / (2 - share)  # of two draws with the same noise, at least; Daliri et al., theorem 3
    assert expected(least, 4) < passes_of("same", p, q, 4) < expected(share, 4) * 1.05
    assert passes_of("same", p, p, 4, 100) == passes_of("most", p, p, 4, 100) == 5
