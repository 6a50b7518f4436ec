"""How accurate is a policy? Responses to benchmarks, what they say, and how that is told."""
