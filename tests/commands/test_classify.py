"""classify: labels, pairs and entities are those of transformers' pipelines; streams and errors."""

import json

import pytest
import torch

from .readers import SHAPE, TEXTS, drawn, saved, tokenizer, transformers

LABELS = {0: "bad", 1: "fair", 2: "good"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


def named(labels):
    return {"id2label": labels, "label2id": {name: id for id, name in labels.items()}}


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def lines(*given):
    return "".join(json.dumps(one) + "\n" for one in given).encode()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    return path, saved(transformers.BertForSequenceClassification, path, **named(LABELS))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    path = tmp_path_factory.mktemp("tagger")
    model = saved(transformers.BertForTokenClassification, path, **named(TAGS))
    with torch.no_grad():  # so that tags vary
        given = [tokenizer()(text, return_tensors="pt") for text in SENTENCES]
        model.classifier.bias.sub_(torch.cat([model(**one).logits[0] for one in given]).mean(0))
    model.save_pretrained(path)
    return path, model


def wanted_of(model, given, **how):
    """By transformers' pipeline, label to score; `given` is a text or a dict of two."""
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer(), top_k=None)
    found = pipe(given, **how)
    return {one["label"]: one["score"] for one in (found[0] if isinstance(found[0], list) else found)}


def test_probabilities_are_those_of_transformers(call, bert):
    done = call("classify", bert[0], "-", "--batch-size", 2, stdin=lines(*({"text": text} for text in TEXTS)))
    assert done.code == 0
    for text, record in zip(TEXTS, records(done.out), strict=True):
        wanted = wanted_of(bert[1], text)
        assert record["scores"] == pytest.approx(wanted, abs=1e-6)  # fp32 of another order of sums
        assert list(record["scores"]) == list(LABELS.values()) and list(record)[:2] == ["text", "label"]
        assert record["label"] == max(wanted, key=wanted.get) and record["score"] == max(record["scores"].values())
        assert sum(record["scores"].values()) == pytest.approx(1, abs=1e-6)


def test_a_second_text_is_read_with_its_own_kind(call, bert):
    pairs = [("the cat", "sat on the mat"), ("paris", "in a b"), ("the " * 30, "cat " * 30)]
    given = [{"text": a, "text_pair": b} for a, b in pairs]
    done = call("classify", bert[0], "-", stdin=lines(*given, {"text": "a", "text_pair": 3}))
    found = records(done.out)
    for (a, b), record in zip(pairs, found, strict=False):
        wanted = wanted_of(bert[1], {"text": a, "text_pair": b}, truncation=True, max_length=40)
        assert record["scores"] == pytest.approx(wanted, abs=1e-6)
    assert done.code == 3 and "'text_pair' that is not a string" in found[3]["error"]
    assert "1 of 4 texts were cut to 40 tokens" in done.err
    typed = call("classify", bert[0], *("-p", "the cat", "--pair", "sat on the mat", "-p", "paris", "--pair", "in a b"))
    assert [one["scores"] for one in records(typed.out)] == [
        pytest.approx(one["scores"], abs=1e-6) for one in found[:2]
    ]
    other = call(
        "classify", bert[0], "-", "--field", "a", "--pair-field", "b", stdin=lines({"a": pairs[1][0], "b": pairs[1][1]})
    )
    assert records(other.out)[0]["scores"] == pytest.approx(found[1]["scores"], abs=1e-6)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [("multi_label_classification", LABELS), ("regression", {0: "stars"}), (None, {0: "match"})],
)
def test_other_problems_have_other_scores(call, tmp_path, problem, labels):
    """Labels that do not exclude each other, a quantity, and one label as rankers of pairs have it."""
    theirs = saved(transformers.BertForSequenceClassification, tmp_path, problem_type=problem, **named(labels))
    for text in TEXTS:
        (record,) = records(call("classify", tmp_path, "-p", text).out)
        wanted = wanted_of(theirs, text)
        assert record["scores"] == pytest.approx(wanted, abs=1e-5)
        assert ("labels" in record) == (problem == "multi_label_classification")
        if "labels" in record:
            assert record["labels"] == [label for label, score in record["scores"].items() if score >= 0.5]
    strict = call("classify", tmp_path, "-p", TEXTS[0], "--threshold", 1)
    assert records(strict.out)[0].get("labels", []) == []


