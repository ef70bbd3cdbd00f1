"""A server with OpenAI's interface: our engine behind http.server, and faults on demand."""

import json
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from tinyr1.model.chat import render_prompt, stop_ids
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.record import Message, Prompt
from tinyr1.sampling.engine import TorchEngine
from tinyr1.sampling.sampler import SamplingSettings

AFTERWARDS = ("reset after the reason", "silent after the reason", "[DONE] without a reason")


class Body(NamedTuple):
    """A whole response with status 200."""

    text: str
    kind: str = "application/json"


PIECES = {  # that are none of the interface
    "garbage": "{not json",
    "deep": "[" * 100_000,
    "list": "[1]",
    "ids of text": '{"choices": [{"text": "a", "token_ids": ["a"]}]}',
    "huge ids": '{"choices": [{"text": "a", "token_ids": [1000000000000000000000]}]}',
    "ids of no list": '{"choices": [{"text": "a", "token_ids": 5}]}',
    "text of no text": '{"choices": [{"text": 5}]}',
}


class FakeServer(ThreadingHTTPServer):
    """Answers with our engine. `faults` are taken one a request: an HTTP status, "cut", "silent",
    "error", a name in PIECES or in AFTERWARDS, a body of `Body`, or None for none.

    `capacity` is how many requests it takes at once (429 for the others), `reason` what it calls
    the end of an answer, `line_end` how its lines end, `raw` whether text is sent as it is.
    """

    daemon_threads = True

    def __init__(self, model, max_model_len=200, style="vllm"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.tokenizer = Qwen2.from_pretrained(model), Tokenizer(model)
        self.max_model_len, self.style = max_model_len, style
        self.faults: list = []
        self.seen: list = []
        self.capacity = None
        self.reason = None
        self.line_end = "\n"
        self.raw = False
        self.busy = 0  # how often it said so
        self.delay_s = 0.0
        self.running = self.most_running = 0
        self.lock, self.counting = threading.Lock(), threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def sample(self, body, chat):
        if chat:
            messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
            tokens = render_prompt(self.tokenizer, messages, "deepseek_r1")
        else:
            tokens = body["prompt"]
        settings = SamplingSettings(
            temperature=body["temperature"],
            top_p=body["top_p"],
            top_k=body.get("top_k", 0),
            max_tokens=body["max_tokens"],
            stop_ids=tuple(body.get("stop_token_ids", stop_ids(self.tokenizer, "deepseek_r1"))),
            stop=tuple(body.get("stop", ())),
        )
        with self.lock:
            engine = TorchEngine(self.model, self.tokenizer, settings, 1, self.max_model_len)
            prompt = Prompt("server", str(body["seed"]), 0, tuple(tokens))
            rows = []
            original = engine._collect
            engine._collect = lambda: rows.extend(engine.sequences) or original()
            (sample,) = [s for part in engine.generate([prompt]) for s in part]
        return sample, rows[0].tokens


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.counting:
            server.seen.append((dict(self.headers), body))
            fault = server.faults.pop(0) if server.faults else None
            server.running += 1
            server.most_running = max(server.most_running, server.running)
            if server.capacity and server.running > server.capacity and fault is None:
                fault = 429
                server.busy += 1
        try:
            if fault != 429:
                time.sleep(server.delay_s)
            self.answer(body, fault)
        finally:
            with server.counting:
                server.running -= 1

    def answer(self, body, fault):
        server = self.server
        if isinstance(fault, int):
            text = json.dumps({"error": {"message": "no such model" if fault == 404 else "later"}})
            self.send_response(fault)
            self.send_header("content-length", str(len(text)))
            if fault == 429:
                self.send_header("retry-after", "0.01")
            self.end_headers()
            self.wfile.write(text.encode())
            return
        if isinstance(fault, Body):
            self.send_response(200)
            self.send_header("content-type", fault.kind)
            self.send_header("content-length", str(len(fault.text.encode())))
            self.end_headers()
            self.wfile.write(fault.text.encode())
            return
        chat = self.path.endswith("/chat/completions")
        sample, tokens = server.sample(body, chat)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        pieces = [sample.text[i : i + 7] for i in range(0, len(sample.text), 7)] or [""]
        for i, piece in enumerate(pieces):
            if i == 1 and fault == "cut":
                self.close_connection = True
                self.send(None)
                return
            if i == 1 and fault == "silent":
                time.sleep(2.0)
            if i == 1 and fault in PIECES:
                self.send(f"data: {PIECES[fault]}\n\n")
            if i == 1 and fault == "error":
                self.event({"error": {"message": "engine died"}})
            last = i == len(pieces) - 1
            reason = server.reason if sample.finish_reason == "stop" else None
            reason = reason or sample.finish_reason
            if fault == "[DONE] without a reason":
                reason = None
            choice = {"index": 0, "finish_reason": reason if last else None}
            if chat:
                choice["delta"] = self.delta(sample.text, i * 7, piece)
            else:
                choice["text"] = piece
                if server.style == "vllm":
                    cut = i * len(tokens) // len(pieces), (i + 1) * len(tokens) // len(pieces)
                    choice["token_ids"] = tokens[cut[0] : cut[1]]
            self.event({"choices": [choice]})
        if fault == "silent after the reason":
            time.sleep(30)
        if fault == "reset after the reason":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if server.style == "vllm":
            self.send(": keep-alive\n\n")
            self.event({"choices": [], "usage": {"completion_tokens": sample.token_count}})
        self.send("data: [DONE]\n\n")
        self.send(None)

    def delta(self, text, start, piece):
        """A reasoning parser's split at </think>, under both of its names."""
        thought, closed, _ = text.partition("</think>")
        if self.server.style == "plain" or not closed:
            return {"content": piece}
        name = "reasoning" if self.server.style == "vllm" else "reasoning_content"
        begin = len("<think>\n") if text.startswith("<think>\n") else 0
        end, after = len(thought), len(thought) + len(closed)
        shown = {name: text[max(start, begin) : min(start + 7, end)] or None}
        return shown | {"content": text[max(start, after) : start + 7] or None}

    def event(self, value):
        self.send(f"data: {json.dumps(value, ensure_ascii=not self.server.raw)}\n\n")

    def send(self, text):
        data = (text or "").replace("\n", self.server.line_end).encode()
        try:
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        except OSError:
            self.close_connection = True


@contextmanager
def fake_server(model, **options):
    server = FakeServer(model, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
