"""Shots: chosen by stream, by place or by likeness, and put in words."""

import pytest

from llmctl.core.text.shots import Pool, Shot, Words, rendered
from llmctl.errors import UserError
from llmctl.spec.shots import Shots

TEXTS = ["a red apple", "a green apple tree", "a blue sky", "the red sky at night", "a pear"]
POOL = [Shot(number, text, f" A{number}") for number, text in enumerate(TEXTS)]


def numbers(shots, query="a red sky", number=0, pool=POOL):
    return [shot.number for shot in Pool(pool, shots).choose(number, query)]


def test_likeness_is_the_cosine_of_rare_words_worked_out_by_hand():
    from math import log, sqrt

    words = Words(["cat dog", "cat cat fish"])
    cat, dog, fish = log(3 / 2), log(3 / 1), log(3 / 1)
    assert words.rarity == pytest.approx({"cat": cat, "dog": dog, "fish": fish})
    twice = (1 + log(2)) * cat
    lengths = sqrt(cat**2 + dog**2), sqrt(twice**2 + fish**2)
    found = words.likeness("CAT, cow; dog!")
    assert found == pytest.approx([1.0, cat * twice / lengths[0] / lengths[1]])  # cow is not known


def test_letters_of_scripts_without_spaces_are_words():
    assert Words(["猫が好き", "犬が好き"]).likeness("猫")[0] > Words(["猫が好き", "犬が好き"]).likeness("猫")[1] == 0


def test_similar_ones_come_best_first_and_ties_by_place():
    assert numbers(Shots(shots=2, choose="similar"), "a green tree") == [1, 0]
    assert numbers(Shots(shots=5, choose="similar"), "nothing alike") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("choose", ["seed", "first", "similar"])
def test_an_example_that_asks_the_same_is_never_shown_and_fewer_shots_are_the_first_of_more(choose):
    pool = [*POOL, Shot(5, "a red apple", " again")]
    every = numbers(Shots(shots=9, choose=choose), "a red apple", pool=pool)
    assert sorted(every) == [1, 2, 3, 4]
    assert numbers(Shots(shots=2, choose=choose), "a red apple", pool=pool) == every[:2]


def test_a_draw_depends_on_the_seed_and_the_number_of_the_query_alone():
    draws = [tuple(numbers(Shots(shots=3, seed=seed), number=number)) for seed in (0, 1) for number in range(20)]
    assert draws == [tuple(numbers(Shots(shots=3, seed=s), "other", n)) for s in (0, 1) for n in range(20)]
    assert len(set(draws)) > 20 and {number for draw in draws for number in draw} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("choose", "order", "shown"),
    [
        ("first", "auto", [0, 1, 2]),
        ("first", "similar", [2, 0, 1]),
        ("similar", "first", [0, 1, 4]),
        ("similar", "auto", [4, 0, 1]),
    ],
)
def test_order_is_apart_from_choice(choose, order, shown):
    pool = Pool(POOL, Shots(shots=3, choose=choose, order=order))
    query = "a green tree" if order != "similar" else "green tree"
    assert [shot.number for shot in pool.ordered(pool.choose(0, query), 0, query)] == shown


def test_the_most_similar_stands_last_and_a_seeded_order_of_others_is_a_shuffle():
    chosen = Pool(POOL, Shots(shots=4, choose="similar")).choose(0, "a red sky")
    shown = Pool(POOL, Shots(shots=4, choose="similar")).ordered(chosen, 0, "a red sky")
    assert shown == chosen[::-1]
    orders = {
        tuple(Pool(POOL, Shots(shots=4, choose="similar", order="seed", seed=s)).ordered(chosen, 0, "a red sky"))
        for s in range(8)
    }
    assert len(orders) > 1 and all(set(order) == set(chosen) for order in orders)


SUM = Shot(0, "Q: 2+3?\nA:", " 5", "Two and three are five.")
BARE = Shot(1, "Q: 1+1?\nA:", " 2")


@pytest.mark.parametrize(
    ("shots", "said"),
    [
        (Shots(rationale=""), "Q: 2+3?\nA: 5\n\nQ: 1+1?\nA: 2\n\nQ: 4?\nA:"),
        (
            Shots(instruction="Add.", separator="\\n--\\n"),
            "Add.\n--\nQ: 2+3?\nA: Two and three are five. The answer is 5\n--\nQ: 1+1?\nA: 2\n--\nQ: 4?\nA:",
        ),
        (
            Shots(think=True, therefore="So"),
            "Q: 2+3?\nA: Let's think step by step. Two and three are five. So 5\n\n"
            "Q: 1+1?\nA: Let's think step by step. 2\n\nQ: 4?\nA: Let's think step by step.",
        ),
    ],
)
def test_a_chain_of_thought_stands_between_question_and_answer(shots, said):
    record = {"reasoning": " Two and three are five.\n", "rationale": None}
    chosen = [SUM._replace(reasoning=shots.reasoning(record)), BARE]
    assert rendered(shots, chosen, "Q: 4?\nA:") == said


def test_without_shots_and_instruction_the_prompt_is_the_query():
    assert rendered(Shots(shots=0), [], "Q:") == "Q:"


def test_impossible_counts_are_refused():
    with pytest.raises(UserError, match="--shots is -1"):
        Shots(shots=-1)
