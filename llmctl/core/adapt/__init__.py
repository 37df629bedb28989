"""Fine-tuning: what is trained of a model, and the adapters beside what is not."""
