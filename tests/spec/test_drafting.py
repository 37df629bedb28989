"""Options of guessing ahead: one source, and none that says nothing."""

from pathlib import Path

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.drafting import Drafting


def test_layers_to_skip_are_numbers_and_spans():
    assert Drafting(skip_layers=("2", "4-6", "5")).skipped(8) == {2, 4, 5, 6}
    assert not Drafting(skip_layers=("auto",)).skipped(8)
    assert Drafting(skip_layers=("auto",)).automatic and not Drafting(skip_layers=("2",)).automatic


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lookup": True, "draft_model": Path("d")}, "--draft-model and --lookup both"),
        ({"draft_tokens": 4}, "--draft-tokens says nothing"),
        ({"draft_accept": "most"}, "--draft-accept says nothing"),
        ({"lookup": True, "draft_tokens": 33}, "wanted 1 to 32"),
        ({"lookup": True, "draft_tokens": -1}, "wanted 1 to 32"),
        ({"skip_layers": ("3-",)}, "'3-'"),
        ({"skip_layers": ("5-3",)}, "'5-3'"),
        ({"skip_layers": ("٣",)}, "wanted a layer"),
        ({"skip_layers": ("auto", "3")}, "auto chooses all"),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused_by_name(given, said):
    with pytest.raises(UserError, match=said) as caught:
        Drafting(**given)
    assert caught.value.code == Exit.USAGE


def test_layers_that_are_not_there_and_skipping_all_are_misfits():
    for given, said in (("8", "names layer 8, but the model's 8 layers end with 7"), ("0-7", "leaves no layer")):
        with pytest.raises(UserError, match=said) as caught:
            Drafting(skip_layers=(given,)).skipped(8)
        assert caught.value.code == Exit.MISMATCH


def test_nothing_is_guessed_unless_it_is_asked_for():
    assert not Drafting().on
    assert Drafting(lookup=True).on and Drafting(draft_model=Path("d")).on and Drafting(skip_layers=("1",)).on
