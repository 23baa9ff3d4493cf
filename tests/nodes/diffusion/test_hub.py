"""Models of the hub: found in its cache without a connection, fetched from a hub of this test where that is allowed."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nodes.diffusion import hub, load
from nodes.diffusion.load import LoadError

ROOT = Path(__file__).parents[3]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def snapshot(cache, name, files):
    """A model in a cache, as the hub's own library lays it out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file, content in files.items():
        path = repository / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return repository / "snapshots" / COMMIT


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("CALOTYPE_FETCH", raising=False)


@pytest.fixture
def model(pocket):
    return {str(file.relative_to(pocket)): file.read_bytes() for file in pocket.rglob("*") if file.is_file()}


@pytest.mark.usefixtures("offline")
class TestCache:
    def test_a_model_in_the_cache_is_found_and_loads(self, tmp_path, model, pocket):
        place = snapshot(tmp_path, "someone/pocket", model)
        assert hub.cached("someone/pocket", tmp_path) == hub.located("someone/pocket", tmp_path) == place
        assert load.unet_inputs(place) == load.unet_inputs(pocket)

    def test_another_is_not(self, tmp_path, model):
        snapshot(tmp_path, "someone/pocket", model)
        assert hub.cached("someone/else", tmp_path) is None

    def test_one_of_which_nothing_but_some_weights_was_fetched_is_not(self, tmp_path):
        snapshot(tmp_path, "someone/pocket", {"unet/diffusion_pytorch_model.safetensors": b""})
        assert hub.cached("someone/pocket", tmp_path) is None

    @pytest.mark.parametrize("name", ["pocket", "../pocket", "a/b/c", "a/..", "/a/b", "a/b\n", "", "-x/y", "a b/c"])
    def test_what_is_no_name_is_looked_for_nowhere(self, name, tmp_path):
        assert not hub.is_name(name)
        assert hub.cached(name, tmp_path) is None

    def test_the_way_to_fetch_one_is_told(self, tmp_path):
        with pytest.raises(LoadError, match=r"someone/else: .* found none; .*`hf download someone/else`, .*FETCH=1"):
            hub.located("someone/else", tmp_path)

    def test_the_environment_says_where_the_cache_is(self, tmp_path, model):
        place = snapshot(tmp_path / "hub", "someone/pocket", model)
        code = "from nodes.diffusion import hub; print(hub.cached('someone/pocket'))"
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_CACHE"}
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"HF_HOME": str(tmp_path)},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        assert ran.stdout.strip() == str(place)


class TestNeeded:
    def test_of_each_part_one_kind_of_weights_is_fetched(self):
        files = [
            "README.md",
            "model_index.json",
            "v1-5-pruned.safetensors",
            "unet/config.json",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.non_ema.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors",
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
            "text_encoder/model.safetensors.index.json",
            "text_encoder/model-00001-of-00002.safetensors",
            "text_encoder/model-00002-of-00002.safetensors",
            "tokenizer/vocab.json",
            "tokenizer/merges.txt",
        ]
        assert sorted(hub.needed(files)) == sorted(
            [
                "model_index.json",
                "unet/config.json",
                "unet/diffusion_pytorch_model.safetensors",
                "vae/config.json",
                "vae/diffusion_pytorch_model.fp16.safetensors",
                "text_encoder/model.safetensors.index.json",
                "text_encoder/model-00001-of-00002.safetensors",
                "text_encoder/model-00002-of-00002.safetensors",
                "tokenizer/vocab.json",
                "tokenizer/merges.txt",
            ]
        )


class Hub(BaseHTTPRequestHandler):
    """A hub with one model."""

    def __init__(self, files, *args):
        self.files = files
        super().__init__(*args)

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/someone/pocket/tree/"):
            listed = [
                {"type": "file", "path": file, "size": len(content), "oid": "0"} for file, content in self.files.items()
            ]
            return self.send(json.dumps(listed).encode(), body=body)
        if path.startswith("/api/models/someone/pocket"):
            siblings = [{"rfilename": file} for file in self.files]
            told = {"id": "someone/pocket", "modelId": "someone/pocket", "sha": COMMIT, "siblings": siblings}
            return self.send(json.dumps(told).encode(), body=body)
        content = self.files.get(path.removeprefix(f"/someone/pocket/resolve/{COMMIT}/"))
        return self.send(b"none", 404, body=body) if content is None else self.send(content, body=body)

    def send(self, content, status=200, *, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(model):
    rest = {"extra.safetensors": b"0", "unet/diffusion_pytorch_model.fp16.safetensors": b"0"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, model | rest))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def locate(name, cache, endpoint, fetch):
    code = "import sys; from nodes.diffusion import hub; print(hub.located(sys.argv[1]))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    told = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "CALOTYPE_FETCH": fetch,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-c", code, name]
    return subprocess.run(command, env=environment | told, cwd=ROOT, check=False, capture_output=True, text=True)


def test_a_model_is_fetched_where_that_is_allowed(endpoint, tmp_path, model, pocket):
    ran = locate("someone/pocket", tmp_path, endpoint, "1")
    assert ran.returncode == 0, ran.stderr
    place = Path(ran.stdout.strip())
    assert {str(file.relative_to(place)) for file in place.rglob("*") if file.is_file()} == set(model)
    assert load.family(place) == load.family(pocket)
    assert locate("someone/pocket", tmp_path, "http://127.0.0.1:1", "0").stdout.strip() == str(place)


@pytest.mark.parametrize(
    ("name", "fetch", "found"),
    [
        ("someone/pocket", "0", "`hf download someone/pocket`"),
        ("someone/else", "1", "expected a model of a hub that can be reached, found"),
    ],
)
def test_one_that_must_not_or_cannot_be_fetched_is_refused(endpoint, tmp_path, name, fetch, found):
    ran = locate(name, tmp_path, endpoint, fetch)
    assert ran.returncode == 1
    assert f"LoadError: {name}: " in ran.stderr
    assert found in ran.stderr


def test_a_hub_that_is_not_there_is_said(tmp_path):
    ran = locate("someone/pocket", tmp_path, "http://127.0.0.1:1", "1")
    assert "LoadError: someone/pocket: expected a model of a hub that can be reached, found" in ran.stderr
