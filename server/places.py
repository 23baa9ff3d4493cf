"""Where models lie: the settings of calotype.yaml that the command line, the engine and the service have in common."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SourceError

from server import installation
from server.installation import InstallationError
from server.source import PREFIX, SettingsFile, anchored, refused, settings_file, undecoded
from server.spelling import Folders

_file: ContextVar[SettingsFile | None] = ContextVar("_file", default=None)
"""The file that settings are being read from."""


class Places(BaseSettings):
    """Folders of models. Relative paths start in the folder of the file that names them, else in the current one."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    models: Folders = Field(
        default=(), description="Folders of checkpoints; their subfolders `loras`, `embeddings`, ... are searched too."
    )
    loras: Folders = Field(default=(), description="More folders of LoRAs.")
    embeddings: Folders = Field(default=(), description="More folders of embeddings.")
    vae: Folders = Field(default=(), description="More folders of VAEs.")
    controlnet: Folders = Field(default=(), description="More folders of ControlNets.")
    upscale: Folders = Field(default=(), description="More folders of upscalers.")
    comfyui: Folders = Field(default=(), description="Installations of ComfyUI, whose models are found too.")
    webui: Folders = Field(default=(), description="Installations of the WebUI, whose models and styles are found too.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where settings come from, the strongest first."""
        content = anchored(settings_cls, _file.get() or settings_file())
        return init_settings, env_settings, InitSettingsSource(settings_cls, content)

    @classmethod
    def load(cls, *, config: Path | None = None, of: "type[Places] | None" = None, **overrides: Any) -> Self:
        """Read settings from everywhere and check them; an override of None counts as not given.

        `config` names the file, instead of where it is looked for otherwise. `of` are the settings that stand in the
        file, where these are only some of them: the others are left alone. Raises SettingsError with everything that is
        wrong.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        file = settings_file(config)
        others = of.model_fields.keys() - cls.model_fields.keys() if of else set()
        own = {name: value for name, value in file.content.items() if name not in others}
        token = _file.set(file._replace(content=own))
        try:
            settings = cls(**given)
        except ValidationError as error:
            raise refused(of or cls, error, given, file) from None  # pydantic's own text would show secrets
        except SourceError as error:
            raise undecoded(str(error)) from None
        finally:
            _file.reset(token)
        settings.check()
        return settings

    def check(self) -> None:
        """Raise SettingsError where settings are fine alone, but not together."""

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders that are laid out as Calotype does it: `checkpoints`, `loras` and so on in them."""
        return tuple(path.absolute() for path in self.models)

    def folders(self) -> dict[str, tuple[Path, ...]]:
        """Folders of the files of each kind, by the name of the kind's folder, in the order in which they count."""
        own = (
            ("checkpoints", self.models),
            ("loras", self.loras),
            ("embeddings", self.embeddings),
            ("vae", self.vae),
            ("controlnet", self.controlnet),
            ("upscale", self.upscale),
        )
        found = {kind: dict.fromkeys(path.absolute() for path in paths) for kind, paths in own}
        for kind, path in self._installed():
            found[kind].setdefault(path.absolute())
        return {kind: tuple(paths) for kind, paths in found.items()}

    @property
    def tables(self) -> tuple[Path, ...]:
        """The WebUI's tables of styles."""
        return tuple(path.absolute() / installation.STYLES for path in self.webui)

    def warnings(self) -> Iterator[str]:
        """What is probably not as it was meant, each in a sentence."""
        for name in Places.model_fields:
            for path in getattr(self, name):
                if not path.is_dir():
                    yield f"{name}: there is no folder {path}; make it, or correct the setting"
                elif name in ("comfyui", "webui") and not (path / "models").is_dir():
                    yield f"{name}: {path} has no folder models, so it is no installation; correct the setting"
        for place in self.comfyui:
            try:
                installation.additional(place)
            except InstallationError as error:
                yield f"comfyui: {error}; the folders that it names are left out"

    def _installed(self) -> Iterator[tuple[str, Path]]:
        for place in self.comfyui:
            yield from installation.laid_out(installation.COMFYUI, place)
            with contextlib.suppress(InstallationError):  # `warnings` says so
                yield from installation.additional(place)
        for place in self.webui:
            yield from installation.laid_out(installation.WEBUI, place)
