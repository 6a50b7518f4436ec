"""The same requests to a vLLM and to the transformers engine, on the embedded policy in float32."""

from __future__ import annotations

import torch

from vantage.models.loading import end_token_ids, load_policy
from vantage.policy import Policy
from vantage.prompting import encode_prompt
from vantage.rollout.engine import Engine, Request, Sampling
from vantage.rollout.transformers_engine import TransformersEngine

PROBLEMS = ("17+5+88+4=", "3+4=", "90+12+7=", "5+5+5+5+5+5=")
LOGP = 2e-5
"""Float32 kernels of two libraries agree on a log-prob to about this, in nats."""


def tiny_policy() -> Policy:
    return load_policy("tiny", torch.device("cpu"))


def moved(policy: Policy, size: float = 2e-3) -> None:
    """A step away in every weight, as an optimizer would go."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def requests(policy: Policy) -> list[Request]:
    """Whole prompts, prefixes, a limit of its own, a prefix that ended, and several rollouts of a prompt."""
    prompts = [encode_prompt(policy.tokenizer, text) for text in PROBLEMS]
    begun = tuple(policy.tokenizer.encode("17+5=2", add_special_tokens=False))
    ended = (*begun, end_token_ids(policy)[0])
    return [
        *(Request(prompt, (7 * i + 2, 7 * i + 4)) for i, prompt in enumerate(prompts)),
        Request(prompts[0], (1,), begun),
        Request(prompts[0], (1,), begun, max_new_tokens=3),
        Request(prompts[0], (1, 2), ended),
    ]


def same_greedy(engine: Engine, policy: Policy, stop: tuple[str, ...] = ()) -> None:
    """Greedy tokens, reasons and log-probs are those of the transformers engine."""
    sampling = Sampling(48, temperature=0.0, stop=stop)
    plain = TransformersEngine(policy, end_token_ids(policy))
    found, wanted = engine.generate(requests(policy), sampling), plain.generate(requests(policy), sampling)
    for ours, theirs in zip(found, wanted, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.response_ids, a.finish_reason) == (b.response_ids, b.finish_reason)
            assert all(abs(x - y) <= LOGP for x, y in zip(a.logp, b.logp, strict=True))


def logp_under(policy: Policy, request: Request, response: list[int], temperature: float) -> list[float]:
    """Log-probs of a response's tokens at a temperature, from a forward pass of the policy."""
    context = [*request.prompt_ids, *request.prefix_ids]
    ids = torch.tensor([[*context, *response]])
    with torch.no_grad():
        logp = (policy.model(input_ids=ids).logits[0, len(context) - 1 : -1] / temperature).log_softmax(-1)
    return logp[torch.arange(len(response)), torch.tensor(response, dtype=torch.long)].tolist()


def right_log_probs(engine: Engine, policy: Policy, sampling: Sampling) -> None:
    """What was sampled has the log-probs of the policy at the temperature, before top-p and top-k."""
    asked = requests(policy)
    for request, rollouts in zip(asked, engine.generate(asked, sampling), strict=True):
        for rollout in rollouts:
            wanted = logp_under(policy, request, rollout.response_ids, sampling.temperature)
            assert all(abs(x - y) <= LOGP for x, y in zip(rollout.logp, wanted, strict=True))
