"""Losses of labels and of tags: sums over micro-batches are those of the whole, and so are the figures."""

import json
import math

import numpy as np
import pytest
import torch

from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.data.examples import Example
from llmctl.core.data.packing import batch_of
from llmctl.core.device import pick
from llmctl.core.metrics.labels import spans
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.loop import evaluate
from llmctl.core.train.measures import Measure
from llmctl.core.train.objectives import labels_loss, tags_loss
from llmctl.core.train.optim import optimizers
from llmctl.core.train.run import Run
from llmctl.spec.classifier import with_classifier
from llmctl.spec.train import TrainConfig
from tests.core.variants import VARIANTS

NAMES = ("O", "B-X", "I-X", "B-Y")
CASES = {
    "single_label": (NAMES[:2], lambda chance: int(chance.integers(2))),
    "multi_label": (NAMES[:3], lambda chance: chance.integers(2, size=3).astype(np.float32)),
    "regression": (("value",), lambda chance: float(chance.normal())),
}


def examples(label, count: int = 9) -> list[Example]:
    """Texts of several lengths; `label` makes theirs."""
    chance, made = np.random.default_rng(0), []
    for _ in range(count):
        ids = chance.integers(4, 61, size=chance.integers(3, 12)).astype(np.int32)
        made.append(Example(ids, np.zeros(len(ids), bool), None, label(chance, ids)))
    return made


def tags(chance: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """Of each second token."""
    return np.where(np.arange(len(ids)) % 2 == 1, chance.integers(len(NAMES), size=len(ids)), IGNORE)


def figures(model: Transformer, task: str, parts: list[list[Example]]) -> dict[str, float]:
    """Of all parts together, and their mean loss."""
    objective, sums = (labels_loss if task == "classify" else tags_loss), {}
    for loss in evaluate(model, [batch_of(task, [[one] for one in part]) for part in parts], objective, pick("cpu")):
        for name, one in {"loss": Measure(loss.total, loss.count), **loss.measures}.items():
            sums[name] = sums[name].plus(one) if name in sums else one
    return {known: value for name, one in sums.items() for known, value in one.figures(name).items()}


def wide(variant: str, task: str, names: tuple[str, ...], problem: str = "single_label") -> Transformer:
    """Scores that vary: matrices drawn large."""
    config = with_classifier(VARIANTS[variant].resized(pad=0, eos=(2,)), task, names, problem)
    return initialise(Transformer(config.resized(init_std=0.5)), 0)


@pytest.mark.parametrize("problem", CASES)
@pytest.mark.parametrize("variant", ["llama", "bert", "t5", "bart"])
def test_figures_of_texts_in_parts_are_those_of_the_whole(variant, problem):
    names, label = CASES[problem]
    model, made = wide(variant, "classify", names, problem), examples(lambda chance, ids: label(chance))
    whole, parts = figures(model, "classify", [made]), figures(model, "classify", [made[:2], made[2:3], made[3:]])
    assert parts == pytest.approx(whole, abs=1e-5)
    expected = {
        "single_label": ("accuracy", "f1", "macro_f1", "matthews"),
        "multi_label": ("accuracy", "f1", "macro_f1"),
    }
    assert set(whole) == {"loss", *expected.get(problem, ("pearson", "rmse"))}
    if problem == "regression":
        assert whole["rmse"] == pytest.approx(math.sqrt(whole["loss"]), rel=1e-4) and abs(whole["pearson"]) <= 1


@pytest.mark.parametrize("variant", ["llama", "bert", "t5"])
def test_figures_of_words_in_parts_are_those_of_the_whole_and_spans_end_with_their_text(variant):
    model, made = wide(variant, "tag", NAMES), examples(tags)
    whole, parts = figures(model, "tag", [made]), figures(model, "tag", [made[:4], made[4:5], made[5:]])
    assert parts == pytest.approx(whole, abs=1e-5)
    with torch.no_grad():
        model.eval()
        best = [model.classify(model(torch.from_numpy(one.ids).long()[None]))[0].argmax(-1).numpy() for one in made]
    found = [spans([NAMES[tag] for tag in row[1::2]]) for row in best]
    true = [spans([NAMES[tag] for tag in one.label[1::2]]) for one in made]
    both, said, there = (sum(map(len, all)) for all in ([a & b for a, b in zip(found, true, strict=True)], found, true))
    assert whole["f1"] == pytest.approx(2 * both / (said + there)) and both > 0
    assert whole["precision"] == pytest.approx(both / said) and whole["recall"] == pytest.approx(both / there)


def test_tags_that_mark_no_spans_have_figures_of_words():
    model = wide("bert", "tag", ("NOUN", "VERB", "DET", "X"))
    assert set(figures(model, "tag", [examples(tags)])) == {"loss", "accuracy", "macro_f1", "matthews"}


def test_a_single_score_without_a_problem_is_trained_as_a_quantity():
    """Such are the rankers of pairs; transformers takes the squared error for them, too."""
    label = CASES["regression"][1]
    made = examples(lambda chance, ids: label(chance))
    found = figures(wide("bert", "classify", ("LABEL_0",)), "classify", [made])
    assert found == figures(wide("bert", "classify", ("LABEL_0",), "regression"), "classify", [made])


def test_a_classifier_learns_and_its_figures_are_recorded(tmp_path):
    """The label is whether the text has token 7; the run's metrics.jsonl says how well that is known."""
    made = examples(lambda chance, ids: int(ids[0]) % 2, 64)
    for one in made:
        one.ids[-1] = 7 if one.label else 8
    model = initialise(Transformer(with_classifier(VARIANTS["llama"], "classify", ("no", "yes"))), 0)

    def batches(step: int) -> list[Batch]:
        return [batch_of("classify", [[one] for one in made])]

    config = TrainConfig(lr=1e-2, steps=8)
    run = Run(
        directory=tmp_path, model=model, optimizers=optimizers(model, config), config=config,
        objective=labels_loss, place=pick("cpu"), steps=8, batches=batches, heldout=lambda: batches(0),
        bytes_per_token=None, eval_every=8, save_every=1e9, write=lambda path: None, labelled=True,
    )  # fmt: skip
    for _ in run.go():
        pass
    first, last = run.evaluations
    assert last.measures["heldout_f1"] == last.measures["heldout_matthews"] == 1 > first.measures["heldout_f1"]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["heldout_accuracy"] == 1 and "heldout_perplexity" not in records[-1]
