"""Where the figures come from: files, machines, seeds."""

from __future__ import annotations

from services.report.content import Section, Table
from services.report.results import MEANING, MachineOf, Origin
from services.report.sources import Sources


def section(sources: Sources) -> Section:
    """Return the section: every file with its machine and seeds, every machine with its versions."""
    machines: list[MachineOf] = []
    rows = []
    for source in sources.known:
        machine = source.result.measured_on
        if machine is not None and machine not in machines:
            machines.append(machine)
        named = "not named" if machine is None else f"machine {machines.index(machine) + 1}"
        drawn = source.result.drawn_from or "not named"
        rows.append([source.path.name, source.result.what, str(source.result.origin), named, drawn])
    for path, runs in sources.latencies.items():
        machine = runs[0].load.machine if runs else None
        if machine is not None and machine not in machines:
            machines.append(machine)
        named = "not named" if machine is None else f"machine {machines.index(machine) + 1}"
        drawn = runs[0].load.drawn_from if runs else "not named"
        rows.append([path.name, f"latencies of {len(runs)} runs", str(Origin.MEASURED), named, drawn])
    rows += [[path.name, "not shown: no section reads it", "", "", ""] for path in sources.passed_over]
    described = [
        [
            f"machine {number}",
            f"{m.cpu}, {m.cores} cores",
            f"{m.memory_bytes / 2**30:.1f} GiB",
            f"{m.system}, Python {m.python}",
            ", ".join(f"{name} {version}" for name, version in m.versions.items()),
        ]
        for number, m in enumerate(machines, 1)
    ]
    parts = [
        Table("Machines", None, ("", "processor", "memory", "system", "packages"), described),
        Table("Files", None, ("file", "holds", "origin", "measured on", "drawn from"), rows),
        Table(
            "What the labels mean", None, ("label", "means"), [[str(o), text] for o, text in MEANING.items()]
        ),
    ]
    text = "A figure is worth little without the machine that it was measured on and the seed of its queries."
    return Section("sources", "Machines, files, seeds", text, parts)
