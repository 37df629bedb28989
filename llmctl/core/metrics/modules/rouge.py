"""rouge: ROUGE-N, L, Lsum and W, as a metric of `evaluate`."""

import evaluate

from llmctl.core.metrics.modules.described import text_metric
from llmctl.core.metrics.rouge.score import Rouge as Scorer
from llmctl.spec.rouge import RougeConfig


class Rouge(evaluate.Metric):
    """ROUGE: F1 of what texts and their references share, the mean over texts; of several references the best."""

    def _info(self) -> evaluate.MetricInfo:
        return text_metric(self.__doc__, RougeConfig, "rouge1, rouge2, rougeL, rougeLsum (0 to 1), signature.")

    def _compute(self, predictions: list[str], references: list, **options: object) -> dict[str, object]:
        scorer = Scorer(**options)
        scores = [scorer.score(said, told) for said, told in zip(predictions, references, strict=True)]
        means = {kind: sum(score[kind].f1 for score in scores) / len(scores) for kind in scores[0]}
        return {**means, "signature": scorer.signature}