@pytest.mark.parametrize("kind", ["RobertaForSequenceClassification", "DistilBertForSequenceClassification"])
def test_the_heads_of_other_encoders(call, tmp_path, kind):
    shape = {"vocab_size": SHAPE["vocab_size"], "max_position_embeddings": 44, "pad_token_id": 0, **named(LABELS)}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = (
        transformers.RobertaConfig(**shape, **sizes)
        if kind.startswith("Roberta")
        else transformers.DistilBertConfig(**shape, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
    )
    theirs = drawn(getattr(transformers, kind)(config))
    theirs.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    done = call("classify", tmp_path, "-", stdin=lines(*({"text": text} for text in TEXTS)))
    for text, record in zip(TEXTS, records(done.out), strict=True):
        given = tokenizer()(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            wanted = theirs(**given).logits[0].softmax(-1).tolist()
        assert list(record["scores"].values()) == pytest.approx(wanted, abs=1e-6)


def test_an_encoder_decoder_judges_by_its_last_token(call, tmp_path):
    """As BART trained on pairs of sentences does."""
    shape = {"vocab_size": SHAPE["vocab_size"], "d_model": 32, "max_position_embeddings": 40, "eos_token_id": 3}
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in {"layers": 2, "ffn_dim": 48}.items()}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 3}
    ids = {"bos_token_id": 2, "pad_token_id": 0}
    theirs = drawn(
        transformers.BartForSequenceClassification(
            transformers.BartConfig(**shape, **sides, **heads, **ids, **named(LABELS))
        )
    )
    theirs.save_pretrained(tmp_path)
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=framed(), cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", eos_token="[SEP]"
    )
    words.save_pretrained(tmp_path)
    pairs = [("the cat sat", "the cat"), ("paris", "in berlin, new york, paris")]
    done = call("classify", tmp_path, "-", stdin=lines(*({"text": a, "text_pair": b} for a, b in pairs)))
    assert done.code == 0, done.err
    for (a, b), record in zip(pairs, records(done.out), strict=True):
        given = words(a, b, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            wanted = theirs(**given).logits[0].softmax(-1).tolist()
        assert list(record["scores"].values()) == pytest.approx(wanted, abs=1e-6)


def framed():
    """BERT's tokenizer with one end at the end of a pair, as transformers' BART wants equal numbers of them a batch."""
    from tokenizers import Tokenizer, processors

    backend = Tokenizer.from_str(tokenizer().backend_tokenizer.to_str())
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", marks)
    return backend


SENTENCES = [
    "new york in paris, the cat",
    "abcab sating in berlin. the cats on new york",
    "a b c d e f g h i j paris berlin the cat",
    "",
]


@pytest.mark.parametrize("aggregation", ["first", "simple"])
def test_entities_are_those_of_transformers(call, tagger, aggregation):
    pipe = transformers.pipeline(
        "token-classification", model=tagger[1], tokenizer=tokenizer(), aggregation_strategy=aggregation
    )
    given = lines(*({"text": text} for text in SENTENCES))
    found = records(call("classify", tagger[0], "-", "--aggregation", aggregation, stdin=given).out)
    assert sum(len(one["entities"]) for one in found) > 8
    for text, record in zip(SENTENCES, found, strict=True):
        wanted = pipe(text) if text else []
        spans = [(one["entity"], one["start"], one["end"]) for one in record["entities"]]
        assert spans == [(one["entity_group"], one["start"], one["end"]) for one in wanted]
        scores = [one["score"] for one in record["entities"]]
        assert scores == pytest.approx([float(one["score"]) for one in wanted], abs=1e-6)
        assert all(one["text"] == text[one["start"] : one["end"]] for one in record["entities"])


def test_levels_are_what_the_model_was_made_for(call, bert, tagger):
    assert "label" in records(call("classify", bert[0], "-p", "a", "--level", "sequence").out)[0]
    assert "entities" in records(call("classify", tagger[0], "-p", "a", "--level", "token").out)[0]
    done = call("classify", bert[0], "-p", "a", "--level", "token")
    assert done.code == 4 and "3 labels for each text" in done.err
    done = call("classify", tagger[0], "-p", "a", "--level", "sequence")
    assert done.code == 4 and "5 labels for each token" in done.err


def test_records_come_back_in_order_with_their_fields(call, tagger):
    given = b'{"id": 1, "text": "paris"}\nnot json\n{"id": 2, "prompt": "a"}\n{"id": 3}\n'
    done = call("classify", tagger[0], "-", stdin=given)
    found = records(done.out)
    assert done.code == 3 and "2 of 4 texts were not answered" in done.err
    assert [one.get("id") for one in found] == [1, None, 2, 3]
    assert ["error" in one for one in found] == [False, True, False, True]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["-p", "a", "--threshold", "2"], 2, "--threshold is 2"),
        (["-p", "a", "--pair", "b", "--pair", "c"], 2, "2 --pair for 1 -p"),
        (["-p", "a", "--max-tokens", "41"], 2, "at most 40"),
        (["-p", "a", "--max-tokens", "0"], 2, "--max-tokens is 0"),
        (["-p", "a", "-"], 2, "not both"),
    ],
)
def test_what_cannot_be_done_is_said(call, bert, argv, code, words):
    done = call("classify", bert[0], *argv)
    assert (done.code, done.out) == (code, "") and words in done.err and "Traceback" not in done.err


