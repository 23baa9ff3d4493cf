"""Settings of the service: keyword arguments over environment variables over `calotype.yaml` over defaults."""

import ipaddress
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ByteSize, ConfigDict, Field, SecretStr

from engine.errors import Problem
from server.places import Places
from server.source import FILE, PREFIX, SettingsError
from server.spelling import (
    RECIPE,
    Address,
    Callees,
    Client,
    Count,
    Folder,
    Folders,
    Hosts,
    Origins,
    Positive,
    Secret,
    Size,
    spelled,
)


class Section(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(Section):
    """What one request, one client and all of them together may ask for."""

    body: Size = Field(default=ByteSize(8 << 20), description="Bytes of a JSON body.")
    nodes: Count = Field(default=10_000, description="Nodes of a graph, subgraphs and sweeps expanded.")
    depth: Count = Field(default=8, description="Graphs within graphs.")
    pixels: Count = Field(default=16_777_216, description="Pixels of one picture.")
    steps: Count = Field(default=200, description="Steps of one sampler.")
    batch: Count = Field(default=64, description="Pictures of one batch.")
    cells: Count = Field(default=1024, description="Cells of a sweep.")
    upload: Size = Field(default=ByteSize(32 << 20), description="Bytes of an uploaded picture.")
    queued: Count = Field(default=10_000, description="Runs waiting, of all clients.")
    queued_by_client: Count = Field(default=2_000, description="Runs waiting, of one client.")
    wait: Positive = Field(default=60.0, description="Seconds that a request may wait for its run.")
    subscribers: Count = Field(default=4_096, description="Streams of events open at once.")
    connections: Count = Field(default=8_192, description="Connections open at once.")
    header_seconds: Positive = Field(default=10.0, description="Seconds in which the headers of a request arrive.")
    body_seconds: Positive = Field(default=30.0, description="Seconds in which the body of a request arrives.")


class Queue(Section):
    """How waiting runs are taken."""

    together: Count = Field(default=8, description="Runs in hand at a time at most, to share their work.")
    attempts: Count = Field(
        default=10, description="Times a run may bring the process down before it counts as failed."
    )


class Keep(Section):
    """How long finished runs are remembered."""

    runs: Count = Field(default=10_000, description="Finished runs kept.")
    days: Positive = Field(default=30.0, description="Days that a finished run is kept.")


class BlobKeep(Section):
    """How long uploads and results are kept."""

    quota: Size = Field(default=ByteSize(10 << 30), description="Bytes of all uploads and results.")
    hours: Positive = Field(default=24.0, description="Hours that an upload is kept which no run refers to.")


class Webhooks(Section):
    """Who may be told when a run has ended."""

    allow: Callees = Field(default=(), description="host[:port] or *.host[:port] that may be called; none without it.")
    secret: Secret | None = Field(default=None, description="Secret that signs the calls.")


def _data() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "calotype"


class Settings(Places):
    """Settings of one service; `Settings.load()` reads and checks them."""

    host: Address = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8420, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data: Folder = Field(default_factory=_data, description="Folder of the queue, the history and the results.")
    cache: Folder | None = Field(default=None, description="Folder of the disk cache; DATA/cache without it.")
    token: Secret | None = Field(default=None, description="Token of the one client called `default`.")
    tokens: dict[Client, Secret] = Field(default={}, description="Token of each client, by its name.")
    hosts: Hosts = Field(default=(), description="Names by which the service is known besides those it is bound to.")
    origins: Origins = Field(default=(), description="Foreign web pages that may use it, as scheme://host[:port].")
    inputs: Folders = Field(default=(), description="Folders in which submitted graphs may name pictures.")
    hub: bool = Field(default=False, description="Whether submitted graphs may name models in the local hub cache.")
    graphs: Folders = Field(default=(), description="Folders of saved graphs.")
    device: str | None = Field(default=None, description="cpu, cuda or cuda:N; the best there is without it.")
    exact: bool = Field(default=False, description="Never fuse calls: the same bits on every run.")
    compiled: bool = Field(default=False, description="Compile UNets: minutes at first, faster from then on.")
    memory: Size | None = Field(default=None, description="Bytes of the device that values and models may take.")
    disk: Size = Field(default=ByteSize(16 << 30), description="Bytes of the disk cache.")
    log: Literal["text", "json"] = Field(default="text", description="How log lines look: text or json.")
    limits: Limits = Field(default=Limits(), description="What may be asked for.")
    queue: Queue = Field(default=Queue(), description="How waiting runs are taken.")
    history: Keep = Field(default=Keep(), description="How long finished runs are remembered.")
    blobs: BlobKeep = Field(default=BlobKeep(), description="How long uploads and results are kept.")
    webhooks: Webhooks = Field(default=Webhooks(), description="Who may be told when a run has ended.")

    def check(self) -> None:
        """Raise SettingsError where settings are fine alone, but not together."""
        if problems := [*self._unguarded(), *self._ambiguous(), *self._contradictory()]:
            raise SettingsError(problems)

    def _contradictory(self) -> Iterator[Problem]:
        if self.exact and self.compiled:
            yield Problem("compiled", "expected false where exact is true: what is compiled differs in its last bits")

    def _unguarded(self) -> Iterator[Problem]:
        put = f"put what this prints into the environment variable {PREFIX}"
        if not self.loopback and not self.clients:
            reason = f"other machines can reach host {self.host}, so clients need a token"
            remedy = f"listen on 127.0.0.1, or {put}TOKEN or into {FILE} as `token`: {RECIPE}"
            yield Problem("token", f"{reason}; {remedy}", "token-needed")
        if self.webhooks.allow and self.webhooks.secret is None:
            reason = "webhooks.allow needs a secret that signs the calls"
            yield Problem("webhooks.secret", f"{reason}; {put}WEBHOOKS__SECRET: {RECIPE}", "secret-needed")

    def _ambiguous(self) -> Iterator[Problem]:
        if self.token and "default" in self.tokens:
            yield Problem("token", "it is short for tokens.default, which is set too; remove one of them", "ambiguous")
        owners: dict[str, str] = {}
        for name, secret in self.clients.items():
            owner = owners.setdefault(secret.get_secret_value(), name)
            if owner != name:
                yield Problem(f"tokens.{name}", f"{owner} has the same token; give each client its own", "ambiguous")

    @property
    def clients(self) -> Mapping[str, SecretStr]:
        """Token of each client by its name; empty where none is needed."""
        return self.tokens | ({"default": self.token} if self.token else {})

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def disk_cache(self) -> Path:
        """Folder of the disk cache."""
        return self.cache or self.data / "cache"

    def dump(self) -> str:
        """Settings as the text of a calotype.yaml, each explained, secrets masked."""
        return "".join(_lines(self))


def places(config: Path | None = None) -> Places:
    """Where models lie, of all settings. Raises SettingsError."""
    return Places.load(config=config, of=Settings)


def _lines(section: BaseModel, indent: str = "") -> Iterator[str]:
    """Lines of a YAML file that reads back as this section."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield f"\n{indent}# {field.description}\n{indent}{name}:\n"
            yield from _lines(value, indent + "  ")
        else:
            yield textwrap.indent(f"# {field.description}\n{_line(name, spelled(value))}", indent)


def _line(name: str, value: Any) -> str:
    # PyYAML writes some invisible characters so that it cannot read them back, unless it escapes them.
    visible = json.dumps(value, ensure_ascii=False).isprintable()
    return yaml.safe_dump({name: value}, allow_unicode=visible, width=10**6)
