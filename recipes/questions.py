"""Makes the tasks of suite.toml from held-out summaries of documentation on stdin.

    llmctl corpus summaries --split test | python recipes/questions.py out/suite

The input is JSON lines with `prompt` (a text), `completion` (its summary) and `source` ("pathlib.Path.glob").

    which.jsonl     four summaries, of which one is the text's: `prompt`, `choices`, `answer`, `kind`
    continue.jsonl  a text without its last words, and four endings: the same fields
    fits.jsonl      a text and a summary, of it or of another one: `text`, `summary`, `answer` (no, yes), `kind`
    summary.jsonl   the text and its summary: `prompt`, `reference`, `kind`
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

CHOICES = 4
ENDING = 8  # words at the end of a text that are asked for
Record = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="directory to write to")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in sys.stdin]
    for name, make in TASKS.items():
        chance = random.Random(name)  # so that a task does not depend on the others
        made = [make(record, records, chance) for record in records]
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in made if one is not None]
        (options.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def which(record: Record, records: list[Record], chance: random.Random) -> Record:
    choices, answer = among(record["completion"], [other["completion"] for other in records], chance)
    return {"prompt": f"{record['prompt']}\n\nSummary:", "choices": choices, "answer": answer, "kind": kind(record)}


def ending(record: Record, records: list[Record], chance: random.Random) -> Record | None:
    begun, end = halves(record)
    if not begun:
        return None
    choices, answer = among(end, [halves(other)[1] for other in records], chance)
    return {"prompt": begun, "choices": choices, "answer": answer, "kind": kind(record)}


def fits(record: Record, records: list[Record], chance: random.Random) -> Record:
    true = chance.random() < 0.5
    other = among(record["completion"], [one["completion"] for one in records], chance)[0]
    summary = record["completion"] if true else next(one for one in other if one != record["completion"])
    answer = "yes" if true else "no"
    return {"text": record["prompt"], "summary": summary, "answer": answer, "kind": kind(record)}


def summary(record: Record, records: list[Record], chance: random.Random) -> Record:
    return {"prompt": f"{record['prompt']}\n\nSummary:", "reference": record["completion"], "kind": kind(record)}


def among(right: object, every: list[object], chance: random.Random) -> tuple[list[object], int]:
    """Some choices with the right one among them, and its number."""
    wrong = chance.sample(sorted({one for one in every if one and one != right}, key=str), CHOICES - 1)
    choices = [*wrong, right]
    chance.shuffle(choices)
    return choices, choices.index(right)


def halves(record: Record) -> tuple[str, str]:
    """A text without its last words, and those; two empty texts where there are too few."""
    words = str(record["prompt"]).split()
    return (" ".join(words[:-ENDING]), " ".join(words[-ENDING:])) if len(words) > 2 * ENDING else ("", "")


def kind(record: Record) -> str:
    """class, method or function, as Python's names are mostly written."""
    *owners, name = str(record["source"]).split(".")
    classes = [part[:1].isupper() for part in (*owners[-1:], name)]
    return "class" if classes[-1] else "method" if classes[0] else "function"


TASKS: dict[str, Callable[[Record, list[Record], random.Random], Record | None]] = {
    "which": which,
    "continue": ending,
    "fits": fits,
    "summary": summary,
}

if __name__ == "__main__":
    main()
