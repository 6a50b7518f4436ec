"""Several processes: what they agree on, and who holds which part of a model."""
