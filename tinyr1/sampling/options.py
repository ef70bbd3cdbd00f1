"""Options of sampling, shared by the evaluation and the teacher."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tinyr1.common.command_line import Groups
from tinyr1.common.config import check_range, check_zero_or_range, flag
from tinyr1.common.errors import UserError
from tinyr1.sampling import openai
from tinyr1.sampling.sampler import SamplingSettings

# The titles under which these options stand in the --help of the programs that have them.
ENGINE_GROUPS: Groups = {
    "sampling": "temperature top_p top_k max_tokens seed stop stop_ids",
    "engine": "engine template max_model_len slots dtype compile tensor_parallel replicas "
    "gpu_memory_utilization",
    "a server (--engine openai)": "base_url model_name api api_key_env requests_per_minute "
    "tokens_per_minute extra_body omit_fields chunk_timeout",
}


@dataclass(frozen=True)
class EngineConfig:
    """Options of sampling."""

    model: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = None
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
    """Rate limit over all replicas (openai; 0: none)."""
    tokens_per_minute: float = 0.0
    """Rate limit of prompts and answers together, over all replicas (openai; 0: none)."""
    extra_body: str = ""
    """Further fields of each request as a JSON object (openai)."""
    omit_fields: str = ""
    """Fields to leave out of each request, with commas: seed,stream_options (openai)."""
    chunk_timeout: float = 300.0
    """Seconds without a word after which a request is tried again (openai)."""

    def __post_init__(self) -> None:
        check_range(self, 1, math.inf, "max_model_len", "slots")
        check_range(self, 1, math.inf, "tensor_parallel", "replicas")
        check_range(self, 0, math.inf, "requests_per_minute", "tokens_per_minute")
        check_zero_or_range(self, 0.01, "requests_per_minute", "tokens_per_minute")
        self.request_fields()
        check_range(self, 1e-3, 1, "gpu_memory_utilization")
        check_range(self, 1e-3, 86_400, "chunk_timeout")
        if self.engine == "openai":
            for name in ("base_url", "model_name"):
                if not getattr(self, name):
                    raise UserError(f"{flag(name)}: required with --engine openai")
            if not self.base_url.startswith(("http://", "https://")):
                raise UserError(f"--base-url={self.base_url}: expected http:// or https://")

    def request_fields(self) -> dict[str, Any]:
        """--extra-body as fields; UserError where it is no JSON object."""
        if not self.extra_body:
            return {}
        try:
            fields = json.loads(self.extra_body)
        except (ValueError, RecursionError) as error:
            raise UserError(f"--extra-body={self.extra_body}: not valid JSON ({error})") from None
        if not isinstance(fields, dict):
            raise UserError(f"--extra-body={self.extra_body}: expected a JSON object")
        return fields
