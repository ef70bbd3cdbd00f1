"""Sampling (paper section 3.1.2): prompts in, finished samples out as they finish.

    sampler, draw          what every engine promises; temperature, top-p and seeded draws
    engine                 ours: continuous batching in plain PyTorch
    vllm, openai           the fast one on GPUs, and any compatible server
    answers, patience      of a server: when an answer is complete, when the next may be asked
    options, backend       which engine samples, and with what
    run                    a file of samples that grows and survives
    queue, replicas        several processes that share one list of prompts
Read sampler and engine; the other engines are the same promise kept by others.
"""
