"""The command line, one file per command."""

import os

# What goes wrong is said by us, in one line; gRPC's own lines on standard error would come before it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
