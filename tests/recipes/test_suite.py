"""The recipe of a suite: its tasks are made, a model is asked them, and two models are compared."""

import json
import subprocess
from pathlib import Path

from tests.learned import Learned

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_a_suite_is_made_of_documentation_asked_and_compared(tmp_path, venv, shell, learned: Learned):
    """Base and tuned are one model here, so that nothing differs."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("base", "tuned"):
        (out / name).symlink_to(learned.path)
    (out / "tokens").symlink_to(learned.tokens)
    made = subprocess.run(
        [venv / "bin/llmctl", "corpus", "summaries", "--split", "test"], env=shell, capture_output=True, check=True
    )
    (out / "test.jsonl").write_bytes(made.stdout)
    old = [out / "base/llmctl.json", out / "tuned/llmctl.json", out / "test.jsonl"]
    command = ["make", "-C", RECIPES, "suite", f"VENV={venv}", f"OUT={out}", "ASK=--limit 6 --shift lower"]
    done = subprocess.run([*command, *(word for path in old for word in ("-o", path))], env=shell, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads((out / "suite/base.json").read_text())
    assert found["suite"]["tasks"] == ["which", "continue", "fits", "summary"]
    assert set(found["suite"]["categories"]) == {"understanding", "writing"}
    for name, aspects in found["aspects"].items():
        assert {"efficiency", "robustness", "fairness", "contamination"} <= set(aspects)
        assert ("calibration" in aspects) == (name != "summary")
        assert aspects["contamination"]["judged"] and aspects["robustness"]["shifts"].keys() == {"lower"}
    compared = json.loads(done.stdout.decode().splitlines()[-2])  # before make's last line
    assert compared["figures"] and all(one["difference"] == 0 for one in compared["figures"])
