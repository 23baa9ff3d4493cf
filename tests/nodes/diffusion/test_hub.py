"""Models of the hub: found in its cache without a connection."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nodes.diffusion import hub, load

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


@pytest.fixture
def model(pocket):
    return {str(file.relative_to(pocket)): file.read_bytes() for file in pocket.rglob("*") if file.is_file()}


@pytest.mark.usefixtures("offline")
class TestCache:
    def test_a_model_in_the_cache_is_found_and_loads(self, tmp_path, model, pocket):
        place = snapshot(tmp_path, "someone/pocket", model)
        assert hub.cached("someone/pocket", tmp_path) == place
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
