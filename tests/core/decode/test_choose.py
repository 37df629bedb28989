"""The choice of tokens line by line: log-probabilities, penalties, words, what a line remembers, the distribution."""

import math

import pytest
import torch

from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.filters import Filter
from llmctl.core.decode.line import Line
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import filtered, stream_key
from llmctl.errors import UserError
from llmctl.spec.sample import Sampling
from tests.core.decode.test_sample import LOGITS, p_value

VOCAB = 12


def chooser(sampling: Sampling, rules: Rules | None = None, known: int | None = None, eos: int | None = 0) -> Chooser:
    return Chooser(sampling, rules or Rules(), VOCAB, known, frozenset() if eos is None else frozenset([eos]))


def scores(*likely: int, rows: int = 1) -> torch.Tensor:
    """(rows, VOCAB) of which these tokens are the likeliest, in their order."""
    row = torch.linspace(0.0, 1.0, VOCAB)
    row[list(likely)] = torch.arange(10.0, 10.0 - len(likely), -1)
    return row.expand(rows, -1).clone()


def test_the_likeliest_token_is_taken_of_those_that_have_one_and_of_several_the_first():
    assert [one.id for one in chooser(Sampling()).pick(scores(11, 4), [Line(0, (1,), 5)])] == [11]
    assert [one.id for one in chooser(Sampling(), known=11).pick(scores(11, 4), [Line(0, (1,), 5)])] == [4]
    assert chooser(Sampling()).pick(torch.zeros(1, VOCAB), [Line(0, (1,), 5)])[0].id == 0


@pytest.mark.parametrize(
    "option", ["temperature", "top_k", "top_p", "min_p", "typical_p", "eta_cutoff", "presence_penalty"]
)
def test_scores_that_are_not_numbers_are_an_error(option):
    sampling = Sampling(**{option: 1 if option in ("temperature", "top_k") else 0.5})
    logits = scores(3, rows=2)
    logits[1, 5] = math.nan
    with pytest.raises(UserError, match="NaN"):
        chooser(sampling).pick(logits, [Line(1, (1,), 5), Line(2, (1,), 5)])


def test_a_log_probability_is_the_models_own_whatever_the_filters_do():
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(1))
    wanted = logits[:, :10].log_softmax(-1)
    choice = chooser(Sampling(temperature=0.3, top_k=2, presence_penalty=1.0, logprobs=3), Rules(never=(2,)), known=10)
    lines = [choice.line([1, 2], 7, 5), choice.line([3], 8, 5)]
    for row, picked in enumerate(choice.pick(logits, lines)):
        assert picked.logprob == pytest.approx(float(wanted[row, picked.id]), abs=1e-6)
        best = wanted[row].topk(3)
        assert [token for token, _ in picked.top] == best.indices.tolist()
        assert [value for _, value in picked.top] == pytest.approx(best.values.tolist(), abs=1e-6)
    alone = chooser(Sampling(logprobs=0)).pick(logits, lines)
    assert all(one.top == () and one.logprob is not None for one in alone)
    assert chooser(Sampling()).pick(logits, lines)[0].logprob is None


def test_presence_and_frequency_count_what_was_written_and_not_the_prompt():
    choice = chooser(Sampling(presence_penalty=0.5, frequency_penalty=0.25))
    line = choice.line([3, 3, 3, 5], 0, 9, written=[5, 6, 5])
    logits = torch.zeros(1, VOCAB)
    wanted = torch.zeros(VOCAB)
    wanted[5], wanted[6] = -0.5 - 2 * 0.25, -0.5 - 0.25
    assert torch.equal(choice.scores(logits, [line])[0], wanted)


def test_lines_of_a_batch_are_chosen_as_each_would_be_alone():
    sampling = Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.2, no_repeat_ngram=2, frequency_penalty=0.3)
    choice = chooser(sampling, Rules(bias=(((4, 5), 3.0),), wanted=(((6, 7),),)))
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(8, 3, VOCAB, generator=draw)
    together = [choice.line([row], row, 8) for row in range(3)]
    for step in logits:
        choice.pick(step, together)
    for row, line in enumerate(together):
        alone = choice.line([row], row, 8)
        for step in logits:
            choice.pick(step[row : row + 1], [alone])
        assert alone.written == line.written


def test_a_line_that_is_cut_or_copied_remembers_what_a_new_one_would():
    def known(line: Line) -> tuple:
        counts = dict(line.seen)
        return line.written, counts, {run: ids for run, ids in line._runs.items() if ids}

    line = Line(1, (1, 2, 1, 2, 3), 20, ngram=2, written=[1, 2, 2, 5])
    twin = line.copy()
    for token in (2, 5, 2, 9, 1):
        twin.push(token)
    assert known(line) == known(Line(1, line.prompt, 20, ngram=2, written=[1, 2, 2, 5]))
    twin.cut(6)
    assert known(twin) == known(Line(1, line.prompt, 20, ngram=2, written=[1, 2, 2, 5, 2, 5]))
    twin.cut(0)
    assert known(twin) == known(Line(1, line.prompt, 20, ngram=2))
    assert line.tail(6) == (2, 3, 1, 2, 2, 5) and line.tail(99) == (1, 2, 1, 2, 3, 1, 2, 2, 5) and line.tail(0) == ()


