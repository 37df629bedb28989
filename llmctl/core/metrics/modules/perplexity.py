"""perplexity: how surprised a checkpoint is by texts, as a metric of `evaluate`."""

from pathlib import Path

import datasets
import evaluate

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.device import DTYPES, pick
from llmctl.core.metrics.methods import framing_for, method_for
from llmctl.core.metrics.modules.described import TEXT, metric_info
from llmctl.core.metrics.perplexity import measured
from llmctl.spec.scoring import Scoring

RETURNED = "perplexities (of each text), mean_perplexity (their mean), perplexity (of all tokens), tokens."


class Perplexity(evaluate.Metric):
    """Perplexity of texts for the checkpoint in the directory model_id, each text scored on its own."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(self.__doc__, [datasets.Features({"predictions": TEXT})], Scoring, RETURNED)

    def _compute(
        self, predictions: list[str], model_id: str, device: str = "auto", dtype: str = "auto", **options: object
    ) -> dict[str, object]:
        checkpoint, scoring, place = Checkpoint.open(Path(model_id)), Scoring(**options), pick(device, dtype)
        tokenizer, model = checkpoint.tokenizer(), checkpoint.model(place.device, DTYPES.get(dtype))
        framing = framing_for(tokenizer, model.config, scoring)
        method, passages = method_for(model, tokenizer, scoring), map(framing.alone, predictions)
        sums = [one.sum for step in measured(method, passages, scoring.batch_tokens) for one in step.done]
        total, each = sum(sums[1:], sums[0]), [one.perplexity for one in sums]
        mean = sum(each) / len(each)
        return {"perplexities": each, "mean_perplexity": mean, "perplexity": total.perplexity, "tokens": total.tokens}
