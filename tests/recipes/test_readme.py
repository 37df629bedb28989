"""Every command of the README, run as it stands, only with fewer steps; those of make and pip are what .ci/run does."""

import re
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_commands_by_hand_do_what_the_readme_says(tmp_path, shell):
    script = "".join(block for block in blocks() if block.startswith("llmctl"))
    assert script.count("llmctl ") >= 42 and script.count("--steps 400") == 3 and script.count("--epochs 3") == 1
    script = script.replace("--steps 300", "--steps 3 --batch-tokens 512").replace(
        "--recover-steps 60", "--recover-steps 2"
    )
    script = script.replace("--calibration tokens", "--calibration tokens --calibration-tokens 1024")
    script = script.replace("--eval tokens", "--eval tokens --eval-tokens 1000 --speed-tokens 4")
    script = script.replace("--steps 400", "--steps 4 --batch-tokens 512")
    script = script.replace("--epochs 3", "--steps 2 --batch-size 4 --limit 30 --eval-tokens 300")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        script = script.replace("8321", str(free.getsockname()[1])).replace("--retry 60", "--retry 300")
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=work, env=shell, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all((work / name / "model.safetensors").is_file() for name in ("base", "tuned", "small", "bert", "t5"))
    assert (work / "vectors.jsonl").read_text().count("embedding") == 1
    assert "Traceback" not in done.stderr and '"object":"text_completion"' in done.stdout.replace(" ", "")


def test_the_commands_of_make_and_pip_exist():
    rest = [line for block in blocks() if not block.startswith("llmctl") for line in block.splitlines()]
    targets = re.findall(r"make -C recipes (\w+)", (ROOT / "README.md").read_text())
    makefile = (ROOT / "recipes" / "Makefile").read_text()
    assert targets == ["quickstart", "test", "summaries", "forgetting", "suite", "smaller", "bert", "t5"] and all(
        f"\n{target}:" in makefile for target in targets
    )
    assert len(rest) == 3 and rest[-1].startswith("pip install .")
