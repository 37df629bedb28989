"""bench: figures that agree with each other, and what it refuses."""

import json
import os
import subprocess
import sys

import pytest

from llmctl.core.checkpoint.directory import save_checkpoint
from llmctl.core.decode.bench import read_by_a_step
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from tests.core.variants import VARIANTS

LITTLE = ["--prompt-tokens", "24", "--new-tokens", "3", "--rounds", "1", "--threads", "1"]
KEYS = {
    "prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token", "peak_memory", "dtype", "threads"
}  # fmt: skip


def bench(*words, code=0, **settings):
    command, given = [sys.executable, "-m", "llmctl", "bench", *words], os.environ | settings
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code in (0, 6) else done.stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = ModelConfig(vocab=64, width=32, layers=2, heads=4, kv_heads=2, ff=48, context=64, tie=False)
    directory = tmp_path_factory.mktemp("bench") / "model"
    directory.mkdir()
    save_checkpoint(directory, initialise(Transformer(config), 0), config)
    return directory


def test_every_dtype_and_number_of_rows_has_its_figures_and_they_agree(checkpoint):
    asked = ["--engine", "stock", "--dtype", "fp32", "--dtype", "bf16", "--rows", "1", "--rows", "3"]
    found = bench(checkpoint, *LITTLE, *asked, "--json")
    assert found.keys() >= KEYS and found["threads"] == 1 and found["dtype"] == "fp32"
    runs = {(run["dtype"], run["rows"]): run for run in found["runs"]}
    assert list(runs) == [("fp32", 1), ("fp32", 3), ("bf16", 1), ("bf16", 3)]
    for (dtype, rows), run in runs.items():
        assert run["prefill_tokens_per_second"] == pytest.approx(24 / run["time_to_first_token"])
        step = rows / run["decode_tokens_per_second"]
        assert run["bandwidth_share"] * found["bytes_per_second"] * step == pytest.approx(run["bytes_per_step"])
        assert 0 < run["flops_share"] < 1 and run["peak_memory"] > 50e6
        weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32) + 32 + 64 * 32  # the table is looked up in
        held = rows * 2 * 2 * 16 * (16 + 1)  # keys and values of two layers, in the middle of three tokens
        assert run["bytes_per_step"] == {"fp32": 4, "bf16": 2}[dtype] * (weights + held)


def test_the_threshold_is_an_exit_code(checkpoint):
    assert bench(checkpoint, *LITTLE, "--fail-under", "1e9", code=6)["runs"]


def test_an_engine_that_is_not_to_be_had_is_told_and_left_out(checkpoint):
    said = bench(checkpoint, *LITTLE, "--engine", "native", code=1, LLMCTL_NATIVE="0")
    assert "not measured with --engine native: LLMCTL_NATIVE says so" in said and "Use --engine stock." in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dtype", "int8"], "--dtype is 'int8', wanted one of auto, fp32, bf16, fp16"),
        (["--dtype", "bf16", "--dtype", "bf16"], "--dtype bf16 is given twice"),
        (["--rows", "0", "--rounds", "0"], "--rounds is 0, wanted 1 or more; --rows is 0, wanted 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(checkpoint, words, said):
    assert said in bench(checkpoint, *words, code=2)


def test_a_model_that_does_not_write_is_refused(tmp_path):
    save_checkpoint(tmp_path, initialise(Transformer(VARIANTS["bert"]), 0), VARIANTS["bert"])
    assert "holds an encoder" in bench(tmp_path, code=4)


def test_a_step_reads_a_tied_table_once_and_no_encoder():
    sizes = {name: sum(one.nbytes for one in Transformer(VARIANTS[name]).parameters()) for name in ("llama3", "t5")}
    assert read_by_a_step(Transformer(VARIANTS["llama3"])) == sizes["llama3"]
    t5 = Transformer(VARIANTS["t5"])
    encoder = sum(one.nbytes for one in t5.encoder.parameters())
    assert read_by_a_step(t5) == sizes["t5"] - encoder - t5.embed.tokens.weight.nbytes
