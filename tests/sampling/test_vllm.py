"""A real vLLM, in process and over HTTP, against the conformance suite: pytest -m vllm.

On a CPU: OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import checked, make_checkpoint, run, task_rows, write_rows
from engine_conformance import MAX_MODEL_LEN, Conformance, settings_of

from tinyr1.evaluate.tasks import make_prompts
from tinyr1.model.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """With heads of a size that vLLM has a kernel for on every device."""
    return make_checkpoint(tmp_path_factory.mktemp("model"), hidden_size=128)


@pytest.fixture(scope="module")
def folder(tiny):
    return tiny


@pytest.fixture(scope="module")
def prompts(tiny):
    return make_prompts(checked(task_rows(4)), Tokenizer(tiny), "deepseek_r1", "plain", 3, False)


@pytest.fixture(scope="module")
def loaded(tiny):
    """One LLM for all tests: loading takes most of the time."""
    from tinyr1.common.ranks import Ranks
    from tinyr1.sampling.vllm import VLLM, prepare_environment

    prepare_environment(Ranks(), 1)
    # Stop strings need its tokenizer, so it is loaded with one.
    settings = settings_of(tiny, stop=("never",))
    return VLLM(tiny, Tokenizer(tiny), settings, 8, MAX_MODEL_LEN, "float32", compile=False)


@pytest.fixture(scope="module")
def url(tiny, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    module = "vllm.entrypoints.openai.api_server"
    command = [sys.executable, "-m", module, "--model", str(tiny), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", "float32", "--max-model-len"]
    command += [str(MAX_MODEL_LEN), "--max-num-seqs", "16", "--enforce-eager", "--seed", "0"]
    command += ["--served-model-name", "tiny"]
    log = open(tmp_path_factory.mktemp("server") / "log", "w+")  # noqa: SIM115
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 900
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            break
        except OSError:
            log.seek(0)
            assert server.poll() is None, log.read()[-3000:]
            assert time.monotonic() < deadline, log.read()[-3000:]
            time.sleep(1)
    yield f"http://127.0.0.1:{port}/v1"
    server.terminate()
    server.wait(60)
    log.close()


class TestInProcess(Conformance):
    @pytest.fixture
    def make(self, tiny, loaded):
        def make(slots=4, **settings):
            loaded.settings, loaded.slots = settings_of(tiny, **settings), slots
            return loaded

        return make


class TestOverHTTP(Conformance):
    @pytest.fixture
    def make(self, tiny, url):
        from tinyr1.sampling.openai import OpenAI

        opened = []

        def make(slots=4, **settings):
            options = settings_of(tiny, **settings)
            opened.append(OpenAI(url, "tiny", Tokenizer(tiny), options, slots, MAX_MODEL_LEN))
            return opened[-1]

        yield make
        for sampler in opened:
            sampler.close()


def test_evaluate_with_vllm_and_with_two_replicas(tiny, tmp_path):
    tasks = write_rows(tmp_path / "tasks.jsonl", task_rows(4, ("math", "science")))
    arguments = [tiny, "--task-file", tasks, "--preset", "plain", "--trials", 2, "--engine", "vllm"]
    arguments += ["--max-tokens", 30, "--max-model-len", 200, "--dtype", "fp32"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
    for name, extra in (("one", []), ("two", ["--replicas", 2])):
        out = tmp_path / name
        done = run("evaluate.py", *arguments, "--out", out, *extra, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    texts = [
        sorted((tmp_path / n / "samples.jsonl").read_text().splitlines()) for n in ("one", "two")
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 8
