"""docs/http.md is true: its curl lines and its Python run against a real service, and the answers are those shown."""

import os
import re
import sys
from types import ModuleType

import httpx2
import PIL.Image
import pytest
from pages import DOCS, Block, Shell, blocks, differs, printed
from serving import Serving, free_port

PAGE = DOCS / "http.md"
SECRET = re.search(r"CALOTYPE_WEBHOOKS__SECRET=(\S+?)`", PAGE.read_text(encoding="utf-8"))[1]


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    hook = f"127.0.0.1:{free_port()}"
    with Serving(tmp_path_factory.mktemp("http"), webhooks__allow=hook, webhooks__secret=SECRET) as serving:
        serving.hook = hook
        yield serving


@pytest.fixture
def namespace(monkeypatch, serving, tmp_path):
    """The globals of a module of its own, in a folder with two pictures."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALOTYPE_URL", serving.url)
    monkeypatch.delenv("CALOTYPE_TOKEN", raising=False)
    PIL.Image.linear_gradient("L").resize((200, 160)).convert("RGB").save("photo.png")
    PIL.Image.new("L", (200, 160), 255).save("mask.png")
    return vars(module)


def here(text, serving):
    """A text of the page, with the addresses of this test."""
    own = {"127.0.0.1:8420": f"127.0.0.1:{serving.port}", "127.0.0.1:9000": serving.hook}
    own['127.0.0.1", 9000'] = f'127.0.0.1", {serving.hook.rpartition(":")[2]}'
    for shown, real in own.items():
        text = text.replace(shown, real)
    return text


def test_the_examples_run_and_get_the_answers_shown(serving, namespace, tmp_path):
    said = ""
    with Shell(tmp_path, {**os.environ, "CALOTYPE_TOKEN": "any-token-will-do-here"}) as shell:
        for shown in blocks(PAGE.read_text(encoding="utf-8")):
            block = Block(shown.info, here(shown.body, serving), shown.line)
            if block.info == "sh":
                said = shell.run(block.body)
            elif block.info == "python":
                said = printed(block, PAGE, namespace)
            elif block.info.endswith(" answer"):
                assert (wrong := differs(block, said)) is None, f"{PAGE}:{block.line}: {wrong}"
            elif block.info == "text output":
                assert said == block.body, f"{PAGE}:{block.line} says otherwise"
            elif block.info == "text log":
                assert (wrong := differs(block, serving.log.read_text())) is None, f"{PAGE}:{block.line}: {wrong}"


def test_every_route_has_an_example(serving):
    paths = httpx2.get(f"{serving.url}/openapi.json", trust_env=False).json()["paths"]
    commands = " ".join(block.body for block in blocks(PAGE.read_text(encoding="utf-8")) if block.info == "sh")
    lines = [line for line in commands.replace("\\\n", " ").splitlines() if "curl" in line]
    asked = {(_method(line), re.search(r"127\.0\.0\.1:8420([^'\"? ]*)", line)[1]) for line in lines}
    asked = {(method, path.replace("$PICTURE", "/v1/blobs/0")) for method, path in asked}
    missing = [
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        for method in methods
        if not any(_fits(path, other) for asked_, other in asked if asked_ == method)
    ]
    assert missing == []


def _method(line):
    named = re.search(r"-X (\w+)", line)
    return named[1].lower() if named else "post" if re.search(r" -d |--data-binary", line) else "get"


def _fits(path, asked):
    return re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), asked)


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": 1, "...": "..."}', '{"b": 2}'),
        ('{"a": [1, 2]}', '{"a": [1]}'),
        ('{"a": ["1", "..."]}', '{"a": []}'),
        ('{"a": "queued"}', '{"a": "done"}'),
        ('{"a": "see 0123456789abcdef"}', '{"a": "saw 0123456789abcdef"}'),
        ('{"a": 1.5}', '{"a": null}'),
        ('{"a": 1}', "no JSON"),
    ],
)
def test_an_answer_that_is_not_like_the_one_shown_is_found(shown, real):
    assert differs(Block("json answer", shown, 1), real)


@pytest.mark.parametrize(("shown", "real"), [("a\nb\n", "b\na\n"), ("a 1.5\n", "b 1.5\n"), ("a...\n", "ba\n")])
def test_a_text_that_is_not_like_the_one_shown_is_found(shown, real):
    assert differs(Block("text answer", shown, 1), real)


def test_what_differs_every_time_is_no_difference():
    shown = '{"id": "01a204eab5b23cca", "seconds": 1.5, "bytes": 3, "next": "/x?after=...", "...": "..."}'
    real = '{"id": "ffa204eab5b23ccb", "seconds": 0.1, "bytes": 4, "next": "/x?after=QQ==", "more": [1]}'
    assert differs(Block("json answer", shown, 1), real) is None
    assert differs(Block("text answer", "a 1.5\n...\nc\n", 1), "a 0.25\nb\nc\n") is None
