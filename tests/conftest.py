"""Timings live in benchmarks: no test fails because a machine is slow. No test reads the settings of who runs it."""

import os

from hypothesis import settings

settings.register_profile("calotype", deadline=None)
settings.load_profile("calotype")

os.environ["XDG_CONFIG_HOME"] = os.devnull
os.environ.pop("CALOTYPE_CONFIG", None)
