"""Export one model at the paper's row counts and report time and peak memory beside the tables' size.

    python -m benchmarks.paper_scale rmc1

Needs that much disk and a little more memory than the tables have.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from services.models.export import Exported, export
from services.models.spec import SLUGS

RESULTS = Path(__file__).parent / "results" / "paper_scale.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slug", choices=SLUGS, default="rmc1", nargs="?")
    slug = parser.parse_args().slug
    with tempfile.TemporaryDirectory() as folder:
        (exported,) = export((slug,), Path(folder), "paper")
    figures = _figures(exported)
    table = Table("figure", "value", title=f"{slug} at scale paper")
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"model": slug, **figures}, indent=2) + "\n", encoding="utf-8")


def _figures(exported: Exported) -> dict[str, float]:
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "export_s": round(exported.seconds, 1),
        "table_bytes": exported.table_bytes,
        "file_bytes": exported.file_bytes,
        "peak_rss_bytes": peak_bytes,
        "peak_rss_over_tables": round(peak_bytes / exported.table_bytes, 2),
    }


if __name__ == "__main__":
    main()
