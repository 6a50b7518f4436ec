"""GenAC: a critic that is a language model, reads problem, unfinished response and what is known of the actor, and reasons.

It ends with an integer 0..10; a tenth of that is the value. Parts: `prompt` and `parsing` (what it reads and says), `actor`
(what is known of the solver), `states` and `critic` (asking it about states), `reinforce` (learning from outcomes),
`traces`, `oracle`, `sft` (learning from an oracle), `panel` and `stages` (how good it is, and when that is good enough).
`vantage.estimators.genac` makes an algorithm of them. Source: arXiv 2604.10701; docs/genac.md.
"""
