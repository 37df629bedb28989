"""Perplexity against the sliding window of transformers' documentation, and against itself cut otherwise."""

import math

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.metrics import scored as module
from llmctl.core.metrics.passages import Passage
from llmctl.core.metrics.perplexity import Perplexity, Windows, measured, windows
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig

CONFIG = ModelConfig(vocab=90, width=32, layers=2, heads=4, kv_heads=2, ff=64, context=32, init_std=0.3)


def documents(*lengths: int) -> list[Passage]:
    draw = torch.Generator().manual_seed(2)
    return [passage(torch.randint(0, 90, (length,), generator=draw).tolist(), length) for length in lengths]


def passage(ids: list[int], size: int) -> Passage:
    return Passage(ids, size, max(0, len(ids) - 1), words=1)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return initialise(Transformer(CONFIG), seed=1).eval()


def scored(model, passages, window=32, stride=16, **how) -> Perplexity:
    steps = list(measured(Windows(model, window, stride), passages, **how))
    return sum((one.sum for step in steps for one in step.done), Perplexity())


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (16, 1), (16, 15), (16, 5), (64, 32)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_equals_the_strided_loop_of_transformers(kind, window, stride, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    if kind == "llama":
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.LlamaConfig(vocab_size=90, initializer_range=0.2, max_position_embeddings=64, **small)
        theirs = transformers.LlamaForCausalLM(config).eval()
    else:
        config = transformers.GPT2Config(vocab_size=90, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path)
    passages = documents(100, 3, 40)
    total, count = 0.0, 0
    for passage in passages:
        ids = torch.tensor([passage.ids])
        before = 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + window, ids.shape[1])
            targets = ids[:, begin:end].clone()
            targets[:, : -(end - before)] = -100
            with torch.no_grad():
                loss = theirs(ids[:, begin:end], labels=targets).loss  # the mean over labels that count
            labels = int((targets[:, 1:] != -100).sum())
            total, count, before = total + float(loss) * labels, count + labels, end
            if end == ids.shape[1]:
                break
    found = scored(Checkpoint.open(tmp_path).model(), passages, window, stride)
    assert found.tokens == count == 99 + 2 + 39
    assert found.nll_per_token == pytest.approx(total / count, abs=1e-5)  # fp32 logits by two implementations
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 7, 9, 10])
@pytest.mark.parametrize("length", [0, 1, 2, 9, 10, 11, 12, 19, 20, 21, 57])
def test_every_token_but_the_first_is_scored_once_with_the_promised_context(length, stride):
    ids = list(range(length))
    seen = []
    for window in windows(ids, 10, stride):
        assert 2 <= len(window.ids) <= 10
        targets = window.ids[len(window.ids) - window.scored :]
        if seen:
            assert len(window.ids) - window.scored >= 10 - min(stride, 9)
        seen += targets
    assert seen == ids[1:]


def test_batches_and_chunks_change_nothing(model, monkeypatch):
    passages = documents(50, 2, 7, 33, 1, 90)
    whole = scored(model, passages)
    one_by_one = scored(model, passages, batch_tokens=1)
    monkeypatch.setattr(module, "LOGIT_BYTES", 3 * 4 * CONFIG.vocab)
    chunked = scored(model, passages)
    assert whole.tokens == one_by_one.tokens == chunked.tokens == 49 + 1 + 6 + 32 + 89
    assert whole.documents == 5 and whole.bytes == 182
    assert one_by_one.nll == pytest.approx(whole.nll, rel=1e-6)  # rounding in fp32 of other batch shapes
    assert chunked.nll == pytest.approx(whole.nll, rel=1e-6)


def test_a_document_is_not_seen_by_the_next(model):
    first, second = documents(20, 25)
    both = scored(model, [first, second])
    assert both.nll == pytest.approx(scored(model, [first]).nll + scored(model, [second]).nll, rel=1e-6)


def test_a_uniform_model_has_the_vocabulary_as_perplexity(model):
    blank = Transformer(CONFIG).eval()
    found = scored(blank, [passage(list(range(17)), 32)])
    assert found.perplexity == pytest.approx(90, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(16 * math.log2(90) / 32, rel=1e-6)


def test_progress_grows_to_the_result_and_documents_are_done_in_their_order(model):
    steps = list(measured(Windows(model, 16, 8), documents(40, 1, 40, 25), batch_tokens=16))
    assert len(steps) > 3
    assert [step.tokens for step in steps] == sorted(step.tokens for step in steps)
    assert steps[-1].tokens == 39 + 39 + 24
    done = [one for step in steps for one in step.done]
    assert [one.number for one in done] == [0, 1, 2, 3]
    assert [one.sum.tokens for one in done] == [39, 0, 39, 24]
    assert math.fsum(one.sum.nll for one in done) == pytest.approx(steps[-1].nll, rel=1e-9)


def test_what_is_held_is_bounded_by_pools(model):
    read = []

    def many():
        for number in range(400):
            read.append(number)
            yield documents(20)[0]

    for step in measured(Windows(model, 16, 8), many(), batch_tokens=64):
        ahead = len(read) - step.tokens // 19
        assert ahead < 40  # 8 pools of 64 tokens are 25 documents


def test_ids_that_the_model_lacks_are_refused(model):
    with pytest.raises(UserError, match="id 90") as caught:
        scored(model, [passage([1, 90], 2)])
    assert caught.value.code == 4


def test_no_tokens_are_no_perplexity(model):
    empty = scored(model, [])
    assert empty == Perplexity() and math.isnan(empty.perplexity) and math.isnan(empty.bits_per_byte)


def test_scores_that_are_not_numbers_are_an_error():
    broken = initialise(Transformer(CONFIG), seed=1).eval()
    with torch.no_grad():
        broken.decoder.norm.weight[0] = math.nan
    with pytest.raises(UserError, match="not numbers"):
        scored(broken, documents(5))
