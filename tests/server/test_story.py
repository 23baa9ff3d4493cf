"""The story of a run: what the engine says, as those who follow it are told."""

import pytest

from calotype.client.events import Event
from calotype.client.events import told as understood
from engine.event import NodeFinished, NodeProgress, Outcome, Warned
from server import story as telling
from server.front import Rendered
from server.story import Story, told


class Post:
    """Remembers what was published."""

    def __init__(self):
        self.sent = []
        self.waiting = []

    def later(self, call):
        self.waiting.append(call)

    def watched(self, run):
        return True

    def publish(self, run, name, data, slot=None):
        self.sent.append((name, data))


def test_a_warning_is_told_and_lasts_and_a_client_reads_it():
    post = Post()
    story = Story("r", post, None, None)
    story(Warned("r", "decoded", "decoded in float32"))
    assert story.lasting == post.sent == [("warning", {"node": "decoded", "message": "decoded in float32"})]
    name, data = story.lasting[0]
    assert list(understood(Event(name, data, "1-1"), "r")) == [Warned("r", "decoded", "decoded in float32")]


def test_the_story_of_a_run_in_which_nothing_ran_has_its_warnings():
    story = Story("r", Post(), None, None)
    story(Warned("r", "a", "too dark"))
    story(NodeFinished("r", "a", "toy.lamp", Outcome.HIT, "hit"))
    story.close()
    report = {"a": {"type": "toy.lamp", "outcome": "hit", "reason": "hit", "warnings": ["too dark"]}}
    assert told(report) == [("run.started", {"nodes": 1}), *story.lasting]


def test_a_report_of_an_older_version_has_none():
    report = {"a": {"type": "toy.lamp", "outcome": "hit", "reason": "hit"}}
    assert told(report) == [("run.started", {"nodes": 1}), ("nodes.reused", {"hit": ["a"]})]


class TestPreviews:
    """They are made where the node works, and encoded elsewhere."""

    @pytest.fixture
    def post(self, monkeypatch):
        monkeypatch.setattr(telling, "PREVIEW", 0.0)
        return Post()

    @pytest.fixture
    def front(self):
        class Front:
            drawn = 0

            def preview(self, value):
                self.drawn += 1
                return Rendered(value, "image/png", 1, 1)

        return Front()

    def progress(self, made=b"picture"):
        return NodeProgress("r", "a", 1, 2, lambda: made)

    def test_the_work_does_not_wait_until_one_is_encoded(self, post, front):
        story = Story("r", post, front, None)
        story(self.progress())
        assert front.drawn == 0
        assert [name for name, _ in post.sent] == ["progress"]
        post.waiting.pop()()
        assert post.sent[1] == ("preview", {"node": "a", "type": "image/png", "data": "cGljdHVyZQ=="})

    def test_there_is_one_on_its_way_at_most(self, post, front):
        story = Story("r", post, front, None)
        story(self.progress())
        story(self.progress())
        assert len(post.waiting) == 1
        post.waiting.pop()()
        story(self.progress())
        assert len(post.waiting) == 1

    def test_it_is_too_late_once_the_run_has_ended(self, post, front):
        story = Story("r", post, front, None)
        story(self.progress())
        story.close()
        post.waiting.pop()()
        assert [name for name, _ in post.sent] == ["progress"]

    def test_what_goes_wrong_with_one_harms_nobody(self, post, front):
        def fails(_=None):
            raise RuntimeError

        front.preview = fails
        story = Story("r", post, front, None)
        story(self.progress())
        post.waiting.pop()()
        story(NodeProgress("r", "a", 2, 2, fails))
        assert [name for name, _ in post.sent] == ["progress", "progress"]
        assert post.waiting == []
