"""bleu: BLEU by sacrebleu, as a metric of `evaluate`."""

import evaluate

from llmctl.core.metrics.modules.described import text_metric
from llmctl.core.metrics.translation import bleu
from llmctl.spec import translation

RETURNED = "score (0 to 100), counts, totals, precisions, bp, sys_len, ref_len, signature."


class Bleu(evaluate.Metric):
    """BLEU of texts, all taken together, against one or more references each, as sacrebleu computes it."""

    def _info(self) -> evaluate.MetricInfo:
        return text_metric(self.__doc__, translation.Bleu, RETURNED)

    def _compute(self, predictions: list[str], references: list, **options: object) -> dict[str, object]:
        found = bleu(predictions, references, translation.Bleu(**options))
        return {"score": found.score, **found.details, "signature": found.signature}
