"""Verifiers: what says whether a response is right, one module a domain."""
