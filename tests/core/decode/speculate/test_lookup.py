"""Lookup: what followed the longest run of last tokens where it came last."""

import random

from llmctl.core.decode.speculate.lookup import Index


def index_of(text, run=3):
    index = Index(run)
    index.extend(text)
    return index


def test_the_longest_run_counts_and_then_the_last_place():
    text = [1, 2, 3, 9, 2, 3, 8, 1, 2, 3]
    assert index_of(text).after(text, 2) == [9, 2]  # 1 2 3 came once before
    assert index_of(text, run=2).after(text, 2) == [8, 1]  # 2 3 came twice


def test_guesses_that_reach_the_end_of_the_text_go_round():
    assert index_of([7, 4, 5, 4, 5]).after([4, 5], 5) == [4, 5, 4, 5, 4]
    assert index_of([3, 3]).after([3, 3], 4) == [3, 3, 3, 3]


def test_a_text_without_repetition_gives_no_guess():
    assert index_of([1, 2, 3]).after([1, 2, 3], 4) == []
    assert index_of([]).after([], 4) == []


def test_an_index_that_grows_finds_what_a_search_finds():
    chance = random.Random(0)
    text, index = [], Index()
    for _ in range(400):
        token = chance.randrange(6)
        text.append(token)
        index.extend([token])
        wanted = []
        for size in (3, 2, 1):
            ends = [end for end in range(size, len(text)) if text[end - size : end] == text[len(text) - size :]]
            if ends and len(text) >= size:
                place = ends[-1]
                wanted = [(text[place:] * 5)[step] for step in range(5)]
                break
        assert index.after(text, 5) == wanted
