"""ter: translation edit rate by sacrebleu, as a metric of `evaluate`."""

import evaluate

from llmctl.core.metrics.modules.described import text_metric
from llmctl.core.metrics.translation import ter
from llmctl.spec import translation


class Ter(evaluate.Metric):
    """Translation edit rate of texts against one or more references each, as sacrebleu computes it."""

    def _info(self) -> evaluate.MetricInfo:
        return text_metric(self.__doc__, translation.Ter, "score (less is better), num_edits, ref_length, signature.")

    def _compute(self, predictions: list[str], references: list, **options: object) -> dict[str, object]:
        found = ter(predictions, references, translation.Ter(**options))
        return {"score": found.score, **found.details, "signature": found.signature}
