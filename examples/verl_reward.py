"""A reward file as verl's `reward.custom_reward_function.path` takes it; nothing in it is Vantage's."""

import re


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """1 for the right number behind the last `####` or `Answer:`, 0.1 for another number there, else 0."""
    answers = re.findall(r"(?:####|Answer:)\s*(-?[\d.,]+)", solution_str)
    if not answers:
        return {"score": 0.0, "answered": 0.0}
    right = answers[-1].replace(",", "").rstrip(".") == str(ground_truth).replace(",", "")
    return {"score": 1.0 if right else 0.1, "answered": 1.0}
