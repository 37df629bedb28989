"""Classifiers against transformers: heads of decoders both ways, losses and gradients of every problem, fresh heads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from llmctl.core.checkpoint.directory import Checkpoint, name_inputs, save_checkpoint
from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.decode.rules import delayed
from llmctl.core.model.init import initialise
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.train import train_tokenizer
from llmctl.core.train.objectives import labels_loss, tags_loss
from llmctl.spec.classifier import with_classifier
from tests.core.variants import VARIANTS
from tests.parity.oracle import CONFIGS
from tests.parity.oracle_encoders import BART, BERT, DISTILBERT, T5

FP32 = {"atol": 1e-5, "rtol": 1e-5}
PAD, EOS, VOCAB = 1, 2, 99
HEADS = {"sequence": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}
LABELS = {0: "no", 1: "perhaps", 2: "yes"}
DECODERS = [
    *("llama", "mistral", "qwen2-tied-window", "qwen3", "gpt2", "bloom", "gemma", "gemma2", "gemma3", "phi3"),
    *("olmo2", "gpt_neox", "smollm3"),
]
NONE_OF_TOKENS = ("gemma3", "olmo2")  # transformers has no such class
PUBLISHED = [(name, head) for name in DECODERS for head in HEADS if head == "sequence" or name not in NONE_OF_TOKENS]


def drawn(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in model.parameters():
            one.copy_(torch.randn(one.shape, generator=generator) * 0.2 + (one.dim() == 1))
    return model.eval()


def rows(side: str | None = "right") -> tuple[Tensor, Tensor]:
    """Two rows of ids that end with EOS, (2, 18) int64, the first padded at that side, and their mask."""
    ids = torch.randint(4, VOCAB, (2, 18), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = EOS
    mask = torch.ones_like(ids)
    if side:
        mask[0, slice(11, None) if side == "right" else slice(0, 7)] = 0
        ids[0, 10 if side == "right" else -1] = EOS
    return torch.where(mask.bool(), ids, PAD), mask


def scores(model: Transformer, ids: Tensor, mask: Tensor) -> Tensor:
    positions, encoder, read = (mask.cumsum(1) - 1).clamp(min=0), None, ids
    if model.config.kind == "encoder-decoder":
        encoder, read = EncoderInput(ids, segments=mask), delayed(ids, model.config)
    return model.classify(model(read, positions=positions, segments=mask, encoder=encoder), mask, ids)


@pytest.mark.parametrize(("name", "head"), PUBLISHED)
def test_a_decoders_classifier_gives_the_scores_of_transformers_and_goes_back_unchanged(name, head, tmp_path):
    config = CONFIGS[name]()
    config.id2label, config.pad_token_id = LABELS, PAD
    theirs = drawn(HEADS[head].from_config(config))
    theirs.save_pretrained(tmp_path / "theirs")
    opened = Checkpoint.open(tmp_path / "theirs")
    assert (opened.config.classifier, opened.config.labels) == (head, tuple(LABELS.values()))
    assert opened.config.model_type == config.model_type
    ours = opened.model()
    assert ours.head is None and ours.classifier.dropout == (theirs.dropout.p if head == "token" else 0)
    with torch.no_grad():
        for side in ("right", "left", None):
            ids, mask = rows(side)
            there = {} if name == "bloom" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
            one, other = scores(ours, ids, mask), theirs(ids, attention_mask=mask, **there).logits
            seen = mask.bool() if head == "token" else slice(None)
            torch.testing.assert_close(one[seen], other[seen], **FP32)
    (tmp_path / "ours").mkdir()
    save_checkpoint(tmp_path / "ours", ours, opened.config)
    back, report = HEADS[head].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()) and type(back) is type(theirs), report
    assert back.config.id2label == LABELS and back.config.problem_type == opened_problem(head)
    for (one, parameter), (_, again) in zip(theirs.named_parameters(), back.named_parameters(), strict=True):
        assert torch.equal(parameter, again), one
    assert Checkpoint.open(tmp_path / "ours").config == opened.config


def opened_problem(head: str) -> str | None:
    return "single_label_classification" if head == "sequence" else None


def test_a_text_that_ends_with_the_pad_token_is_judged_before_it_as_in_transformers(tmp_path):
    """GPT-2 has no pad token of its own; the token that ends a text pads, and is not looked at where it ends one."""
    config = CONFIGS["gpt2"]()
    config.pad_token_id = config.eos_token_id
    theirs = drawn(AutoModelForSequenceClassification.from_config(config))
    theirs.save_pretrained(tmp_path)
    ours, (ids, mask) = Checkpoint.open(tmp_path).model(), rows(None)
    ids[0, 12:] = EOS
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).logits
        torch.testing.assert_close(scores(ours, ids, mask), expected, **FP32)
        assert not torch.allclose(ours.classify(ours(ids)), expected, atol=1e-2)


PROBLEMS = {
    "single_label": ("single_label_classification", 3, torch.tensor([2, 0])),
    "multi_label": ("multi_label_classification", 3, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
    "regression": ("regression", 1, torch.tensor([0.7, -2.0])),
    "regressions": ("regression", 2, torch.tensor([[0.7, 1.0], [-2.0, 3.0]])),
}
SHAPES = {
    "bert": lambda **how: transformers.BertConfig(**BERT, **how),
    "roberta": lambda **how: transformers.RobertaConfig(**BERT, **how),
    "distilbert": lambda **how: transformers.DistilBertConfig(**DISTILBERT, **how),
    "t5": lambda **how: transformers.T5Config(**T5, **how),
    "bart": lambda **how: transformers.BartConfig(**BART, **how),
    **{name: lambda name=name, **how: changed(CONFIGS[name](), **how) for name in ("llama", "gpt2")},
}


def changed(config: object, id2label: dict, problem_type: str | None = None) -> object:
    config.id2label, config.problem_type, config.pad_token_id = id2label, problem_type, PAD
    return config


def compare_step(theirs: PreTrainedModel, directory: Path, objective, target: dict[str, Tensor]) -> None:
    """Loss and every gradient of a step on two padded rows; theirs come here as a checkpoint of gradients."""
    theirs.save_pretrained(directory / "weights")
    ours, (ids, mask) = Checkpoint.open(directory / "weights").model(writable=True), rows()
    types = (torch.arange(18) >= 9).long().expand_as(ids) if ours.config.token_types > 1 else None
    there = {} if types is None else {"token_type_ids": types}
    loss = theirs(ids, attention_mask=mask, labels=next(iter(target.values())), **there).loss
    loss.backward()
    blank = torch.full_like(ids, IGNORE)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    batch = Batch(ids, blank, positions, mask, 2, int(mask.sum()), types)._replace(**target)
    if objective is tags_loss:
        batch = batch._replace(scored=int((batch.targets != IGNORE).sum()))
    found = objective(ours, batch)
    assert found.measures == {} and found.count == batch.scored
    torch.testing.assert_close(found.total / found.count, loss, **FP32)
    (found.total / found.count).backward()
    with torch.no_grad():
        for one in theirs.parameters():
            one.copy_(torch.zeros_like(one) if one.grad is None else one.grad)
    theirs.save_pretrained(directory / "gradients")
    expected = Checkpoint.open(directory / "gradients").model().state_dict()
    for name, parameter in ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        near = {"rtol": 1e-5, "atol": 1e-5 * max(1.0, float(expected[name].abs().max()))}  # sums of the largest terms
        torch.testing.assert_close(gradient, expected[name], **near, msg=lambda text, name=name: f"{name}: {text}")


STEPS = [(name, problem) for name in SHAPES for problem in ("single_label", "multi_label", "regression")]


@pytest.mark.parametrize(("name", "problem"), [*STEPS, ("bert", "regressions"), ("llama", "regressions")])
def test_a_step_on_labels_of_texts_is_that_of_transformers(name, problem, tmp_path):
    spelled, count, labels = PROBLEMS[problem]
    config = SHAPES[name](id2label={i: str(i) for i in range(count)}, problem_type=spelled)
    theirs = drawn(AutoModelForSequenceClassification.from_config(config))
    compare_step(theirs, tmp_path, labels_loss, {"labels": labels})


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"bart"}))
def test_a_step_on_tags_of_words_is_that_of_transformers(name, tmp_path):
    theirs = drawn(AutoModelForTokenClassification.from_config(SHAPES[name](id2label=LABELS)))
    _, mask = rows()
    tags = torch.randint(0, 3, mask.shape, generator=torch.Generator().manual_seed(2))
    asked = mask.bool() & (torch.arange(mask.shape[1]) % 3 == 1)
    compare_step(theirs, tmp_path, tags_loss, {"targets": torch.where(asked, tags, IGNORE)})


FRESH = ["bert", "roberta", "distilbert", "t5", "t5 of old", "bart", "llama", "gpt2", "gemma2", "bloom", "neox"]


@pytest.mark.parametrize(
    ("variant", "task"),
    [(one, task) for one in FRESH for task in ("classify", "tag") if (one, task) != ("bart", "tag")],
)
def test_a_fresh_head_on_any_model_opens_in_transformers_with_its_labels(variant, task, tmp_path):
    base = VARIANTS[variant].resized(vocab=VOCAB, pad=PAD, eos=(EOS,))
    base = base.resized(decoder_start=PAD if base.kind == "encoder-decoder" else None)
    problem = "multi_label" if task == "classify" else "single_label"
    config = with_classifier(base, task, tuple(LABELS.values()), problem)
    save_checkpoint(tmp_path, initialise(Transformer(config), 0), config)
    auto = HEADS["sequence" if task == "classify" else "token"]
    theirs, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.config.id2label == LABELS and theirs.config.label2id == {name: id for id, name in LABELS.items()}
    assert theirs.config.problem_type == ("multi_label_classification" if task == "classify" else None)
    opened = Checkpoint.open(tmp_path)
    assert opened.config == config and theirs.config.pad_token_id == PAD
    ids, mask = rows()
    with torch.no_grad():
        expected = theirs.eval()(ids, attention_mask=mask).logits
        found = scores(opened.model(), ids, mask)
    seen = mask.bool() if task == "tag" else slice(None)
    torch.testing.assert_close(found[seen], expected[seen], **FP32)


def test_transformers_tells_the_texts_of_a_pair_apart_where_the_model_does(tmp_path):
    """Its tokenizers give kinds of tokens only where they are named: scores of pairs were off by a little."""
    train_tokenizer(["one text and another text"] * 9, "wordpiece").save(tmp_path)
    name_inputs(tmp_path, VARIANTS["roberta"])  # has one kind
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path)("one", "another")
    name_inputs(tmp_path, VARIANTS["bert"])
    assert AutoTokenizer.from_pretrained(tmp_path)("one", "another")["token_type_ids"][-2:] == [1, 1]
