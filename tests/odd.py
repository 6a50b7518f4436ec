"""A reward that a random policy sometimes earns."""


def odd_length(completions, **kwargs):
    return [float(len(c) % 2) for c in completions]
