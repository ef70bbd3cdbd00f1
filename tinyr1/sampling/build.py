"""Which engine samples, and with what: the options that evaluating and asking a teacher share."""

from __future__ import annotations

import logging
import math
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch
import tyro

from tinyr1.chat import TemplateName, check_template, guess_template, stop_ids
from tinyr1.config import check_range, check_zero_or_range, flag, to_json
from tinyr1.errors import RunStopped, UserError
from tinyr1.files import real
from tinyr1.log import Log
from tinyr1.model import Qwen2
from tinyr1.model_config import Qwen2Config
from tinyr1.ranks import Ranks
from tinyr1.record import Prompt
from tinyr1.sampling import openai, vllm
from tinyr1.sampling.engine import Engine
from tinyr1.sampling.sampler import Sampler, SamplingSettings
from tinyr1.tokenizer import Tokenizer
from tinyr1.weights import DTYPES, Checkpoint, dtype_name


@dataclass(frozen=True)
class EngineConfig:
    """Options of sampling."""

    model: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None
    """Hugging Face checkpoint directory; of a server's model, the tokenizer is enough."""
    sampling: Annotated[SamplingSettings, tyro.conf.OmitArgPrefixes] = field(
        default_factory=SamplingSettings
    )
    engine: Literal["auto", "torch", "vllm", "openai"] = "auto"
    """torch: ours; vllm: in this process; openai: a server. auto: vllm on GPUs where installed."""
    template: Literal["auto", "deepseek_r1", "qwen"] = "auto"
    """Chat template; auto goes by the tokenizer's special tokens."""
    max_model_len: int | None = None
    """Prompt and answer together (by default the config's max_position_embeddings)."""
    slots: int = 64
    """Sequences sampled at once (requests at once, for a server)."""
    dtype: Literal["fp32", "bf16"] | None = None
    """Type of weights and cache (by default bf16 on CUDA, fp32 on CPU)."""
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Compile the model (torch, vllm): minutes at the start, faster on a GPU."""
    tensor_parallel: int = 1
    """GPUs that hold one copy of the model (vllm)."""
    replicas: int = 1
    """Copies of the model, each in processes of its own; they share the requests."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory that vllm takes."""
    base_url: str = ""
    """The server, as in http://127.0.0.1:8000/v1 (openai)."""
    model_name: str = ""
    """The model's name at the server (openai)."""
    api: openai.Api = "completions"
    """completions sends token ids in our template, chat sends messages (openai)."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's key (openai)."""
    requests_per_minute: float = 0.0
    """Rate limit (openai; 0: none)."""
    chunk_timeout: float = 300.0
    """Seconds without a word after which a request is tried again (openai)."""

    def __post_init__(self) -> None:
        check_range(self, 1, math.inf, "max_model_len", "slots")
        check_range(self, 1, math.inf, "tensor_parallel", "replicas")
        check_range(self, 0, math.inf, "requests_per_minute")
        check_zero_or_range(self, 0.01, "requests_per_minute")
        check_range(self, 1e-3, 1, "gpu_memory_utilization")
        check_range(self, 1e-3, 86_400, "chunk_timeout")
        if self.engine == "openai":
            for name in ("base_url", "model_name"):
                if not getattr(self, name):
                    raise UserError(f"{flag(name)}: required with --engine openai")
            if not self.base_url.startswith(("http://", "https://")):
                raise UserError(f"--base-url={self.base_url}: expected http:// or https://")


def starts_replicas(config: EngineConfig) -> bool:
    """Whether this process is the one that starts the replicas."""
    return config.replicas > 1 and Ranks.from_env().world_size == 1


def share_among_replicas(config: EngineConfig) -> Ranks:
    """This process among its replicas; the one that starts them ends here, as they do."""
    ranks = Ranks.from_env()
    if starts_replicas(config):
        _run_replicas(config.replicas)
    if config.engine == "vllm" or (config.engine == "auto" and vllm.available()):
        vllm.take_gpus(ranks, config.tensor_parallel)
    return ranks


def _run_replicas(count: int) -> NoReturn:
    """Run this program so many times under torchrun; leaves with the code of the first to fail."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    name = sys.argv[0]  # of a script, or of a module's file with `python -m`
    program = [name] if name.endswith("evaluate.py") else ["-m", f"tinyr1.{Path(name).stem}"]
    launcher = ["--standalone", f"--nproc-per-node={count}"]
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the replicas speak
    try:
        run(parse_args([*launcher, *program, *sys.argv[1:]]))
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise RunStopped(f"{error.sigval.name} came; the same command continues") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # it could say nothing
            number = signal.Signals(-failure.exitcode)
            raise RunStopped(f"replica {rank} was ended by {number.name}") from None
        sys.exit(failure.exitcode)
    sys.exit(0)


class Backend:
    """A model that can be sampled from: its tokenizer and limits now, the engine on demand."""

    def __init__(self, config: EngineConfig, ranks: Ranks, log: Log) -> None:
        self.config, self.ranks = config, ranks
        self.model = model = config.model
        self.engine = config.engine
        if self.engine == "auto":
            fast = torch.cuda.is_available() and vllm.available()
            self.engine = "vllm" if fast else "torch"
        if model is None and not (self.engine == "openai" and config.api == "chat"):
            raise UserError("MODEL: required as the first argument; --help shows all options")
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
        c, slots = self.config, max(1, min(self.config.slots, share))
        if self.engine == "openai":
            return openai.OpenAI(
                c.base_url,
                c.model_name,
                self.tokenizer,
                self.settings,
                slots,
                self.max_model_len,
                api=c.api,
                api_key_env=c.api_key_env,
                chunk_timeout_s=c.chunk_timeout,
                requests_per_minute=c.requests_per_minute,
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
        return Engine(model, self.tokenizer, self.settings, slots, self.max_model_len, c.compile)

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
        """What samples depend on besides their prompts, for sampling.json."""
        c, is_server = self.config, self.engine == "openai"
        here = self.model if not is_server else None
        record = to_json(self.settings) | {
            "model": real(self.model).name if self.model else c.model_name,
            "model_fingerprint": Checkpoint(here).fingerprint() if here else None,
            "template": self.template if self.tokenizer else None,
            "engine": self.engine,
            "dtype": None if is_server else self.dtype,
            "max_model_len": self.max_model_len,
        }
        server = {"base_url": c.base_url, "model_name": c.model_name, "api": c.api}
        return record | (server if is_server else {})

    def versions(self) -> dict[str, Any]:
        """What else the samples may depend on: releases and hardware."""
        from tinyr1 import __version__

        found = {"tinyr1": __version__, "torch": torch.__version__}
        if self.engine == "vllm":
            found["vllm"] = vllm.version()
        on_gpu = torch.cuda.is_available() and self.engine != "openai"
        return found | {"hardware": torch.cuda.get_device_name() if on_gpu else platform.machine()}
