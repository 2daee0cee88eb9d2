"""A real llama-server on the loopback interface, and a client of its raw /completion route."""

import contextlib
import http.client
import json
import pathlib
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

START_LIMIT_S = 120.0


class LlamaServer:
    """Runs `binary` with `arguments` for the length of a `with` block; threads may share `complete`."""

    def __init__(self, binary: pathlib.Path, arguments: Sequence[str]) -> None:
        if not binary.exists():
            raise SystemExit(f"{binary} is not there: run benchmarks/peers/setup.sh native")
        self.port = _free_port()
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._command = [str(binary), *address, *arguments]
        self._local = threading.local()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._log = undo.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)
            undo.callback(self._stop)
            self._wait_until_ready()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def complete(self, prompt: str, limit: int, seed: int, sampling: dict[str, Any]) -> tuple[str, int]:
        """(text, tokens generated with the stop token) of one raw prompt."""
        body = {"prompt": prompt, "n_predict": limit, "seed": seed, "cache_prompt": True, **sampling}
        status, answer = self._request("POST", "/completion", body)
        if status != http.client.OK:
            raise RuntimeError(f"llama-server answered {status}: {answer}")
        return answer["content"], answer["tokens_predicted"]

    def peak_rss(self) -> int:
        """Peak resident memory of the server so far, in bytes (it counts the mapped model file)."""
        status = pathlib.Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found.group(1)) * 1024 if found else 0

    def log(self) -> str:
        """What the server has said, over a handle of our own: the server writes at the file's position."""
        return pathlib.Path(f"/proc/self/fd/{self._log.fileno()}").read_text(
            encoding="utf-8", errors="replace"
        )

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """One request over this thread's own kept-alive connection."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self.port)
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"llama-server ended with {self._process.returncode}:\n{self.log()[-2000:]}"
                )
            if self._healthy():
                return
            time.sleep(0.1)
        raise RuntimeError(f"llama-server was not ready after {START_LIMIT_S} s:\n{self.log()[-2000:]}")

    def _healthy(self) -> bool:
        """Whether the server answers and has loaded the model (it says 503 while it loads)."""
        try:
            return self._request("GET", "/health")[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            self._local.connection = None
            return False

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def cpu_features(binary: pathlib.Path) -> list[str]:
    """The vector instructions and kernels that the binary was compiled with.

    It logs them at a verbosity that would slow the server, so a run that ends for want of a model is asked.
    """
    command = [
        str(binary),
        "--verbosity",
        "4",
        "--offline",
        "--model",
        "/nonexistent",
        "--port",
        str(_free_port()),
    ]
    told = subprocess.run(command, capture_output=True, text=True, timeout=START_LIMIT_S, check=False)
    line = re.search(r"system_info:.*", told.stdout + told.stderr)
    return re.findall(r"(\w+) = 1\b", line.group()) if line else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
