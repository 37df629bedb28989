"""Leaves out of documents on stdin those that hold an answer of a held-out set, so that none is learned beforehand.

    llmctl corpus docs | python recipes/unseen.py test.jsonl > docs.jsonl

Both are JSON lines; a document has `text`, a held-out record `completion`. With --hold: only those documents.
"""

import argparse
import json
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("held_out", help="JSON lines with `completion`")
    parser.add_argument("--hold", action="store_true", help="keep what would be left out, and nothing else")
    options = parser.parse_args()
    with open(options.held_out, encoding="utf-8") as file:
        answers = [json.loads(line)["completion"] for line in file]
    for line in sys.stdin:
        text = json.loads(line)["text"]
        if any(answer in text for answer in answers) == options.hold:
            sys.stdout.write(line)


if __name__ == "__main__":
    main()
