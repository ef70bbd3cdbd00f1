"""Sampling: requests in, finished samples out as they finish, from one of three engines.

`engine` is ours (continuous batching in plain PyTorch), `vllm` the fast one on GPUs, `openai` any
compatible server. `run` keeps what they give; `sampler` is what they have in common.
"""
