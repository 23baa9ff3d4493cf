"""Settings: who wins, what is refused and in which words, and that what is shown can be read back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from pydantic import ValidationError

from server.settings import BlobKeep, Keep, Limits, Queue, Section, Settings, Webhooks
from server.source import SettingsError
from server.spelling import MASK

SECRET = "a-secret-of-twenty-four-x"
OTHER = "another-secret-as-long-as"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder and an environment without settings."""
    for name in [name for name in os.environ if name.startswith("CALOTYPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text, name="calotype.yaml"):
    Path(name).write_text(text, "utf-8")


def refusal(**overrides):
    """Problems of settings that are refused, as lines."""
    with pytest.raises(SettingsError) as caught:
        Settings.load(**overrides)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return [str(problem) for problem in caught.value.problems]


# Who wins


def test_without_anything_the_service_listens_on_loopback_without_a_token():
    settings = Settings.load()
    assert (settings.host, settings.port, settings.loopback, settings.clients) == ("127.0.0.1", 8420, True, {})
    assert settings.limits == Limits()
    assert settings.limits.body == 8 * 2**20


def test_arguments_win_over_the_environment_over_the_file_over_defaults(monkeypatch):
    write("port: 1\ndevice: cpu\nlog: json\n")
    monkeypatch.setenv("CALOTYPE_PORT", "2")
    monkeypatch.setenv("CALOTYPE_DEVICE", "cuda")
    settings = Settings.load(port=3)
    assert (settings.port, settings.device, settings.log, settings.exact) == (3, "cuda", "json", False)


def test_an_argument_of_none_counts_as_not_given(monkeypatch):
    monkeypatch.setenv("CALOTYPE_PORT", "2")
    assert Settings.load(port=None, device=None).port == 2


def test_one_section_may_come_from_all_sources(monkeypatch):
    write("limits:\n  steps: 1\n  batch: 1\n  cells: 1\n")
    monkeypatch.setenv("CALOTYPE_LIMITS__BATCH", "2")
    monkeypatch.setenv("CALOTYPE_LIMITS__CELLS", "2")
    limits = Settings.load(limits={"cells": 3}).limits
    assert (limits.steps, limits.batch, limits.cells, limits.depth) == (1, 2, 3, 8)


def test_the_file_may_be_named_by_the_environment(monkeypatch):
    write("port: 1")
    write("port: 2", "other.yaml")
    monkeypatch.setenv("CALOTYPE_CONFIG", "other.yaml")
    assert Settings.load().port == 2


def test_a_file_that_is_named_but_missing_is_an_error(monkeypatch):
    monkeypatch.setenv("CALOTYPE_CONFIG", "gone.yaml")
    assert refusal() == [
        "gone.yaml: the file that CALOTYPE_CONFIG names cannot be read: No such file or directory; correct it"
    ]


def test_an_empty_file_and_an_empty_section_change_nothing():
    write("# nothing yet\n")
    assert Settings.load() == Settings()
    write("limits:\n# steps: 3\n")
    assert Settings.load().limits == Limits()


def test_an_empty_environment_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("CALOTYPE_PORT", "")
    assert Settings.load().port == 8420


def test_data_lies_where_the_desktop_says(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere")
    assert Settings.load().data == Path("/somewhere/calotype")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert Settings.load().data == Path("/home/ann/.local/share/calotype")
    assert Settings.load(data="~/pictures").data == Path("/home/ann/pictures")


def test_the_disk_cache_lies_in_the_data_folder_unless_said_otherwise(monkeypatch):
    assert Settings.load(data="/d").disk_cache == Path("/d/cache")
    monkeypatch.setenv("CALOTYPE_CACHE", "/c")
    assert Settings.load(data="/d").disk_cache == Path("/c")


# Spelling


@pytest.mark.parametrize(
    ("text", "size"), [("8MiB", 8 << 20), ("1.5 kb", 1500), ("77", 77), ("2GB", 2 * 10**9), ("3KiB", 3072)]
)
def test_sizes_are_numbers_or_texts_with_a_unit(text, size):
    assert Settings.load(disk=text).disk == size


@pytest.mark.parametrize("text", ["0", "-1", "many", "8 miles", "", "nan"])
def test_other_sizes_are_refused(text):
    assert refusal(disk=text)[0].startswith("disk: ")


@pytest.mark.parametrize("text", ["a.org,b.org:80", '["a.org", "b.org:80"]', " A.org , b.ORG:80,"])
def test_lists_in_the_environment_are_separated_by_commas_or_written_as_json(monkeypatch, text):
    monkeypatch.setenv("CALOTYPE_HOSTS", text)
    monkeypatch.setenv("CALOTYPE_WEBHOOKS__ALLOW", text)
    monkeypatch.setenv("CALOTYPE_WEBHOOKS__SECRET", SECRET)
    settings = Settings.load()
    assert settings.hosts == settings.webhooks.allow == ("a.org", "b.org:80")


def test_tokens_come_one_by_one_or_as_json(monkeypatch):
    monkeypatch.setenv("CALOTYPE_TOKENS", f'{{"ann": "{SECRET}"}}')
    monkeypatch.setenv("CALOTYPE_TOKENS__BOB", OTHER)
    clients = Settings.load().clients
    assert {name: secret.get_secret_value() for name, secret in clients.items()} == {"ann": SECRET, "bob": OTHER}


def test_one_token_makes_one_client_called_default(monkeypatch):
    monkeypatch.setenv("CALOTYPE_TOKEN", SECRET)
    assert {name: secret.get_secret_value() for name, secret in Settings.load().clients.items()} == {"default": SECRET}


@pytest.mark.parametrize("host", ["*", "*.org", "http://a.org", "a.org/", "a.org\n", "a b", "", "a..org", "ä.org"])
def test_host_names_are_exact(host):
    assert refusal(hosts=[host])[0].startswith("hosts.0: expected a name or address")


@pytest.mark.parametrize("origin", ["*", "null", "a.org", "ftp://a.org", "http://a.org/", "https://*.org", "http://"])
def test_origins_are_exact(origin):
    assert refusal(origins=[origin])[0].startswith("origins.0: expected scheme://host[:port]")


@pytest.mark.parametrize("pattern", ["*", "**.org", "a.*", "http://a.org", "u@a.org", "a.org/x"])
def test_webhook_patterns_are_hosts_with_at_most_a_leading_star(pattern):
    problem = refusal(webhooks={"allow": [pattern], "secret": SECRET})[0]
    assert problem.startswith("webhooks.allow.0: expected host[:port]")


@pytest.mark.parametrize("host", ["127.0.0.1:80", "[::1]:80", "", "http://127.0.0.1"])
def test_the_port_is_not_part_of_the_address(host):
    assert refusal(host=host)[0].startswith("host: ")


@pytest.mark.parametrize(
    "secret", ["short", "fifteen-letters", "with a space in it", "mit-ümlaut-darin-x", "x" * 20 + "\n"]
)
def test_a_weak_or_unsendable_secret_is_refused_with_a_recipe_and_never_shown(secret):
    (problem,) = refusal(token=secret)
    assert "secrets.token_urlsafe" in problem
    assert secret not in problem


# Words of refusals


def test_a_refusal_names_the_setting_its_source_its_meaning_and_the_remedy(monkeypatch):
    monkeypatch.setenv("CALOTYPE_LIMITS__STEPS", "0")
    (problem,) = refusal()
    assert problem.startswith("limits.steps: Input should be greater than or equal to 1, got '0' (the environment ")
    assert problem.endswith("variable CALOTYPE_LIMITS__STEPS). Steps of one sampler. Correct or remove it.")


def test_everything_wrong_is_told_at_once_each_with_its_source(monkeypatch):
    write("log: xml\nqueue:\n  together: none\n")
    monkeypatch.setenv("CALOTYPE_PORT", "70000")
    problems = refusal(device=7)
    assert [problem.split(":")[0] for problem in problems] == ["port", "device", "log", "queue.together"]
    sources = ["(the environment variable CALOTYPE_PORT)", "(an argument)", "(calotype.yaml)", "(calotype.yaml)"]
    assert all(source in problem for source, problem in zip(sources, problems, strict=True))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prot: 1", 'prot: there is no such setting, did you mean "port"? (calotype.yaml)'),
        ("limits: {stpes: 1}", 'limits.stpes: there is no such setting, did you mean "steps"? (calotype.yaml)'),
        ("nonsense: 1", "nonsense: there is no such setting (calotype.yaml)"),
    ],
)
def test_an_unknown_setting_in_the_file_is_refused_with_a_suggestion(text, problem):
    write(text)
    assert refusal() == [problem]


def test_an_unknown_limit_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("CALOTYPE_LIMITS__STPES", "3")
    assert 'did you mean "steps"? (the environment variable CALOTYPE_LIMITS__STPES)' in refusal()[0]


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "3"])
def test_a_file_that_is_no_mapping_is_refused(text):
    write(text)
    assert refusal() == ["calotype.yaml: expected lines of `setting: value`; correct or remove it"]


