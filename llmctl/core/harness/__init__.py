"""llmctl's models inside lm-evaluation-harness (lm_eval, extra `harness`), with the figures of its own backend."""
