"""Sampling: from prompts to samples. `engine` is the embedded sampler, `run` keeps runs resumable."""
