"""export: one file, whole or absent, that says what it was made of; what cannot be is refused and leaves nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.core.checkpoint.directory import save_checkpoint
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.train import train_tokenizer
from llmctl.spec.gguf import GgufPlan, made_of
from llmctl.spec.model import ModelConfig
from tests.conftest import environment

CONFIG = ModelConfig(vocab=300, width=64, layers=2, heads=2, ff=96, context=64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["a text of words"], "bpe", 270).save(tokenizer)
    save_checkpoint(directory, initialise(Transformer(CONFIG), 0), CONFIG, tokenizer_from=tokenizer)
    return directory


def test_a_file_is_made_once_and_told_apart_from_others(checkpoint, run, tmp_path):
    out = tmp_path / "model.gguf"
    done = run("export", checkpoint, "-o", out, "--type", "q8_0", "--name", "tiny")
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    made = made_of(out)
    assert (made["options"], len(made["inputs"][0])) == ({"type": "q8_0", "name": "tiny"}, 64)
    first = out.stat()
    done = run("export", checkpoint, "-o", out, "--type", "q8_0", "--name", "tiny", "--json")
    said = json.loads(done.stdout)
    assert said["up_to_date"] and said["path"] == str(out)
    assert said["metrics"]["file_bytes"] == first.st_size
    assert said["metrics"]["tensor_bytes"] == GgufPlan.of(CONFIG, "q8_0").bytes
    assert out.stat().st_mtime_ns == first.st_mtime_ns
    done = run("export", checkpoint, "-o", out, "--type", "f16")
    assert done.returncode == 1 and "not as asked for" in done.stderr
    done = run("export", checkpoint, "-o", out, "--type", "f16", "--force")
    assert done.returncode == 0 and out.stat().st_size > first.st_size
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_what_is_in_the_way_is_left_alone(checkpoint, run, tmp_path):
    out = tmp_path / "model.gguf"
    out.write_text("mine")
    done = run("export", checkpoint, "-o", out)
    assert done.returncode == 1 and "llmctl did not make it" in done.stderr
    assert out.read_text() == "mine"
    done = run("export", checkpoint, "-o", tmp_path)
    assert done.returncode == 2 and "directory" in done.stderr.lower()
    done = run("export", checkpoint, "-o", tmp_path / "none" / "model.gguf")
    assert done.returncode == 1 and "mkdir" in done.stderr


def test_a_dry_run_says_what_the_file_takes_and_writes_nothing(checkpoint, run, tmp_path):
    done = run("export", checkpoint, "-o", tmp_path / "m.gguf", "--type", "q4_0", "--dry-run", "--json")
    said = json.loads(done.stdout)
    assert said["architecture"] == "llama" and said["tensor_bytes"] == GgufPlan.of(CONFIG, "q4_0").bytes
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(checkpoint, run, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    parts = json.loads((broken / "tokenizer.json").read_text())
    parts["normalizer"] = {"type": "Lowercase"}
    (broken / "tokenizer.json").write_text(json.dumps(parts))
    done = run("export", broken, "-o", tmp_path / "m.gguf")
    assert done.returncode == 4 and "normalizes texts" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_path_comes_from_stdin_and_an_adapter_is_to_be_merged_first(checkpoint, run, tmp_path):
    done = run("export", "-", "-o", tmp_path / "m.gguf", stdin=f"{checkpoint}\n")
    assert done.returncode == 0
    (tmp_path / "adapter").mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": str(checkpoint)}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    done = run("export", tmp_path / "adapter", "-o", tmp_path / "a.gguf")
    assert done.returncode == 2 and "lora-merge" in done.stderr


MEASURED = """
import sys
from pathlib import Path
from llmctl.core.export.gguf import export
from llmctl.spec.gguf import ExportConfig
import gguf, torch

def resident(what):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

with open(sys.argv[3], "wb") as file:
    export(Path(sys.argv[4]), file, ExportConfig("q8_0"), "{}")
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins here
with open(sys.argv[2], "wb") as file:
    export(Path(sys.argv[1]), file, ExportConfig("q8_0"), "{}")
print(resident("VmHWM") - before)
"""


def test_no_more_than_a_few_tensors_are_in_memory(checkpoint, tmp_path):
    """Of 12 layers whose largest matrices take 4 MiB: less than ten of these, of the 150 MiB that the model takes."""
    config = ModelConfig(vocab=300, width=256, layers=12, heads=8, ff=4096, context=64)
    directory = tmp_path / "wide"
    directory.mkdir()
    save_checkpoint(directory, initialise(Transformer(config), 0), config, tokenizer_from=checkpoint)
    given = [directory, tmp_path / "m.gguf", tmp_path / "first.gguf", checkpoint]
    command = [sys.executable, "-c", MEASURED, *map(str, given)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40 << 20
