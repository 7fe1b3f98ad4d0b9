"""Latency-bounded throughput of this service against other ways to serve the same models, on this machine."""
