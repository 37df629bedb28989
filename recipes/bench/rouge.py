"""`llmctl eval-rouge` beside rouge_score: pairs a second of each kind, the largest difference, and memory by length.

    python recipes/bench/rouge.py                 # 200 pairs of about 150 words, 8 sentences each
    python recipes/bench/rouge.py --stem --words 600
    python recipes/bench/rouge.py --memory 1000000   # also eval-rouge itself on so many pairs and on a tenth of them

The texts are made: words by Zipf's law, a prediction is its reference with sentences dropped and words changed. In one
process, on one thread, the two take turns over the same pairs; figures are medians of the rounds. They are of seconds
of the processor, so that other work on the machine counts for neither. Peak memory is the process's greatest resident
set. Prints one JSON object.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# A command that says last, on stderr, the most memory it had: the kernel's count for others holds their parent's, too.
MEASURED = """
import sys
from llmctl.cli import main
try:
    main()
finally:
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    sys.stderr.write(peak.split()[1])
"""
sys.path.insert(0, str(ROOT))
KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--words", type=int, default=150, help="of a reference")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stem", action="store_true")
    parser.add_argument("--memory", type=int, default=0, help="pairs for eval-rouge itself; 0: not measured")
    options = parser.parse_args()
    found = compared(options)
    if options.memory:
        found["memory"] = [command(pairs, options.words) for pairs in (options.memory // 10, options.memory)]
    print(json.dumps(found, indent=2))


def compared(options: argparse.Namespace) -> dict[str, object]:
    """Speed of both on each kind alone and on all together."""
    from rouge_score.rouge_scorer import RougeScorer

    from llmctl.core.metrics.rouge.score import Rouge

    pairs = list(made(options.pairs, options.words))
    speeds: dict[str, dict[str, float]] = {}
    worst = 0.0
    for name, kinds in {**{kind: (kind,) for kind in KINDS}, "all": KINDS}.items():
        ours, theirs = Rouge(kinds, options.stem), RougeScorer(kinds, use_stemmer=options.stem)
        for said, wanted in pairs:
            one, other = ours.score(said, wanted), theirs.score(wanted, said)
            worst = max(worst, *(abs(a - b) for kind in kinds for a, b in zip(one[kind], other[kind], strict=True)))
        seconds = rounds(
            options.rounds, pairs, {"llmctl": ours.score, "rouge_score": lambda a, b, s=theirs: s.score(b, a)}
        )
        speeds[name] = {who: len(pairs) / statistics.median(took) for who, took in seconds.items()}
        speeds[name]["ratio"] = statistics.median(
            theirs / ours for ours, theirs in zip(seconds["llmctl"], seconds["rouge_score"], strict=True)
        )
    return {
        "pairs": len(pairs),
        "words": options.words,
        "stem": options.stem,
        "pairs_per_second": speeds,
        "largest_difference": worst,
    }


def rounds(
    count: int, pairs: list[tuple[str, str]], contenders: dict[str, Callable[[str, str], object]]
) -> dict[str, list[float]]:
    """Seconds of the processor that each takes for all pairs, turn by turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, score in contenders.items():
            began = time.process_time()
            for said, wanted in pairs:
                score(said, wanted)
            seconds[name].append(time.process_time() - began)
    return seconds


def command(pairs: int, words: int) -> dict[str, float]:
    """Time and peak memory of eval-rouge on so many pairs, in JSON lines."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "pairs.jsonl"
        some = [json.dumps({"completion": said, "reference": wanted}) + "\n" for said, wanted in made(1000, words)]
        with open(path, "w", encoding="utf-8") as file:
            for number in range(pairs):
                file.write(some[number % len(some)])
        line = [sys.executable, "-c", MEASURED, "eval-rouge", str(path), "--ci", "0.95", "-q"]
        began = time.perf_counter()
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        took = time.perf_counter() - began
        assert json.loads(done.stdout)["pairs"] == pairs
        peak = int(done.stderr.split()[-1]) * 1024
        return {"pairs": pairs, "seconds": took, "pairs_per_second": pairs / took, "peak_bytes": peak}


def made(pairs: int, words: int) -> Iterator[tuple[str, str]]:
    """Predictions and their references: 8 sentences a reference, a line each."""
    drawn = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    vocabulary = ["".join(drawn.choices(letters, k=drawn.randint(2, 9))) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    for _ in range(pairs):
        sentences = [drawn.choices(vocabulary, weights, k=max(1, words // 8)) for _ in range(8)]
        kept = [
            [word if drawn.random() < 0.7 else drawn.choices(vocabulary, weights)[0] for word in sentence]
            for sentence in sentences
            if drawn.random() < 0.9
        ]
        said, wanted = ("\n".join(" ".join(one).capitalize() + "." for one in side) for side in (kept, sentences))
        yield said, wanted


if __name__ == "__main__":
    main()