def written(choice: Chooser, logits: torch.Tensor, limit: int) -> list[int]:
    """What a line becomes if every step has the same scores; without the token that ends it."""
    line = choice.line([1], 0, limit)
    while line.step < limit and line.written[-1:] != [0]:
        choice.pick(logits, [line])
    return [token for token in line.written if token]


def test_a_forced_word_comes_where_the_text_would_end():
    choice = chooser(Sampling(presence_penalty=1.0), Rules(wanted=(((6, 7), (8,)), ((9,),))))
    assert written(choice, scores(3, 0), 20) == [3, 6, 7, 9]  # 3 is the best once, then the end is


def test_a_forced_word_comes_where_there_is_no_more_room():
    choice = chooser(Sampling(), Rules(wanted=(((6, 7), (8,)), ((9,),))))
    assert written(choice, scores(3, 0), 6) == [3, 3, 3, 6, 7, 9]


def test_a_forced_word_is_not_repeated_where_it_came_by_itself_in_any_spelling():
    wanted = Rules(wanted=(((6, 7), (8,)),))
    assert written(chooser(Sampling(frequency_penalty=0.6), wanted), scores(8, 0), 9) == [8, 8]


def test_a_token_that_a_forced_word_begins_with_may_come_without_it():
    choice = chooser(Sampling(presence_penalty=2.5), Rules(wanted=(((6, 7),),)))
    assert written(choice, scores(6, 5, 0), 9) == [6, 5, 6, 7]


def test_a_forced_word_is_begun_again_after_it_was_taken_back():
    choice = chooser(Sampling(), Rules(wanted=(((6, 7, 8),),)))
    line = choice.line([1], 0, 9)
    for cut in (0, 1, 2, 3):
        line.cut(cut)
        twin = line.copy()
        while line.written[-1:] != [0]:
            choice.pick(scores(0), [line])
            choice.pick(scores(0), [twin])
        assert line.written == twin.written == [6, 7, 8, 0]
    line.cut(0)
    assert choice.pick(scores(3, 0), [line])[0].id == 3  # nothing is owed any more


def test_where_the_rules_leave_nothing_the_text_ends():
    rules = Rules(never=tuple(range(1, VOCAB)), least=3)
    assert chooser(Sampling(), rules).pick(scores(4), [Line(0, (1,), 9)])[0].id == 0
    with pytest.raises(UserError, match="leave no token"):
        chooser(Sampling(), Rules(never=tuple(range(VOCAB))), eos=None).pick(scores(4), [Line(0, (1,), 9)])


def test_what_the_user_says_of_runs_and_of_the_least_length_goes_before_the_checkpoint():
    said = Rules(ngram=3, least=5)
    assert said.over(Sampling(no_repeat_ngram=0, min_tokens=2)) == Rules(ngram=0, least=2)
    assert said.over(Sampling()) == said


def counted(choice: Chooser, draws: int = 20000) -> torch.Tensor:
    """How often each of 8 tokens was chosen, a draw a line."""
    lines = [choice.line([1], stream_key(5, record, 0), 9) for record in range(draws)]
    ids = [one.id for one in choice.pick(LOGITS.expand(draws, -1), lines)]
    return torch.bincount(torch.tensor(ids), minlength=8).double()


CHOICES = [
    Sampling(temperature=1.0),
    Sampling(temperature=1.3, top_k=2),  # of few tokens left, only those get noise
    Sampling(temperature=1.3, top_p=0.8),
    Sampling(temperature=1.0, typical_p=0.7),
    Sampling(temperature=1.6, min_p=0.2, eta_cutoff=0.2, frequency_penalty=1.0),
]


@pytest.mark.parametrize("sampling", CHOICES, ids=repr)
def test_tokens_are_drawn_with_the_chances_that_the_scores_have_and_a_slip_is_seen(sampling, monkeypatch):
    choice = Chooser(sampling, Rules(), 8, None, frozenset())
    chances = filtered(LOGITS, sampling).softmax(dim=-1)[0]
    assert p_value(counted(choice), chances) > 1e-3
    slips = {
        "warmer": Filter("slip", "", lambda scores, _: scores * 0.7),
        "one more unlikely": Filter("slip", "", lambda scores, _: scores - torch.eye(8)[0] * 0.3),
    }
    for slip in slips.values():
        monkeypatch.setattr(choice, "filters", [*choice.filters, slip])
        assert p_value(counted(choice), chances) < 1e-6
        monkeypatch.undo()
