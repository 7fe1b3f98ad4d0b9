"""The eight models as plain data: widths, tables, inputs and targets. Nothing here imports torch.

The numbers are those of the paper's model table (DeepRecSys, ISCA 2020, table I), as reported and not
re-checked against the PDF. Where that table says only "tens" or nothing at all (table counts, dims, dense
inputs of the Wide & Deep pair, the tables of DIN and DIEN) the authors' released configurations fill in.

A width list such as the paper's ``256-128-32`` follows the released configurations' reading: the first number
of a *dense* list is the width of the dense input, the rest are layers; a *predict* list holds layers only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from deeprecsys.errors import InvalidSettingError

Scale = Literal["tiny", "laptop", "paper"]
Family = Literal["dlrm", "wide_deep", "ncf", "din", "dien"]
Interaction = Literal["concat", "dot"]
Bottleneck = Literal["mlp", "embedding", "attention"]
Axis = Literal["tables", "lookups"]

SCALES: tuple[Scale, ...] = get_args(Scale)
DENSE_INPUT = "dense"
SCORE_OUTPUT = "score"
PROBABILITIES_OUTPUT = "probabilities"
FLOAT_BYTES = 4
MAX_STACKED_ROWS = 2**31 - 1  # ids are INT32, also after a table's offset in its stack is added
MAX_WIDTH = 2**31 - 1  # of a layer, an axis or a batch
MAX_TABLES = 100_000  # of one input
SLA_MS = (0.001, 1e7)  # from a microsecond, the unit of Triton's queue; the server reads less than the other


@dataclass(frozen=True)
class TableGroup:
    """The tables that one INT32 input feeds.

    ``rows`` has one entry per table. ``lookups`` ids per table and candidate are sum-pooled. ``axes`` says
    which axes the input has after the candidates' axis: ``[N, tables, lookups]``, ``[N, tables]`` or
    ``[N, lookups]``. ``user_side`` inputs describe the user: they are the same for all candidates of a query.
    """

    input: str
    rows: tuple[int, ...]
    lookups: int
    axes: tuple[Axis, ...]
    user_side: bool = False

    @property
    def tables(self) -> int:
        """How many tables the group has."""
        return len(self.rows)

    @property
    def dims(self) -> tuple[int, ...]:
        """The input's shape without the candidates' axis."""
        sizes = {"tables": self.tables, "lookups": self.lookups}
        return tuple(sizes[axis] for axis in self.axes)


@dataclass(frozen=True)
class ModelSpec:
    """One model. Widths are in floats, rows in table rows, ``sla_ms`` in milliseconds.

    ``dense_width`` 0 means no dense input. ``top`` are the layers after the interaction (for mt_wnd the trunk
    that the tasks share; empty for independent towers) and ``tower`` each task's own layers. ``hidden`` is the
    width of DIN's activation unit or of DIEN's recurrent state.
    """

    slug: str
    scale: Scale
    family: Family
    groups: tuple[TableGroup, ...]
    dim: int
    top: tuple[int, ...]
    sla_ms: float
    bottleneck: Bottleneck
    dense_width: int = 0
    bottom: tuple[int, ...] = ()
    interaction: Interaction = "concat"
    tasks: tuple[str, ...] = ()
    tower: tuple[int, ...] = ()
    hidden: int = 0
    sla_percentile: float = 95.0
    max_batch_size: int = 4096

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Input names in the model's order, each with its shape without the candidates' axis."""
        dense = {DENSE_INPUT: (self.dense_width,)} if self.dense_width else {}
        return MappingProxyType(dense | {group.input: group.dims for group in self.groups})

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Output names in the model's order, each with its shape without the candidates' axis."""
        score = {SCORE_OUTPUT: (max(1, len(self.tasks)),)}
        two_classes = {PROBABILITIES_OUTPUT: (2,)} if self.family in {"din", "dien"} else {}
        return MappingProxyType(score | two_classes)

    @property
    def user_inputs(self) -> tuple[str, ...]:
        """The inputs that describe the user and not the candidate."""
        return tuple(group.input for group in self.groups if group.user_side)

    @property
    def table_bytes(self) -> int:
        """Bytes of all embedding tables together, in fp32."""
        return FLOAT_BYTES * self.dim * sum(sum(group.rows) for group in self.groups)

    def group(self, name: str) -> TableGroup:
        """Return the table group behind the input ``name``; KeyError if there is none."""
        return {group.input: group for group in self.groups}[name]


@dataclass(frozen=True)
class _Tables:
    """A table group before its scale is chosen: one tuple of rows for each scale."""

    input: str
    lookups: int
    axes: tuple[Axis, ...]
    tiny: tuple[int, ...]
    laptop: tuple[int, ...]
    paper: tuple[int, ...]
    user_side: bool = False

    def at(self, scale: Scale) -> TableGroup:
        rows = {"tiny": self.tiny, "laptop": self.laptop, "paper": self.paper}[scale]
        return TableGroup(self.input, rows, self.lookups, self.axes, self.user_side)


_BAGS: tuple[Axis, ...] = ("tables", "lookups")
_ONE_EACH: tuple[Axis, ...] = ("tables",)
_ONE_BAG: tuple[Axis, ...] = ("lookups",)
_TASKS = ("click", "watch", "like", "share", "follow")

# fmt: off
# Rows at scale laptop: the tables of rmc1, rmc2, rmc3 and din hold at least 256 MiB each, more than a cache
# does, and all eight together hold 1.8 GB. At scale paper they are the released configurations' row counts.
_TABLES: Mapping[str, tuple[_Tables, ...]] = {
    "ncf": (  # columns: mf_user, mf_item, mlp_user, mlp_item
        _Tables(
            input="ids", lookups=1, axes=_ONE_EACH,
            tiny=(300, 300, 60, 60),
            laptop=(140_000, 140_000, 28_000, 28_000),
            paper=(140_000, 140_000, 28_000, 28_000),
        ),
    ),
    "wnd": (
        _Tables(
            input="ids", lookups=1, axes=_ONE_EACH,
            tiny=27 * (200,), laptop=27 * (65_536,), paper=27 * (1_000_000,),
        ),
    ),
    "mt_wnd": (
        _Tables(
            input="ids", lookups=1, axes=_ONE_EACH,
            tiny=41 * (200,) + 2 * (400,),
            laptop=41 * (32_768,) + 2 * (131_072,),
            paper=41 * (500_000,) + 2 * (5_000_000,),
        ),
    ),
    "rmc1": (
        _Tables(
            input="ids", lookups=80, axes=_BAGS,
            tiny=8 * (200,), laptop=8 * (262_144,), paper=8 * (4_000_000,),
        ),
    ),
    "rmc2": (
        _Tables(
            input="ids", lookups=80, axes=_BAGS,
            tiny=32 * (200,), laptop=32 * (32_768,), paper=32 * (500_000,),
        ),
    ),
    "rmc3": (
        _Tables(
            input="ids", lookups=20, axes=_BAGS,
            tiny=10 * (200,), laptop=10 * (212_992,), paper=10 * (2_000_000,),
        ),
    ),
    "din": (
        _Tables(
            input="profile", lookups=3, axes=_ONE_BAG, user_side=True,
            tiny=(200,), laptop=(65_536,), paper=(1_000_000,),
        ),
        _Tables(
            input="behaviours", lookups=3, axes=_BAGS, user_side=True,
            tiny=251 * (50,), laptop=251 * (8_192,), paper=251 * (100_000,),
        ),
        _Tables(
            input="ad", lookups=3, axes=_ONE_BAG, tiny=(200,), laptop=(131_072,), paper=(10_000_000,),
        ),
        _Tables(
            input="context", lookups=3, axes=_ONE_BAG, tiny=(200,), laptop=(131_072,), paper=(10_000_000,),
        ),
    ),
    "dien": (
        _Tables(
            input="profile", lookups=1, axes=_ONE_EACH, user_side=True,
            tiny=(200,), laptop=(32_768,), paper=(500_000,),
        ),
        _Tables(  # tiny has a short sequence: the unrolled recurrence is what makes the export slow
            input="behaviours", lookups=1, axes=_ONE_EACH, user_side=True,
            tiny=3 * (200,), laptop=40 * (32_768,), paper=40 * (500_000,),
        ),
        _Tables(input="ad", lookups=1, axes=_ONE_EACH, tiny=(200,), laptop=(131_072,), paper=(5_000_000,)),
        _Tables(
            input="context", lookups=1, axes=_ONE_EACH, tiny=(200,), laptop=(131_072,), paper=(5_000_000,),
        ),
    ),
}

_MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(
        slug="ncf", scale="laptop", family="ncf", groups=(), dim=64,
        top=(256, 256, 128), sla_ms=5.0, bottleneck="mlp",
    ),
    ModelSpec(
        slug="wnd", scale="laptop", family="wide_deep", groups=(), dim=32,
        dense_width=512, top=(1024, 512, 256, 1), sla_ms=25.0, bottleneck="mlp",
    ),
    # The released shared trunk 1024-512 with a tower for each task. The paper's N independent towers are
    # top=(), tower=(1024, 512, 256, 1): five of those cannot meet 25 ms on two cores.
    ModelSpec(
        slug="mt_wnd", scale="laptop", family="wide_deep", groups=(), dim=32,
        dense_width=512, top=(1024, 512), tower=(256, 128, 1), tasks=_TASKS, sla_ms=25.0, bottleneck="mlp",
    ),
    ModelSpec(
        slug="rmc1", scale="laptop", family="dlrm", groups=(), dim=32,
        dense_width=256, bottom=(128, 32), top=(256, 64, 1), sla_ms=100.0, bottleneck="embedding",
    ),
    # rmc2: the paper's bottom ends in 32 and the released dim is 64. Both stand: concatenation needs no equal
    # widths, and 64 is what gives this model its published memory traffic. Only `dot` insists on equality.
    ModelSpec(
        slug="rmc2", scale="laptop", family="dlrm", groups=(), dim=64,
        dense_width=256, bottom=(128, 32), top=(512, 128, 1), sla_ms=400.0, bottleneck="embedding",
    ),
    ModelSpec(
        slug="rmc3", scale="laptop", family="dlrm", groups=(), dim=32,
        dense_width=2560, bottom=(512, 32), top=(512, 128, 1), sla_ms=100.0, bottleneck="mlp",
    ),
    ModelSpec(
        slug="din", scale="laptop", family="din", groups=(), dim=32,
        hidden=32, top=(200, 80, 2), sla_ms=100.0, bottleneck="attention",
    ),
    ModelSpec(
        slug="dien", scale="laptop", family="dien", groups=(), dim=32,
        hidden=64, top=(200, 80, 2), sla_ms=35.0, bottleneck="attention",
    ),
)
# fmt: on
_BY_SLUG = {model.slug: model for model in _MODELS}

SLUGS: tuple[str, ...] = tuple(_BY_SLUG)

_FIXED_FIELDS = frozenset({"slug", "scale", "family", "groups"})
_GROUP_FIELDS = ("rows", "tables", "lookups")
_FAMILIES_WITH: Mapping[str, frozenset[Family]] = {
    "dense_width": frozenset({"dlrm", "wide_deep"}),
    "bottom": frozenset({"dlrm"}),
    "interaction": frozenset({"dlrm"}),
    "tasks": frozenset({"wide_deep"}),
    "tower": frozenset({"wide_deep"}),
    "hidden": frozenset({"din", "dien"}),
}
"""The fields that mean something to some families only; the others keep their defaults."""


def override_names(slug: str) -> tuple[str, ...]:
    """Return the names that ``spec_for`` accepts as overrides for this model.

    These are the fields of ModelSpec and, for each table input, ``<input>_rows`` (one number, or one per
    table), ``<input>_tables`` and ``<input>_lookups``.
    """
    _known_slug(slug)
    fields = [field.name for field in dataclasses.fields(ModelSpec) if field.name not in _FIXED_FIELDS]
    return (*fields, *(f"{tables.input}_{name}" for tables in _TABLES[slug] for name in _GROUP_FIELDS))


def spec_for(slug: str, scale: str = "laptop", /, **overrides: object) -> ModelSpec:
    """Return the spec of the model ``slug`` at ``scale`` (tiny, laptop or paper), with ``overrides`` applied.

    For example ``spec_for("rmc1", "tiny", ids_lookups=4, interaction="dot")``; a list stands for a tuple.
    Raises InvalidSettingError for an unknown slug, scale or override, and for values that cannot work together.
    """
    _known_slug(slug)
    chosen = next((known for known in SCALES if known == scale), None)
    if chosen is None:
        raise InvalidSettingError(f"unknown scale {scale!r}: one of {', '.join(SCALES)}")
    unknown = sorted(set(overrides) - set(override_names(slug)))
    if unknown:
        raise InvalidSettingError(
            f"{slug} has no setting {', '.join(unknown)}: one of {', '.join(override_names(slug))}"
        )
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}
    groups = tuple(_resized(tables.at(chosen), values) for tables in _TABLES[slug])
    fields = {field.name for field in dataclasses.fields(ModelSpec)}
    changes: dict[str, Any] = {n: _typed(n, value) for n, value in values.items() if n in fields}
    spec = dataclasses.replace(_BY_SLUG[slug], scale=chosen, groups=groups, **changes)
    _validate(spec)
    return spec


def _known_slug(slug: str) -> None:
    if slug not in _BY_SLUG:
        raise InvalidSettingError(f"unknown model {slug!r}: one of {', '.join(SLUGS)}")


def _typed(name: str, value: object) -> object:
    """Give ``value`` the kind that the field has: one width is accepted where a tuple of widths is meant."""
    like = getattr(_BY_SLUG["mt_wnd"], name)
    items = value if isinstance(value, tuple) else (value,)
    ok = (
        all(_same_kind(item, "" if name == "tasks" else 1) for item in items)
        if isinstance(like, tuple)
        else _same_kind(value, like)
    )
    if not ok:
        raise InvalidSettingError(f"{name} cannot be {value!r}")
    if isinstance(like, float):
        return _fraction(name, value)
    return items if isinstance(like, tuple) else value


def _fraction(name: str, value: object) -> float:
    """Return ``value`` as a float, so that 5 and 5.0 are the same recipe."""
    assert isinstance(value, (int, float))
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidSettingError(f"{name} is too large") from error


def _same_kind(value: object, like: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if isinstance(like, float) else type(like))


def _resized(group: TableGroup, values: Mapping[str, object]) -> TableGroup:
    """Apply the overrides ``<input>_rows``, ``<input>_tables`` and ``<input>_lookups`` to one group."""
    rows = values.get(f"{group.input}_rows", group.rows)
    tables = _whole(f"{group.input}_tables", values.get(f"{group.input}_tables", 0), 0, MAX_TABLES)
    if not isinstance(rows, tuple):
        rows = (tables or group.tables) * (rows,)
    counts = tuple(_whole(f"{group.input}_rows", count) for count in rows)
    if not counts:
        raise InvalidSettingError(f"{group.input}_rows needs a number, or one per table")
    if tables and tables != len(counts):
        if len(set(counts)) > 1:
            raise InvalidSettingError(
                f"{group.input}_tables is {tables} but the tables differ in rows: "
                f"give {group.input}_rows as well, one number or one per table"
            )
        counts = tables * counts[:1]
    lookups = _whole(f"{group.input}_lookups", values.get(f"{group.input}_lookups", group.lookups))
    return dataclasses.replace(group, rows=counts, lookups=lookups)


def _whole(name: str, value: object, at_least: int = 1, at_most: int = MAX_WIDTH) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise InvalidSettingError(f"{name} must be a whole number of at least {at_least}, not {value!r}")
    if value > at_most:
        raise InvalidSettingError(f"{name} must be at most {at_most}")
    return value


def _validate(spec: ModelSpec) -> None:
    """Raise InvalidSettingError, naming the first rule that the spec breaks."""
    widths = (spec.dim, *spec.bottom, *spec.top, *spec.tower)
    rules = [
        (min(widths) >= 1, "widths must be at least 1"),
        (max(*widths, spec.dense_width, spec.hidden) <= MAX_WIDTH, f"widths must be at most {MAX_WIDTH}"),
        (
            SLA_MS[0] <= spec.sla_ms < SLA_MS[1] and 0 < spec.sla_percentile < 100,
            f"the SLA needs ms from {SLA_MS[0]:g} to below {SLA_MS[1]:g} and a percentile in (0, 100)",
        ),
        (1 <= spec.max_batch_size <= MAX_WIDTH, f"max_batch_size must be from 1 to {MAX_WIDTH}"),
        (spec.interaction in get_args(Interaction), "interaction is concat or dot"),
        *(
            (_fits_axes(group), f"{group.input} has no axis for more tables or lookups")
            for group in spec.groups
        ),
        *(
            (sum(group.rows) <= MAX_STACKED_ROWS, f"{group.input} needs more than INT32 ids")
            for group in spec.groups
        ),
        *_foreign_field_rules(spec),
        *_family_rules(spec),
    ]
    for holds, rule in rules:
        if not holds:
            raise InvalidSettingError(f"{spec.slug}: {rule}")


def _fits_axes(group: TableGroup) -> bool:
    return ("tables" in group.axes or group.tables == 1) and ("lookups" in group.axes or group.lookups == 1)


def _foreign_field_rules(spec: ModelSpec) -> list[tuple[bool, str]]:
    defaults = {field.name: field.default for field in dataclasses.fields(spec)}
    return [
        (
            spec.family in families or getattr(spec, name) == defaults[name],
            f"{name} is for {' and '.join(slug for slug in SLUGS if _BY_SLUG[slug].family in families)} only",
        )
        for name, families in _FAMILIES_WITH.items()
    ]


def _family_rules(spec: ModelSpec) -> list[tuple[bool, str]]:
    last = (spec.tower or spec.top or (0,))[-1]
    bottom = (spec.bottom or (spec.dim,))[-1]
    rules: dict[Family, list[tuple[bool, str]]] = {
        "dlrm": [
            (spec.dense_width >= 1 and bool(spec.bottom), "needs a dense input and bottom layers"),
            (last == 1, "top must end in 1"),
            (
                spec.interaction == "concat" or spec.dim == bottom,
                "dot needs dim equal to the last bottom width",
            ),
        ],
        "wide_deep": [
            (spec.dense_width >= 1, "needs a dense input"),
            (last == 1, "top (or tower, where there are tasks) must end in 1"),
            (bool(spec.tasks) == bool(spec.tower), "tasks and tower go together"),
            (len(set(spec.tasks)) == len(spec.tasks), "task names must differ"),
            (
                all(task and task == task.strip() and "," not in task for task in spec.tasks),
                "a task's name has no comma and no space around it",
            ),
        ],
        "ncf": [
            (spec.groups[0].tables == 4, "has exactly four tables"),
            (bool(spec.top), "needs top layers"),
        ],
        "din": [(last == 2, "top must end in 2 classes"), (spec.hidden >= 1, "hidden must be at least 1")],
        "dien": [
            (last == 2, "top must end in 2 classes"),
            (spec.hidden >= 1, "hidden must be at least 1"),
            (
                all(g.tables == 1 for g in spec.groups if g.input != "behaviours"),
                "only behaviours has tables",
            ),
        ],
    }
    return rules[spec.family]
