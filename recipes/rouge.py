"""ROUGE of answers, as JSON: what `llmctl eval-rouge` will say.

    python recipes/rouge.py answers.jsonl

A record has `completion`, what a model wrote, and `reference`. Words are stemmed; of an answer only its first
non-empty line counts.
"""

import json
import sys
from pathlib import Path

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge(answers: Path) -> dict[str, object]:
    """Mean precision, recall and F1 of each kind, 0 to 1, and the number of pairs; no answer scores 0."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(KINDS, use_stemmer=True)
    with open(answers, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    found = [scorer.score(record["reference"], _line(record.get("completion", ""))) for record in records]
    means = {
        kind: {
            part: sum(getattr(one[kind], name) for one in found) / max(1, len(found))
            for part, name in (("precision", "precision"), ("recall", "recall"), ("f1", "fmeasure"))
        }
        for kind in KINDS
    }
    return {**means, "pairs": len(found)}


def _line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


if __name__ == "__main__":
    print(json.dumps(rouge(Path(sys.argv[1]))))