def test_a_file_that_is_no_yaml_is_refused_naming_the_line_without_quoting_it():
    write(f"port: 1\ntoken: '{SECRET}\n")
    (problem,) = refusal()
    assert "while" not in problem
    assert "line 3" in problem
    assert SECRET not in problem


@pytest.mark.parametrize("content", [b"port: \xff", b"port: \x00"])
def test_a_file_that_is_no_text_is_refused(content):
    Path("calotype.yaml").write_bytes(content)
    assert refusal()[0].startswith("calotype.yaml: cannot be read: ")


def test_an_environment_variable_that_should_be_json_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("CALOTYPE_TOKENS", f'{{"ann": "{SECRET}"')
    (problem,) = refusal()
    assert "CALOTYPE_TOKENS" in problem
    assert SECRET not in problem


@pytest.mark.parametrize("name", ["Ann", "a b", "x" * 33, ""])
def test_client_names_are_short_and_plain(name):
    (problem,) = refusal(tokens={name: SECRET})
    assert problem.startswith(f"tokens.{name}: ")
    assert SECRET not in problem


# Settings that do not go together


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_token(host):
    assert Settings.load(host=host).loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "pictures.example.org", "localhost.evil.org"])
def test_any_other_address_needs_a_token_and_says_how_to_get_one(host):
    (problem,) = refusal(host=host)
    assert "CALOTYPE_TOKEN" in problem
    assert "listen on 127.0.0.1" in problem
    command = problem[problem.index('"import') + 1 : -1]
    made = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.strip()
    assert not Settings.load(host=host, token=made).loopback


