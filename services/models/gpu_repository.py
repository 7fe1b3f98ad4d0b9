"""A repository for Triton on a GPU: the same model files below configurations that only a GPU can load.

The ordinary repository asks for no kind of instance, so that it loads anywhere; what is tuned to one GPU is kept apart.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from deeprecsys.errors import ExportError, InvalidSettingError
from services.models.spec import ModelSpec
from services.models.triton_config import CONFIG_FILE, GpuSettings, config_text

MAX_INSTANCES = 64


def check(gpu: GpuSettings) -> None:
    """Raise InvalidSettingError for settings that cannot work."""
    if not 1 <= gpu.instances <= MAX_INSTANCES:
        raise InvalidSettingError(f"GPU instances must be from 1 to {MAX_INSTANCES}, not {gpu.instances}")
    if gpu.cuda_graphs and not gpu.tensorrt:
        raise InvalidSettingError("CUDA graphs need TensorRT: Triton's ONNX Runtime captures them there only")


def write_gpu_repository(
    specs: Iterable[ModelSpec], version: int, repository: Path, place: Path, gpu: GpuSettings
) -> None:
    """Put the published ``version`` of each spec, from ``repository``, into the GPU repository ``place``.

    Files are linked where both are on one file system and copied elsewhere; a version that is there stays as it is,
    while the configuration always becomes that of ``gpu``. Raises InvalidSettingError and ExportError.
    """
    check(gpu)
    if place.resolve() == repository.resolve():
        raise InvalidSettingError(f"the GPU repository must be another directory than {repository}")
    for spec in specs:
        try:
            (place / spec.slug).mkdir(parents=True, exist_ok=True)
            _link_version(repository / spec.slug / str(version), place / spec.slug / str(version))
            draft = place / spec.slug / f".{CONFIG_FILE}.{os.getpid()}"
            draft.write_text(config_text(spec, gpu), encoding="utf-8")
            draft.replace(place / spec.slug / CONFIG_FILE)
        except OSError as error:
            raise ExportError(f"{spec.slug}: cannot write to {place}: {error.strerror}") from error


def _link_version(source: Path, target: Path) -> None:
    """Make all of the version appear at once."""
    if target.exists():
        return
    folder = Path(tempfile.mkdtemp(prefix=".export-", dir=target.parents[1]))
    try:
        shutil.copytree(source, folder, copy_function=_link, dirs_exist_ok=True)
        folder.chmod(0o755)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link(source: str, target: str) -> None:
    """Link a file, which is never changed once it is published, or copy it to another file system."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
            raise
        shutil.copy2(source, target)
