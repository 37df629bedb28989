"""Contamination: the runs of words of test records that training text has, against sets of tuples."""

import json
import random

import pytest

from llmctl.core.benchmark.contamination import WORDS, contamination, training_texts
from llmctl.errors import UserError


def made_up(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(["ka", "lo", "mi", "tu", "ren", "sa"]) for _ in range(words))


def test_overlaps_are_those_of_sets_of_tuples():
    """Few words, so that many runs come by chance; block borders fall anywhere."""
    chance = random.Random(0)
    training = [made_up(chance, chance.randint(0, 400)) for _ in range(50)]
    records = [{"a": made_up(chance, chance.randint(0, 20)), "b": {"c": [made_up(chance, 6)]}} for _ in range(200)]
    n = 5
    known = {tuple(text.split()[at : at + n]) for text in training for at in range(len(text.split()) - n + 1)}
    wanted = []
    for record in records:
        texts = [record["a"].split(), record["b"]["c"][0].split()]
        runs = [tuple(text[at : at + n]) in known for text in texts for at in range(len(text) - n + 1)]
        wanted.append(sum(runs) / len(runs))
    found = contamination(records, iter(training), n)
    assert found.overlaps == pytest.approx(wanted)
    assert 0 < found.share < 1 and found.words == sum(len(text.split()) for text in training)


def test_case_marks_and_line_ends_do_not_hide_a_copy():
    text = "The keeper of the light climbs all the stairs each night, and counts them as he goes."
    training = ["Before. " + text.upper().replace(" ", "\n").replace(",", " --") + " After."]
    found = contamination([{"question": text}, {"question": text.replace("stairs", "steps")}], training, 13)
    assert found.overlaps == (1.0, 0.0)


def test_a_short_record_counts_as_a_whole_and_a_shorter_one_not_at_all():
    eight, seven = "one two three four five six seven eight", "one two three four five six seven"
    found = contamination([{"q": eight}, {"q": seven}, {"q": eight + " nine"}], [f"zero {eight} ten"], 13)
    assert found.overlaps == (1.0, None, 0.0)
    assert found.judged == 2 and found.share == 0.5 and found.contaminated == (True, False, False)


def test_a_run_does_not_go_on_from_one_text_to_the_next():
    words = [f"word{number}" for number in range(14)]
    halves = [" ".join(words[:7]), " ".join(words[7:])]
    assert contamination([{"q": " ".join(words)}], halves, 13).share == 0
    assert contamination([{"q": halves}], [" ".join(words)], 13).judged == 0


def test_scripts_without_spaces_are_searched_letter_by_letter():
    text = "灯台守は毎晩すべての階段を上りながら数えている"
    assert len(WORDS.findall(text)) == len(text)
    assert contamination([{"q": text}], [f"昔々。{text}。"], 13).share == 1


def test_training_text_is_found_in_records_and_in_tokens(learned, tmp_path):
    documents = [json.loads(line)["text"] for line in learned.text.read_text(encoding="utf-8").splitlines()]
    long = next(text for text in documents if len(text.split()) > 40)
    tuned = tmp_path / "sft.jsonl"
    tuned.write_text(json.dumps({"messages": [{"role": "user", "content": long}]}) + "\n", encoding="utf-8")
    records = [{"text": text} for text in documents if len(WORDS.findall(text)) >= 13]
    tested = [{"text": long}, {"text": made_up(random.Random(0), 40)}]
    assert contamination(tested, training_texts([str(tuned)])).contaminated == (True, False)
    found = contamination(records, training_texts([str(learned.tokens)]))
    assert 0.9 < found.share < 1  # 5 % of the documents were held out


def test_training_text_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list(training_texts([str(tmp_path / "none")]))
