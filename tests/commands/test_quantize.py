"""quantize: reports, refusals, memory, and what the commands that follow make of OUT."""

import json
import subprocess
import sys

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.compress.quant.run import cast, stream
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.quant import QuantConfig
from llmctl.spec.quant_plan import QuantPlan
from llmctl.spec.safetensors import read_tensors
from tests.conftest import environment

SHAPE = {"vocab": 96, "width": 64, "layers": 2, "heads": 4, "ff": 128, "context": 64, "init_std": 0.2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Llama with random weights, without a tokenizer."""
    path = tmp_path_factory.mktemp("quantize") / "model"
    path.mkdir()
    config = ModelConfig(**SHAPE, kv_heads=2, tie=False)
    save_checkpoint(path, initialise(Transformer(config), 0), config)
    return path


def report(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["metrics"]


def test_the_report_says_what_became_of_each_matrix_and_of_all_bytes(model, run, tmp_path):
    metrics = report(run("quantize", model, "--scheme", "int4", "-o", "out", "--json"))
    stored = read_tensors(tmp_path / "out")
    assert metrics["bytes"] == metrics["after"]["bytes"] == sum(info.bytes for info in stored.values())
    assert metrics["bytes"] == sum(part["bytes"] for part in metrics["groups"].values())
    layers = {one["name"]: one for one in metrics["layers"]}
    assert len(layers) == metrics["matrices"] == 14
    assert sum(one["bytes"] for one in layers.values()) <= metrics["groups"]["layers"]["bytes"]
    before, after = (Checkpoint.open(path).model().requires_grad_(False) for path in (model, tmp_path / "out"))
    for name, one in layers.items():
        weight, made = before.get_submodule(name).weight, after.get_submodule(name).dense()
        error = (made - weight).square().sum() / weight.square().sum()
        assert one["relative_error"] == pytest.approx(float(error), rel=1e-4)
        assert one["shape"] == "x".join(map(str, weight.shape))
    again = run("quantize", model, "--scheme", "int4", "-o", "out")
    assert (again.returncode, again.stdout) == (0, "out\n")
    assert "is up to date" in again.stderr
    assert run("quantize", model, "--scheme", "int4", "-o", "out", "--fail-under", "smaller=9").returncode == 6
    assert "is counted as if it were not" in run("memcalc", "out", "--mode", "inference").stderr
    assert run("memcalc", "out", "--mode", "inference", "--quantize", "int4-g64").stderr == ""
    twice = run("quantize", "out", "-o", "twice")
    assert twice.returncode == 4
    assert "out is quantized (compressed-tensors)" in twice.stderr


@pytest.mark.parametrize(
    ("scheme", "most"),
    [("int8", 0.01), ("int3", 0.25), ("int2", 0.9), ("w8a8", 0.01), ("fp8", 0.03), ("nf4", 0.12), ("mxfp4", 0.15)],
)
def test_every_scheme_is_written_as_planned_and_opens_again(model, scheme, most, tmp_path):
    plan = QuantPlan.of(model, QuantConfig(scheme=scheme))
    tmp_path.joinpath("out").mkdir()
    records = stream(plan, tmp_path / "out", 2, torch.device("cpu"))
    assert sum(info.bytes for info in read_tensors(tmp_path / "out").values()) == plan.bytes
    assert all(0 < one["relative_error"] ** 0.5 < most for one in records)
    assert [one["name"] for one in records] == list(plan.matrices)
    opened = Checkpoint.open(tmp_path / "out").model()
    assert torch.isfinite(opened.head(opened(torch.arange(9)[None]))).all()


def test_a_cast_changes_all_tensors_and_refuses_what_the_type_does_not_reach(model, tmp_path):
    for name in ("half", "wide", "out"):
        (tmp_path / name).mkdir()
    cast(QuantPlan.of(model, QuantConfig(scheme="bf16")), tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    one, other = Checkpoint.open(model).model(writable=True), Checkpoint.open(tmp_path / "half").model()
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with torch.no_grad():
        one.embed.tokens.weight[0, 0] = 1e6
    save_checkpoint(tmp_path / "wide", one, one.config)
    with pytest.raises(UserError, match=r"embed_tokens.weight holds numbers that fp16 does not reach"):
        cast(QuantPlan.of(tmp_path / "wide", QuantConfig(scheme="fp16")), tmp_path / "out")
    with torch.no_grad():
        one.decoder.layers["1"].mlp.up.weight[3, 3] = float("nan")
    save_checkpoint(tmp_path / "wide", one, one.config)
    with pytest.raises(UserError, match=r"layers.1.mlp.up of .* holds numbers that are not finite"):
        stream(QuantPlan.of(tmp_path / "wide", QuantConfig()), tmp_path / "out", 1, torch.device("cpu"))


def test_a_missed_threshold_leaves_nothing(model, run, tmp_path):
    missed = run("quantize", model, "-o", "out", "--fail-under", "smaller=9")
    assert missed.returncode == 6
    assert "smaller is " in missed.stderr
    assert not list(tmp_path.iterdir())


def test_a_dry_run_tells_sizes_and_writes_nothing(model, run, tmp_path):
    done = run("quantize", model, "--scheme", "nf4", "-o", "out", "--dry-run", "--json")
    facts = json.loads(done.stdout)
    assert facts["scheme"] == "nf4"
    assert facts["bytes"] < facts["bytes_before"]
    assert len(facts["layers"]) == 14
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--method", "gptq"], 2, "--calibration TEXT"),
        (["--method", "qat"], 2, "--method qat trains on text"),
        (["--calibration", "x"], 2, "--calibration says nothing"),
        (["text.txt"], 2, "--method rtn trains on nothing"),
        (["--scheme", "fp16", "--method", "hqq"], 2, "is a cast"),
        (["--group-size", "48"], 4, "do not divide by it"),
        (["--keep", "nonsense"], 2, "--keep nonsense is no matrix"),
        (["--fail-under", "kept=0.9"], 2, "needs --eval"),
        (["--steps", "9", "--seed", "1", "--damp", "1"], 2, "--steps, --seed, --damp say nothing beside --method rtn"),
        (["--method", "awq", "--calibration", "x", "--damp", "0.1"], 2, "--damp says nothing beside --method awq"),
        (["--method", "awq", "--calibration", "x", "--clip", "mse"], 2, "a search of its own"),
        (["--calibration-tokens", "99"], 2, "--calibration-tokens says nothing"),
        (["--scheme", "mxfp4", "--method", "gptq"], 2, "error: --method gptq rounds to whole numbers, not"),
        (["--eval-tokens", "99"], 2, "--eval-tokens says nothing"),
        (["--scheme", "bf16", "--keep", "mlp", "--layout", "compressed-tensors"], 2, "--layout compressed-tensors"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(model, run, tmp_path, options, code, words):
    done = run("quantize", model, *options, "-o", "out")
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_a_few_matrices_however_many_there_are(tmp_path):
    """Twenty layers take no more than four: each matrix is given up before the next."""
    for layers in (4, 20):
        config = ModelConfig(vocab=64, width=512, layers=layers, heads=8, ff=1024, context=32)
        (tmp_path / str(layers)).mkdir()
        save_checkpoint(tmp_path / str(layers), initialise(Transformer(config), 0), config)
    code = (
        "import resource, sys, torch; from pathlib import Path; from llmctl.core.compress.quant import run;"
        "from llmctl.spec.quant import QuantConfig; from llmctl.spec.quant_plan import QuantPlan;"
        "plan = QuantPlan.of(Path(sys.argv[1]), QuantConfig()); out = Path(sys.argv[1] + '-out'); out.mkdir();"
        "run.stream(plan, out, 2, torch.device('cpu')); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for layers in (4, 20):
        command = [sys.executable, "-c", code, str(tmp_path / str(layers))]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) * 1024)
    largest, model = 4 * 512 * 1024, 20 * 4 * (4 * 512 * 512 + 3 * 512 * 1024)
    assert peaks[1] - peaks[0] < 6 * largest < model / 15
