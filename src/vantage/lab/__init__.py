"""The value lab: how good is any estimate of V(s)? The same states, the same truth, the same questions for each of them."""
