"""The policy: one forward pass gives log-probs, entropies and hidden states; the head works in chunks of tokens.

M rollouts of a micro-batch, S positions (prompt and response, padded on the right), T response tokens, N = all response
tokens of the micro-batch, V vocabulary, D hidden size. Nothing of size M×S×V exists, in the backward pass neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vantage.batch import Batch, idle_batch
from vantage.models.heads import Head, find_head
from vantage.models.holding import recomputed_blocks

if TYPE_CHECKING:
    from vantage.distributed.sharding import Shards

CHUNK_ELEMENTS = 2**26
"""Logits that exist at once when the chunk is chosen by vocabulary size: 256 MiB in float32."""


@dataclass(frozen=True)
class Forward:
    """What a forward pass yields for a micro-batch."""

    logp_MT: Tensor
    """Log-probs of the response tokens at the sampling temperature, float32 or better; 0 outside of the mask."""
    entropy_MT: Tensor
    """Entropy of the whole vocabulary's distribution that generated each token, in nats."""
    mask_MT: Tensor
    hidden: dict[int, Tensor]
    """Detached hidden states [M, S, D] of the layers that were asked for, counted as transformers' `hidden_states`."""
    prompt_length_M: Tensor
    length_M: Tensor
    response_ids: list[list[int]]
    kl_MT: Tensor | None = None
    """KL(policy ‖ reference) over the whole vocabulary at each token, in nats, where a reference was given."""
    reference_logp_MT: Tensor | None = None
    """Log-probs of the response tokens under the reference, detached, where they are known."""


