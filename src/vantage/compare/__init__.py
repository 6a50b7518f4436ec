"""Which algorithm is better, by how much, and at what cost? Algorithms × seeds under one budget; `vantage compare`.

from vantage.compare import compare
outcome = compare(["poise", "grpo", "dapo"], seeds=3, steps=60, out="runs/first")
print(outcome.report, outcome.results["differences"])
"""

from vantage.compare.api import Outcome, compare, run_comparison
from vantage.compare.plan import Comparison, plan
from vantage.compare.run import Ended, Stopped, run_process

__all__ = ["Comparison", "Ended", "Outcome", "Stopped", "compare", "plan", "run_comparison", "run_process"]
