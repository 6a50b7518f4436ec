"""Monte-Carlo truth: continuations of states, what they say of a value, and what is kept of them."""
