"""What metrics cost: microseconds of CPU a query, and milliseconds a scrape of eight models.

    python -m benchmarks.metrics_cost

A query is one answer of the servicer, one of the dispatcher, and 1.5 batches of which every third is shared. Latencies
are drawn around 20 ms, so that the search for a bucket is as long as it is in use. The scrape is of the counts alone.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from prometheus_client.exposition import generate_latest

from scheduler.measure import Sla
from scheduler.query import Batch, Query, Slice
from services.rank.metrics import Metrics
from services.rank.model import ModelSpec

MODELS = 8
QUERIES = 100_000
SCRAPES = 50


def main() -> None:
    metrics = Metrics(2)
    spec = ModelSpec("m0", "1", Path(), (), (), "", (), Sla(95, 0.1), 1024, whole=False)
    for k in range(MODELS):
        metrics.add(replace(spec, name=f"m{k}"))
    latency_s = np.random.default_rng(0).lognormal(np.log(0.02), 0.8, QUERIES).tolist()
    query = Query("m0/1", 100, arrival_s=0.0)
    query.started_s, query.batches = 0.004, 2
    alone = Batch("m0/1", [Slice(query, 0, 100)], 100, 0.0)
    shared = Batch("m0/1", [Slice(query, 0, 50), Slice(query, 0, 50)], 100, 0.0)
    begun_s = time.process_time()
    for k, seconds in enumerate(latency_s):
        metrics.answered("m0", "cpu", seconds)
        metrics.observe(query, 0.0)
        metrics.observe_batch(alone, 0.01)
        if k % 2:
            metrics.observe_batch(shared, 0.01)
    query_us = (time.process_time() - begun_s) / QUERIES * 1e6
    begun_s = time.process_time()
    for _ in range(SCRAPES):
        text = generate_latest(metrics.registry)
    scrape_ms = (time.process_time() - begun_s) / SCRAPES * 1e3
    print(f"{query_us:.1f} us a query, {scrape_ms:.1f} ms a scrape of {len(text.splitlines())} lines")


if __name__ == "__main__":
    main()
