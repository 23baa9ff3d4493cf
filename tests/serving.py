"""A real `calotype serve` in a process of its own, on a free port, that tests may ask, stop, kill and start again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2

ROOT = Path(__file__).parent.parent
PATIENCE = 90
"""Seconds that a server may take to start, or to end when it is told to."""


def free_port():
    """A port that nobody listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Serving:
    """One data folder, and the process that serves it. Settings are given as CALOTYPE_* variables, in lower case."""

    def __init__(self, folder, **settings):
        self.folder = Path(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = self.folder / "server.log"
        self.process = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = {f"CALOTYPE_{name.upper()}": str(value) for name, value in settings.items()}

    def start(self, *, wait=True):
        """Start it, and wait until it answers."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CALOTYPE_", "XDG_"))}
        environment |= {
            "CALOTYPE_DATA": str(self.folder / "data"),
            "CALOTYPE_PORT": str(self.port),
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": "1",
            **self.settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "calotype", "serve"], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        if wait:
            self.wait()
        return self

    def wait(self):
        """Wait until it answers."""
        give_up = time.monotonic() + PATIENCE
        while True:
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()}"
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self.url}/healthz", timeout=5, headers=self.headers).status_code == 200:
                    return
            assert time.monotonic() < give_up, f"the server does not answer:\n{self.log.read_text()}"
            time.sleep(0.05)

    @property
    def headers(self):
        """What a client must send."""
        token = self.settings.get("CALOTYPE_TOKEN")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def kill(self):
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def client(self, **options):
        """An HTTP client for it."""
        return httpx2.Client(base_url=self.url, timeout=60, headers=self.headers, trust_env=False, **options)

    def run(self, body, *, seconds=60, **headers):
        """Submit a run and wait for its end; returns its document."""
        with self.client() as client:
            answer = client.post(f"/v1/runs?wait={seconds}", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            return answer.json()

    def __enter__(self):
        return self.start() if self.process is None else self

    def __exit__(self, *exc):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def mask_graph(x=4, *, side=32, more=0):
    """A graph of cheap nodes, without any model, whose mask depends on `x`; `more` nodes make a longer chain."""
    nodes = {
        "n0": {"type": "mask.ellipse", "params": {"width": side, "height": side, "x": x, "y": 4, "w": 16, "h": 12}}
    }
    for number in range(1, more + 2):
        nodes[f"n{number}"] = {"type": "mask.blur", "params": {"radius": 0.5}, "inputs": {"mask": f"n{number - 1}"}}
    return {"format": "calotype/1", "nodes": nodes, "expose": {"x": "n0.x"}, "outputs": {"mask": f"n{more + 1}"}}


def sample_graph(seed=1, *, steps=4, prompt="red apple"):
    """Text to image on the embedded model, 64 x 64 px: a sampler that takes `steps` steps."""
    set_ = {"seed": seed, "steps": steps, "prompt": prompt, "width": 64, "height": 64}
    return {"graph": "text2img", "set": set_}


__all__ = ["Serving", "free_port", "mask_graph", "sample_graph"]
