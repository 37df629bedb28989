"""Constrained output: what a random model writes fits the schema, the expression or the grammar that it is held to."""

import json
import re
import sys

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.guide import Grammar
from llmctl.core.decode.line import Line
from llmctl.core.decode.rules import Rules
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.guide import Form, Guiding
from llmctl.spec.sample import Sampling

pytest.importorskip("llguidance", reason="the extra that constrains")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dög"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


def choice(tokenizer: Tokenizer, form: Form, text: str, sampling: Sampling, vocab: int = 300) -> Chooser:
    eos = frozenset([tokenizer.eos])
    guides = Grammar(tokenizer, eos, form, text)
    return Chooser(sampling, Rules(), vocab, tokenizer.size, eos, "cpu", guides)


def written(choice: Chooser, tokenizer: Tokenizer, key: int, limit: int = 200) -> tuple[str, Line]:
    """The text that scores without any sense lead to, and its line."""
    line = choice.line([5], key, limit)
    draw = torch.Generator().manual_seed(key)
    while line.step < limit and not line.done:
        if choice.pick(torch.randn(1, 300, generator=draw), [line])[0].id in choice.eos:
            break
    return tokenizer.decode(line.written), line


@pytest.mark.parametrize("kind", ["byte_bpe", "byte_fallback"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=20)], ids=["greedy", "sampled"])
def test_json_fits_its_schema_in_the_order_of_its_properties(kind, sampling, request):
    tokenizer = request.getfixturevalue(kind)
    chooser = choice(tokenizer, "schema", json.dumps(SCHEMA), sampling)
    texts = set()
    for key in range(4):
        text, _ = written(chooser, tokenizer, key)
        record = json.loads(text)
        assert list(record) == list(SCHEMA["properties"])
        assert len(record["name"]) <= 6 and record["kind"] in ("cat", "dög")
        assert type(record["age"]) is int and 0 <= record["age"] <= 150
        assert 1 <= len(record["tags"]) <= 3 and {type(tag) for tag in record["tags"]} == {bool}
        texts.add(text)
    assert len(texts) == 4


def test_a_text_matches_its_expression_and_ends_where_it_may(byte_bpe):
    chooser = choice(byte_bpe, "regex", r"([0-9]{3}-){1,2}[a-c]+é?", Sampling(temperature=1.0))
    for key in range(6):
        text, line = written(chooser, byte_bpe, key)
        assert re.fullmatch(r"([0-9]{3}-){1,2}[a-c]+é?", text)
        assert line.written[-1] == byte_bpe.eos or line.done


def test_a_text_follows_a_grammar(byte_bpe):
    chooser = choice(byte_bpe, "grammar", 'start: "(" start ")" | "x"\n', Sampling(temperature=1.0))
    text, _ = written(chooser, byte_bpe, 1)
    assert text.count("(") == text.count(")") and text.strip("()") == "x"


def test_a_tokenizer_of_words_with_a_mark_is_followed_by_what_its_tokens_add_to_a_text():
    """T5's: llguidance does not read its file by itself."""
    words = ["<pad>", "</s>", "<unk>", "▁", "▁a", "a", "b", "▁b", "▁", "-"]
    backend = tokenizers.Tokenizer(models.Unigram([(word, -1.0) for word in dict.fromkeys(words)], unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer = Tokenizer(backend, {"eos_token": "</s>"})
    guide = Grammar(tokenizer, frozenset([1]), "regex", " a b|b").guide()
    allowed = [tokenizer.token(int(id)) for id in guide.allowed(tokenizer.size).nonzero()[0]]
    assert sorted(allowed) == sorted(["▁", "▁a", "b"])
    for token in ("▁a", "▁b"):
        guide.push(tokenizer.id(token))
    assert guide.done and guide.allowed(tokenizer.size).nonzero()[0].tolist() == [1]


def test_a_copy_goes_its_own_way_and_a_cut_goes_back(byte_bpe):
    chooser = choice(byte_bpe, "regex", "ab(cd|ef)g", Sampling())
    line = chooser.line([5], 0, 20, byte_bpe.encode("ab"))
    twin = line.copy()
    for token in byte_bpe.encode("cdg"):
        line.push(token)
    assert line.done and not twin.done
    logits = torch.zeros(1, 300)
    may = (chooser.scores(logits, [twin])[0] > -torch.inf).nonzero()[:, 0].tolist()
    assert {byte_bpe.decode([token]) for token in may} == {"c", "e"}
    line.push(byte_bpe.eos)
    line.cut(2)
    assert torch.equal(chooser.scores(logits, [line]), chooser.scores(logits, [twin]))
    line.push(byte_bpe.encode("z")[0])  # as an unchecked draft may
    line.push(byte_bpe.encode("c")[0])
    assert (chooser.constrained(logits, [line]) == -torch.inf).all()
    line.cut(2)
    assert torch.equal(chooser.scores(logits, [line]), chooser.scores(logits, [twin]))


def test_a_model_without_an_end_of_text_is_done_where_nothing_can_follow(byte_bpe):
    guides = Grammar(byte_bpe, frozenset(), "regex", "[ab]{3}")
    chooser = Chooser(Sampling(temperature=1.0), Rules(), 300, byte_bpe.size, frozenset(), "cpu", guides)
    text, line = written(chooser, byte_bpe, 3)
    assert line.done and re.fullmatch("[ab]{3}", text)
    optional = Grammar(byte_bpe, frozenset(), "regex", "(ab)?").guide()
    # llguidance knows an end by its name, and would have it here
    assert optional.allowed(300)[byte_bpe.encode("a")[0]] and not optional.allowed(300)[byte_bpe.eos]


@pytest.mark.parametrize(
    "form, text, said",
    [
        ("schema", '{"type": "object"', "is not JSON"),
        ("schema", '{"type": "nope"}', "Invalid type: nope"),
        ("schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("regex", "(", "unclosed group"),
        ("regex", r"a(?=b)", "look-around"),
        ("grammar", "start: nothing", "nothing"),
    ],
)
def test_what_cannot_be_followed_is_refused_with_its_reason_on_a_line(byte_bpe, form, text, said):
    with pytest.raises(UserError, match=said) as caught:
        Grammar(byte_bpe, frozenset([byte_bpe.eos]), form, text)
    assert f"--{form}" in caught.value.problem and "\n" not in caught.value.problem


def test_without_the_extra_the_hint_is_how_to_install_it(byte_bpe, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match="--schema needs llguidance") as caught:
        Grammar(byte_bpe, frozenset([0]), "schema", "{}")
    assert "llmctl[guide]" in caught.value.hint


def test_one_form_is_followed_at_a_time_and_its_file_is_read(tmp_path):
    with pytest.raises(UserError, match="--schema and --regex"):
        Guiding(schema=tmp_path / "s.json", regex="a")
    with pytest.raises(UserError, match=r"--schema: .* does not exist"):
        Guiding(schema=tmp_path / "s.json").read()
    (tmp_path / "g.lark").write_text('start: "é"', encoding="utf-8")
    assert Guiding(grammar=tmp_path / "g.lark").read() == ("grammar", 'start: "é"')
    assert Guiding(regex="a").read() == ("regex", "a")
    assert Guiding().read() is None
