"""Sampling: prompts become samples. `engine` is the embedded sampler, `run` resumes runs."""
