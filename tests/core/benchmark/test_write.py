"""Writing: answers are what generate writes, and their figures those of the metrics themselves."""

import pytest

from llmctl.core.benchmark.run import run
from llmctl.core.decode.prompt import prompt_ids
from llmctl.errors import UserError
from llmctl.spec.sample import Sampling

ROWS = [
    {"prompt": "the list of", "reference": "the things"},
    {"prompt": "that the thing", "references": ["lists it", "a list of things"]},
    {"prompt": "things", "reference": "the thing that lists the list"},
]


def written(subject, prompts, tokens):
    ids = [prompt_ids(subject.tokenizer, prompt, subject.config) for prompt in prompts]
    return [one.text for one in subject.write(ids, Sampling(max_tokens=tokens), (), 0)]


def test_figures_are_those_of_the_metrics_on_what_was_written(decoder, task):
    import sacrebleu

    said = written(decoder, [row["prompt"] for row in ROWS], 8)
    rows = [{**ROWS[0], "reference": said[0].upper()}, *ROWS[1:]]
    outcome = run(decoder, task(rows, metrics=("exact_match", "f1", "bleu", "chrf++", "ter", "rougeL"), max_tokens=8))
    assert [sample.said for sample in outcome.samples] == said
    assert outcome.figures["exact_match"].value == pytest.approx(1 / 3)
    assert outcome.samples[0].scores["f1"] == 1
    first = [sample.targets[0] for sample in outcome.samples]
    second = [sample.targets[1] if len(sample.targets) > 1 else None for sample in outcome.samples]
    bleu = sacrebleu.corpus_bleu(said, [first, second])
    assert outcome.figures["bleu"].value == pytest.approx(bleu.score)
    assert outcome.figures["chrf++"].value == pytest.approx(
        sacrebleu.corpus_chrf(said, [first, second], word_order=2).score
    )
    ter = outcome.figures["ter"]
    assert ter.value == pytest.approx(sacrebleu.corpus_ter(said, [first, second]).score)
    assert not ter.higher_is_better and ter.stderr > 0
    assert outcome.written > 0 and outcome.read > 0


def test_neighbours_and_batches_change_nothing(decoder, task):
    together = [sample.said for sample in run(decoder, task(ROWS * 9, max_tokens=6)).samples]
    alone = [run(decoder, task([row], max_tokens=6)).samples[0].said for row in ROWS]
    assert together == alone * 9


def test_an_answer_ends_at_a_stop_and_with_examples_at_what_is_between_them(decoder, task):
    (text,) = written(decoder, ["the list of"], 12)
    middle = text[len(text) // 2]
    outcome = run(decoder, task(ROWS[:1], max_tokens=12, stop=(middle,)))
    assert outcome.samples[0].said == text[: text.index(middle)]
    options = {"shots": 1, "choose": "first", "max_tokens": 12, "separator": "|"}
    shown = run(decoder, task(ROWS, **options)).samples[0]
    assert shown.prompt == "that the thing lists it|the list of"
    assert "|" not in shown.said


def test_only_what_is_extracted_is_compared(decoder, task):
    (text,) = written(decoder, ["the list of"], 12)
    found = run(decoder, task([{"prompt": "the list of", "reference": text[3:7]}], max_tokens=12, normalise="none",
                              extract=r"(?s)^.{3}(.{4})"))  # fmt: skip
    assert found.figures["exact_match"].value == 1
    assert found.samples[0].replies == (text,)


def test_a_template_says_what_the_answer_is(decoder, task):
    rows = [{"q": "list?", "a": "thing"}, {"q": "thing?", "a": "list"}]
    outcome = run(decoder, task(rows, template="Q: {{ q }}\nA: ||| {{ a }}", shots=1, max_tokens=2))
    assert outcome.kind == "generate"
    assert outcome.samples[0].prompt == "Q: thing?\nA: list\n\nQ: list?\nA:"
    assert [sample.target for sample in outcome.samples] == ["thing", "list"]


def test_a_long_prompt_leaves_room_for_the_answer(decoder, task):
    outcome = run(decoder, task([{**ROWS[0], "prompt": "thing " * 100}], max_tokens=500))
    assert outcome.cut == 1
    assert 0 < outcome.written <= 32  # half of the context of 64


def test_a_record_without_a_reference_is_named(decoder, task):
    with pytest.raises(UserError, match=r"\.jsonl:2: the record has none of 'references'"):
        run(decoder, task([ROWS[0], {"prompt": "a"}], max_tokens=2))
    with pytest.raises(UserError, match=r"\.jsonl:1: the record's 'references' is not a text"):
        run(decoder, task([{"prompt": "a", "references": []}], max_tokens=2))


def test_questions_as_squad_has_them(decoder, task):
    rows = [
        {"question": "What?", "context": "A list.", "answers": {"text": ["list", "a list"], "answer_start": [2, 0]}},
        {"question": "Why?", "context": "A list.", "answers": {"text": [], "answer_start": []}},
    ]
    outcome = run(decoder, task(rows, max_tokens=2))
    assert [sample.targets for sample in outcome.samples] == [("list", "a list"), ("unanswerable",)]
    assert outcome.samples[0].prompt == "A list.\n\nQuestion: What?\nAnswer:"
