"""The command line. Modules that need torch are imported by the commands that need them."""

import atexit
import gc
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from calotype import __version__
from engine.errors import CacheError, CalotypeError, Cancelled, FileError, GraphError, Problem, RunFailed
from engine.garbage import uncollected

if TYPE_CHECKING:
    from calotype.front import Engine
    from calotype.models import Model
    from engine.context import CancelToken
    from engine.engine import Result
    from engine.file import Files
    from engine.graph import Graph

FAILED, REFUSED = 1, 2

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
cache_app = typer.Typer(add_completion=False, help="The disk tier: what one process computed and the next will find.")
app.add_typer(cache_app, name="cache")
out, err = Console(), Console(stderr=True)

GraphName = Annotated[str, typer.Argument(metavar="GRAPH", help="A file, a saved graph's name, a PNG, or - for stdin.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Exposed name or node.param.")]
Outputs = Annotated[list[str] | None, typer.Option("--output", metavar="NAME", help="Only these outputs (or nodes).")]
Folder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where pictures go.")]
Report = Annotated[Path | None, typer.Option("--report", metavar="FILE", help="Write what ran and why, as JSON.")]
Cache = Annotated[
    Path | None, typer.Option("--cache", metavar="DIR", envvar="CALOTYPE_CACHE", help="Folder of the disk tier.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The calotype.yaml that says where models lie; CALOTYPE_CONFIG."),
]
Exact = Annotated[bool, typer.Option("--exact", help="Never fuse calls: the same bits on every run.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the UNet: minutes at first, faster from then on.")]
Device = Annotated[str | None, typer.Option("--device", metavar="D", help="cpu, cuda or cuda:N.")]
Axis = Annotated[list[str] | None, typer.Option(metavar="NAME=V,V,...", help="Values: a,b or 1-9 (+2) or 0-1 [5].")]
Batch = Annotated[
    str | None, typer.Option(metavar="N|NAME=V,V,...", help="Pictures beside one another: N seeds, or one per value.")
]


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Typed node graphs for image diffusion, in which nothing is ever computed twice."""
    if show:
        print(f"calotype {__version__}")
        raise typer.Exit


@app.command()
def run(
    graph: GraphName,
    settings: Set = None,
    outputs: Outputs = None,
    batch: Batch = None,
    folder: Folder = Path("out"),
    report: Report = None,
    cache: Cache = None,
    config: Config = None,
    exact: Exact = False,
    compiled: Compiled = False,
    device: Device = None,
) -> None:
    """Run a graph and save its pictures."""
    with _engine(graph, cache, config, exact=exact, compiled=compiled, device=device) as engine:
        found = _edited(engine, graph, settings)
        if batch:
            from calotype.sweep import Wanted, swept

            found = swept(engine, found, Wanted({"batch": batch}))
        _run(engine, found, outputs, folder, report)


@app.command()
def sweep(
    graph: GraphName,
    x: Axis = None,
    y: Axis = None,
    z: Axis = None,
    batch: Batch = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="NAME[=x,y]", help="A whole number, such as a seed, that counts up."),
    ] = None,
    margin: Annotated[int | None, typer.Option(metavar="PX", help="Space between the cells.", min=0, max=500)] = None,
    no_legend: Annotated[bool, typer.Option("--no-legend", help="Draw no labels.")] = False,
    cells: Annotated[bool, typer.Option("--cells", help="Save every cell as well.")] = False,
    sheets: Annotated[bool, typer.Option("--sheets", help="Save the sheet of each value of z as well.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it costs, and end.")] = False,
    settings: Set = None,
    folder: Folder = Path("out"),
    report: Report = None,
    cache: Cache = None,
    config: Config = None,
    exact: Exact = False,
    compiled: Compiled = False,
    device: Device = None,
) -> None:
    """Run a graph over the values of up to three names, and save one sheet."""
    named = {"x": _once("x", x), "y": _once("y", y), "z": _once("z", z), "batch": batch}
    axes = {name: text for name, text in named.items() if text}
    with _engine(graph, cache, config, exact=exact, compiled=compiled, device=device) as engine:
        from calotype.sweep import Wanted, everything, swept

        found = _edited(engine, graph, settings)
        if not axes and found.document.sweep is None:
            raise typer.BadParameter("name at least one axis: --x NAME=V,V,...")
        found = swept(engine, found, Wanted(axes, vary or (), margin, False if no_legend else None))
        outputs = everything(engine.program(found), cells=cells, sheets=sheets)
        _show_cost(engine, found, outputs, listed=dry_run)
        if not dry_run:
            _run(engine, found, outputs, folder, report)


@app.command()
def plan(
    graph: GraphName,
    settings: Set = None,
    outputs: Outputs = None,
    cache: Cache = None,
    config: Config = None,
    exact: Exact = False,
    compiled: Compiled = False,
    device: Device = None,
) -> None:
    """Show what would run, and why, without running anything."""
    with _engine(graph, cache, config, exact=exact, compiled=compiled, device=device) as engine:
        rows = [
            (str(item.verdict), item.node, item.type, item.reason)
            for item in engine.plan(_edited(engine, graph, settings), outputs)
        ]
    _table(("verdict", "node", "type", "reason"), rows)


@app.command()
def validate(graph: GraphName, settings: Set = None, config: Config = None) -> None:
    """Check a graph, and name everything that is wrong with it."""
    with _engine(graph, None, config) as engine:
        found = _edited(engine, graph, settings)
        problems = _problems(engine, found)
    if problems:
        raise _refusal(GraphError(problems))
    print(f"{found.title()}: {len(found.document.nodes)} nodes, valid")


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on; 127.0.0.1 without it.")
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="N", help="Port to listen on; 8420 without it.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of queue, history and results.")] = None,
    cache: Cache = None,
    config: Config = None,
    device: Device = None,
    exact: Exact = False,
    compiled: Compiled = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings as a calotype.yaml, and end.")
    ] = False,
) -> None:
    """Serve graphs over HTTP. More settings stand in calotype.yaml or in CALOTYPE_* variables."""
    from calotype.service import serve as serve_settings
    from server.settings import Settings

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "data": data,
        "cache": cache,
        "device": device,
        "exact": exact or None,
        "compiled": compiled or None,
    }
    settings = Settings.load(config=config, **given)
    if print_config:
        print(settings.dump(), end="")
        return
    serve_settings(settings)


@app.command()
def nodes(type_: Annotated[str | None, typer.Argument(metavar="TYPE", help="Show one node in full.")] = None) -> None:
    """List the node types, or describe one."""
    from calotype.reference import describe
    from engine.graph import suggest
    from engine.registry import Registry

    registry = Registry.installed()
    if type_ is None:
        _table(("type", "help"), [(made.type, made.help) for made in registry.values()])
    elif type_ in registry:
        print(describe(registry[type_]))
    else:
        err.print(f"no node type {type_!r}{suggest(type_, registry)}", highlight=False, markup=False)
        raise typer.Exit(REFUSED)


@app.command()
def graphs() -> None:
    """List the saved graphs, and what each of them exposes."""
    from calotype.library import SAVED, find, graphs_in

    found = [find(str(path)) for path in graphs_in(SAVED)]
    rows = [(Path(graph.name or "").stem, graph.title(), ", ".join(graph.exposed())) for graph in found]
    _table(("name", "title", "exposes"), rows)


@app.command()
def models(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="models, loras, embeddings, vae, ...")] = None,
    digest: Annotated[bool, typer.Option("--digest", help="Read every file for its digest, however large.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    cache: Cache = None,
    config: Config = None,
) -> None:
    """List the models that can be named: what each is by its tensors, where it lies, and what is wrong with it.

    Digests are those that are remembered in the cache folder, unless all of them are asked for.
    """
    from calotype.front import files_in
    from calotype.models import KINDS
    from engine.catalogue import Catalogue
    from engine.trace import CataloguedDigests

    if kind is not None and kind not in KINDS:
        raise typer.BadParameter(f"expected {', '.join(KINDS)}, got {kind!r}")
    files = files_in((), config, tell=_tell)
    catalogue = Catalogue(cache) if cache else None
    try:
        if catalogue:
            files.remember_in(CataloguedDigests(catalogue))
        _list_models(files, [kind] if kind else list(KINDS), digest=digest, as_json=as_json)
    finally:
        if catalogue:
            catalogue.close()


def _list_models(files: "Files", kinds: list[str], *, digest: bool, as_json: bool) -> None:
    from calotype.models import models as of_kind

    found: list[Model] = []
    for kind in kinds:
        try:
            found += of_kind(files, kind, digests=digest)
        except FileError as error:
            _tell(f"{kind}: {error}")
    if as_json:
        places = [{"path": str(one.path), "hidden_by": one.hidden_by and str(one.hidden_by)} for one in found]
        documents = [one.document() | place for one, place in zip(found, places, strict=True)]
        print(json.dumps(documents, indent=2))
        return
    names = ("name", "kind", "size", "digest", "place")
    rows = [(one.name, one.what, one.size, (one.digest or "-")[:12], str(one.path)) for one in found]
    if not out.is_terminal:
        _table((*names, "problems"), [(*row, one.note) for row, one in zip(rows, found, strict=True)])
        return
    _table(names, rows)
    for one in found:
        if one.note:
            _tell(f"{one.path}: {one.note}")


@app.command(name="import")
def import_(
    picture: Annotated[Path, typer.Argument(metavar="FILE", help="A picture or a text file.", exists=True)],
    path: Annotated[Path | None, typer.Option("--out", metavar="GRAPH", help="Write the graph there.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Even where there is a file.")] = False,
    image: Annotated[Path | None, typer.Option(metavar="PICTURE", help="What it began with.", exists=True)] = None,
    mask: Annotated[Path | None, typer.Option(metavar="PICTURE", help="White: what changed.", exists=True)] = None,
    config: Config = None,
) -> None:
    """Make a graph of the parameters in a picture that the WebUI saved, and say what they do not tell."""
    from calotype.front import files_in
    from calotype.importing import import_file

    beside = path.parent if path else Path()
    files = files_in([beside, picture.parent], config, tell=_tell)
    found = import_file(picture, files, beside=beside, image=image, mask=mask)
    if path is None:
        print(found.graph.dumps())
    else:
        _write_graph(path, found.graph, force=force)
    for line in found.report():
        err.print(line, highlight=False, markup=False, soft_wrap=True)


def _write_graph(path: Path, graph: "Graph", *, force: bool) -> None:
    try:
        with path.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(f"{graph.dumps()}\n")
    except FileExistsError:
        raise GraphError([Problem("--out", f"{path} is there already; --force overwrites it", "place")]) from None
    except OSError as error:
        raise GraphError([Problem("--out", f"{path} cannot be written: {error.strerror}", "place")]) from error


@app.command()
def show(
    graph: GraphName,
    kind: Annotated[str, typer.Option("--as", metavar="KIND", help="mermaid or svg.")] = "mermaid",
    config: Config = None,
) -> None:
    """Draw a graph, as mermaid text or as an SVG picture."""
    from calotype.drawing import KINDS

    if kind not in KINDS:
        raise typer.BadParameter(f"expected {' or '.join(KINDS)}, got {kind!r}")
    with _engine(graph, None, config) as engine:
        print(KINDS[kind](engine.program(_edited(engine, graph, None))))


@cache_app.callback(invoke_without_command=True)
def cache(context: typer.Context, folder: Cache = None) -> None:
    """Show how much a cache folder holds."""
    context.obj = folder
    if context.invoked_subcommand is None:
        with _opened(folder) as (catalogue, disk):
            traces = catalogue.one("SELECT COUNT(*) FROM traces") or (0,)
            values = catalogue.one("SELECT COUNT(*), COALESCE(SUM(seconds), 0) FROM stored") or (0, 0)
            print(f"{catalogue.folder}: {values[0]} values, {disk.held() / 1e6:.1f} MB, {traces[0]} traces")
            print(f"they took {values[1]:.1f} s to compute")


@cache_app.command()
def clear(context: typer.Context, folder: Cache = None) -> None:
    """Delete everything in a cache folder that Calotype wrote."""
    with _opened(folder or context.obj) as (catalogue, disk):
        held = disk.held()
        disk.clear()
        for table in ("traces", "records"):
            catalogue.write(f"DELETE FROM {table}", [()])  # noqa: S608  a constant
        print(f"{catalogue.folder}: {held / 1e6:.1f} MB deleted")


@contextmanager
def _opened(folder: Path | None) -> Iterator[tuple[Any, Any]]:
    from engine.catalogue import Catalogue
    from engine.disk import Disk

    if folder is None:
        raise typer.BadParameter("name the folder: --cache DIR before the command, or CALOTYPE_CACHE")
    if not (folder / "calotype.sqlite").is_file():
        err.print(f"{folder} is not a cache folder", highlight=False, markup=False)
        raise typer.Exit(REFUSED)
    catalogue = Catalogue(folder)
    try:
        yield catalogue, Disk(catalogue, {}, 0)
    finally:
        catalogue.close()


@contextmanager
def _engine(
    graph: str,
    cache: Path | None,
    config: Path | None,
    *,
    exact: bool = False,
    compiled: bool = False,
    device: str | None = None,
) -> Iterator["Engine"]:
    """An engine that also finds files beside the graph; a wrong device is a wrong argument."""
    beside = Path(graph).expanduser().parent if graph != "-" else Path()
    with uncollected():
        from calotype.front import Engine, files_in

        files = files_in([beside], config, tell=_tell)
        try:
            engine = Engine(cache=cache, exact=exact, compiled=compiled, device=device, files=files)
        except (ValueError, CacheError) as error:
            raise typer.BadParameter(str(error)) from error
    with engine:
        yield engine


def _edited(engine: "Engine", name: str, settings: list[str] | None) -> "Graph":
    """The graph with `--set` applied, every value read by its parameter's own type."""
    from calotype.library import find
    from calotype.picture import changed_files, folders_of

    graph = find(name)
    engine.files.search(folders_of(graph, Path(name)))
    problems: list[Problem] = []
    values = {key: _value(engine, graph, key, text, problems) for key, text in map(_split, settings or ())}
    if problems:
        raise GraphError(problems)
    replaced = [".".join(graph.locate(key)) for key in values]
    graph = graph.set(values) if values else graph
    if problems := changed_files(graph, engine, replaced):
        raise GraphError(problems)
    return graph