def test_a_model_without_labels_says_what_it_has(call, tiny, tmp_path):
    done = call("classify", tiny, "-p", "a")
    assert done.code == 4 and "no head that scores labels; it has scores of tokens" in done.err
    assert done.err.count("\n") == 2


def byte_level():
    """GPT-2's kind of tokenizer, whose words begin with a space in their token, and which has no pad token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "n"), ("i", "n"), ("Ġ", "in"), ("a", "r"), ("i", "s"), ("ar", "is"), ("P", "aris"), ("Ġ", "Paris")]
    merges += [("Ġ", one) for one in "NY1BFi("]
    vocab = {one: id for id, one in enumerate([*alphabet, *(a + b for a, b in merges), "<|endoftext|>"])}
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def gpt2(kind, path, labels):
    """A decoder with a head for labels, padded with the token that ends a text."""
    words = byte_level()
    sizes = {"vocab_size": len(words), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ends = {"eos_token_id": len(words) - 1, "bos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    model = drawn(getattr(transformers, kind)(transformers.GPT2Config(**sizes, **ends, **named(labels))))
    model.save_pretrained(path)
    words.save_pretrained(path)
    return model, words


def test_a_decoder_judges_by_its_last_token_in_batches_of_unequal_texts(call, tmp_path):
    theirs, words = gpt2("GPT2ForSequenceClassification", tmp_path, LABELS)
    texts = ["in Paris", "no", "in Paris, in New York and in Berlin"]
    done = call("classify", tmp_path, "-", "--batch-size", 3, stdin=lines(*({"text": text} for text in texts)))
    assert done.code == 0, done.err
    for text, record in zip(texts, records(done.out), strict=True):
        with torch.no_grad():
            wanted = theirs(**words(text, return_tensors="pt")).logits[0].softmax(-1).tolist()
        assert list(record["scores"].values()) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("aggregation", ["first", "simple"])
def test_words_of_a_byte_level_tokenizer_are_what_spaces_part_as_in_transformers(call, tmp_path, aggregation):
    theirs, words = gpt2("GPT2ForTokenClassification", tmp_path, TAGS)
    texts = ["in Paris, in New York's 1995 in Berlin", "Paris is in France. (Paris)"]
    with torch.no_grad():  # so that tags vary
        every = torch.cat([theirs(**words(text, return_tensors="pt")).logits[0] for text in texts])
        theirs.classifier.bias.sub_(every.mean(0))
    theirs.save_pretrained(tmp_path)
    pipe = transformers.pipeline(
        "token-classification", model=theirs, tokenizer=words, aggregation_strategy=aggregation, ignore_labels=["O"]
    )
    given = lines(*({"text": text} for text in texts))
    found = records(call("classify", tmp_path, "-", "--aggregation", aggregation, stdin=given).out)
    assert sum(len(one["entities"]) for one in found) > 6
    for text, record in zip(texts, found, strict=True):
        wanted = [(one["entity_group"], text[one["start"] : one["end"]].strip()) for one in pipe(text)]
        assert [(one["entity"], one["text"]) for one in record["entities"]] == [one for one in wanted if one[1]]
