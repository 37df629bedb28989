"""Tasks: the figures of lm-evaluation-harness with its own backend for transformers, on the same files."""

import json
from dataclasses import replace

import pytest
import yaml
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from llmctl.core.benchmark.run import run
from llmctl.core.benchmark.subject import Subject
from llmctl.core.checkpoint.directory import save_checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.spec.benchmark import Task
from llmctl.spec.families import read_config
from tests.commands.conftest import tiny  # noqa: F401 - a fixture

WORDS = ["the", "list", "of", "things", "that", "a", "thing", "lists"]
CHOICES = ("acc", "acc_norm", "acc_bytes", "brier_score")
FORETOLD = ("acc", "perplexity")
TEXTS = ("exact_match", "bleu", "chrf", "ter")


def text(seed, count):
    return " ".join(WORDS[(seed * 5 + place * (seed % 3 + 1)) % len(WORDS)] for place in range(count))


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):  # noqa: F811
    """A random llama with a token for each of its rows, so that transformers writes no other."""
    path, tokenizer = tmp_path_factory.mktemp("model"), Tokenizer.open(tiny)
    config = replace(read_config(tiny), vocab=tokenizer.size, context=128, eos=(tokenizer.eos,))
    save_checkpoint(path, initialise(Transformer(config), seed=5), config)
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Questions to be asked, and others as examples."""
    place = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "prompt": f"{number} {text(number, 4)}",
            "choices": [text(number + other, other) for other in (1, 2, 4)],
            "answer": number % 3,
            "reference": text(number, 3),
        }
        for number in range(24)
    ]
    gaps = [
        {
            "prompts": [f"so {number} {text(number, 4)} {other}" for other in ("list", "thing", "lists")],
            "completion": text(number + 1, 3),
            "answer": number % 3,
        }
        for number in range(24)
    ]
    sets = {"test": rows[:20], "train": rows[20:], "gaps-test": gaps[:20], "gaps-train": gaps[20:]}
    for name, some in sets.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def theirs(files, model):
    """Results and samples of lm-eval: choices and texts, without examples and with two."""
    data = {name: str(files / f"{name}.jsonl") for name in ("test", "train")}
    shared = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": data}, "test_split": "test",
        "fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}, "doc_to_text": "{{prompt}}",
    }  # fmt: skip
    written = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    for shots in (0, 2):
        one = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}"}
        two = {"output_type": "generate_until", "doc_to_target": "{{reference}}", "generation_kwargs": written}
        three = {"output_type": "loglikelihood", "doc_to_target": " {{reference}}", "target_delimiter": ""}
        data = {name: str(files / f"gaps-{name}.jsonl") for name in ("test", "train")}
        four = one | {
            "dataset_kwargs": {"data_files": data},
            "doc_to_text": "{{answer}}",
            "doc_to_choice": "{{prompts}}",
            "doc_to_target": "{{completion}}",
        }
        kinds = (
            *((f"choice{shots}", one, CHOICES), (f"text{shots}", two, TEXTS)),
            *((f"foretell{shots}", three, FORETOLD), (f"before{shots}", four, ("acc",))),
        )
        for name, kind, metrics in kinds:
            made = {
                **shared,
                **kind,
                "task": name,
                "num_fewshot": shots,
                "metric_list": [{"metric": m} for m in metrics],
            }
            (files / f"{name}.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    names = [f"{kind}{shots}" for kind in ("choice", "text", "foretell", "before") for shots in (0, 2)]
    backend = HFLM(str(model), device="cpu", dtype="float32", batch_size=4)
    manager = TaskManager(include_path=str(files), include_defaults=False)
    return simple_evaluate(backend, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True)


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("kind", ["choice", "text", "foretell", "before"])
def test_figures_are_those_of_lm_eval(files, model, theirs, kind, shots):
    file, examples = (f"{'gaps-' * (kind == 'before')}{name}.jsonl" for name in ("test", "train"))
    options = {"shots": shots, "choose": "first", "examples": str(files / examples)}
    if kind == "before":
        options |= {"metrics": ("acc",)}
    elif kind == "choice":
        options |= {"kind": "choice", "metrics": CHOICES}
    elif kind == "foretell":
        options |= {"kind": "foretell", "metrics": FORETOLD}
    else:
        options |= {"kind": "generate", "metrics": TEXTS, "normalise": "none", "max_tokens": 8, "stop": ("\\n\\n",)}
    outcome = run(Subject.open(model, threads=1), Task(file=str(files / file), name="same", **options))
    samples = sorted(theirs["samples"][f"{kind}{shots}"], key=lambda one: one["doc_id"])
    for mine, other in zip(outcome.samples, samples, strict=True):
        if kind != "before":
            assert mine.prompt == other["arguments"][0][0]
        if kind != "text":
            assert [tuple(one) for one in mine.asked] == [tuple(one) for one in other["arguments"]]
            assert [one for one, _ in mine.replies] == pytest.approx([one[0][0] for one in other["resps"]], abs=2e-4)
            assert [greedy for _, greedy in mine.replies] == [one[0][1] for one in other["resps"]]
        else:
            assert [[one] for one in mine.replies] == other["resps"]
    wanted = theirs["results"][f"{kind}{shots}"]
    for name, figure in outcome.figures.items():
        assert figure.value == pytest.approx(wanted[f"{name},none"], rel=1e-4), name  # fp32 of two programs
