"""Servers on the loopback that answer as LLMs do, for LiteLLM."""

import contextlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from questions import question

from llmqueue_gym.workloads.encoder import TextEncoder

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no request to another host


class Handler(BaseHTTPRequestHandler):
    """OpenAI's chat API: what was asked comes back, with the LLM's name."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        number = next(self.server.numbers)
        if asked.get("stream") and asked["model"] not in self.server.down:
            return self.stream(asked["model"], f"answer-{number}")
        if asked["model"] in self.server.down:
            code, answer = (
                self.server.down[asked["model"]],
                {"error": {"message": self.server.words}},
            )
        else:
            message = {"role": "assistant", "content": asked["model"]}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200}
            code, answer = (
                200,
                {
                    "id": f"answer-{number}",
                    "object": "chat.completion",
                    "created": 1,
                    "model": asked["model"],
                    "choices": [choice],
                    "usage": usage,
                },
            )
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def stream(self, model, name):
        """Answer in chunks; of what no server should send, the second one is an error."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        chunk = {"id": name, "object": "chat.completion.chunk", "created": 1, "model": model}
        said = {"index": 0, "delta": {"role": "assistant", "content": model}, "finish_reason": None}
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200}
        sent = [{"choices": [said]}, {"choices": [last]}, {"choices": [], "usage": usage}]
        if self.server.breaks:
            sent[1:] = [{"error": {"message": "broken", "code": 500}}]
        with contextlib.suppress(ConnectionError):  # nobody listens any longer
            for part in sent:
                self.wfile.write(f"data: {json.dumps({**chunk, **part})}\n\n".encode())
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    found.numbers = iter(range(10**9))
    found.down, found.words, found.breaks = {}, "down", False
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def callbacks(server):
    """LiteLLM's callbacks and the server, as they were before."""
    litellm = pytest.importorskip("litellm")
    yield
    litellm.callbacks = []
    litellm.logging_callback_manager._reset_all_callbacks()
    server.down.clear()
    server.words, server.breaks = "down", False


@pytest.fixture(scope="module")
def encoder():
    rng = np.random.default_rng(0)
    return TextEncoder([question(rng, i % 3, i) for i in range(240)], 8)
