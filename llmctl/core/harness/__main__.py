"""lm-eval's own command line with llmctl's models: python -m llmctl.core.harness run --model llmctl --model_args ...

    python -m llmctl.core.harness run --model llmctl --model_args pretrained=DIR,dtype=bf16 --tasks arc_easy

lm-eval finds models in a table of its own, into which no entry point leads, so its program is started from here.
"""

from lm_eval.__main__ import cli_evaluate

import llmctl.core.harness.model  # noqa: F401  # enters the name llmctl in that table

if __name__ == "__main__":
    cli_evaluate()
