"""Shots: examples chosen for a query, at random or by the words they share with it, and the prompt they make."""

import hashlib
import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmctl.spec.shots import STEPS, Shots

# A word is a run of letters and digits; in scripts without spaces each letter is one.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


class Shot(NamedTuple):
    """One answered example.

    Attributes:
        number: of its record in the file, from 0.
        prompt: the question, as the template renders it.
        answer: what follows it, as the template renders it.
        reasoning: the chain of thought before the answer; "" for none.
    """

    number: int
    prompt: str
    answer: str
    reasoning: str = ""


class Pool:
    """Examples to choose from.

    Args:
        examples: in the order of their file.
        shots: how many are chosen, and how.
    """

    def __init__(self, examples: Sequence[Shot], shots: Shots):
        self.examples = examples
        self.shots = shots
        self._same: dict[str, set[int]] = {}
        for index, example in enumerate(examples):
            self._same.setdefault(example.prompt, set()).add(index)
        compared = "similar" in (shots.choose, shots.order) and shots.shots > 0
        self._words = Words([example.prompt for example in examples]) if compared else None

    def choose(self, number: int, prompt: str) -> list[Shot]:
        """The examples for a query, the best one first; an example that asks the same is never among them.

        Args:
            number: of the query in its file, which seeds the choice at random, so that it depends on no other query.
            prompt: the query itself.

        Returns:
            As many as were asked for, or all that there are. Fewer shots are the first of more.
        """
        same = self._same.get(prompt, set())
        count = min(self.shots.shots, len(self.examples) - len(same))
        ranked = {"seed": self._drawn, "first": self._first, "similar": self._similar}[self.shots.choose]
        return [self.examples[index] for index in ranked(count, same, number, prompt)]

    def ordered(self, chosen: Sequence[Shot], number: int, prompt: str) -> list[Shot]:
        """The chosen examples in the order in which they are shown; arguments as of `choose`."""
        if self.shots.order == "first":
            return sorted(chosen, key=lambda shot: shot.number)
        if self.shots.order == "similar" and self._words is not None:
            likeness = Words([shot.prompt for shot in reversed(chosen)], self._words).likeness(prompt)
            return [chosen[-1 - index] for index in np.argsort(likeness, kind="stable")]
        if self.shots.choose != "seed":
            return [chosen[index] for index in self._stream(number).permutation(len(chosen))]
        return list(chosen)

    def _drawn(self, count: int, same: set[int], number: int, prompt: str) -> list[int]:
        stream = self._stream(number)
        drawn: dict[int, None] = {}
        while len(drawn) < count:
            index = int(stream.integers(len(self.examples)))
            if index not in same:
                drawn[index] = None
        return list(drawn)

    def _stream(self, number: int) -> np.random.Generator:
        packed = struct.pack("<qq", self.shots.seed, number)
        digest = hashlib.blake2b(packed, digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))

    def _first(self, count: int, same: set[int], number: int, prompt: str) -> list[int]:
        found = (index for index in range(len(self.examples)) if index not in same)
        return [next(found) for _ in range(count)]

    def _similar(self, count: int, same: set[int], number: int, prompt: str) -> list[int]:
        if not count or self._words is None:
            return []
        likeness = self._words.likeness(prompt)
        likeness[list(same)] = -1
        enough = np.partition(likeness, -count)[-count]
        found = np.flatnonzero(likeness >= enough)
        return found[np.argsort(-likeness[found], kind="stable")][:count].tolist()


class Words:
    """Texts as vectors of tf-idf, to find those like another.

    A word's weight is (1 + ln tf) ln((N + 1) / df), so that one in every text, such as the template's, hardly counts;
    likeness is the cosine of two vectors.

    Args:
        texts: N texts.
        known: whose rarity of words to go by; absent: that of these texts.

    Source: Manning, Raghavan and Schuetze, "Introduction to Information Retrieval", section 6.4 (ltc.ltc), with N + 1
    so that no weight is 0. Similar examples as shots: Liu et al., "What Makes Good In-Context Examples for GPT-3?",
    arXiv:2101.06804, who find them with a sentence encoder.
    """

    def __init__(self, texts: Sequence[str], known: "Words | None" = None):
        counted = [_counted(text) for text in texts]
        self.texts = len(texts)
        if known is None:
            seen: dict[str, int] = {}
            for words in counted:
                for word in words:
                    seen[word] = seen.get(word, 0) + 1
            self.rarity = {word: float(np.log((len(texts) + 1) / times)) for word, times in seen.items()}
        else:
            self.rarity = known.rarity
        found: dict[str, tuple[list[int], list[float]]] = {}  # word: the texts that hold it, and its weight in each
        for index, words in enumerate(counted):
            for word, weight in self._vector(words).items():
                rows, weights = found.setdefault(word, ([], []))
                rows.append(index)
                weights.append(weight)
        self.holders = {word: (np.array(rows), np.array(weights)) for word, (rows, weights) in found.items()}

    def likeness(self, text: str) -> np.ndarray:
        """How like each text is to another one: (N,) float64, 0 to 1."""
        total = np.zeros(self.texts)
        for word, weight in self._vector(_counted(text)).items():
            if word in self.holders:
                rows, weights = self.holders[word]
                total[rows] += weight * weights
        return total

    def _vector(self, words: dict[str, int]) -> dict[str, float]:
        """The weights of a text's known words, of length 1 together."""
        vector = {w: (1 + np.log(times)) * self.rarity[w] for w, times in words.items() if w in self.rarity}
        length = np.sqrt(sum(weight * weight for weight in vector.values()))
        return {word: float(weight / length) for word, weight in vector.items()}


def rendered(shots: Shots, chosen: Sequence[Shot], prompt: str) -> str:
    """The prompt of a query: the instruction, the shots, the query, with the separator between them.

    Source: chains of thought in the shots: Wei et al., arXiv:2201.11903; the sentence that asks for one: Kojima et
    al., arXiv:2205.11916; both together: Zhang et al., arXiv:2210.03493.
    """
    query = _joined(prompt, STEPS) if shots.think else prompt
    parts = [shots.instruction, *(_answered(shot, shots) for shot in chosen), query]
    return shots.separator.join(parts if shots.instruction else parts[1:])


def _answered(shot: Shot, shots: Shots) -> str:
    """An example with its answer, after its chain of thought where it has one."""
    steps = _joined(STEPS if shots.think else "", shot.reasoning)
    if not steps:
        return (shot.prompt + shot.answer).rstrip()
    end = _joined(shots.therefore if shot.reasoning else "", shot.answer.strip())
    return _joined(_joined(shot.prompt, steps), end)


def _joined(*parts: str) -> str:
    """The parts that are not empty, a space where there is no white space between two."""
    text = ""
    for part in filter(None, parts):
        text += part if not text or text[-1].isspace() else f" {part}"
    return text


def _counted(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in WORD.findall(text.casefold()):
        counts[word] = counts.get(word, 0) + 1
    return counts
