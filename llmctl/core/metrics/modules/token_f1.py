"""token_f1: words that texts share with their references, as SQuAD counts them, as a metric of `evaluate`."""

import evaluate

from llmctl.core.metrics.answers import token_f1
from llmctl.core.metrics.modules.described import text_metric


class TokenF1(evaluate.Metric):
    """F1 of the words that texts share with their nearest reference, as SQuAD has it: the mean over texts."""

    def _info(self) -> evaluate.MetricInfo:
        return text_metric(self.__doc__, None, "f1 (0 to 1). normal: none, strip, lower or squad (the default).")

    def _compute(self, predictions: list[str], references: list, normal: str = "squad") -> dict[str, float]:
        scores = [token_f1(said, told, normal) for said, told in zip(predictions, references, strict=True)]
        return {"f1": sum(scores) / len(scores)}
