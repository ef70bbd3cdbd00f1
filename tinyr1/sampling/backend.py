"""The engine that samples, and the model that it samples from."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tinyr1.common.config import to_json
from tinyr1.common.errors import UserError
from tinyr1.common.files import real
from tinyr1.common.log import Log
from tinyr1.common.ranks import Ranks
from tinyr1.model.chat import TemplateName, check_template, guess_template, stop_ids
from tinyr1.model.config import Qwen2Config
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.model.weights import DTYPES, Checkpoint, dtype_name
from tinyr1.record import Prompt
from tinyr1.sampling import openai, vllm
from tinyr1.sampling.engine import TorchEngine
from tinyr1.sampling.options import EngineConfig
from tinyr1.sampling.sampler import Sampler


class Backend:
    """A model that can be sampled from: its tokenizer and limits now, the engine on demand."""

    def __init__(self, config: EngineConfig, ranks: Ranks, log: Log) -> None:
        self.config = config
        self.ranks = ranks
        self.log = log
        self.model = model = config.model
        self.engine = config.engine
        if self.engine == "auto":
            fast = torch.cuda.is_available() and vllm.available()
            self.engine = "vllm" if fast else "torch"
        if model is None and not (self.engine == "openai" and config.api == "chat"):
            raise UserError("MODEL: required; --help shows all options")
        self.max_model_len = config.max_model_len
        shape: Qwen2Config | None = None
        # A server's model may be known here by its tokenizer alone.
        if model and (self.engine != "openai" or (model / "config.json").exists()):
            shape = Qwen2Config.from_pretrained(model)
            self.max_model_len = config.max_model_len or shape.max_position_embeddings
            if self.max_model_len > shape.max_position_embeddings:
                log.warn(
                    f"--max-model-len={self.max_model_len}: beyond {model}'s "
                    f"max_position_embeddings={shape.max_position_embeddings}"
                )
        # With --api chat a server renders the messages itself, and no tokenizer is needed here.
        self.tokenizer = Tokenizer(model) if model else None
        if self.tokenizer and shape:
            self.tokenizer.check_size(shape.vocab_size)
        self.template: TemplateName = "deepseek_r1"
        stops = set(config.sampling.stop_ids)
        if self.tokenizer:
            self.template = self._template(self.tokenizer)
            stops.update(stop_ids(self.tokenizer, self.template))
        self.settings = replace(config.sampling, stop_ids=tuple(sorted(stops)))
        on_gpu = torch.cuda.is_available()
        self.dtype = config.dtype or ("bf16" if on_gpu else "fp32")

    def _template(self, tokenizer: Tokenizer) -> TemplateName:
        if self.config.template == "auto":
            return guess_template(tokenizer)
        check_template(tokenizer, self.config.template)
        return self.config.template

    def open(self, share: int) -> Sampler:
        """The engine, for about `share` samples."""
        c = self.config
        slots = max(1, min(self.config.slots, share))
        if self.engine == "openai":
            return openai.OpenAI(
                c.base_url,
                c.model_name,
                self.tokenizer,
                self.settings,
                slots,
                self.max_model_len,
                self.log.warn,
                api=c.api,
                api_key_env=c.api_key_env,
                chunk_timeout_s=c.chunk_timeout,
                requests_per_minute=c.requests_per_minute / self.ranks.world_size,
                tokens_per_minute=c.tokens_per_minute / self.ranks.world_size,
                extra_body=c.request_fields(),
                omit_fields=tuple(name for name in c.omit_fields.split(",") if name),
            )
        assert self.model is not None
        assert self.tokenizer is not None
        assert self.max_model_len is not None
        if self.engine == "vllm":
            vllm.prepare_environment(self.ranks, c.tensor_parallel)
            return vllm.VLLM(
                self.model,
                self.tokenizer,
                self.settings,
                slots,
                self.max_model_len,
                dtype_name(DTYPES[self.dtype]),
                tensor_parallel=c.tensor_parallel,
                gpu_memory_utilization=c.gpu_memory_utilization,
                compile=c.compile,
            )
        model = Qwen2.from_pretrained(self.model, DTYPES[self.dtype], self.ranks.device)
        return TorchEngine(
            model, self.tokenizer, self.settings, slots, self.max_model_len, c.compile
        )

    def check_lengths(self, prompts: Sequence[Prompt], file: Path | None = None) -> None:
        """UserError naming a prompt (of a row of `file`) after which nothing could be sampled."""
        limit = self.max_model_len
        for prompt in prompts:
            if limit and len(prompt.tokens) >= limit:
                where = f"{file}:" if file else f"task={prompt.task}"
                raise UserError(
                    f"{where} id={prompt.id}: the prompt has {len(prompt.tokens)} tokens, "
                    f"max_model_len is {limit}; raise --max-model-len or drop the row"
                )

    def record(self) -> dict[str, Any]:
        """All that samples depend on besides their prompts, for sampling.json."""
        c = self.config
        is_server = self.engine == "openai"
        here = self.model if not is_server else None
        record = to_json(self.settings) | {
            "model": real(self.model).name if self.model else c.model_name,
            "model_fingerprint": Checkpoint(here).fingerprint() if here else None,
            "template": self.template if self.tokenizer else None,
            "engine": self.engine,
            "dtype": None if is_server else self.dtype,
            "max_model_len": self.max_model_len,
        }
        # Not the address: the same model may be had from another.
        server = {"model_name": c.model_name, "api": c.api}
        if fields := c.request_fields():
            server["extra_body"] = json.dumps(fields, sort_keys=True)
        if c.omit_fields:
            server["omit_fields"] = c.omit_fields
        return record | (server if is_server else {})

    def versions(self) -> dict[str, Any]:
        """Releases and hardware, on which samples may depend, too."""
        from tinyr1 import __version__

        found = {"tinyr1": __version__, "torch": torch.__version__}
        if self.engine == "openai":
            found["base_url"] = self.config.base_url
        if self.engine == "vllm":
            found["vllm"] = vllm.version()
        on_gpu = torch.cuda.is_available() and self.engine != "openai"
        return found | {"hardware": torch.cuda.get_device_name() if on_gpu else platform.machine()}
