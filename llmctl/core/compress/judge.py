"""judge: what a model is worth beside the one that it was made from: loss, divergence, speed."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.data.old import probe, read_old, rows_of
from llmctl.core.decode.generate import generate
from llmctl.core.decode.ready import ready
from llmctl.core.decode.rules import Rules
from llmctl.core.device import Place
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.core.train.objectives import hidden_of
from llmctl.spec.families import read_config
from llmctl.spec.judging import Judging
from llmctl.spec.model import ModelConfig
from llmctl.spec.safetensors import read_tensors
from llmctl.spec.sample import Sampling
from llmctl.spec.sizes import parameters

ROW = 512  # tokens of a row that is scored, or the model's context where that is less
MICRO = 4096  # tokens of a batch
SCORES = 1 << 25  # scores of tokens that are held at a time, float32
ROUNDS = 3  # speeds are medians of


def texts(
    path: str, config: ModelConfig, tokenizer: Tokenizer, tokens: int, split: str = "heldout", row: int = ROW
) -> Callable[[], Iterator[Batch]]:
    """Rows of text as a model of that kind learns from them: makes the same batches whenever it is called.

    For calibration as for evaluation. A decoder is asked for what comes next, an encoder for what is hidden, one with
    both for what was taken out.

    Args:
        path: a text, JSON lines, CSV, parquet, or a directory of tokens.
        tokens: how many, at most.
        split: of a directory of tokens: heldout or train.
        row: tokens of a row, or the model's context where that is less.

    Raises:
        UserError: nothing there, or tokens of another tokenizer; a tokenizer without what hides text from an encoder.
    """
    source = read_old(path, tokenizer, split)
    row = max(2, min(config.context, row, source.tokens - 1))
    return probe(source, rows_of(config, tokenizer, 0), row, MICRO, max(row, tokens))


class Judge:
    """Measures models on the same held-out text.

    Args:
        judging: which text, how much of it.
        config: of the model that others are compared with.
        tokenizer: of all of them.
    """

    def __init__(self, judging: Judging, config: ModelConfig, tokenizer: Tokenizer, place: Place):
        self.judging, self.place, self.size = judging, place, tokenizer.size
        self._rows = texts(judging.eval, config, tokenizer, judging.eval_tokens)

    def compare(self, before: Transformer, after: Transformer) -> tuple[dict[str, float], dict[str, float]]:
        """What two models are worth: loss (nats a token), perplexity, accuracy of the first guess, tokens_per_second;
        of the second also kl, nats a token from the first's distribution to its own.

        Speeds are measured by turns, of models that are laid out as `generate` has them (`ready`), which they stay. Ids
        that one model has rows for and the other has not do not count.
        """
        one, other = scores(before, after, (batch.to(self.place.device) for batch in self._rows()), self.place)
        if self.judging.speed_tokens:
            first = next(iter(self._rows()))
            speeds = [[], []]
            for model in (before, after):
                ready(model)
            for _ in range(ROUNDS):
                for model, known in ((before, speeds[0]), (after, speeds[1])):
                    known.append(self._speed(model, first))
            one["tokens_per_second"], other["tokens_per_second"] = map(median, speeds)
        return one, other

    def _speed(self, model: Transformer, batch: Batch) -> float:
        """Tokens a second: that a decoder writes one after another, or that an encoder reads."""
        count, start = self.judging.speed_tokens, time.perf_counter()
        if model.config.kind == "encoder" or model.head is None:
            rows = batch.tokens[:1, : max(2, count)].to(self.place.device)
            with torch.inference_mode():
                model(rows)
            self.place.synchronize()
            return rows.numel() / (time.perf_counter() - start)
        first = model.config.opens
        rules = Rules(start=(first,)) if model.config.kind == "encoder-decoder" else Rules()
        source = (batch if batch.encoder is None else batch.encoder).tokens[0, :16].tolist()
        made = list(
            generate(model, [source], Sampling(max_tokens=count, temperature=0), [0], known=self.size, rules=rules)
        )
        return len(made) / (time.perf_counter() - start)


@torch.inference_mode()
def scores(
    before: Transformer, after: Transformer, batches: Iterable[Batch], place: Place
) -> tuple[dict[str, float], dict[str, float]]:
    """Loss, perplexity and accuracy of two models on the same batches, and of the second its divergence from the first.

    Args:
        batches: on the models' device; targets say which places are scored.

    Returns:
        `loss`, `perplexity`, `accuracy`, `tokens` of each; of the second `kl`: KL(first || second), nats a token.
    """
    sums = torch.zeros(5, dtype=torch.float64)
    count, vocab = 0, min(before.config.vocab, after.config.vocab)
    for batch in batches:
        asked = batch.targets != IGNORE
        with place.autocast():
            pair = [hidden_of(model, batch, False)[asked] for model in (before, after)]  # (N, width) each
        targets = batch.targets[asked]  # (N,)
        step = max(1, SCORES // vocab)
        for start in range(0, len(targets), step):
            rows = slice(start, start + step)
            with place.autocast():
                made = [model.head(x[rows]) for model, x in zip((before, after), pair, strict=True)]
            p, q = (F.log_softmax(logits[:, :vocab].float(), -1) for logits in made)  # (n, V)
            sums += _sums(p, q, targets[rows])
            count += len(targets[rows])
    nll, right, other, hit, kl = (sums / max(1, count)).tolist()
    first = {"loss": nll, "perplexity": math.exp(min(700.0, nll)), "accuracy": right, "tokens": count}
    second = {"loss": other, "perplexity": math.exp(min(700.0, other)), "accuracy": hit, "tokens": count, "kl": kl}
    return first, second


def _sums(p: Tensor, q: Tensor, targets: Tensor) -> Tensor:
    """Of two (N, V) log distributions: nll and right guesses of each, and KL(p || q), summed over N."""
    place = targets[:, None]
    return torch.stack(
        [
            -p.gather(1, place).double().sum(),
            (p.argmax(-1) == targets).double().sum(),
            -q.gather(1, place).double().sum(),
            (q.argmax(-1) == targets).double().sum(),
            (p.exp() * (p - q)).nan_to_num(0.0).double().sum(),
        ]
    ).cpu()


def weighed(directory: Path) -> dict[str, float]:
    """`bytes` of a checkpoint's weights as its files hold them, and `parameters`."""
    return {
        "bytes": sum(info.bytes for info in read_tensors(directory).values()),
        "parameters": parameters(read_config(directory)),
    }
