"""The story of a run: what the engine says, as those who follow it are told."""

from calotype.client.events import Event
from calotype.client.events import told as understood
from engine.event import NodeFinished, Outcome, Warned
from server.story import Story, told


class Post:
    """Remembers what was published."""

    def __init__(self):
        self.sent = []

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