def test_webhooks_need_a_secret():
    (problem,) = refusal(webhooks={"allow": ["a.org"]})
    assert problem.startswith("webhooks.secret: webhooks.allow needs a secret")


def test_exact_results_are_not_compiled():
    assert refusal(exact=True, compiled=True)[0].startswith("compiled: expected false where exact is true")


def test_a_client_called_default_is_named_once():
    assert refusal(token=SECRET, tokens={"default": OTHER})[0].startswith("token: it is short for tokens.default")


def test_two_clients_do_not_share_a_token():
    assert refusal(tokens={"ann": SECRET, "bob": SECRET}) == [
        "tokens.bob: ann has the same token; give each client its own"
    ]


# Showing and reading back


@pytest.mark.parametrize("section", [Settings, Limits, Queue, Keep, BlobKeep, Webhooks])
def test_every_setting_is_described(section):
    assert issubclass(section, Section | Settings)
    assert all(field.description.endswith(".") for field in section.model_fields.values())


def test_settings_cannot_be_changed():
    settings = Settings.load()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.limits.steps = 1


def test_secrets_are_masked_wherever_settings_are_shown():
    settings = Settings.load(token=SECRET, tokens={"bob": OTHER}, webhooks={"secret": "a-third-one-of-them-all"})
    shown = settings.dump() + repr(settings) + str(settings) + settings.model_dump_json()
    assert all(secret not in shown for secret in (SECRET, OTHER, "a-third-one-of-them-all"))
    assert yaml.safe_load(settings.dump())["tokens"] == {"bob": MASK}


def test_a_masked_secret_read_back_is_refused_clearly():
    write(Settings.load(token=SECRET).dump())
    (problem,) = refusal()
    assert problem.startswith("token: this is the mask that stands for a secret; write the secret itself")


def test_what_is_shown_explains_each_setting_and_writes_sizes_for_people():
    text = Settings.load(disk=3 << 30, memory=1025).dump()
    assert "# Bytes of the disk cache.\ndisk: 3GiB\n" in text
    assert "memory: 1025\n" in text
    assert "\n  # Steps of one sampler.\n  steps: 200\n" in text


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z]\.org(:[1-9][0-9]{0,3})?", fullmatch=True)
paths = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), max_size=3)
counts = st.integers(1, 10**12)
drawn = st.fixed_dictionaries(
    {},
    optional={
        "port": st.integers(0, 65535),
        "data": st.text(st.characters(codec="utf-8", exclude_characters="\0~"), min_size=1),
        "hosts": st.lists(names, max_size=3),
        "origins": st.lists(names.map("https://{}".format), max_size=3),
        "device": st.text(st.characters(codec="utf-8")),
        "exact": st.booleans(),
        "memory": counts,
        "disk": counts,
        "log": st.sampled_from(["text", "json"]),
        "limits": st.fixed_dictionaries({}, optional={"steps": counts, "wait": st.floats(0.001, 1e9), "body": counts}),
        "history": st.fixed_dictionaries({"runs": counts, "days": st.floats(0.001, 1e9)}),
    },
)


@effort(deadline=None, max_examples=100)
@given(drawn)
def test_settings_shown_and_saved_read_back_the_same(overrides):
    settings = Settings.load(**overrides)
    write(settings.dump())
    try:
        assert Settings.load() == settings
    finally:
        Path("calotype.yaml").unlink()


@pytest.mark.parametrize("source", ["environment", "file", "argument"])
def test_every_source_gives_the_same_settings(monkeypatch, source):
    values = {"port": 99, "disk": "3GiB", "exact": True, "hosts": ["a.org", "b.org"], "inputs": ["/a", "/b"]}
    expected = Settings(**values, limits={"steps": 7})
    if source == "environment":
        for name, value in values.items():
            monkeypatch.setenv(f"CALOTYPE_{name.upper()}", ",".join(value) if isinstance(value, list) else str(value))
        monkeypatch.setenv("CALOTYPE_LIMITS__STEPS", "7")
    if source == "file":
        write(yaml.safe_dump(values | {"limits": {"steps": 7}}))
    overrides = values | {"limits": {"steps": 7}} if source == "argument" else {}
    assert Settings.load(**overrides) == expected
