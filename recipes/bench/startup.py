"""Start-up: `llmctl --help` beside a hello-world typer program's --help, interleaved; prints one JSON object."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELLO = """
import typer

def main(name: str = "world"):
    print(f"hello {name}")

typer.run(main)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        hello = Path(scratch) / "hello.py"
        hello.write_text(HELLO)
        llmctl = Path(sys.executable).with_name("llmctl")
        commands = {
            "hello --help": [sys.executable, hello, "--help"],
            "llmctl --help": [llmctl, "--help"],
            "llmctl pretrain --help": [llmctl, "pretrain", "--help"],
            "llmctl memcalc --preset 8b": [llmctl, "memcalc", "--preset", "8b"],
        }
        times = {name: [] for name in commands}
        for _ in range(21):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
                times[name].append(time.perf_counter() - start)
    medians = {name: round(statistics.median(found), 4) for name, found in times.items()}
    ratio = round(medians["llmctl --help"] / medians["hello --help"], 3)
    print(json.dumps({"seconds": medians, "ratio": ratio}, indent=2))


if __name__ == "__main__":
    main()
