"""Documents of the HTTP interface. Requests are read through these models; answers are described by them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from engine.graph import Sweep
from server.history import State

PRIORITY = 100
"""Priorities lie between -100 and 100."""

ModelKind = Literal["models", "loras", "embeddings", "vae", "controlnet", "upscale"]
"""What models there are, by the names of the settings that say where they lie."""

Labels = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=256)]],
    Field(max_length=16),
]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Priority = Annotated[int, Field(ge=-PRIORITY, le=PRIORITY)]


class Request(BaseModel):
    """A JSON body."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GraphRequest(Request):
    """A graph with other literals: `graph` is the name of a saved graph or a whole document."""

    graph: Annotated[str, Field(max_length=200)] | dict[str, JsonValue] = Field(
        description="The name of a saved graph, or a graph document.", examples=["inpaint_after_img2img"]
    )
    set: dict[Name, JsonValue] = Field(
        default={},
        max_length=10_000,
        description="Values for exposed names, or for `node.param`.",
        examples=[{"prompt": "crying face"}],
    )
    sweep: Sweep | None = Field(
        default=None,
        description="Axes x, y, z and batch: names and their values; instead of the graph's own sweep.",
        examples=[{"x": {"strength": [0.3, 0.5, 0.75, 1.0]}}],
    )
    outputs: Annotated[list[Name], Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="Only these outputs of the graph, or `node` or `node.port`."
    )


class RunRequest(GraphRequest):
    """A run to accept."""

    priority: Priority = Field(default=0, description="Higher runs first.")
    labels: Labels = Field(default={}, description="Texts of the client's own, returned with the run.")
    webhook: Annotated[str, Field(max_length=2000)] | None = Field(
        default=None, description="URL that is told of the end of the run; its host must be in `webhooks.allow`."
    )


class MoveRequest(Request):
    """Another place in the queue. At most one of `before`, `first` and `last`."""

    priority: Priority | None = None
    before: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = Field(
        default=None, description="Id of another waiting run of the same client."
    )
    first: bool = False
    last: bool = False


class QueueRequest(Request):
    """Pause the queue, or let it go on."""

    paused: bool


class Picture(BaseModel):
    """A file of a result."""

    digest: str = Field(description="sha256 of the content, in hex.")
    url: str
    type: str = Field(description="MIME type.", examples=["image/png"])
    width: int
    height: int
    bytes: int


class Cell(BaseModel):
    """One cell of a sweep."""

    node: str
    set: dict[str, Any]
    pictures: list[Picture] = []
    value: JsonValue = None


class Output(BaseModel):
    """An output of a run: its socket type, and the pictures or the value; `set` is what a batch or a cell sets."""

    type: str = Field(examples=["Image"])
    set: dict[str, Any] = {}
    pictures: list[Picture] = []
    value: JsonValue = None
    cells: list[Cell] = []


class NodeView(BaseModel):
    """What became of a node, and why."""

    type: str
    outcome: str = Field(examples=["ran", "hit", "unneeded", "failed"])
    reason: str
    seconds: float
    needs: list[str]
    warnings: list[str] = []


class ProblemView(BaseModel):
    """One thing that is wrong, and where."""

    path: str
    message: str
    code: str


class ProblemDocument(BaseModel):
    """A refusal, as RFC 9457 has it."""

    type: str = Field(examples=["urn:calotype:problem:invalid-graph"])
    title: str
    status: int
    detail: str
    instance: str | None = None
    problems: list[ProblemView] = []


class Brief(BaseModel):
    """A run, in short."""

    id: str
    state: State
    url: str
    events: str


class RunView(Brief):
    """A run."""

    title: str
    client: str
    priority: int
    attempts: int
    labels: dict[str, str]
    submitted: float = Field(description="Seconds since 1970.")
    started: float | None
    finished: float | None
    seconds: float | None = Field(description="The engine's own time.")
    outputs: dict[str, Output]
    nodes: dict[str, NodeView] | None = None
    problems: list[ProblemView] = []


class RunList(BaseModel):
    """Runs, newest first; `next` is the address of the page that follows."""

    runs: list[RunView]
    next: str | None


class QueueView(BaseModel):
    """What waits, in the order in which it will be taken, and what runs."""

    paused: bool
    waiting: list[str]
    running: list[str]


class Verdict(BaseModel):
    """What a run would do with a node, and why."""

    node: str
    type: str
    verdict: str = Field(examples=["run", "hit", "may run", "unneeded"])
    reason: str
    needs: list[str]


class PlanView(BaseModel):
    """What a run would do."""

    nodes: list[Verdict]


class Validation(BaseModel):
    """Everything that is wrong with a graph."""

    valid: bool
    problems: list[ProblemView]


class GraphView(BaseModel):
    """A saved graph, in short."""

    name: str
    title: str
    description: str
    exposes: list[str]
    outputs: list[str]
    url: str


class GraphList(BaseModel):
    """The saved graphs."""

    graphs: list[GraphView]


class NodeList(BaseModel):
    """The node types."""

    nodes: dict[str, dict[str, Any]]


class ModelView(BaseModel):
    """A model that can be named; `digest` is None where nobody has asked for its content yet."""

    kind: ModelKind
    name: str = Field(examples=["style/ink"])
    what: str = Field(description="What it is by its tensors.", examples=["LoRA for SD 1.x, rank 16, UNet"])
    bytes: int
    digest: str | None = Field(description="sha256 of the content, in hex.")
    problems: list[str] = Field(description="What is wrong with it.")


class ModelList(BaseModel):
    """The models that can be named."""

    models: list[ModelView]


class BlobView(Picture):
    """A stored picture; `source` is what a file parameter such as image.load's `source` takes."""

    source: str = Field(examples=["blob:9f86d081884c7d65..."])


class CacheView(BaseModel):
    """Bytes per tier."""

    tiers: dict[str, int]


class Health(BaseModel):
    """Whether the service works, and what hinders it."""

    status: str = Field(examples=["ok", "degraded", "stopping"])
    reasons: list[str]
    version: str
    device: str
    queued: int
    running: int
