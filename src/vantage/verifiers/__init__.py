"""Verifiers: what says whether a response is right, one module a domain, each with a version of its own."""
