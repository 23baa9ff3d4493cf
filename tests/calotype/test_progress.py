"""What a person sees of a run, line by line."""

import io

import pytest
from rich.console import Console

from calotype.progress import Reporter
from engine.event import Trouble, Warned


@pytest.fixture
def shown():
    text = io.StringIO()
    with Reporter(Console(file=text, width=60)) as reporter:

        def tell(event):
            reporter(event)
            return text.getvalue()

        yield tell


def test_a_warning_names_its_node(shown):
    assert shown(Warned("run", "decoded", "the VAE overflowed")) == "  warning decoded: the VAE overflowed\n"


@pytest.mark.parametrize("kind", [Warned, Trouble])
def test_brackets_are_shown_as_they_are_and_long_messages_whole(shown, kind):
    message = "[cat|dog:0.5] [/red] [bold]" + " and more" * 20
    assert shown(kind("run", "prompt", message)).endswith(f"prompt: {message}\n")