def _tell(said: str) -> None:
    err.print(said, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _once(axis: str, given: list[str] | None) -> str | None:
    """The one option of an axis; a second one would silently take its place."""
    if given and len(given) > 1:
        raise typer.BadParameter(f"--{axis} stands {len(given)} times; names advance together as NAME+NAME=V:V,V:V")
    return given[0] if given else None


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r}: expected NAME=VALUE")
    return name.strip(), value


def _value(engine: "Engine", graph: "Graph", name: str, text: str, problems: list[Problem]) -> Any:
    """A literal from the command line. Names that lead nowhere and refused values are added to `problems`."""
    from calotype.labels import hint
    from calotype.meaning import parameters

    try:
        judges = parameters(engine, graph, name)
    except GraphError as error:
        problems += error.problems
        return None
    value: Any = judges[0].parse_text(text) if judges else text  # else validation says what is wrong with the node
    for param in judges:
        try:
            param.parse(value)
        except ValueError as error:
            problems.append(Problem(name, f"{error}{hint(param, value)}", "value"))
            break
    return value


def _show_cost(engine: "Engine", graph: "Graph", outputs: list[str], *, listed: bool) -> None:
    """What a run costs, in one line; `listed` says how many nodes of each type come to which verdict, too."""
    from collections import Counter

    from calotype.cost import cost

    plan = engine.plan(graph, outputs)
    if listed:
        counted = Counter((str(item.verdict), item.type) for item in plan)
        _table(("verdict", "type", "nodes"), [(*kind, str(count)) for kind, count in sorted(counted.items())])
    print(cost(engine, graph, outputs, plan))


