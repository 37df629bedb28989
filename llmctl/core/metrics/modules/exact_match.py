"""exact_match: texts that are as they should be, as a metric of `evaluate`."""

import evaluate

from llmctl.core.metrics.answers import exact_match
from llmctl.core.metrics.modules.described import text_metric


class ExactMatch(evaluate.Metric):
    """Exact match: the share of texts that are one of their references, once both are normalised as asked for."""

    def _info(self) -> evaluate.MetricInfo:
        return text_metric(
            self.__doc__, None, "exact_match (0 to 1). normal=none|strip|lower|squad says what is normalised."
        )

    def _compute(self, predictions: list[str], references: list, normal: str = "none") -> dict[str, float]:
        scores = [exact_match(said, told, normal) for said, told in zip(predictions, references, strict=True)]
        return {"exact_match": sum(scores) / len(scores)}
