"""chrf: chrF and chrF++ by sacrebleu, as a metric of `evaluate`."""

import evaluate

from llmctl.core.metrics.modules.described import text_metric
from llmctl.core.metrics.translation import chrf
from llmctl.spec import translation


class Chrf(evaluate.Metric):
    """chrF, or with word_order=2 chrF++, of texts against one or more references each, as sacrebleu computes it."""

    def _info(self) -> evaluate.MetricInfo:
        return text_metric(self.__doc__, translation.Chrf, "score (0 to 100), char_order, word_order, beta, signature.")

    def _compute(self, predictions: list[str], references: list, **options: object) -> dict[str, object]:
        found = chrf(predictions, references, translation.Chrf(**options))
        return {"score": found.score, **found.details, "signature": found.signature}
