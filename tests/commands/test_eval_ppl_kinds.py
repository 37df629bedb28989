"""eval-ppl of encoders and encoder-decoders: pseudo-log-likelihood and span loss, as plain loops of transformers."""

import json
import math

import numpy as np
import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.data.read import Document
from llmctl.core.metrics.noised import Noised
from llmctl.core.metrics.passages import Framing, Passage
from llmctl.core.metrics.pseudo import Pseudo
from llmctl.spec.scoring import Masking

from .readers import saved, tokenizer, transformers

TEXTS = ["the cats sat on the mat.", "abab sating new york in berlin", "the " * 70]


def report(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    return path, saved(transformers.BertForMaskedLM, path)


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return ["texts.txt", "--documents", "line"]


def hidden_with(masking: Masking, place: int, words: list[int | None]) -> list[int]:
    """The places that are masked where one is scored, by the words that transformers' tokenizer sees."""
    same = [at for at, word in enumerate(words) if word == words[place]]
    return {"token": [place], "word-l2r": [at for at in same if at >= place], "word": same}[masking]


@pytest.mark.parametrize("masking", ["token", "word-l2r", "word"])
def test_each_token_of_an_encoder_is_masked_once(call, bert, tmp_path, masking):
    path, theirs = bert
    text = "the cats abab sating in berlin."
    given = tokenizer()(text)
    ids, words = given["input_ids"], given.word_ids()
    total = 0.0
    for place in range(1, len(ids) - 1):
        row = list(ids)
        for at in hidden_with(masking, place, words):
            row[at] = tokenizer().mask_token_id
        with torch.no_grad():
            total -= float(theirs(torch.tensor([row])).logits[0, place].log_softmax(-1)[ids[place]])
    (tmp_path / "text.txt").write_text(text)
    found = report(call("eval-ppl", path, "text.txt", "--masking", masking, "--batch-tokens", 50))
    assert found["tokens"] == len(ids) - 2 > len(text.split()) and found["bytes"] == len(text)
    assert found["nll_per_token"] == pytest.approx(total / (len(ids) - 2), rel=1e-5)
    assert f"score:pseudo-log-likelihood|masking:{masking}|" in found["signature"]
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / len(text), rel=1e-5)


def test_an_encoders_windows_overlap_and_score_each_token_once(bert):
    checkpoint = Checkpoint.open(bert[0])
    model, words = checkpoint.model(), checkpoint.tokenizer()
    method = Pseudo(model, words, 12, 4, "token")
    passage = Framing(words, model.config, None).text(Document("the cat sat on " * 9, "here"))
    parts = list(method.parts(passage))
    assert [one.target for one in parts] == passage.ids and len(parts) == 36
    assert all(len(one.ids) <= 12 and one.ids[one.place] == words.mask for one in parts)
    assert all(one.ids.count(words.mask) == 1 for one in parts)
    assert min(one.place for one in parts[10:]) >= 6  # 1 for [CLS], and what the window before had read


def test_all_texts_of_an_encoder_are_scored_as_each_is_alone(call, bert, lines, tmp_path):
    together = report(call("eval-ppl", bert[0], *lines, "--samples", "s.jsonl"))
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [one["doc_id"] for one in samples] == [0, 1, 2]
    for text, sample in zip(TEXTS, samples, strict=True):
        (tmp_path / "one.txt").write_text(text)
        alone = report(call("eval-ppl", bert[0], "one.txt"))
        assert sample["scores"]["nll_per_token"] == pytest.approx(alone["nll_per_token"], rel=1e-5)
    assert together["tokens"] == sum(one["scores"]["tokens"] for one in samples)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    from .readers import drawn

    path = tmp_path_factory.mktemp("t5")
    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{one}" for one in ("the", "cat", "sat", "on", "mat")), *"abcdefghij"]
    backend = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    roles = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    sentinels = [f"<extra_id_{n}>" for n in range(20)]
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=sentinels, **roles)
    config = transformers.T5Config(
        vocab_size=len(words), d_model=32, d_ff=48, d_kv=8, num_heads=4, num_layers=2, decoder_start_token_id=0
    )
    theirs = drawn(transformers.T5ForConditionalGeneration(config))
    theirs.save_pretrained(path)
    words.save_pretrained(path)
    return path, theirs, words


def test_the_span_loss_is_that_of_transformers_on_the_same_noise(call, t5, lines):
    path, theirs, words = t5
    checkpoint = Checkpoint.open(path)
    method = Noised(checkpoint.model(), checkpoint.tokenizer(), 24, None)
    framing = Framing(checkpoint.tokenizer(), checkpoint.config, None)
    parts = [part for text in TEXTS for part in method.parts(framing.text(Document(text, "here")))]
    assert len(parts) > 4
    total, tokens = 0.0, 0
    for part in parts:
        said = words.decode(part.ids)
        assert said.startswith("<pad><extra_id_0>") and said.endswith("</s>")
        assert words.decode(part.encoder).endswith("</s>") and "<extra_id_0>" in words.decode(part.encoder)
        labels = torch.tensor([part.targets])
        with torch.no_grad():
            total += float(theirs(input_ids=torch.tensor([part.encoder]), labels=labels).loss) * labels.numel()
        tokens += labels.numel()
    found = report(call("eval-ppl", path, *lines, "--window", 24))
    assert found["tokens"] == tokens and found["nll_per_token"] == pytest.approx(total / tokens, rel=1e-5)
    assert found["bits_per_byte"] is None and "score:span|density:0.15|mean_span:3.0|seed:0" in found["signature"]


def test_noise_depends_on_the_text_and_the_seed_alone(call, t5, lines, tmp_path):
    first = report(call("eval-ppl", t5[0], *lines, "--samples", "all.jsonl"))
    assert report(call("eval-ppl", t5[0], *lines))["nll_per_token"] == first["nll_per_token"]
    assert report(call("eval-ppl", t5[0], *lines, "--seed", 1))["nll_per_token"] != first["nll_per_token"]
    (tmp_path / "one.txt").write_text(TEXTS[1])
    alone = report(call("eval-ppl", t5[0], "one.txt"))
    second = json.loads((tmp_path / "all.jsonl").read_text().splitlines()[1])
    assert second["scores"]["nll"] == pytest.approx(alone["nll_per_token"] * alone["tokens"], rel=1e-6)


def test_a_bart_says_the_whole_text_again(call, tmp_path, lines):
    from .readers import drawn

    small = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
    small |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    words = tokenizer()
    config = transformers.BartConfig(
        vocab_size=len(words), max_position_embeddings=80, decoder_start_token_id=2, **small
    )
    theirs = drawn(transformers.BartForConditionalGeneration(config))
    theirs.save_pretrained(tmp_path / "bart")
    words.save_pretrained(tmp_path / "bart")
    found = report(call("eval-ppl", "bart", *lines))
    plain = sum(len(words(text)["input_ids"]) for text in TEXTS)
    assert found["tokens"] == plain and "score:denoise|rate:0.3" in found["signature"]  # [CLS] and [SEP] are said too
    done = call("eval-ppl", "bart", *lines, "--undo", "span")
    assert done.code == 4 and "sentinels" in done.err


def test_noise_takes_its_share(t5):
    checkpoint = Checkpoint.open(t5[0])
    method = Noised(checkpoint.model(), checkpoint.tokenizer(), 101, "span")
    ids = np.random.default_rng(0).integers(4, 9, 1000).tolist()
    parts = list(method.parts(Passage(ids, 0, len(ids))))
    assert len(parts) == 10
    assert all(len(one.targets) == 15 + 5 + 1 for one in parts)  # 15 tokens, 5 sentinels, the end
