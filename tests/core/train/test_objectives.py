"""Every objective trains its kind of model, the same however a step is cut and however a run is broken off."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.data.batch import HELD_OUT, IGNORE, Place
from llmctl.core.data.rows import builder
from llmctl.core.data.shards import ShardWriter, Tokens, token_dtype, write_tokens
from llmctl.core.data.vocabulary import Vocabulary
from llmctl.core.device import Place as Device
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.train import train_tokenizer
from llmctl.core.train.cross_entropy import linear_cross_entropy
from llmctl.core.train.objectives import OBJECTIVES, masked_loss
from llmctl.core.train.pretrain import prepare
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.noise import SUITS, NoiseConfig, made_for
from llmctl.spec.plan import TrainPlan
from llmctl.spec.train import TrainConfig, Watch

MARKS = (*(f"<extra_id_{n}>" for n in range(20)), "<fim_prefix>", "<fim_middle>", "<fim_suffix>")
SMALL = {"width": 32, "layers": 2, "heads": 4, "ff": 48, "context": 48, "model_type": "llmctl"}
CPU = Device(torch.device("cpu"), torch.float32)
CASES = [(objective, kind) for objective, kinds in SUITS.items() for kind in kinds]


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Tokens:
    """Sixty documents of words, six held out, by a tokenizer that has every special token an objective needs."""
    words = ["anna", "saw", "the", "red", "boat", "sail", "home."]
    texts = [" ".join((words * 6)[n % 7 : n % 7 + 20 + n % 11]) for n in range(60)]
    tokenizer = train_tokenizer(texts, "wordpiece", 120, MARKS)
    directory = tmp_path_factory.mktemp("marked") / "tokens"
    directory.mkdir()
    splits = {}
    for name, part in (("train", texts[:54]), ("heldout", texts[54:])):
        writer = ShardWriter(directory, name, token_dtype(tokenizer.size))
        ids = [[*tokenizer.encode(text), tokenizer.eos] for text in part]
        writer.write(np.concatenate(ids), np.cumsum([len(one) for one in ids]), sum(len(t.encode()) for t in part))
        splits[name] = writer.close()
    write_tokens(directory, tokenizer, tokenizer.eos, splits)
    return Tokens.open(directory)


def shape_for(objective: str, kind: str, tokens: Tokens) -> ModelConfig:
    extra = {"position": "relative"} if kind == "encoder-decoder" else {}
    return made_for(objective, ModelConfig(vocab=tokens.vocab, kind=kind, **SMALL, **extra))


def start(directory, tokens, objective, kind, steps=12, seed=3):
    directory.mkdir(exist_ok=True)
    config = TrainConfig(steps=steps, batch_tokens=192, block=48, micro_batch=2, lr=1e-2, optimizer="muon")
    plan = TrainPlan.of(shape_for(objective, kind, tokens), config, tokens.splits["train"].tokens, "fp32")
    return prepare(directory, tokens, None, plan, config, Watch(eval_every=6), CPU, objective, NoiseConfig(), seed)


def digest(directory):
    return sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("objective, kind", CASES)
def test_a_run_broken_off_ends_with_the_bytes_of_one_that_was_not(tmp_path, marked, objective, kind):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run = start(whole, marked, objective, kind)
    assert len(list(run.go())) == 12 + 3
    run.finish()
    for stop in (5, 12):
        run = start(broken, marked, objective, kind)
        for _ in run.go():
            if run.done == stop:
                break
        run.save() if stop < 12 else run.finish()
    assert digest(broken) == digest(whole)


@pytest.mark.parametrize("objective, kind", CASES)
def test_every_objective_learns_what_it_asks_for(tmp_path, marked, objective, kind):
    run = start(tmp_path / "run", marked, objective, kind, steps=160 if kind == "encoder" else 40)
    list(run.go())
    first, last = run.evaluations[0], run.evaluations[-1]
    assert last.loss < 0.7 * first.loss
    assert (first.bits_per_byte is not None) == (objective == "clm")
    if kind == "encoder":
        assert last.measures["heldout_accuracy"] > 0.3 > first.measures["heldout_accuracy"]  # a guess: 1 in 7


@pytest.mark.parametrize("objective, kind", CASES)
def test_the_gradient_of_a_step_does_not_depend_on_how_it_is_cut(marked, objective, kind):
    shape = shape_for(objective, kind, marked)
    model = initialise(Transformer(shape, "cpu", torch.float32), 0).train()
    build = builder(objective, kind, NoiseConfig(), Vocabulary.of(marked.tokenizer(), marked.vocab), 0)
    source, places = marked.splits["train"], [Place(29 * n, 0, n) for n in range(8)]
    loss = OBJECTIVES[objective]
    weight = {"pair_weight": 5.0} if objective == "mlm+nsp" else {}

    def gradients(micro: int) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        batches = [build(source, places[first : first + micro], 48) for first in range(0, 8, micro)]
        scored = sum(batch.scored for batch in batches)
        for batch in batches:
            (loss(model, batch, **weight).total / scored).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole = gradients(8)
    for micro in (1, 4):
        torch.testing.assert_close(gradients(micro), whole, atol=2e-6, rtol=1e-4)  # sums in another order


@pytest.mark.parametrize("objective, kind", CASES)
def test_rows_whose_documents_see_each_other_train_unless_they_would_see_what_they_are_asked_for(
    tmp_path, marked, objective, kind
):
    config = TrainConfig(steps=2, batch_tokens=90, block=45, micro_batch=2, cross_document=True)  # 45: no multiple of 8
    shape = replace(shape_for(objective, kind, marked), context=45, position="learned")
    corpus = marked.splits["train"].tokens
    if (objective, kind) == ("prefix", "decoder"):
        with pytest.raises(UserError, match="--cross-document does not go with --objective prefix"):
            TrainPlan.of(shape, config, corpus, "fp32", objective=objective)
        return
    plan = TrainPlan.of(shape, config, corpus, "fp32", objective=objective)
    run = prepare(tmp_path, marked, None, plan, config, Watch(), CPU, objective, NoiseConfig(), 0)
    assert all(step.loss > 0 for step in run.go() if hasattr(step, "lr"))
    assert run.done == 2


def test_a_checkpoint_with_more_heads_than_the_objective_trains_goes_on_exactly_and_keeps_them(tmp_path, marked):
    shape = shape_for("mlm+nsp", "encoder", marked)
    model, base = initialise(Transformer(shape, "cpu", torch.float32), 0), tmp_path / "base"
    base.mkdir()
    save_checkpoint(base, model, shape, tokenizer_from=marked.path)
    config = TrainConfig(steps=4, batch_tokens=192, block=48, micro_batch=2)
    plan = TrainPlan.of(shape, config, marked.splits["train"].tokens, "fp32")

    def going_on(directory):
        directory.mkdir(exist_ok=True)
        return prepare(directory, marked, base, plan, config, Watch(), CPU, "mlm", NoiseConfig(), 0)

    for name, stop in (("whole", None), ("broken", 2), ("broken", None)):
        run = going_on(tmp_path / name)
        for _ in run.go():
            if run.done == stop:
                break
        run.finish() if stop is None else run.save()
    assert digest(tmp_path / "whole") == digest(tmp_path / "broken") != digest(base)
    trained = Checkpoint.open(tmp_path / "whole").model().state_dict()
    for name, before in model.state_dict().items():
        assert torch.equal(trained[name], before) == name.startswith(("pooler.", "next_sentence."))


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp"])
def test_only_chosen_places_meet_the_head_and_the_loss_is_that_of_all_of_them(marked, objective):
    shape = replace(shape_for(objective, "encoder", marked), head_transform=True, head_bias=True, norm="layer")
    model = initialise(Transformer(shape, "cpu", torch.float32), 0)
    build = builder(objective, "encoder", NoiseConfig(), Vocabulary.of(marked.tokenizer(), marked.vocab), 0)
    batch = build(marked.splits["train"], [Place(0, HELD_OUT, 0), Place(200, HELD_OUT, 1)], 48)
    with torch.no_grad():
        found = masked_loss(model, batch, pair_weight=1.0 if objective == "mlm+nsp" else 0.0)
        hidden = model(batch.tokens, batch.positions, batch.segments, types=batch.types)
        logits = model.head(hidden)
    wanted = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    assert 0 < found.count < batch.tokens.numel() / 4
    torch.testing.assert_close(found.total, wanted, atol=1e-4, rtol=1e-6)
    right = (logits.argmax(-1) == batch.targets).sum()
    assert found.measures["accuracy"][:2] == (right, found.count)
    assert ("next_sentence_accuracy" in found.measures) == (objective == "mlm+nsp")


def test_a_biased_and_capped_head_has_the_loss_and_gradients_of_plain_autograd():
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(*size, requires_grad=True) for size in ((9, 16), (40, 16), (40,)))
    targets = torch.randint(0, 40, (9,))
    targets[3] = IGNORE
    logits = 2.5 * torch.tanh((hidden @ weight.t() + bias) / 2.5)
    wanted = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    found = linear_cross_entropy(hidden, weight, targets, bias, 2.5)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    leaves = (hidden, weight, bias)
    for ours, theirs in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
