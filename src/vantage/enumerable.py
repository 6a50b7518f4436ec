"""The enumerable world: a policy so small that expectations are sums over every response.

Tokens follow a first-order chain: logits(next) = θ[previous] + o[prompt]. The model has the parts that the trainer's
forward pass looks for (embeddings, one block, a linear head), so exact gradients, biases and values are taken through
the same code that trains language models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vantage.batch import Batch
from vantage.policy import Policy
from vantage.update import PolicyUpdate

RewardOf = Callable[[int, tuple[int, ...]], float]


class _Trunk(nn.Module):
    """States are one-hot: which token came last (or none yet), and which prompt it is."""

    def __init__(self, tokens: int, prompts: int) -> None:
        super().__init__()
        self.tokens, self.prompts = tokens, prompts
        self.layers = nn.ModuleList([nn.Identity()])

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        last_MS = torch.where(input_ids < self.tokens, input_ids + 1, torch.zeros_like(input_ids))
        prompt_M = (input_ids[:, 0] - self.tokens).clamp(min=0)
        prompt_MS = prompt_M[:, None].expand_as(input_ids)
        one_hot = nn.functional.one_hot
        states = torch.cat([one_hot(last_MS, self.tokens + 1), one_hot(prompt_MS, self.prompts)], -1).double()
        return SimpleNamespace(last_hidden_state=self.layers[0](states))


class ChainModel(nn.Module):
    """logits = head · [one-hot(last token or none); one-hot(prompt)] in float64. Prompt p is the one token V + p."""

    base_model_prefix = "model"

    def __init__(self, theta_SV: Tensor, offset_PV: Tensor) -> None:
        super().__init__()
        tokens, prompts = theta_SV.shape[1], offset_PV.shape[0]
        self.config = SimpleNamespace(num_hidden_layers=1, hidden_size=tokens + 1 + prompts, vocab_size=tokens)
        self.model = _Trunk(tokens, prompts)
        self.head = nn.Linear(tokens + 1 + prompts, tokens, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(torch.cat([theta_SV, offset_PV]).T)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """Logits [M, S, V] as `.logits`."""
        return SimpleNamespace(logits=self.head(self.model(input_ids).last_hidden_state))


@dataclass(frozen=True)
class EnumerableWorld:
    """V tokens (at most 6), P equally likely prompts, responses of at most `max_length` (at most 4) tokens.

    `theta_SV` [V + 1, V] has the logits after nothing and after each token, `offset_PV` [P, V] what a prompt adds.
    `end_token` ends a response early; without one all responses have `max_length` tokens.
    """

    theta_SV: Tensor
    offset_PV: Tensor
    reward: RewardOf
    max_length: int
    end_token: int | None = None

    @property
    def tokens(self) -> int:
        """Vocabulary, V."""
        return self.theta_SV.shape[1]

    @property
    def prompts(self) -> int:
        """Number of prompts, P."""
        return self.offset_PV.shape[0]

    def policy(self) -> Policy:
        """A fresh policy with these logits, in float64."""
        return Policy(ChainModel(self.theta_SV.double(), self.offset_PV.double()), None)

    def responses(self) -> list[tuple[int, ...]]:
        """Every response that can be sampled."""
        found = []
        for length in range(1, self.max_length + 1):
            for ids in itertools.product(range(self.tokens), repeat=length):
                ended = [i for i, t in enumerate(ids) if t == self.end_token]
                if ended == [length - 1] or (not ended and length == self.max_length):
                    found.append(ids)
        return found

    def batch(self, prompt: int, responses: Sequence[tuple[int, ...]], step: int = 1) -> Batch:
        """The responses as one group of rollouts of a prompt."""
        rewards = torch.tensor([self.reward(prompt, y) for y in responses], dtype=torch.float64)
        count = len(responses)
        return Batch(
            step=step,
            prompt_ids=[[self.tokens + prompt]] * count,
            response_ids=[list(y) for y in responses],
            group_B=torch.zeros(count, dtype=torch.long),
            outcome_B=rewards,
            reward_B=rewards,
            scorable_B=torch.ones(count, dtype=torch.bool),
            domains=["default"] * count,
        )

    def log_probabilities(self, policy: Policy, prompt: int) -> Tensor:
        """log π(y | prompt) of every response, differentiable."""
        return policy.forward(self.batch(prompt, self.responses())).logp_MT.sum(1)

    def values(self, policy: Policy) -> Tensor:
        """V(x), the expected reward of each prompt [P], differentiable."""
        rewards = [[self.reward(p, y) for y in self.responses()] for p in range(self.prompts)]
        probabilities = torch.stack([self.log_probabilities(policy, p).exp() for p in range(self.prompts)])
        return (probabilities * torch.tensor(rewards, dtype=torch.float64)).sum(1)

    def exact_gradient(self, policy: Policy) -> Tensor:
        """∇J of the mean value over prompts with respect to the head [V, V + 1 + P]."""
        (gradient,) = torch.autograd.grad(self.values(policy).mean(), [_head(policy)])
        return gradient

    def expected_gradient(self, update: PolicyUpdate, group: int) -> Tensor:
        """E[ascent direction] of the trainer's own gradient code, over every group of rollouts of every prompt."""
        policy = update.policy
        total = torch.zeros_like(_head(policy))
        for prompt in range(self.prompts):
            with torch.no_grad():
                probability = self.log_probabilities(policy, prompt).exp().tolist()
            for chosen in itertools.product(enumerate(self.responses()), repeat=group):
                weight = 1.0
                for index, _ in chosen:
                    weight *= probability[index]
                policy.model.zero_grad(set_to_none=True)
                update.gradient(self.batch(prompt, [y for _, y in chosen]))
                gradient = _head(policy).grad
                assert gradient is not None
                total -= weight / self.prompts * gradient
        policy.model.zero_grad(set_to_none=True)
        return total

    def sample(self, policy: Policy, prompts: Sequence[int], group: int, step: int, draw: torch.Generator) -> Batch:
        """`group` independent responses to each of some prompts, siblings adjacent; a step to learn from."""
        rows = []
        for prompt in prompts:
            with torch.no_grad():
                probability_R = self.log_probabilities(policy, prompt).exp()
            chosen = torch.multinomial(probability_R, group, replacement=True, generator=draw).tolist()
            rows.append(self.batch(prompt, [self.responses()[i] for i in chosen], step))
        numbers = torch.arange(len(rows)).repeat_interleave(group)
        return replace(
            rows[0],
            prompt_ids=[ids for row in rows for ids in row.prompt_ids],
            response_ids=[ids for row in rows for ids in row.response_ids],
            group_B=numbers,
            outcome_B=torch.cat([row.outcome_B for row in rows]),
            reward_B=torch.cat([row.reward_B for row in rows]),
            scorable_B=torch.cat([row.scorable_B for row in rows]),
            domains=["default"] * len(numbers),
        )

    def scores(self, policy: Policy, prompt: int) -> Tensor:
        """∇ log π(y | prompt) with respect to the head, of every response [R, V·(V + 1 + P)]."""
        found = []
        for logp in self.log_probabilities(policy, prompt):
            (gradient,) = torch.autograd.grad(logp, [_head(policy)], retain_graph=True)
            found.append(gradient.flatten())
        return torch.stack(found)


def odd_world() -> EnumerableWorld:
    """Tokens a, b and an end, at most three of them; two prompts; reward 1 for an odd number of a's."""
    theta = torch.tensor([[0.2, -0.1, 0.0], [-0.3, 0.4, 0.1], [0.5, 0.0, -0.2], [0.0, 0.0, 0.0]], dtype=torch.float64)
    offset = torch.tensor([[0.0, 0.0, 0.0], [0.6, -0.4, 0.1]], dtype=torch.float64)
    return EnumerableWorld(theta, offset, lambda _, y: float(y.count(0) % 2 == 1), max_length=3, end_token=2)


def _head(policy: Policy) -> Tensor:
    head = policy.model.head
    assert isinstance(head, nn.Linear)
    return head.weight
