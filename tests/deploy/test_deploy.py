"""What deploy/ names is there, and what its commands call works."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from serving import Serving

from server.service import GRACE
from server.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
UNIT = (DEPLOY / "calotype.service").read_text()
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
TOKEN = "token-of-the-tests-0123456789"


def instructions(name):
    """The arguments of every instruction of this name in the Dockerfile."""
    return re.findall(rf"^\s*{name}\s+(.*)$", DOCKERFILE, re.MULTILINE)


def environment(**more):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CALOTYPE_", "XDG_"))}
    return {**clean, **more}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    unit = tmp_path / "calotype.service"
    unit.write_text(UNIT.replace("/opt/calotype/bin/calotype", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], check=False, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "calotype" in line]
    assert (done.returncode, said) == (0, [])


def test_the_unit_leaves_time_to_stop():
    seconds = int(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[1])
    assert seconds > 3 * GRACE


def test_the_unit_starts_a_command_that_the_package_installs():
    command = re.search(r"^ExecStart=\S+/(\w+) serve$", UNIT, re.MULTILINE)[1]
    assert command in PROJECT["project"]["scripts"]
    assert instructions("CMD") == [json.dumps([command, "serve"])]


def test_the_settings_are_accepted(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("CALOTYPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CALOTYPE_CONFIG", str(DEPLOY / "calotype.yaml"))
    monkeypatch.setenv("CALOTYPE_DATA", str(tmp_path))
    given = yaml.safe_load((DEPLOY / "calotype.yaml").read_text())
    assert Settings.load().limits.steps == given["limits"]["steps"]


def test_the_image_is_made_of_files_that_are_here_and_not_ignored():
    copied = {name for line in instructions("COPY") if "--from" not in line for name in line.split()[:-1]}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    packages = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert packages <= copied
    needed = {PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "constraints.txt"}
    assert {name for name in needed if name.partition("/")[0] not in copied} == set()
    let_in = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert let_in == copied


def test_the_image_does_not_run_as_root():
    (user,) = instructions("USER")
    assert re.search(rf"useradd .* {user}\b", DOCKERFILE)
    assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nCMD ")


def test_the_container_refuses_to_start_without_a_token(tmp_path):
    (given,) = instructions("ENV")
    own = dict(pair.split("=", 1) for pair in given.split() if pair.startswith("CALOTYPE_"))
    own["CALOTYPE_DATA"] = str(tmp_path)
    command = [sys.executable, "-m", "calotype", "serve"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment(**own), cwd=tmp_path, timeout=60
    )
    assert done.returncode == 2
    assert "clients need a token" in done.stderr


def test_the_health_check_tells_a_service_that_answers_from_one_that_does_not(tmp_path):
    _, _, command = json.loads(re.search(r"HEALTHCHECK .* CMD (\[.*\])", DOCKERFILE)[1])

    def status(**variables):
        return subprocess.run(
            [sys.executable, "-c", command], check=False, stderr=subprocess.DEVNULL, env=environment(**variables)
        ).returncode

    with Serving(tmp_path, token=TOKEN) as serving:
        assert status(CALOTYPE_URL=serving.url, CALOTYPE_TOKEN=TOKEN) == 0
        assert status(CALOTYPE_URL=serving.url) != 0
        serving.kill()
        assert status(CALOTYPE_URL=serving.url, CALOTYPE_TOKEN=TOKEN) != 0
