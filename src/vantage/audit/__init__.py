"""How biased and how noisy is an algorithm's gradient? On one policy, the same rollouts, against an unbiased reference.

from vantage.audit import audit
outcome = audit("tiny", ["rloo", "poise", "grpo"], task="sums", out="runs/audit")
print(outcome.results["algorithms"]["grpo"]["verdict"])
"""

from vantage.audit.api import Outcome, audit, run_audit
from vantage.audit.plan import Audit, plan

__all__ = ["Audit", "Outcome", "audit", "plan", "run_audit"]
