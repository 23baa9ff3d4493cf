"""Where settings come from, and which source to blame for a value that is refused."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from engine.errors import CalotypeError, Problem
from engine.graph import suggest
from server.spelling import listed

FILE = "calotype.yaml"
"""Settings file that is read when it lies in the current folder, else in the user's folder of settings."""
NAMED = "CALOTYPE_CONFIG"
"""Environment variable that names another settings file."""
OPTION = "--config"
"""Option that does so, too."""
PREFIX = "CALOTYPE_"
_SECRET = {"token", "tokens", "secret"}


class SettingsError(CalotypeError):
    """Settings are refused. `problems` lists everything that is wrong with them; `path` is the setting's name."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class SettingsFile(NamedTuple):
    """A settings file by its name in messages, its folder, and what stands in it; empty where there is none."""

    name: str
    folder: Path
    content: Mapping[str, Any]


def settings_file(named: Path | None = None) -> SettingsFile:
    """The settings file that is named here or by the environment, else the one in the current folder, or the user's."""
    path, said = _looked_for(named)
    if path is None:
        return SettingsFile(FILE, Path(), {})
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        wanted = f"the file that {said} names cannot be read" if said else "cannot be read"
        raise SettingsError([Problem(str(path), f"{wanted}: {_reason(error)}; correct it", "unreadable")]) from None
    if not isinstance(content, dict | None):
        raise SettingsError(
            [Problem(str(path), "expected lines of `setting: value`; correct or remove it", "unreadable")]
        )
    given = {str(name): value for name, value in (content or {}).items() if value is not None}
    return SettingsFile(str(path), path.parent, given)


def _looked_for(named: Path | None) -> tuple[Path | None, str]:
    """The path of the settings file, None where there is none, and what names it, if anything does."""
    if named is not None:
        return named.expanduser(), OPTION
    if told := os.environ.get(NAMED):
        return Path(told), NAMED
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111  without a home, too
    places = (Path(FILE), Path(home) / "calotype" / FILE)
    return next((path for path in places if os.path.lexists(path)), None), ""


def anchored(model: type[BaseModel], file: SettingsFile) -> dict[str, Any]:
    """What stands in a settings file, relative paths as they are seen from its folder."""
    paths = {name for name, field in model.model_fields.items() if "Path" in str(field.annotation)}
    return {
        name: _anchored(value, file.folder, many="tuple" in str(model.model_fields[name].annotation))
        if name in paths
        else value
        for name, value in file.content.items()
    }


def _anchored(value: Any, folder: Path, *, many: bool) -> Any:
    if many:
        try:
            value = listed(value)
        except ValueError:
            return value  # what is wrong with it, validation says
        return [_anchored(item, folder, many=False) for item in value] if isinstance(value, list) else value
    return value if not isinstance(value, str) or value.startswith("~") else str(folder / value)


def _reason(error: Exception) -> str:
    """What is wrong with a file, without quoting it: the line may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return str(error.strerror) if isinstance(error, OSError) else type(error).__name__


def refused(
    model: type[BaseModel], error: ValidationError, given: Mapping[str, Any], file: SettingsFile
) -> SettingsError:
    """All that pydantic found wrong with the settings `model`, of which some were `given` as arguments."""
    return SettingsError([_problem(model, item, given, file) for item in error.errors()])


def undecoded(message: str) -> SettingsError:
    """Error of an environment variable that should be JSON, made of what pydantic-settings says."""
    name = re.sub(r'.*field "(\w+)".*', r"\1", message)
    said = f'expected JSON such as {{"name": "value"}} (the environment variable {PREFIX}{name.upper()})'
    return SettingsError([Problem(name, said, "json_invalid")])


def _problem(model: type[BaseModel], error: Any, given: Mapping[str, Any], file: SettingsFile) -> Problem:
    loc = tuple(part for part in error["loc"] if part != "[key]")
    path, source = ".".join(map(str, loc)), _source(loc, given, file)
    field, siblings = _field(model, loc)
    if error["type"] == "extra_forbidden":
        return Problem(path, f"there is no such setting{suggest(str(loc[-1]), siblings)} ({source})", "unknown-setting")
    said = error["msg"].removeprefix("Value error, ")
    got = "" if _SECRET.intersection(loc) else f", got {error['input']!r:.200}"
    meant = f"{field.description} " if field else ""
    return Problem(path, f"{said}{got} ({source}). {meant}Correct or remove it.", error["type"])


def _field(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[FieldInfo | None, Sequence[str]]:
    """Field that a location lies in, and the names that stand beside it."""
    field = None
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            break
        model = field.annotation
    return field, list(model.model_fields)


def _source(loc: tuple[int | str, ...], given: Mapping[str, Any], file: SettingsFile) -> str:
    """Where a value came from, in the order in which sources win."""
    if _reaches(given, loc):
        return "an argument"
    present = {name.upper(): name for name, value in os.environ.items() if value}
    for end in range(len(loc), 0, -1):
        name = PREFIX + "__".join(map(str, loc[:end])).upper()
        if name in present:
            return f"the environment variable {present[name]}"
    return file.name


def _reaches(values: Any, loc: tuple[int | str, ...]) -> bool:
    """Whether nested mappings lead to a location, or to a plain value on the way."""
    for part in loc:
        if not isinstance(values, Mapping):
            return True
        if part not in values:
            return False
        values = values[part]
    return True
