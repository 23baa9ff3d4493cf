"""Pictures of graphs: mermaid text, and SVG laid out in columns from left to right."""

from collections.abc import Callable, Mapping
from html import escape

import networkx as nx

from engine.program import Program, Step, walk

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 44, 60, 18, 16


def mermaid(program: Program) -> str:
    """A mermaid flowchart."""
    names = {step.id: f"n{number}" for number, step in enumerate(program.steps)}
    lines = ["flowchart LR"]
    lines += [f'  {names[step.id]}["{escape(step.id)}<br/><i>{step.definition.type}</i>"]' for step in program.steps]
    lines += [f"  {names[source.id]} --> {names[step.id]}" for source, step in walk(program)]
    for name, port in program.outputs.items():
        lines.append(f'  {names[program.steps[port.step].id]} ==> out_{name}(["{escape(name)}"])')
    return "\n".join(lines)


def svg(program: Program) -> str:
    """An SVG picture; every node stands in the column after the last node that it needs."""
    places = _places(program)
    width = max((x for x, _ in places.values()), default=0) + WIDTH + MARGIN
    height = max((y for _, y in places.values()), default=0) + HEIGHT + MARGIN
    wanted = {port.step for port in program.outputs.values()}
    parts = [
        _opening(width, height),
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(_curve(places[source.id], places[step.id]) for source, step in walk(program)),
        *(_box(step, places[step.id], final=number in wanted) for number, step in enumerate(program.steps)),
        "</svg>",
    ]
    return "\n".join(parts)


def _places(program: Program) -> dict[str, tuple[int, int]]:
    net: nx.DiGraph[str] = nx.DiGraph()
    net.add_nodes_from(step.id for step in program.steps)
    net.add_edges_from((source.id, step.id) for source, step in walk(program))
    return {
        name: (MARGIN + column * (WIDTH + GAP_X), MARGIN + row * (HEIGHT + GAP_Y))
        for column, names in enumerate(nx.topological_generations(net))
        for row, name in enumerate(names)
    }


def _opening(width: int, height: int) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">'


def _curve(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + WIDTH, start[1] + HEIGHT // 2, end[0], end[1] + HEIGHT // 2
    bend = (x1 + x2) // 2
    return f'<path d="M{x1} {y1} C{bend} {y1} {bend} {y2} {x2} {y2}" fill="none" stroke="#8a94a6" stroke-width="1.5"/>'


def _box(step: Step, place: tuple[int, int], *, final: bool) -> str:
    x, y = place
    fill = "#fff3d6" if final else "#eef2f8"
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{fill}" stroke="#5b6678"/>'
        f'<text x="{x + 10}" y="{y + 19}" font-weight="bold">{escape(_short(step.id))}</text>'
        f'<text x="{x + 10}" y="{y + 36}" fill="#5b6678">{escape(step.definition.type)}</text>'
    )


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-23:]}"


KINDS: Mapping[str, Callable[[Program], str]] = {"mermaid": mermaid, "svg": svg}
