"""Search: what is asked for, what the checkpoint says, and what means nothing."""

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.sample import Sampling
from llmctl.spec.search import DEFAULTS, Search

BART = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2}


def test_nothing_asked_is_no_search():
    made = Search().filled({})
    assert vars(made) == DEFAULTS and made.strategy == "tokens" and made.returned(3, {}) == 3


def test_a_search_that_the_checkpoint_asks_for_is_made_unless_something_else_is_asked_for():
    made = Search().filled(BART)
    assert (made.beams, made.length_penalty, made.early_stopping) == (4, 2.0, "true")
    assert made.returned(1, BART) == 2 and made.returned(3, BART) == 3
    assert Search().filled(BART, plain=True).strategy == "tokens"
    assert Search(beams=1).filled(BART).strategy == "tokens"
    assert Search(contrastive=0.5).filled(BART).strategy == "contrastive"
    wider = Search(beams=6, early_stopping="never").filled(BART, plain=True)
    assert (wider.beams, wider.length_penalty, wider.early_stopping) == (6, 2.0, "never")
    groups = Search().filled({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.3})
    assert (groups.beam_groups, groups.group.beams, groups.group.beam_groups) == (2, 2, 1)
    contrast = Search().filled({"penalty_alpha": 0.6, "top_k": 5})
    assert (contrast.strategy, contrast.candidates) == ("contrastive", 5)
    assert Search().filled({"penalty_alpha": 0.6}).strategy == "tokens"


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"beams": 0}, "--beams is 0"),
        ({"beams": 4, "beam_groups": 3}, "--beam-groups 3"),
        ({"contrastive": 1.5}, "--contrastive is 1.5"),
        ({"contrastive": 0.5, "beams": 2}, "--contrastive keeps one text"),
        ({"length_penalty": float("nan")}, "--length-penalty is nan"),
        ({"candidates": 1}, "--candidates is 1"),
        ({"length_penalty": 0.5, "early_stopping": "true"}, "--length-penalty, --early-stopping"),
        ({"beams": 1, "early_stopping": "true"}, "--early-stopping"),
        ({"candidates": 5}, "--candidates"),
        ({"beams": 4, "beam_groups": 2}, "--beam-groups means nothing alone"),
        ({"beams": 4, "diversity": 0.5}, "--diversity means nothing alone"),
    ],
)
def test_what_means_nothing_is_refused(asked, words):
    with pytest.raises(UserError, match=words) as error:
        Search(**asked).filled({})
    assert error.value.code == Exit.USAGE


def test_more_texts_than_there_are_beams_are_refused():
    with pytest.raises(UserError, match="--n is 5, but there are 4 beams"):
        Search(beams=4).filled({}).returned(5, {})
    with pytest.raises(UserError, match="one text"):
        Search(contrastive=0.6).filled({}).returned(2, {})


def test_several_texts_of_a_search_take_no_chance_unless_that_is_asked_for():
    search, sampling = Search(beams=4).settled(Sampling(n=3), {})
    assert (search.beams, sampling.n, sampling.greedy) == (4, 3, True)
    assert Search().settled(Sampling(n=3), BART)[1].greedy
    search, sampling = Search().settled(Sampling(), BART)
    assert (search.beams, sampling.n, sampling.temperature) == (4, 2, 0)
    assert Search(beams=4).settled(Sampling(n=2, temperature=0.7), {})[1].temperature == 0.7
    assert Search(beams=4).settled(Sampling(top_k=3), {})[1].temperature == 1
    for asked in (Sampling(temperature=0.7), Sampling(top_p=0.9, n=2), Sampling(best_of=3)):
        assert Search().settled(asked, BART) == (Search().filled({}), asked)
    assert not Search().settled(Sampling(n=3), {})[1].greedy


@pytest.mark.parametrize(
    ("search", "sampling"),
    [
        (Search(beams=4), Sampling(best_of=3)),
        (Search(contrastive=0.6), Sampling(top_k=3)),
        (Search(beams=4, beam_groups=2, diversity=0.5), Sampling(temperature=1.0)),
    ],
)
def test_a_search_that_chance_means_nothing_to_refuses_it(search, sampling):
    with pytest.raises(UserError, match=r"chance|draws") as error:
        search.settled(sampling, {})
    assert error.value.code == Exit.USAGE


@pytest.mark.parametrize(
    "said", [{"num_beams": 0}, {"num_beams": "4"}, {"early_stopping": 1}, {"length_penalty": True}]
)
def test_a_checkpoint_that_says_nonsense_is_refused(said):
    with pytest.raises(UserError, match=next(iter(said))) as error:
        Search().filled(said)
    assert error.value.code == Exit.MISMATCH