class Policy:
    """A causal language model, its tokenizer, and the forward pass that the trainer needs."""

    recompute_options: Mapping[str, Any] = {}
    """How torch computes logits again in the backward pass; `vantage.memory.model` has others."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        temperature: float = 1.0,
        chunk_tokens: int = 0,
        compute: torch.dtype = torch.float32,
        recompute: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.chunk_tokens = temperature, chunk_tokens
        self.compute = compute
        """Type of the arithmetic in the model; log-probs are float32 in any case."""
        self.recompute = recompute
        """Whether blocks are run again in the backward pass instead of keeping their activations."""
        self.generator: nn.Module | None = None
        """What `next_logits` runs instead of the model while rollouts are generated; see `vantage.rollout.weights`."""
        self.goes_to: torch.device | None = None
        """Where the parameters will live once they are dealt out over processes."""
        self.shards: Shards | None = None
        """Where they are: the handle to this process's part."""
        model.eval()  # dropout would make the importance ratio differ from 1 before any update
        with self._arithmetic():
            self.head: Head = find_head(model)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.goes_to or next(self.model.parameters()).device

    @property
    def num_layers(self) -> int:
        """Decoder blocks."""
        return int(self.text_config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.text_config.hidden_size)

    @property
    def text_config(self) -> Any:
        """The language part of the model's configuration."""
        config: Any = self.model.config
        return config.get_text_config() if hasattr(config, "get_text_config") else config

    @property
    def pad_id(self) -> int:
        """A token id for padding; what it is never matters."""
        found = getattr(self.tokenizer, "pad_token_id", None)
        return int(found) if found is not None else 0

    def next_logits(self, ids_RS: Tensor, mask_RS: Tensor | None, position_RS: Tensor, cache: Any) -> Tensor:
        """Logits [R, V] after the last of the given tokens, which are added to `cache`; `mask_RS` covers the cache too."""
        model = self.model if self.generator is None else self.generator
        with self._arithmetic():
            out = model(
                input_ids=ids_RS,
                attention_mask=mask_RS,
                position_ids=position_RS,
                use_cache=True,
                logits_to_keep=1,
                **{self.head.cache_argument: cache},
            )
        logits: Tensor = out.logits[:, -1]
        return logits

    def logits(self, ids_RS: Tensor) -> Tensor:
        """Logits [R, S, V] of a few whole sequences of equal length; what is trained never needs them all at once."""
        with self._arithmetic():
            found: Tensor = self.model(input_ids=ids_RS, use_cache=False).logits
        return found

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to the type of the arithmetic, where that is not the float32 of the weights."""
        if self.compute == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)

    def _recomputing(self) -> contextlib.AbstractContextManager[None]:
        """Blocks are checkpointed inside, if that was asked for and there will be a backward pass."""
        wanted = self.recompute and torch.is_grad_enabled()
        return recomputed_blocks(self.head.blocks) if wanted else contextlib.nullcontext()

    def forward(
        self,
        batch: Batch,
        *,
        layers: Sequence[int] = (),
        entropy_grad: bool = False,
        reference: Policy | None = None,
        kl_grad: bool = True,
    ) -> Forward:
        """Run a micro-batch; gradients flow through `logp_MT`, through `entropy_MT` if `entropy_grad`, `kl_MT` if `kl_grad`.

        With a `reference` of the same vocabulary, its trunk runs too (without gradient) unless the batch has its states.
        A KL with gradient is taken in the chunks in which the policy's logits exist; one without in chunks of its own,
        which takes the head's arithmetic once more and no memory beyond that of the chunks.
        """
        prompt_length = [len(p) for p in batch.prompt_ids]
        if min(prompt_length) == 0:
            raise ValueError("a prompt without tokens has no position that could predict the first response token")
        ids_MS = self._pad_right([p + r for p, r in zip(batch.prompt_ids, batch.response_ids)])
        with self._arithmetic(), self._recomputing(), self._recording(layers) as hidden:
            last_MSD, logits_MSV = self.head.run(ids_MS)
        if self.num_layers in layers:
            if last_MSD is None:
                raise ValueError("the last layer's states are not available from this model")
            hidden[self.num_layers] = last_MSD.detach()
        device = ids_MS.device
        mask_MT = batch.response_mask_BT.to(device)
        prompt_M = torch.tensor(prompt_length, device=device)
        row_N, token_N = mask_MT.nonzero(as_tuple=True)
        position_N = prompt_M[row_N] + token_N
        target_N = ids_MS[row_N, position_N]
        source = last_MSD if logits_MSV is None else logits_MSV
        assert source is not None
        states = Source(self.head, source[row_N, position_N - 1], logits_MSV is None)
        other = None if reference is None else reference.source_of(batch, ids_MS, row_N, position_N - 1)
        inside = other if kl_grad and torch.is_grad_enabled() else None
        with self._arithmetic():
            scores = self._score(states, target_N, entropy_grad, inside)
            if other is not None and inside is None:
                scores = (*scores, *self._compare(states, target_N, other))
        empty_MT = torch.zeros(mask_MT.shape, dtype=scores[0].dtype, device=device)
        logp_MT, entropy_MT, *compared = (empty_MT.index_put((row_N, token_N), score_N) for score_N in scores)
        known = batch.reference_logp_BT
        return Forward(
            logp_MT=logp_MT,
            entropy_MT=entropy_MT,
            kl_MT=compared[0] if compared else None,
            reference_logp_MT=compared[1] if compared else None if known is None else known.to(device),
            mask_MT=mask_MT,
            hidden=hidden,
            prompt_length_M=prompt_M,
            length_M=batch.length_B.to(device),
            response_ids=batch.response_ids,
        )

    def _pad_right(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Token ids [M, S]. Causal attention never looks right, so padding there needs no mask."""
        width = max(len(row) for row in rows)
        padded = [[*row, *[self.pad_id] * (width - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.long).to(self.device)

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """Inside, any number of passes without gradient may be made. Every process must enter it."""
        return contextlib.nullcontext() if self.shards is None else self.shards.gathered()

    def in_step(self, parts: Sequence[list[int]]) -> Sequence[list[int]]:
        """Micro-batches to run with a gradient; an empty one stands for an `idle` pass. Every process must call it."""
        return parts if self.shards is None else self.shards.in_step(parts)

    def idle(self, reference: Policy | None = None, states_known: bool = False, kl_grad: bool = True) -> None:
        """A pass that changes nothing, in step with another process's pass with these arguments."""
        states = torch.zeros((1, self.hidden_size)) if states_known else None
        forward = self.forward(idle_batch(self.pad_id, states), reference=reference, kl_grad=kl_grad)
        forward.logp_MT.backward(torch.zeros_like(forward.logp_MT))  # type: ignore[no-untyped-call]

    def rest(self) -> None:
        """Let go of what a pass without a backward pass behind it leaves gathered."""
        if self.shards is not None:
            self.shards.root.reshard()

    def whole(self) -> contextlib.AbstractContextManager[nn.Module | None]:
        """The model for saving; None where another process saves it. Every process must enter it."""
        return contextlib.nullcontext(self.model) if self.shards is None else self.shards.whole()

    def active(self) -> contextlib.AbstractContextManager[None]:
        """What must hold while this model runs as a reference; see `vantage.models.reference`."""
        return contextlib.nullcontext()

    @torch.no_grad()
    def source(self, ids_MS: Tensor, row_N: Tensor, position_N: Tensor) -> Source:
        """What this model's logits at N positions come from, without gradient."""
        with self.active(), self._arithmetic():
            last_MSD, logits_MSV = self.head.run(ids_MS.to(self.device))
        found = last_MSD if logits_MSV is None else logits_MSV
        assert found is not None
        return Source(self.head, found[row_N, position_N], logits_MSV is None, self.active)

    def source_of(self, batch: Batch, ids_MS: Tensor, row_N: Tensor, position_N: Tensor) -> Source:
        """The same for a batch, which may have the states from before (`states_of`)."""
        if batch.reference_states is None:
            return self.source(ids_MS, row_N, position_N)
        if self.shards is not None:
            self.shards.root.unshard()  # the head, without the trunk before it
        return Source(self.head, torch.cat(batch.reference_states).to(self.device), True, self.active)

    def states_of(self, batch: Batch) -> list[Tensor] | None:
        """The last hidden states behind each response's tokens [T_i, D], on the CPU; None where the head is inseparable."""
        prompts = [len(p) for p in batch.prompt_ids]
        row_N, token_N = batch.response_mask_BT.nonzero(as_tuple=True)
        ids_MS = self._pad_right([p + r for p, r in zip(batch.prompt_ids, batch.response_ids)])
        found = self.source(ids_MS, row_N, torch.tensor(prompts)[row_N] + token_N - 1)
        return list(torch.split(found.source_NX.cpu(), batch.length_B.tolist())) if found.through_head else None

    def _score(
        self, states: Source, target_N: Tensor, entropy_grad: bool, reference: Source | None
    ) -> tuple[Tensor, ...]:
        """Log-probs, entropies and (with a reference) KLs of N tokens, a chunk of tokens at a time."""
        step = self.chunk_tokens or max(1, CHUNK_ELEMENTS // self.head.vocabulary)
        parts = []
        recompute = len(target_N) > step and torch.is_grad_enabled() and states.through_head
        for start in range(0, len(target_N), step):
            span = slice(start, start + step)
            arguments = (
                states.logits, states.source_NX[span], target_N[span], self.temperature, entropy_grad,
                None if reference is None else reference.logits,
                None if reference is None else reference.source_NX[span],
            )  # fmt: skip
            parts.append(
                checkpoint(score_tokens, *arguments, use_reentrant=False, **self.recompute_options)
                if recompute
                else score_tokens(*arguments)
            )
        if not parts:
            empty = states.source_NX.new_zeros((0,), dtype=torch.float32)
            return (empty,) * (2 if reference is None else 4)
        return tuple(torch.cat(found) for found in zip(*parts))

    @torch.no_grad()
    def _compare(self, states: Source, target_N: Tensor, reference: Source) -> tuple[Tensor, Tensor]:
        """KL to the reference and the reference's log-probs of N tokens, detached, in no more memory than the loss takes."""
        step = self.chunk_tokens or max(1, CHUNK_ELEMENTS // self.head.vocabulary)
        kl, logp = [], []
        for start in range(0, len(target_N), step):
            span = slice(start, start + step)
            reference_NV = log_softmax(reference.logits(reference.source_NX[span]), self.temperature)
            reference_NV = reference_NV.to(target_N.device)
            logp.append(reference_NV.gather(1, target_N[span, None]).squeeze(1))
            logp_NV = log_softmax(states.logits(states.source_NX[span].detach()), self.temperature)
            kl.append(divergence_(logp_NV, reference_NV))
            del reference_NV, logp_NV  # before the next chunk's logits
        empty = states.source_NX.new_zeros((0,), dtype=torch.float32)
        return (torch.cat(kl), torch.cat(logp)) if kl else (empty, empty)

    @contextlib.contextmanager
    def _recording(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Collect the inputs of chosen decoder blocks: `hidden_states[k]` is what block k reads (0 = embeddings)."""
        blocks = self.head.blocks
        found: dict[int, Tensor] = {}
        handles = []
        if wrong := [k for k in layers if not 0 <= k <= self.num_layers]:
            raise ValueError(f"layer {wrong[0]} is not in 0..{self.num_layers}")
        for layer in layers:
            if layer < self.num_layers:

                def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int = layer) -> None:
                    found[layer] = (args[0] if args else kwargs["hidden_states"]).detach()

                handles.append(blocks[layer].register_forward_pre_hook(keep, with_kwargs=True))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


@dataclass(frozen=True)
class Source:
    """What the logits of N tokens come from: last hidden states [N, D], or the logits themselves [N, V]."""

    head: Head
    source_NX: Tensor
    through_head: bool
    within: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    """What must hold while the head runs."""

    def logits(self, source_NX: Tensor) -> Tensor:
        """Logits [N, V] of a chunk."""
        with self.within():
            return self.head.logits(source_NX) if self.through_head else source_NX


def score_tokens(
    head: Any,
    source_NX: Tensor,
    target_N: Tensor,
    temperature: float,
    entropy_grad: bool,
    reference_head: Any = None,
    reference_NX: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Log-prob of the target and entropy, and KL and log-prob of a reference (if there is one), for each token [N].

    The softmax is taken in float32 (float64 stays float64), after division by the temperature as the sampler divides.
    """
    logp_NV = log_softmax(head(source_NX), temperature)
    logp_N = logp_NV.gather(1, target_N[:, None]).squeeze(1)
    with contextlib.nullcontext() if entropy_grad else torch.no_grad():
        entropy_N = entropy(logp_NV if entropy_grad else logp_NV.detach())
    if reference_NX is None:
        return logp_N, entropy_N
    with torch.no_grad():
        reference_NV = log_softmax(reference_head(reference_NX), temperature).to(logp_NV.device)
    reference_N = reference_NV.gather(1, target_N[:, None]).squeeze(1)
    return logp_N, entropy_N, divergence(logp_NV, reference_NV), reference_N


def log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    """Log-probs at a temperature, in float32; float64 stays float64."""
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, dim=-1)


def divergence(logp_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """KL(p ‖ q) in nats of rows of log-probs [N]; a token with p = 0 contributes 0."""
    dead_NV = logp_NV.isneginf()
    difference_NV = (logp_NV - reference_NV).masked_fill(dead_NV, 0.0)
    return (logp_NV.exp() * difference_NV).sum(-1)


def divergence_(logp_NV: Tensor, reference_NV: Tensor) -> Tensor:
    """`divergence` without gradient, which overwrites both arguments: nothing of their size is made."""
    dead_NV = logp_NV.isneginf()
    difference_NV = torch.sub(logp_NV, reference_NV, out=reference_NV).masked_fill_(dead_NV, 0.0)
    return difference_NV.mul_(logp_NV.exp_()).sum(-1)


def entropy(logp_NV: Tensor) -> Tensor:
    """Shannon entropy in nats of rows of log-probs [N]; a token of probability 0 contributes 0."""
    return -(logp_NV.exp() * logp_NV.masked_fill(logp_NV.isneginf(), 0.0)).sum(-1)