def _problems(engine: "Engine", graph: "Graph") -> list[Any]:
    from engine.program import validate as validate_graph

    return validate_graph(graph, engine.registry, list(graph.document.arguments))


def _run(engine: "Engine", graph: "Graph", outputs: list[str] | None, folder: Path, report: Path | None) -> None:
    """Run, save, report; what finished is saved and reported even where other branches failed."""
    from calotype.picture import save
    from calotype.progress import Reporter
    from engine.context import CancelToken

    _check_places(folder, report)
    token = CancelToken()
    with _cancelled_by_interrupt(token), Reporter(err) as reporter:
        result = engine.run(graph, outputs, listener=reporter, token=token, check=False)
    paths = save(result, engine, folder)
    if report is not None:
        _write_report(report, result, paths)
    for name, files in paths.items():
        for line in files or [str(getattr(result.outputs[name], "value", type(result.outputs[name]).__name__))]:
            print(f"{name}: {line}")
    _summary(result)
    if result.failures:
        raise RunFailed(result.failures)


def _check_places(folder: Path, report: Path | None) -> None:
    """Refuse places that nothing can be written to before any work is done."""
    problems = []
    for option, place in (("--out", folder), ("--report", report.parent if report else None)):
        try:
            if place is not None:
                place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problems.append(
                Problem(option, f"{place} is not a folder that can be written to: {error.strerror}", "place")
            )
    if report is not None and report.is_dir():
        problems.append(Problem("--report", f"{report} is a folder; name a file", "place"))
    if problems:
        raise GraphError(problems)


