"""writing: text that a student or its teacher writes after beginnings of text, as rows to learn from."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.decode.rows import Rows
from llmctl.core.decode.sample import choose
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.spec.sample import Sampling

Prompt = list[int]


def prompts(batch: Batch, length: int) -> list[list[Prompt]]:
    """What text is written after, of each row; nothing of a row without text.

    Of a decoder's row, the last document among its first `length` tokens; beside an encoder, each that it reads.
    """
    found: list[list[Prompt]] = []
    if batch.encoder is None:
        for tokens, segments in zip(batch.tokens[:, :length], batch.segments[:, :length], strict=True):
            last = int(segments[segments != 0][-1]) if bool((segments != 0).any()) else 0
            found.append([tokens[segments == last].tolist()] if last else [])
        return found
    for tokens, segments in zip(batch.encoder.tokens, batch.encoder.segments, strict=True):
        apart = (tokens[segments == one].tolist() for one in range(1, int(segments.max()) + 1))
        found.append([prompt for prompt in apart if prompt])
    return found


@torch.no_grad()
def write(
    models: Sequence[tuple[Transformer, float]],
    given: Sequence[Prompt],
    limits: Sequence[int],
    temperature: float,
    keys: Sequence[int],
    eos: frozenset[int],
    known: int,
) -> list[list[int]]:
    """What is written after prompts, the token that ends a text included.

    Args:
        models: of one kind, and how much each counts in the distribution that tokens are drawn from.
        given: none empty; beside an encoder, what it reads.
        limits: most tokens of each.
        temperature: 0: the likeliest token.
        keys: of each row's random stream.
        known: ids that are tokens.
    """
    device = given_device(models[0][0])
    sampling = Sampling(temperature=temperature)
    streams = torch.tensor(keys, dtype=torch.int64, device=device)
    readers = [Rows(model, start=() if model.encoder is None else (model.config.opens,)) for model, _ in models]
    logits = [reader.add(given) for reader in readers]
    written: list[list[int]] = [[] for _ in given]
    live = set(range(len(given)))
    for step in range(max(limits)):
        scores = _mixed([one[:, :known] for one in logits], [share for _, share in models], temperature)
        tokens = choose(scores, sampling, streams, torch.full_like(streams, step))
        for row, token in enumerate(tokens.tolist()):
            if row in live:
                written[row].append(token)
                if token in eos or len(written[row]) == limits[row]:
                    live.discard(row)
        if not live:
            break
        logits = [reader.step(tokens.tolist()) for reader in readers]
    return written


def as_batch(
    given: Sequence[Prompt], written: Sequence[Sequence[int]], start: int | None, pad: int, own: bool
) -> Batch:
    """Rows of prompts and what was written after them, each asked for the latter; a row is one document.

    Args:
        start: what a decoder beside an encoder begins with; None: a decoder alone.
        own: the student that learns from them wrote them.
    """
    heads = [list(prompt) if start is None else [start] for prompt in given]
    whole = [head + list(tail) for head, tail in zip(heads, written, strict=True)]
    tokens = _padded([ids[:-1] for ids in whole], pad)
    targets = _padded([[IGNORE] * (len(head) - 1) + list(tail) for head, tail in zip(heads, written, strict=True)],
                      IGNORE)  # fmt: skip
    segments = _padded([[1] * (len(ids) - 1) for ids in whole], 0)
    encoder, read = None, int(segments.sum())
    if start is not None:
        marks = _padded([[1] * len(prompt) for prompt in given], 0)
        source = _padded(given, pad)
        encoder = EncoderInput(source, _counted(source), marks)
        read += int(marks.sum())
    scored = int((targets != IGNORE).sum())
    return Batch(tokens, targets, _counted(tokens), segments, scored, read, encoder=encoder, written=own)


class Written:
    """What a teacher wrote for each row of a text, as JSON lines, a row a line; whole lines count."""

    def __init__(self, path: Path):
        self.path, self.rows = path, []
        if path.is_file():
            lines = path.read_bytes().split(b"\n")
            self.rows = [json.loads(line) for line in lines[:-1]]
            with open(path, "r+b") as file:
                file.truncate(sum(len(line) + 1 for line in lines[:-1]))

    def add(self, rows: Sequence[list[list[int]]]) -> None:
        """What was written for the rows that follow: the texts of each."""
        with open(self.path, "ab") as file:
            for row in rows:
                file.write(json.dumps(row).encode() + b"\n")
                self.rows.append(row)


def given_device(model: Transformer) -> torch.device:
    """Where a model is."""
    return model.embed.tokens.weight.device


def _mixed(logits: list[Tensor], shares: list[float], temperature: float) -> Tensor:
    """Scores whose softmax at a temperature is the mixture of those of several models, (B, V)."""
    if len(logits) == 1:
        return logits[0]
    heat = temperature or 1.0
    parts = [F.log_softmax(one / heat, dim=-1) + torch.tensor(share).log() for one, share in
             zip(logits, shares, strict=True)]  # fmt: skip
    return torch.stack(parts).logsumexp(0) * heat


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    longest = max(1, max(map(len, rows), default=0))
    return torch.tensor([list(row) + [fill] * (longest - len(row)) for row in rows], dtype=torch.int64)


def _counted(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1]).expand_as(tokens).contiguous()
