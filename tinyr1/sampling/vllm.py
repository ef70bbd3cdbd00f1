"""vLLM in this process: the fast engine on GPUs.

Prompts go in as token ids, made by our templates, one request for each (question, trial) with a
seed of its own. Every sampling field is set: what a model's generation_config.json suggests
(a repetition penalty, for instance) must not enter an evaluation. Several replicas are several
processes that share a queue, not vLLM's data-parallel mode.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tinyr1.common.errors import RunStopped, UserError, needs
from tinyr1.common.ranks import Ranks
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Prompt, Sample
from tinyr1.sampling.sampler import (
    SamplingSettings,
    Status,
    TextStream,
    finished_sample,
    request_seed,
)

LOST = ("abort", "error")  # reasons of an end that is none


def available() -> bool:
    """True where vLLM is installed."""
    return importlib.util.find_spec("vllm") is not None


def version() -> str:
    """The release, as vLLM itself says it (its distribution may have another name)."""
    return str(importlib.import_module("vllm").__version__)


def take_gpus(ranks: Ranks, tensor_parallel: int) -> None:
    """Leave this replica its own GPUs to see. Call it before anything asks CUDA a question."""
    if ranks.world_size == 1:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(1024)]
    first = ranks.local_rank * tensor_parallel
    mine = devices[first : first + tensor_parallel]
    if len(mine) < tensor_parallel:
        raise UserError(
            f"--replicas={ranks.world_size}: {len(devices)} visible GPUs are not enough for "
            f"--tensor-parallel {tensor_parallel} each"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)


def prepare_environment(ranks: Ranks, tensor_parallel: int) -> None:
    """Hide torchrun from vLLM, which would take its variables for its own."""
    if ranks.world_size > 1:
        torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        for name in (*torchrun, "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
            os.environ.pop(name, None)
    if tensor_parallel == 1:  # the engine in this process: one order of events, a simple end
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


class VLLM:
    """Samples from a checkpoint through vllm.LLM."""

    def __init__(
        self,
        model: Path,
        tokenizer: Tokenizer,
        settings: SamplingSettings,
        slots: int,
        max_model_len: int,
        dtype: str,
        tensor_parallel: int = 1,
        gpu_memory_utilization: float = 0.9,
        compile: bool = True,
    ) -> None:
        library = needs("vllm", "vllm", "--engine vllm")
        self.tokenizer = tokenizer
        self.settings = settings
        self.max_model_len = max_model_len
        self.slots = slots
        self.tokens_out = 0
        self._running: dict[str, tuple[Prompt, list[int]]] = {}
        arguments: dict[str, Any] = {
            "model": str(model),
            "dtype": dtype,
            "tensor_parallel_size": tensor_parallel,
            "max_model_len": max_model_len,
            "max_num_seqs": slots,
            "gpu_memory_utilization": gpu_memory_utilization,
            "seed": settings.seed % 2**32,
            "enable_prefix_caching": True,
            "enforce_eager": not compile,
            "generation_config": "vllm",  # no default of the model's enters
            "skip_tokenizer_init": not settings.stop,  # stop strings need its detokeniser
            "disable_log_stats": True,
        }
        known = inspect.signature(library.EngineArgs).parameters
        llm = library.LLM(**{name: value for name, value in arguments.items() if name in known})
        self._engine = llm.llm_engine
        self._library = library
        self._delta = importlib.import_module("vllm.sampling_params").RequestOutputKind.DELTA

    @property
    def status(self) -> Status:
        longest = max((len(tokens) for _, tokens in self._running.values()), default=0)
        return Status(self.tokens_out, len(self._running), longest)

    def generate(self, prompts: Iterable[Prompt]) -> Iterator[list[Sample]]:
        """See Sampler."""
        waiting = iter(prompts)
        exhausted = False
        lost: list[tuple[str, str, int]] = []
        while True:
            while not exhausted and len(self._running) < self.slots:
                prompt = next(waiting, None)
                exhausted = prompt is None
                if prompt is not None:
                    self._submit(prompt)
            if not self._running:
                break
            ended = self._step()
            lost += [prompt.key for prompt, _, reason in ended if reason in LOST]
            yield [self._sample(*row) for row in ended if row[2] not in LOST]
        if lost:
            raise RunStopped(
                f"{len(lost)} requests ended in an error of vLLM, the first {lost[0]}; finished "
                "samples are kept, the same command asks again"
            )

    def stream(self, prompt: Prompt) -> Iterator[str]:
        text = TextStream(self.tokenizer, self.settings.stop, self.settings.stop_ids)
        name = self._submit(prompt)
        shown = 0
        _, tokens = self._running[name]
        while not text.stopped and name in self._running:
            self._step()
            yield text.add(*tokens[shown:])
            shown = len(tokens)
        yield text.finish()

    def close(self) -> None:
        """vLLM ends its workers when the process does."""

    def _submit(self, prompt: Prompt) -> str:
        s = self.settings
        name = f"{prompt.task}/{prompt.id}/{prompt.trial}"
        self._running[name] = (prompt, [])
        params = self._library.SamplingParams(
            n=1,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=0.0,
            repetition_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            seed=request_seed(s.seed, prompt),
            max_tokens=s.limit(prompt, self.max_model_len),
            stop=list(s.stop) or None,
            stop_token_ids=list(s.stop_ids),
            detokenize=bool(s.stop),
            skip_special_tokens=False,
            output_kind=self._delta,
        )
        self._engine.add_request(name, {"prompt_token_ids": list(prompt.tokens)}, params)
        return name

    def _step(self) -> list[tuple[Prompt, list[int], str]]:
        """One step of the engine; the rows that it finished, with vLLM's reason."""
        finished: list[tuple[Prompt, list[int], str]] = []
        for output in self._engine.step():
            prompt, tokens = self._running[output.request_id]
            completion = output.outputs[0]
            tokens += completion.token_ids
            self.tokens_out += len(completion.token_ids)
            if output.finished:
                del self._running[output.request_id]
                finished.append((prompt, tokens, completion.finish_reason))
        return finished

    def _sample(self, prompt: Prompt, tokens: list[int], reason: str) -> Sample:
        # Newer releases know more reasons; whatever is no stop was cut short.
        stopped = reason == "stop"
        return finished_sample(prompt, tokens, stopped, self.tokenizer, self.settings)
