"""A `vllm serve` elsewhere, over HTTP: the trainer itself needs no vLLM.

The server is started with `--worker-extension-cls vantage.rollout.vllm_worker.VantageWorker --logprobs-mode
processed_logprobs` and VLLM_SERVER_DEV_MODE=1, which opens the endpoints for weights; it must read the folder that weights
are written to (`--vllm.sync-dir`).
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from vantage.errors import UserError
from vantage.rollout.engine import Sampling
from vantage.rollout.vllm_backend import Answer, Ask, BackendDied, finished, parameters
from vantage.rollout.vllm_worker import EXTENSION

CONNECTIONS = 64
"""Requests that are under way at once; vLLM batches them."""
POLL = 0.5
"""Seconds between looks at a server that is not there yet."""
START = f"VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --worker-extension-cls {EXTENSION} --logprobs-mode processed_logprobs"
"""How the server is started."""

T = TypeVar("T")


class RemoteVllm:
    """A server; every thread keeps a connection of its own."""

    elsewhere = True

    def __init__(self, url: str, timeout: float, flag: str = "--vllm.url") -> None:
        found = urlsplit(url)
        if found.scheme not in ("http", "https") or not found.hostname:
            raise UserError(f"{flag} is {url!r}, it must be an address such as http://HOST:8000")
        self.url, self.flag, self.timeout = url.rstrip("/"), flag, timeout
        self.where = f"vLLM at {self.url}"
        self._parts = found
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(CONNECTIONS, "vllm-requests")
        self._model = ""
        self._watched = False
        self._asleep = False

    # --- HTTP -----------------------------------------------------------------------------------------------------------

    def _connect(self) -> http.client.HTTPConnection:
        known: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if known is None:
            kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
            known = kind(self._parts.hostname or "", self._parts.port)
            self._local.connection = known
        return known

    def _call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of one request; a connection that the server had closed meanwhile is opened again once."""
        sent = None if body is None else json.dumps(body)
        for fresh in (False, True):
            connection = self._connect()
            try:
                connection.request(
                    method, self._parts.path.rstrip("/") + path, sent, {"Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                text = answer.read()
                break
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._local.connection = None
                if fresh:
                    self._model, self._watched = "", False
                    raise BackendDied(f"it does not answer ({error or type(error).__name__})") from error
        try:
            return answer.status, json.loads(text) if text else None
        except ValueError:
            return answer.status, text.decode(errors="replace")

    def _post(self, path: str, body: Any = None) -> Any:
        status, found = self._call("POST", path, {} if body is None else body)
        if status == 200:
            return found
        said = _reason(found)
        if status in (404, 405) and not path.startswith("/v1/"):
            raise UserError(f"{self.flag} {self.url}: it has no {path}; start it so: {START}")
        if "EngineDead" in said or status in (502, 503):
            raise BackendDied(f"its engine has died ({said})")
        if status >= 500 and path == "/collective_rpc":
            raise UserError(f"{self.flag} {self.url}: weights can not be updated ({said}); start it so: {START}")
        raise UserError(f"{self.flag} {self.url}: it refuses a request ({status}: {said})")

    def _ready(self) -> None:
        """Wait until the server answers, at most the timeout, and learn its model's name; wake it."""
        if not self._model:
            began = time.monotonic()
            while True:
                try:
                    status, found = self._call("GET", "/v1/models")
                    if status == 200:
                        self._model = str(found["data"][0]["id"])
                        break
                    raise BackendDied(f"it answers with status {status}")
                except BackendDied:
                    if time.monotonic() - began > self.timeout:
                        raise
                    time.sleep(POLL)
        if self._asleep:
            self._post("/wake_up")
            self._asleep = False

    def _each(self, call: Callable[[T], Any], items: Sequence[T]) -> list[Any]:
        """One request for each item, many at once, in order."""
        futures = [self._pool.submit(call, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    # --- work -----------------------------------------------------------------------------------------------------------

    def complete(self, asks: Sequence[Ask], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """See `Backend`."""
        self._ready()
        if sampling.temperature > 0 and (sampling.top_p < 1 or sampling.top_k > 0):
            self._watch_sampling()

        def one(ask: Ask) -> Answer:
            asked = parameters(ask, sampling, end_ids) | {
                "model": self._model,
                "prompt": ask.ids,
                "return_token_ids": True,
            }
            (choice,) = self._post("/v1/completions", asked)["choices"]
            ids, logp = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            return Answer(ids, [float(x) for x in logp[: len(ids)]], finished(choice["finish_reason"]))

        return self._each(one, asks)

    def _watch_sampling(self) -> None:
        if not self._watched:
            if not all(state["watched"] for state in self._rpc("vantage_watch_sampling")):
                raise UserError(
                    f"{self.flag} {self.url}: start it with VLLM_USE_V2_MODEL_RUNNER=0 for --top-p and --top-k"
                )
            self._watched = True

    def score(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """See `Backend`."""
        self._ready()

        def one(ids: list[int]) -> list[float]:
            asked = {"model": self._model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
            (choice,) = self._post("/v1/completions", asked)["choices"]
            return [float(row[str(token)]["logprob"]) for row, token in zip(choice["prompt_logprobs"][1:], ids[1:])]

        return self._each(one, sequences)

    def _rpc(self, method: str, *args: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._post("/collective_rpc", {"method": method, "args": list(args)})["results"]
        return found

    def load(self, folder: Path) -> list[dict[str, Any]]:
        """See `Backend`."""
        self._ready()
        states = self._rpc("vantage_load", str(folder))
        if not self._post("/reset_prefix_cache")["success"]:
            raise UserError(f"{self.flag} {self.url}: it is at work for somebody else; a run needs a server of its own")
        return states

    def state(self) -> list[dict[str, Any]]:
        """See `Backend`."""
        self._ready()
        return self._rpc("vantage_state")

    def sleep(self) -> None:
        """See `Backend`. A server has its own device: there is nothing to free."""

    def close(self) -> None:
        """See `Backend`. The server goes on; what was known of it is forgotten."""
        self._model, self._watched = "", False


def _reason(found: Any) -> str:
    error = found.get("error", found) if isinstance(found, dict) else found
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:200]
