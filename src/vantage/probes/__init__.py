"""Linear probes of what a policy knows: their features, the sums they are solved from, and the fit."""