@contextmanager
def _cancelled_by_interrupt(token: "CancelToken") -> Iterator[None]:
    """The first Ctrl-C cancels the run at its next step; a second one ends the process."""

    def cancel(*_: object) -> None:
        token.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _write_report(path: Path, result: "Result", paths: dict[str, list[str]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(result.report(paths), indent=2) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _summary(result: "Result") -> None:
    counts: dict[str, int] = {}
    for node in result.nodes.values():
        counts[str(node.outcome)] = counts.get(str(node.outcome), 0) + 1
    listed = ", ".join(f"{counts[name]} {name}" for name in ("ran", "hit", "unneeded", "failed") if name in counts)
    print(f"{listed} in {result.seconds:.2f} s")


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    if not out.is_terminal:
        for row in rows:
            print("\t".join(row))
        return
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    out.print(table, markup=False, highlight=False)


def _refusal(error: GraphError) -> typer.Exit:
    count = len(error.problems)
    err.print(f"refused, {count} problem{'s' if count > 1 else ''}:", highlight=False)
    for problem in error.problems:
        err.print(f"  {problem}", highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(REFUSED)


def main() -> None:
    """Entry point: exit 0 done, 1 failed, 2 refused."""
    atexit.register(gc.freeze)  # the process ends without looking through half a million objects for garbage
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads spin otherwise, and others starve beside them
    try:
        app()
    except GraphError as error:
        sys.exit(_refusal(error).exit_code)
    except Cancelled:
        err.print("cancelled; what had finished is kept")
        sys.exit(FAILED)
    except (CalotypeError, OSError) as error:
        if problems := getattr(error, "problems", None):
            sys.exit(_refusal(GraphError(problems)).exit_code)
        err.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
