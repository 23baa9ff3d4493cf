"""The data as it is published: npm packages of exact versions, checked before they are read."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One version of a package; `sha512` is the checksum of its tarball, base64, as the registry states it."""

    name: str
    version: str
    sha512: str

    @property
    def tarball(self) -> str:
        """The name that `npm pack` gives to the file."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


PICTURES = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)
"""Microsoft's Fluent Emoji in 3D style, WebP of 256x256, named by code point. MIT."""

WORDS = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
"""Labels, keywords and groups of all emoji. MIT."""


class FetchError(RuntimeError):
    """A package could not be had as it was published."""


def fetch(package: Package, folder: Path) -> Path:
    """Return the package's tarball in `folder`, downloading it if it is not there yet."""
    tarball = folder / package.tarball
    if not tarball.exists():
        _pack(package, folder)
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise FetchError(f"{tarball}: expected sha512 {package.sha512}, found {found}; delete it to fetch it again")
    return tarball


def members(tarball: Path, suffix: str) -> Iterator[tuple[str, bytes]]:
    """The files of a tarball whose paths end in `suffix`, by path."""
    with tarfile.open(tarball) as opened:
        for member in opened:
            file = opened.extractfile(member) if member.name.endswith(suffix) else None
            if file is not None:
                yield member.name, file.read()


def _pack(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError(f"npm: expected on the PATH, to fetch {package.name}; it comes with Node.js")
    folder.mkdir(parents=True, exist_ok=True)
    command = [npm, "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # both names are ours
    if done.returncode:
        raise FetchError(f"npm pack {package.name}@{package.version} failed: {done.stderr.strip()}")
