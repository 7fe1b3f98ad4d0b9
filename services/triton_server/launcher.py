"""The command `tritonserver` of an installation: a shell script that finds the server's Python and libraries."""

from __future__ import annotations

import shlex
from pathlib import Path

LAUNCHER = "tritonserver"
SERVER = "server"
"""The folder beside the launcher that holds the venv and the backends."""

_TEXT = """\
#!/bin/sh
# Written by `make triton`: a real tritonserver, on loopback unless told otherwise.
server=$(dirname "$(readlink -f "$0")")/{server}
packages=$server/{packages}
export PATH="$server/venv/bin:$PATH"
export LD_LIBRARY_PATH={libraries}:"$packages/nvidia_pytriton.libs"
unset PYTHONHOME PYTHONPATH  # another NumPy than the server's own makes outputs of zero bytes
exec "$packages/pytriton/tritonserver/bin/tritonserver" \\
    --backend-directory="$server/backends" --cache-directory="$packages/pytriton/tritonserver/caches" \\
    --disable-auto-complete-config --allow-gpu-metrics=false --exit-timeout-secs=5 \\
    --http-address=127.0.0.1 --grpc-address=127.0.0.1 --metrics-address=127.0.0.1 "$@"
"""


def launcher_text(packages: Path, libraries: Path) -> str:
    """Return the script; ``packages`` is the venv's site-packages below SERVER, ``libraries`` where libpython is.

    The caller's flags come last, and of two equal flags Triton takes the last.
    """
    return _TEXT.format(server=SERVER, packages=packages, libraries=shlex.quote(str(libraries)))
