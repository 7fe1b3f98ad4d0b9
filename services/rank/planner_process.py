"""The process that plans: ``python -m services.rank.planner_process``, started by ``planning``.

Questions come on standard input and answers go to standard output, each a length and a pickle, so it ends with its
parent however that ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from contextlib import suppress

LENGTH = struct.Struct("<I")
_NICEST = 19


def main() -> None:
    """Answer questions until the parent closes the pipe."""
    # Signals to the whole group are the parent's to act on: it drains first, and then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICEST)
    # Imported here, so that even the import gives way to those who serve.
    from scheduler.planner import Question, forecast  # noqa: PLC0415

    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(head := questions.read(LENGTH.size)) == LENGTH.size:
        question: Question = pickle.loads(questions.read(LENGTH.unpack(head)[0]))  # noqa: S301 - our own parent's
        data = pickle.dumps(forecast(question))
        with suppress(BrokenPipeError):
            answers.write(LENGTH.pack(len(data)) + data)
            answers.flush()


if __name__ == "__main__":
    main()
