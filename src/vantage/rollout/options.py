"""Options of the vLLM engine, apart from the rest of a configuration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vantage.config import TrainConfig


@dataclass(frozen=True)
class VllmOptions:
    """The `--vllm.*` options of a run, which `vantage.config.TrainConfig` explains."""

    url: str | None = None
    critic_url: str | None = None
    sync_dir: str | None = None
    server_timeout: float = 240.0
    gpu_memory_utilization: float = 0.3
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    enforce_eager: bool = False
    enable_sleep_mode: bool = True
    tolerance: float | None = None

    @staticmethod
    def of(config: TrainConfig) -> VllmOptions:
        """The options of a run."""
        names = [field.name for field in dataclasses.fields(VllmOptions)]
        return VllmOptions(**{name: getattr(config, f"vllm_{name}") for name in names})
