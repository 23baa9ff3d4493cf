"""Timings live in benchmarks: no test fails because a machine is slow."""

from hypothesis import settings

settings.register_profile("calotype", deadline=None)
settings.load_profile("calotype")
