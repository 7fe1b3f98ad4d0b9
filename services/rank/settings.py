"""The server's settings: flags, then environment variables, then a TOML file, then these defaults."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from deeprecsys.client import DEFAULT_MAX_MESSAGE_BYTES
from deeprecsys.errors import InvalidSettingError

ENV_PREFIX = "DEEPRECSYS_"
_ADDRESS = re.compile(r"(?:dns:///)?(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")


class ServeSettings(BaseSettings):
    """What `deeprecsys serve` can be told."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    repository: Path = Field(
        Path("model_repository"), description="directory of the models, in Triton's layout"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8500, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    metrics_host: str = Field("127.0.0.1", min_length=1, description="address of the HTTP port")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of /metrics, /healthz and /readyz over HTTP; 0 takes a free one, none is opened without",
    )
    workers: int = Field(0, ge=0, le=1024, description="CPU worker threads; 0 takes one per usable core")
    policy: Literal["static", "paper", "adaptive"] = Field("adaptive", description="how batches are formed")
    batch_size: int = Field(
        0, ge=0, description="hold every model at this batch size; 0 lets the policy choose"
    )
    triton: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="host:port of a Triton server to offload large queries to; several share the load"
    )
    offload_from: int = Field(
        0,
        ge=0,
        le=(1 << 31) - 1,
        description="offload queries of at least so many candidates; 0 lets the policy choose",
    )
    triton_queries: int = Field(
        128,
        ge=1,
        description="queries that may be on the way to one Triton server; beyond, the CPU takes them",
    )
    triton_bytes: int = Field(
        256 << 20, ge=1, description="bytes of tensors that may be on the way to one Triton server"
    )
    triton_shared_memory: int = Field(
        0,
        ge=0,
        le=1 << 40,
        description="bytes of system shared memory with each Triton server, which must be on this host; "
        "0 sends tensors in messages",
    )
    triton_tolerance: float = Field(
        0.05,
        ge=0,
        description="how far Triton's scores of a sample may be from the CPU's, as a share of the sample's spread",
    )
    state_dir: Path | None = Field(None, description="directory where operating points outlive the process")
    max_candidates: int = Field(4096, ge=1, le=1 << 24, description="most candidates in one query")
    max_message_bytes: int = Field(
        DEFAULT_MAX_MESSAGE_BYTES, ge=1024, le=(1 << 31) - 1, description="largest message, either way"
    )
    max_waiting: int = Field(
        65536, ge=1, description="candidates that may wait per model before queries are refused"
    )
    max_queries: int = Field(1024, ge=1, description="queries that may be inside the server at once")
    warmup_s: float = Field(
        1.0, gt=0, le=60, description="seconds spent on timing each model's first batches"
    )
    drain_s: float = Field(
        30.0, ge=0, le=3600, description="seconds that queries in flight get after SIGTERM"
    )
    log_format: Literal["console", "json"] = Field("console", description="how log lines look")

    @field_validator("triton", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Take addresses separated by commas, as an environment variable gives them."""
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("triton")
    @classmethod
    def _check_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            found = _ADDRESS.fullmatch(address)
            if found is None or not 1 <= int(found["port"]) <= 65535:
                raise ValueError(
                    f'"{address}" must be host:port, such as localhost:8001 (Triton has no unix sockets)'
                )
        if len(set(addresses)) != len(addresses):
            raise ValueError("names an address twice")
        return addresses

    @field_validator("offload_from")
    @classmethod
    def _check_threshold(cls, offload_from: int, info: ValidationInfo) -> int:
        if offload_from and info.data.get("triton") == ():
            raise ValueError("needs an accelerator: name a Triton server with --triton")
        return offload_from

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources; the file is the ``toml_file`` of the class's own model_config."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None, flags: dict[str, Any]) -> ServeSettings:
    """Join flags (None where not given), environment and file; InvalidSettingError names each wrong setting."""
    path = config or os.environ.get(f"{ENV_PREFIX}CONFIG")
    if path and not Path(path).is_file():
        raise InvalidSettingError(f"config file {path}: no such file")

    class _Settings(ServeSettings):
        model_config = SettingsConfigDict(toml_file=path)

    given = {name: value for name, value in flags.items() if value not in (None, [])}
    try:
        return _Settings(**given)
    except ValidationError as error:
        raise InvalidSettingError("; ".join(_explain(fault, given) for fault in error.errors())) from error
    except (SettingsError, ValueError) as error:
        raise InvalidSettingError(f"config file {path}: {error}") from error


def _explain(fault: Any, given: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"]) or "settings"
    if fault["type"] == "extra_forbidden":
        known = ", ".join(ServeSettings.model_fields)
        return f"{name}: there is no such setting; known: {known}"
    source = (
        f"--{name.replace('_', '-')}" if name in given else f"{ENV_PREFIX}{name.upper()} or the config file"
    )
    return f"{name} (from {source}): {fault['msg']}, not {fault['input']!r}"
