"""A policy without weights: the parts of a training step, run on the meta device to see what memory they take."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from vantage.memory.dealt import PutTogether, share, whole_bytes
from vantage.memory.estimates import Settings, dtype_of, tensors_of
from vantage.memory.trace import Casting, FusedAttention, peak_of
from vantage.models.heads import Head, find_blocks
from vantage.models.holding import Lora, with_adapters
from vantage.policy import Policy, Source
from vantage.rollout.decoding import CastCache
from vantage.rollout.sampling import sample
from vantage.rollout.weights import cast_bytes, cast_once, cast_weights


class ShapePolicy(Policy):
    """The policy's own forward and scoring code over a model that has shapes only."""

    def __init__(self, model_config: Any, precision: str, lora: Lora | None = None, dealt: bool = False) -> None:
        """Without the numerical check of `find_head`, which needs weights: trunk and head are taken as separate.

        `dealt`: over several processes, where blocks are put together in the type of the arithmetic.
        """
        kind = dtype_of(precision)
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(
                copy.deepcopy(model_config), dtype=torch.float32 if lora is None else kind
            )
            model = base if lora is None else with_adapters(base, lora)
        trunk: Any = getattr(base, getattr(base, "base_model_prefix", ""), None)
        self.model, self.tokenizer, self.temperature, self.chunk_tokens = model, None, 1.0, 0
        self.generator, self.compute, self.recompute = None, kind, False
        self.casting = None if kind == torch.float32 else Casting(kind)
        text: Any = base.config
        text = text.get_text_config() if hasattr(text, "get_text_config") else text
        self.head = Head(base, trunk, lambda logits: logits, int(text.vocab_size), find_blocks(base))
        self.recompute_options = {"preserve_rng_state": False, "context_fn": self._recomputing_in}
        for weight in cast_weights(self.head.blocks, kind) if dealt else ():
            weight.data = weight.data.to(kind)
        model.eval()

    @property
    def parameters(self) -> int:
        """Their number; tied ones count once."""
        return sum(p.numel() for p in self.model.parameters())

    def held(self, processes: int, trained: bool = False, trunk: bool = False) -> int:
        """Numbers that one of so many processes holds: of all, of what is trained (all or the adapters), or below the head."""
        parameters = (self.head.trunk or self.model if trunk else self.model).parameters()
        return sum(share(p, processes) for p in parameters if p.requires_grad or not trained)

    def whole_bytes(self, processes: int, trunk: bool = False) -> int:
        """Bytes of all parameters put together, blocks in the type of the arithmetic."""
        return whole_bytes((self.head.trunk or self.model if trunk else self.model).parameters(), processes)

    def _put_together(self, settings: Settings, values: bool) -> contextlib.AbstractContextManager[None]:
        """Inside, a trace has what is put together for the pass, the root of a reference that is compared with too."""
        if not settings.dealt:
            return contextlib.nullcontext()
        root: Any = self.head.trunk if values and self.head.trunk is not None else self.head.model
        found = PutTogether(root, self.head.blocks, settings.processes, settings.on_cpu)
        return found.active(beside=settings.exact_kl and settings.reference != "none")

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.casting is None else self.casting.session()

    def update_bytes(self, settings: Settings, values: bool = False) -> int:
        """Peak of forward and backward over one micro-batch of the longest rollouts, beyond weights and gradients.

        `values`: of a value head behind the trunk, in float32 as critics compute it.
        """
        self.chunk_tokens = settings.chunk_tokens
        for parameter in self.model.parameters():
            if parameter.requires_grad and not settings.dealt:
                parameter.grad = torch.empty_like(parameter)
        blocks = [(block, block.forward) for block in self.head.blocks]
        try:
            if settings.checkpointing:
                for block, forward in blocks:
                    block.forward = functools.partial(
                        checkpoint, forward, use_reentrant=False, **self.recompute_options
                    )
            return peak_of(lambda: self._pass(settings, values), tensors_of(self.model), self.casting)
        finally:
            for block, forward in blocks:
                block.forward = forward
            self.model.zero_grad(set_to_none=True)

    def _recomputing_in(self) -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
        """The backward pass leaves the modes that replace attention and cast, so what is computed again enters them again."""
        return contextlib.nullcontext(), _again(None if self.casting is None else Casting(self.casting.kind))

    def scoring_bytes(self, settings: Settings, values: bool = False) -> int:
        """Peak of the same pass without a gradient, by a model that is whole."""
        with torch.no_grad():
            work = self._values if values else self._logp
            return peak_of(lambda: work(settings), tensors_of(self.model), self.casting)

    def _pass(self, settings: Settings, values: bool) -> None:
        with self._put_together(settings, values):
            made = (self._values if values else self._logp)(settings)
            made.sum().backward()  # type: ignore[no-untyped-call]

    def _logp(self, settings: Settings) -> torch.Tensor:
        rows, length = settings.rows, settings.rollout_tokens
        ids_MS = self._zeros(rows, length)
        with self._arithmetic():
            last_MSD, logits_MSV = self.head.run(ids_MS)
        source_MSX = last_MSD if logits_MSV is None else logits_MSV
        assert source_MSX is not None
        count = rows * settings.new_tokens
        states = Source(self.head, source_MSX[self._zeros(count), self._zeros(count)], logits_MSV is None)
        other = None
        if settings.exact_kl:
            with torch.no_grad():
                other = Source(self.head, states.source_NX.detach().clone(), states.through_head)
        with self._arithmetic():
            logp_N, _ = self._score(states, self._zeros(count), False, None)
            compared = None if other is None else self._compare(states, self._zeros(count), other)
        del compared, other
        return logp_N

    def _values(self, settings: Settings) -> torch.Tensor:
        with self._arithmetic():
            last_MSD, _ = self.head.run(self._zeros(settings.rows, settings.rollout_tokens))
        assert last_MSD is not None
        count = settings.rows * settings.new_tokens
        return last_MSD[self._zeros(count), self._zeros(count)].float()

    def rollout_bytes(self, settings: Settings) -> tuple[int, int]:
        """Peak of generation beyond the weights, and the key-value cache's part of it."""
        with torch.no_grad(), cast_once(self):
            known = [*tensors_of(self.model), *tensors_of(self.generator or self.model)]
            prefill = peak_of(lambda: self._prefill(settings), known, self.casting)
            shapes = self._cache_shapes()
            cache = sum(2 * self._cache_entry(settings, shape).nbytes for shape in shapes)
            last = peak_of(lambda: self._last_token(settings, shapes), known, self.casting)
            return max(prefill, last) + cast_bytes(self.model, self.compute), cache

    def _prefill(self, settings: Settings) -> None:
        """All prompts of a generation batch at once, then the cache repeated for their rollouts."""
        prompts = max(1, settings.generation_rows // settings.rollouts_per_prompt)
        cache = CastCache(self)
        position_PS = self._zeros(prompts, settings.prompt_tokens)
        logits_PV = self.next_logits(self._zeros(prompts, settings.prompt_tokens), None, position_PS, cache)
        if settings.rollouts_per_prompt > 1:
            cache.batch_select_indices(self._zeros(settings.generation_rows))
        _sample(logits_PV[self._zeros(settings.generation_rows)], settings)

    def _cache_shapes(self) -> list[tuple[int, ...]]:
        """Shape of the keys that one row of one token leaves in each layer; layers without keys are left out."""
        cache = CastCache(self)

        def one_token() -> None:
            self.next_logits(self._zeros(1, 1), None, self._zeros(1, 1), cache)

        peak_of(one_token, tensors_of(self.model), self.casting)
        return [tuple(layer.keys.shape) for layer in cache.layers if getattr(layer, "keys", None) is not None]

    def _cache_entry(self, settings: Settings, shape: tuple[int, ...]) -> torch.Tensor:
        """Keys, or values, of a whole generation batch at its end, in one layer."""
        _, heads, _, width = shape
        full = (settings.generation_rows, heads, settings.rollout_tokens - 1, width)
        return torch.empty(full, dtype=self.compute, device="meta")

    def _last_token(self, settings: Settings, shapes: list[tuple[int, ...]]) -> None:
        """The last decoding step, where the cache is longest."""
        cache = CastCache(self)
        for index, shape in enumerate(shapes):
            cache.update(self._cache_entry(settings, shape), self._cache_entry(settings, shape), index)
        rows = settings.generation_rows
        _sample(self.next_logits(self._zeros(rows, 1), None, self._zeros(rows, 1), cache), settings)

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.long, device="meta")


@contextlib.contextmanager
def _again(casting: Casting | None) -> Iterator[None]:
    with FusedAttention(casting), contextlib.nullcontext() if casting is None else casting.session():
        yield


def _sample(logits_RV: torch.Tensor, settings: Settings) -> None:
    uniform_R = torch.empty(len(logits_RV), dtype=torch.float64, device="meta")
    sample(logits_RV, uniform_R, 1.0, settings.top_p, settings.top_k)
