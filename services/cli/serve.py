"""`deeprecsys serve`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from services.logs import configure_logs
from services.rank.server import serve as serve_until
from services.rank.server import stop_on_signals
from services.rank.settings import ENV_PREFIX, ServeSettings, load_settings


def _flag(name: str, **constraints: Any) -> Any:
    """Return the option of one setting, described by the setting itself."""
    field = ServeSettings.model_fields[name]
    text = f"{field.description} [default: {field.default}; env: {ENV_PREFIX}{name.upper()}]"
    return typer.Option(f"--{name.replace('_', '-')}", help=text, show_default=False, **constraints)


def serve(
    repository: Annotated[Path | None, _flag("repository")] = None,
    host: Annotated[str | None, _flag("host")] = None,
    port: Annotated[int | None, _flag("port")] = None,
    metrics_host: Annotated[str | None, _flag("metrics_host")] = None,
    metrics_port: Annotated[int | None, _flag("metrics_port")] = None,
    workers: Annotated[int | None, _flag("workers")] = None,
    policy: Annotated[str | None, _flag("policy")] = None,
    batch_size: Annotated[int | None, _flag("batch_size")] = None,
    triton: Annotated[list[str] | None, _flag("triton")] = None,
    offload_from: Annotated[int | None, _flag("offload_from")] = None,
    triton_queries: Annotated[int | None, _flag("triton_queries")] = None,
    triton_bytes: Annotated[int | None, _flag("triton_bytes")] = None,
    triton_shared_memory: Annotated[int | None, _flag("triton_shared_memory")] = None,
    triton_tolerance: Annotated[float | None, _flag("triton_tolerance")] = None,
    state_dir: Annotated[Path | None, _flag("state_dir")] = None,
    max_candidates: Annotated[int | None, _flag("max_candidates")] = None,
    max_message_bytes: Annotated[int | None, _flag("max_message_bytes")] = None,
    max_waiting: Annotated[int | None, _flag("max_waiting")] = None,
    max_queries: Annotated[int | None, _flag("max_queries")] = None,
    warmup_s: Annotated[float | None, _flag("warmup_s")] = None,
    drain_s: Annotated[float | None, _flag("drain_s")] = None,
    log_format: Annotated[str | None, _flag("log_format")] = None,
    config: Annotated[Path | None, typer.Option(help="a TOML file of these settings")] = None,
) -> None:
    """Serve every model of the repository over gRPC until SIGTERM or Ctrl-C.

    Each setting comes from its flag, else its environment variable, else the config file. Once all models are ready
    one line on standard output says where.
    """
    flags = dict(locals())
    del flags["config"]
    settings = load_settings(config, flags)
    configure_logs(settings.log_format)
    asyncio.run(_serve(settings))


async def _serve(settings: ServeSettings) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    await serve_until(settings, lambda address: print(f"listening on {address}", flush=True), stop)  # noqa: T201
