"""How values of settings are spelled: each type says what it accepts, from a YAML file or from one line of text."""

import ipaddress
import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr
from pydantic_settings import NoDecode

MASK = str(SecretStr("anything"))
"""What stands for a secret where settings are shown."""
RECIPE = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'
"""Command that prints a good secret."""
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_NAME = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::[0-9]{{1,5}})?"
_HOST = re.compile(_NAME)
_ORIGIN = re.compile(rf"https?://{_NAME}")
_CALLEE = re.compile(rf"(?:\*\.)?{_NAME}")


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if text == MASK:
        raise ValueError(f"this is the mask that stands for a secret; write the secret itself, or make one: {RECIPE}")
    if len(text) < 16:
        raise ValueError(f"a secret has at least 16 characters; make one: {RECIPE}")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"a secret is ASCII without spaces, so that a header can carry it; make one: {RECIPE}")
    return value


def listed(value: Any) -> Any:
    """A list that may be written as one line: with commas, or as JSON. Raises ValueError."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [item.strip() for item in value.split(",") if item.strip()]


def _bound(value: str) -> str:
    value = value.strip("[]").lower()
    if ":" in value:
        ipaddress.IPv6Address(value)
    return value


def _host(value: str) -> str:
    if not _HOST.fullmatch(value := value.lower()):
        raise ValueError("expected a name or address such as pictures.example.org or [fd00::1]:8420, no wildcard")
    return value


def _origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value := value.lower()):
        raise ValueError("expected scheme://host[:port] such as https://pictures.example.org, no path, no wildcard")
    return value


def _callee(value: str) -> str:
    if not _CALLEE.fullmatch(value := value.lower()):
        raise ValueError("expected host[:port] such as hooks.example.org or *.example.org:8443")
    return value


Secret = Annotated[SecretStr, AfterValidator(_secret)]
Client = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,32}$")]
Address = Annotated[str, Field(min_length=1), AfterValidator(_bound)]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]
Folders = Annotated[tuple[Folder, ...], NoDecode, BeforeValidator(listed)]
Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], NoDecode, BeforeValidator(listed)]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(listed)]
Callees = Annotated[tuple[Annotated[str, AfterValidator(_callee)], ...], NoDecode, BeforeValidator(listed)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[ByteSize, Field(ge=1)]


def spelled(value: Any) -> Any:
    """Value as a YAML file may hold it: secrets masked, bytes in the largest unit that is exact."""
    match value:
        case SecretStr():
            return MASK
        case Path():
            return str(value)
        case tuple():
            return [spelled(item) for item in value]
        case dict():
            return {name: spelled(item) for name, item in value.items()}
        case ByteSize():
            units = (("GiB", 30), ("MiB", 20), ("KiB", 10))
            return next((f"{value >> bits}{unit}" for unit, bits in units if value % (1 << bits) == 0), int(value))
        case _:
            return value
