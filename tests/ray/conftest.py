"""Ray is an extra that neither `make setup` nor CI installs: where it is not, its tests are none (`make ray`)."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("ray") else ["test_on_ray.py"]
