"""A peer's processes: that they answer, what they hold, and that none is left."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from benchmarks.peers.process import PeerFailedError, end, memory_mib, peer_process
from services.loadgen.service import Service, rank_service
from services.loadgen.transport import grpc_transport
from services.triton_server.process import free_ports

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(15, signal.SIG_IGN);'
                          'print(1, flush=True); time.sleep(600)'], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def started(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)


def test_a_server_that_ends_before_it_answers_says_why() -> None:
    service = Service(
        rank_service("nobody").models, partial(grpc_transport, f"127.0.0.1:{free_ports().grpc}")
    )
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with pytest.raises(PeerFailedError, match="ended with code 1: no such model"):
        with peer_process(command, service, b""):
            pytest.fail("it does not serve")


def test_the_memory_is_that_of_all_processes_and_none_of_them_outlives_the_end() -> None:
    server = started(STUBBORN)
    assert server.stdout is not None
    with server.stdout:
        worker = psutil.Process(int(server.stdout.readline()))
        both = memory_mib(server.pid)
        one = memory_mib(worker.pid)
        end(server)
    assert both["processes"] == 2
    assert one["processes"] == 1
    assert 0 < one["pss_mib"] <= one["rss_mib"] < both["rss_mib"]
    assert server.returncode is not None
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_the_end_of_what_has_ended_is_no_error() -> None:
    server = started("pass")
    assert server.stdout is not None
    server.stdout.close()
    server.wait()
    begun_s = time.monotonic()
    end(server)
    assert time.monotonic() - begun_s < 10  # it does not wait for a process that is not there
    assert memory_mib(server.pid) == {"rss_mib": 0.0, "pss_mib": 0.0, "processes": 0}
