"""Choices: the likeliest text, by several measures; and how records say which one is right."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.core.benchmark.run import run
from llmctl.core.benchmark.subject import Subject
from llmctl.core.metrics.likelihood import continuation, likelihoods
from llmctl.errors import Exit, UserError
from tests.commands.readers import saved, tokenizer, transformers

ROWS = [
    {"prompt": "the list of", "choices": ["things", "the", "lists it"], "answer": 0},
    {"prompt": "that the thing", "choices": ["list", "lists the list", "of"], "answer": 1},
    {"prompt": "list", "choices": ["of the things", "é", "a thing"], "answer": 2},
    {"prompt": "the thing that", "choices": ["lists", "thing", "o"], "answer": 0},
]
EVERY = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "brier_score")


def test_a_prediction_is_the_likeliest_choice_by_each_measure(decoder, asked):
    outcome = asked(decoder, ROWS, metrics=EVERY)

    def nll(context, text):
        (found,) = likelihoods(decoder.model, [continuation(decoder.tokenizer, context, text, decoder.config)])
        return found.nll

    for row, sample in zip(ROWS, outcome.samples, strict=True):
        after = [-nll(row["prompt"], f" {choice}") for choice in row["choices"]]
        alone = [-nll("", f" {choice}") for choice in row["choices"]]
        by = {
            "acc": after,
            "acc_norm": [one / len(choice) for one, choice in zip(after, row["choices"], strict=True)],
            "acc_bytes": [one / len(choice.encode()) for one, choice in zip(after, row["choices"], strict=True)],
            "acc_mutual_info": [one - two for one, two in zip(after, alone, strict=True)],
        }
        for name, values in by.items():
            assert sample.scores[name] == (values.index(max(values)) == row["answer"]), name
        total = sum(map(math.exp, after))
        assert sample.chances == pytest.approx([math.exp(one) / total for one in after], rel=1e-4)
        assert sample.said == row["choices"][after.index(max(after))]
        truth = [number == row["answer"] for number in range(3)]
        brier = sum((one - two) ** 2 for one, two in zip(sample.chances, truth, strict=True))
        assert sample.scores["brier_score"] == pytest.approx(brier)
    assert list(outcome.figures) == list(EVERY)
    assert outcome.figures["brier_score"].higher_is_better is False
    assert outcome.choices == ()


def test_batches_change_nothing(decoder, asked):
    whole = asked(decoder, ROWS)
    decoder.batch_tokens = 8
    single = asked(decoder, ROWS)
    decoder.batch_tokens = 8192
    for one, other in zip(whole.samples, single.samples, strict=True):
        assert one.chances == pytest.approx(other.chances, rel=1e-4)  # sums of fp32 in another order


@pytest.mark.parametrize("answer", [1, "1", "B", "b", "the", [1], ["the"], True])
def test_an_answer_is_a_number_a_letter_or_a_text(decoder, asked, answer):
    outcome = asked(decoder, [{**ROWS[0], "answer": answer}])
    assert outcome.samples[0].right == (1,)


def test_choices_may_have_labels_and_an_answer_several_that_are_right(decoder, asked):
    rows = [
        {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["3", "4"]}, "answerKey": "4"},
        {"question": "Which?", "choices": ["a", "b", "c"], "answer": [0, 2]},
        {"question": "2 + 1?", "choices": {"text": ["2", "3", "1"], "label": ["1", "2", "3"]}, "answerKey": "2"},
        {"question": "2 + 1?", "choices": {"text": ["2", "3", "1"], "label": [1, 2, 3]}, "answerKey": 2},
        {"question": "2 + 1?", "choices": {"text": ["2", "3", "1"], "label": ["1", "2", "3"]}, "answer": 1},
    ]
    outcome = asked(decoder, rows)
    assert [sample.right for sample in outcome.samples] == [(1,), (0, 2), (1,), (1,), (1,)]  # a label before the rest
    assert outcome.samples[0].prompt == "Question: Which?\nAnswer:"
    best = max(range(3), key=outcome.samples[1].chances.__getitem__)
    assert outcome.samples[1].scores["acc"] == (best in (0, 2))


def test_choices_that_all_records_share_have_figures_of_labels(decoder, asked):
    from sklearn import metrics

    rows = [{"text": "the list of things that a thing lists"[number:], "label": number % 2} for number in range(30)]
    template = "{{ text }}"
    outcome = asked(
        decoder, rows, kind="choice", choice=("of", "list"), template=template, metrics=("f1", "macro_f1", "mcc")
    )
    said = [outcome.choices.index(sample.said) for sample in outcome.samples]
    true = [row["label"] for row in rows]
    assert len(set(said)) == 2  # else the figures would tell nothing
    assert outcome.figures["f1"].value == pytest.approx(metrics.f1_score(true, said))
    assert outcome.figures["macro_f1"].value == pytest.approx(metrics.f1_score(true, said, average="macro"))
    assert outcome.figures["mcc"].value == pytest.approx(metrics.matthews_corrcoef(true, said))
    assert outcome.samples[0].prompt == rows[0]["text"]


def test_a_language_model_is_given_the_labels_of_the_records_as_choices(decoder, asked):
    rows = [{"text": "a thing", "label": "pos"}, {"text": "the list", "label": 0}, {"text": "a list", "label": "neg"}]
    outcome = asked(decoder, rows[:1] + rows[2:], kind="classify", template="sentiment/1")
    assert outcome.choices == ("negative", "positive")
    assert outcome.samples[0].target == "positive" and outcome.samples[0].prompt == "a thing\nSentiment:"
    assert list(outcome.figures) == ["acc", "f1", "macro_f1", "mcc"]
    stars = [{"text": f"a thing {number}", "label": number} for number in (1, 2, 4)]
    outcome = asked(decoder, stars, kind="classify", shots=1, limit=2)  # of all, though two are asked
    assert outcome.choices == ("1", "2", "4") and [one.target for one in outcome.samples] == ["1", "2"]


def test_f1_of_more_than_two_choices_is_refused(decoder, asked):
    with pytest.raises(UserError, match="second of two choices, but there are 3") as error:
        asked(decoder, ROWS, metrics=("f1",))
    assert error.value.code == Exit.MISMATCH


def test_a_long_prompt_loses_its_beginning_and_is_counted(decoder, asked):
    outcome = asked(decoder, [{**ROWS[0], "prompt": "thing " * 200}, ROWS[1]])
    assert outcome.cut == 1 and [sample.cut for sample in outcome.samples] == [True, False]


@pytest.mark.parametrize(
    "record, wrong",
    [
        ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "'answer' is 2, which is none of its 2 choices"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": -1}, "'answer' is -1"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": []}, "empty list"),
        ({"prompt": "a", "choices": ["b", "c"]}, "has none of 'answer', 'label'"),
        ({"prompt": "a", "choices": ["b", ""], "answer": 0}, "'choices' is not a list of texts"),
        ({"prompt": "a", "answer": 0}, "'choices' is not a list of texts"),
        ({"choices": ["b", "c"], "answer": 0}, "the record has none of 'prompt'"),
        ({"prompt": "a", "choices": ["b", "c " * 200], "answer": 0}, "to be scored, but the model's context holds 64"),
    ],
)
def test_a_record_that_is_not_so_is_named_with_its_line(decoder, asked, record, wrong):
    with pytest.raises(UserError, match=wrong) as error:
        asked(decoder, [ROWS[0], record])
    assert ".jsonl:2: " in error.value.problem


def test_records_stand_in_for_those_of_the_file_but_examples_are_the_files(decoder, task):
    made = task(ROWS, shots=3, choose="first", delimiter=" = ")
    changed = [{**row, "prompt": row["prompt"].upper()} for row in ROWS]
    outcome = run(decoder, made, changed)
    assert outcome.samples[0].prompt == (
        "that the thing = lists the list\n\nlist = a thing\n\nthe thing that = lists\n\nTHE LIST OF"
    )  # never what was asked itself, however it is spelled
    assert outcome.samples[0].record == changed[0]
    path = f"{Path(made.file).parent}/./{Path(made.file).name}"  # the same file by another name
    assert run(decoder, replace(made, examples=path), changed).samples[0].prompt == outcome.samples[0].prompt
    with pytest.raises(ValueError, match="3 records in place of 4"):
        run(decoder, made, changed[:3])


def test_fewer_examples_than_wanted_are_counted(decoder, asked):
    assert asked(decoder, ROWS, shots=4).few == 4
    assert asked(decoder, ROWS, shots=3).few == 0


def test_a_conversation_has_examples_as_turns(decoder, asked):
    outcome = asked(
        decoder, ROWS[:2], shots=1, chat_template="plain", system="Choose.", instruction="One of them.", separator=" "
    )
    assert outcome.samples[0].prompt == (
        "Choose.\n\nUser: One of them. that the thing\nAssistant: lists the list<|endoftext|>\n"
        "User: the list of\nAssistant:"
    )
    assert outcome.samples[0].asked[0][1] == "things"  # no delimiter


def test_an_encoder_finds_the_choice_that_is_likeliest_token_by_token(asked, tmp_path):
    import torch

    model = saved(transformers.BertForMaskedLM, tmp_path / "bert", hidden_size=64)
    row = {"prompt": "the cat", "choices": ["sat", "on the mat", "abab"], "answer": 0}
    sample = asked(Subject.open(tmp_path / "bert", threads=1), [row]).samples[0]
    words, mask = tokenizer(), tokenizer().mask_token_id
    wanted = []
    for choice in row["choices"]:
        ids, total = words(f"the cat {choice}")["input_ids"], 0.0
        pieces = words.convert_ids_to_tokens(ids)
        for place in range(3, len(ids) - 1):
            hidden, after = list(ids), place
            while after == place or pieces[after].startswith("##"):  # and the rest of its word
                hidden[after] = mask
                after += 1
            with torch.no_grad():
                scores = model(torch.tensor([hidden])).logits[0, place].log_softmax(-1)
            total += float(scores[ids[place]])
        wanted.append(total)
    assert [nll for nll, _ in sample.replies] == pytest.approx(wanted, abs=1e-4)  # fp32 of two programs
