"""Verifiers: what judges a response, each isolated from the run and versioned."""
