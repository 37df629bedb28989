"""Templates: every phrasing of every task, fields by whatever name, and what a template may not do."""

import pytest

from llmctl.core.text.phrasings import LABEL_WORDS, TEMPLATES
from llmctl.core.text.templates import Prompted, mapped, open_template, prompt_of, template_of
from llmctl.errors import UserError

RECORDS = {
    "alpaca": {"instruction": "Name a tree.", "input": "Not oak.", "output": "Ash."},
    "summarise": {"article": "A long text.", "highlights": "Short."},
    "translate": {"source": "Hallo", "target": "Hello", "source_language": "German", "target_language": "English"},
    "qa": {"question": "Who?", "context": "It was she.", "answers": {"text": ["She", "her"]}},
    "nli": {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
    "sentiment": {"sentence": "A fine film.", "label": "1"},
    "entities": {"tokens": ["Ada", "Lovelace", "in", "London"], "tags": ["B-PER", "I-PER", "O", "B-LOC"]},
}
ANSWERS = {
    "alpaca": "Ash.",
    "summarise": "Short.",
    "translate": "Hello",
    "qa": "She",
    "nli": "yes",
    "sentiment": "positive",
    "entities": "Ada Lovelace (PER); London (LOC)",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_phrasing_asks_with_all_that_is_given_and_answers_with_the_answer(name):
    made = [open_template(f"{name}/{way}")(RECORDS[name]) for way in range(1, len(TEMPLATES[name]) + 1)]
    assert len({one.prompt for one in made}) == len(made)
    given = {key: value for key, value in RECORDS[name].items() if isinstance(value, str) and value != ANSWERS[name]}
    for prompt, completion in made:
        assert completion.strip() == ANSWERS[name]
        # a newline ends the prompt, or a space begins the completion, so that no token has to straddle the border
        assert completion == ANSWERS[name] if prompt.endswith("\n") else completion == f" {ANSWERS[name]}"
        assert not prompt.endswith(" ") and "{" not in prompt
        for value in (value for key, value in given.items() if key not in ("label", "source_language")):
            assert value in prompt or key_of(given, value) == "highlights"


def key_of(record: dict, value: str) -> str:
    return next(key for key, one in record.items() if one == value)


@pytest.mark.parametrize("name", [name for name in TEMPLATES if len(TEMPLATES[name]) > 1])
def test_the_phrasing_of_a_record_follows_from_the_seed_and_from_what_is_asked(name):
    ways = [open_template(f"{name}/{way}") for way in range(1, len(TEMPLATES[name]) + 1)]
    three, four = open_template(name, seed=3), open_template(name, seed=4)
    if name == "entities":
        records = [{"text": f"x {n}", "entities": "none"} for n in range(40)]
    else:
        said = {key for key, value in RECORDS[name].items() if isinstance(value, str) and key != "label"}
        records = [{key: f"{v} {n}" if key in said else v for key, v in RECORDS[name].items()} for n in range(40)]
    chosen = [[way(one) for way in ways].index(three(one)) for one in records]
    assert set(chosen) == set(range(len(ways)))
    assert chosen != [[way(one) for way in ways].index(four(one)) for one in records]
    answer = {"summarise": "highlights", "translate": "target", "qa": "answers", "entities": "entities"}.get(
        name, "label"
    )
    for one in records:
        assert three(dict(reversed(one.items()))) == three(one)
        assert three({key: value for key, value in one.items() if key != answer}) == Prompted(three(one).prompt, None)


def test_languages_are_named_by_the_fields_that_stand_for_the_texts():
    record = {"translation": {"de": "Hallo", "en": "Hello"}}
    worded = template_of("translate/2", mapping={"source": "translation.de", "target": "translation.en"})
    assert worded(record) == ("German: Hallo\nEnglish:", " Hello")
    assert open_template("translate/2")({"source": "a", "target": "b"}) == ("Text: a\nTranslation:", " b")


def test_fields_are_found_by_names_of_others_and_deep_in_a_record():
    assert mapped({"a": {"b": [{"c": 1}]}}, {"label": "a.b.0.c"})["label"] == 1
    assert mapped({"a.b": 2}, {"label": "a.b"})["label"] == 2
    with pytest.raises(UserError, match=r"no field 'a\.x', only 'a'"):
        mapped({"a": {"b": 1}}, {"label": "a.x"})


def test_labels_without_a_word_are_said_as_they_are():
    assert set(LABEL_WORDS) <= set(TEMPLATES)
    assert open_template("sentiment/1")({"text": "x", "label": "mixed"}).completion == " mixed"
    assert open_template("nli/1")({"premise": "x", "hypothesis": "y", "label": "neutral"}).completion == " maybe"
    assert open_template("sentiment/1")({"text": "x", "label": True}).completion == " positive"


def test_an_instruction_without_an_input_has_a_wording_of_its_own():
    for record in ({"instruction": "Go."}, {"instruction": "Go.", "input": ""}, {"instruction": "Go.", "input": None}):
        prompt, completion = prompt_of({**record, "output": "Gone."})
        assert "### Input" not in prompt and prompt.endswith("### Instruction:\nGo.\n\n### Response:\n")
        assert completion == "Gone."


def test_without_a_template_a_record_is_taken_as_it_is():
    assert prompt_of({"prompt": "a ", "completion": " b\n"}) == ("a ", " b\n")
    assert prompt_of({"prompt": "a"}) == ("a", None)
    assert prompt_of({"text": "a"}) == ("a", None)
    with pytest.raises(UserError, match="none of 'prompt', 'instruction' and 'text'"):
        prompt_of({"q": "a"})


def test_a_file_is_a_template_byte_for_byte_but_for_the_blanks_between_its_halves(tmp_path):
    file = tmp_path / "t.jinja"
    for text, wanted in (
        ("Q: {{ q }}\nA: ||| {{ a }}\n", ("Q: x\nA:", " y")),
        ("Q: {{ q }}\nA:|||{{ a }}", ("Q: x\nA:", "y")),
        ("{{ q }}\n\n|||\n{{ a }}\n", ("x\n\n", "y")),
        ("{% if q %}\n{{ q }}\n{% endif %}\n>", ("x\n>", None)),
        ("{{ q }} {{ missing | default('-') }}|||{{ a }}", ("x -", "y")),
    ):
        file.write_text(text, encoding="utf-8")
        assert open_template(str(file))({"q": "x", "a": "y"}) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{{ q.__class__ }}|||y", "cannot be rendered|no what its template needs|has no"),
        ("{{ ''.__class__.__mro__ }}|||y", "cannot be rendered|has no"),
        ("{% for i in range(10**9) %}{% endfor %}|||y", "cannot be rendered"),
        ("{{ q.append(1) }}|||y", "cannot be rendered|has no"),
        ("{% if %}|||y", "is not Jinja"),
        ("{{ q }}|||a|||b", "once"),
        ("  ", "to hold a prompt"),
        ("{{ nothing }}|||y", "has no 'nothing'"),
    ],
)
def test_a_template_that_is_none_or_reaches_out_of_its_sandbox_is_refused(tmp_path, text, wanted):
    file = tmp_path / "t.jinja"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=wanted):
        open_template(str(file))({"q": ["x"]})


def test_a_name_that_is_no_template_is_refused_with_those_there_are():
    for name in ("summary", "qa/9", "qa/x", "qa/0"):
        with pytest.raises(UserError, match="qa"):
            open_template(name)
    with pytest.raises(UserError, match=r"has no 'question' \(nor 'query'\); its fields are 'text'") as found:
        open_template("qa/1")({"text": "x"})
    assert found.value.hint.endswith("--map question=THEIRS")


def test_a_record_may_name_a_built_in_template_and_no_file(tmp_path):
    record = {"question": "Who?", "answer": "She."}
    assert prompt_of({**record, "template": "qa/1"}) == ("Question: Who?\nAnswer:", " She.")
    assert prompt_of({**record, "template": "qa/1"}, open_template("alpaca")) == ("Question: Who?\nAnswer:", " She.")
    assert prompt_of({**record, "template": "other", "prompt": "a"}) == ("a", None)
    (tmp_path / "t").write_text("secret")
    assert prompt_of({**record, "template": str(tmp_path / "t"), "prompt": "a"}) == ("a", None)
    with pytest.raises(UserError, match="qa/9"):
        prompt_of({**record, "template": "qa/9"})
