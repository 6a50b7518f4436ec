"""The vLLM engine: the protocol's rollouts from a vLLM whose weights are proved to be the policy's.

Before anything is generated the policy's weights are fingerprinted; where they have changed they are written, taken over by
vLLM's workers, and checked three ways: the fingerprint of what arrived, that of what the workers compute with (where they
keep it whole), and log-probs of known tokens against the policy's own. What does not agree is `StaleWeights`.

A rollout's seed is its key. vLLM adds numbers up in an order that depends on the batch, so a rollout is a function of weights
and key up to rounding: two runs can part where two tokens are as likely as each other to the last digit.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from vantage.distributed.world import World
from vantage.policy import Policy
from vantage.rollout.engine import Engine, EngineLost, Request, Rollout, Sampling, StaleWeights
from vantage.rollout.handover import fingerprint_of, probe_ids, probe_logp, sharded, written
from vantage.rollout.options import VllmOptions
from vantage.rollout.stopping import StopWatch, ended
from vantage.rollout.vllm_backend import Answer, Ask, Backend, BackendDied

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""Mean absolute difference of log-probs of known tokens, in nats, above which an engine's weights are not the policy's."""
POLL = 0.2

T = TypeVar("T")


class VllmEngine(Engine):
    """Rollouts by a `Backend`; `shared` where all processes of the run use the same one, which the main process updates."""

    separate = True

    def __init__(
        self,
        policy: Policy,
        end_ids: Sequence[int],
        backend: Backend,
        options: VllmOptions,
        dtype: torch.dtype,
        world: World | None = None,
        shared: bool = False,
    ) -> None:
        self.policy, self.backend, self.options, self.dtype = policy, backend, options, dtype
        self._end_ids = tuple(end_ids)
        self.world, self.shared = world or World(), shared
        self.tolerance = TOLERANCE[dtype] if options.tolerance is None else options.tolerance
        self.held = ""
        """Fingerprint of the weights that the backend was last seen to compute with."""
        self.difference = math.nan
        """How far its log-probs of known tokens were from the policy's then: mean absolute difference in nats."""
        self.updates = 0
        self.comparable: bool | None = None
        """Whether what the workers compute with has the fingerprint of a checkpoint; None before the first update."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """See `Engine`."""
        return self._end_ids

    # --- weights --------------------------------------------------------------------------------------------------------

    def update_weights(self) -> None:
        """See `Engine`. Raises `StaleWeights` where the weights did not arrive, `EngineLost` where vLLM is gone."""
        self._surely(lambda: None)

    def _freshen(self) -> None:
        wanted = fingerprint_of(self.policy, self.dtype)
        if wanted == self.held and (not self.backend.elsewhere or self._still_has(wanted)):
            return
        if self.shared and not self.world.main:
            if sharded(self.policy):
                fingerprint_of(self.policy, self.dtype)  # its part in the gathering of what the main process writes
            self._await(wanted)
        else:
            with written(self.policy, self.dtype, self.options.sync_dir) as folder:
                self._taken(self.backend.load(folder), wanted)
        self._check_log_probs()
        self.held = wanted
        self.updates += 1

    def _still_has(self, wanted: str) -> bool:
        return all(state["arrived"] == wanted for state in self.backend.state())

    def _await(self, wanted: str) -> None:
        """Wait until the main process has updated the server that all share."""
        began = time.monotonic()
        while not self._still_has(wanted):
            if time.monotonic() - began > self.options.server_timeout:
                raise StaleWeights(f"{self.backend.where}: process {self.world.rank} waits in vain for its new weights")
            time.sleep(POLL)

    def _taken(self, states: Sequence[dict[str, Any]], wanted: str) -> None:
        """Compare fingerprints; those of resident weights only where the first update has shown that they are comparable."""
        for state in states:
            if state["arrived"] != wanted:
                raise StaleWeights(
                    f"{self.backend.where}: other weights arrived than were sent (fingerprint {state['arrived'] or 'none'}, "
                    f"{wanted} was sent); does it read the same folder? see --vllm.sync-dir"
                )
        resident = all(state["resident"] == wanted for state in states)
        if self.comparable is None:
            self.comparable = resident
        elif self.comparable and not resident:
            raise StaleWeights(
                f"{self.backend.where}: new weights arrived, but it computes with others "
                f"(fingerprint {states[0]['resident']}, {wanted} was sent)"
            )

    def _check_log_probs(self) -> None:
        ids = probe_ids(self.policy)
        wanted = probe_logp(self.policy, ids)
        found = torch.tensor(self.backend.score(ids))
        self.difference = _difference(found, wanted)
        if not self.difference <= self.tolerance:
            raise StaleWeights(
                f"{self.backend.where}: its weights are not the policy's: log-probs of known tokens differ by "
                f"{self.difference:.2g} nats on average, {self.tolerance:.2g} is allowed (--vllm.tolerance)"
            )

    # --- rollouts -------------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """See `Engine`. Rollouts of a prompt share its cached states."""
        results: list[list[Rollout]] = [[] for _ in requests]
        asks: list[Ask] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            limit = request.limit(sampling)
            reason = ended(request.prefix_ids, limit, self.end_ids, sampling.stop, self.policy.tokenizer)
            if reason is not None:
                results[i] = [Rollout([], [], reason) for _ in request.keys]
                continue
            ids = [*request.prompt_ids, *request.prefix_ids]
            asks += [Ask(ids, limit, key >> 1) for key in request.keys]  # vLLM's seeds are signed
            owners += [i] * len(request.keys)
        if not asks:
            return results
        answers = self._surely(lambda: self.backend.complete(asks, sampling, self.end_ids), together=False)
        for i, answer in zip(owners, answers, strict=True):
            results[i].append(self._rollout(answer, requests[i], sampling))
        return results

    def _rollout(self, answer: Answer, request: Request, sampling: Sampling) -> Rollout:
        """The answer, cut where a stop string is complete: vLLM does not know one that the prefix began."""
        if len(answer.logp) != len(answer.ids) or not all(map(math.isfinite, answer.logp)):
            raise EngineLost(f"{self.backend.where}: it gave no finite log-prob for a token that it sampled")
        if sampling.stop and request.prefix_ids:
            watch = StopWatch(self.policy.tokenizer, sampling.stop, [request.prefix_ids])
            for t, token in enumerate(answer.ids):
                if watch.add(0, token):
                    return Rollout(answer.ids[: t + 1], answer.logp[: t + 1], "stop")
        return Rollout(answer.ids, answer.logp, answer.reason)

    # --- life -----------------------------------------------------------------------------------------------------------

    def _surely(self, work: Callable[[], T], together: bool = True) -> T:
        """Fresh weights, then the work; a vLLM that dies meanwhile is started again once, and it begins anew.

        Sharded weights can be given to an engine by all processes `together` only, which calls of `generate` are not.
        """
        alone = not together and sharded(self.policy)
        try:
            if not alone:
                self._freshen()
            return work()
        except BackendDied as died:
            self._forget()
            if alone:
                raise EngineLost(f"{self.backend.where}: {died}") from died
            print(f"vantage: {self.backend.where}: {died}; it is started again", file=sys.stderr, flush=True)
        try:
            self._freshen()
            return work()
        except BackendDied as died:
            self._forget()
            raise EngineLost(f"{self.backend.where}: {died}, for the second time") from died

    def _forget(self) -> None:
        self.backend.close()
        self.held = ""

    def sleep(self) -> None:
        """See `Engine`."""
        try:
            self.backend.sleep()
        except BackendDied:
            self._forget()  # the next call starts it again

    def close(self) -> None:
        """See `Engine`."""
        self._forget()


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).abs().mean()) if found.shape == wanted.shape else math.inf
