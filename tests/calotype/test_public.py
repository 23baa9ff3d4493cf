"""The front door: what `import calotype` offers, and what it does not load."""

import subprocess
import sys

import pytest

import calotype
from calotype import Engine, front


def test_every_public_name_is_there_and_nothing_else_is_promised():
    assert sorted(calotype.__all__) == calotype.__all__
    for name in calotype.__all__:
        assert getattr(calotype, name) is not None
    listed = {name for names in calotype._HOMES.values() for name in names}
    assert listed | set(calotype._MODULES) == set(calotype.__all__)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(calotype, "Enigne")


def imported_by(code):
    """Names of the modules that a fresh interpreter has loaded after running `code`."""
    probe = f"{code}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_importing_calotype_or_asking_for_help_loads_no_torch():
    code = "import calotype, calotype.__main__\nfrom calotype.__main__ import app"
    assert not {"torch", "diffusers", "transformers", "PIL"} & imported_by(code)


def test_loading_the_nodes_loads_neither_diffusers_nor_transformers():
    assert not {"diffusers", "transformers"} & imported_by("import nodes")


def test_an_engine_that_is_never_closed_loses_nothing(tmp_path):
    code = """
from calotype import Engine
engine = Engine(cache="cache", device="cpu")
nodes = {"p": {"type": "image.load", "params": {"source": "fox.png"}},
         "r": {"type": "image.resize", "params": {"width": 3000, "height": 3000}, "inputs": {"image": "p.out"}}}
print(engine.run({"format": "calotype/1", "nodes": nodes, "outputs": {"image": "r"}}).ran())
"""
    said = [
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path).stdout
        for _ in range(2)
    ]
    assert said == ["['p', 'r']\n", "[]\n"]


@pytest.mark.parametrize("library", ["torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow", "spandrel"])
@pytest.mark.parametrize("instead", ["0.0", None], ids=["another", "none"])
def test_results_made_with_another_version_of_a_library_are_not_taken(monkeypatch, library, instead):
    def version(name, original=front.version):
        if name != library:
            return original(name)
        if instead is None:
            raise front.PackageNotFoundError(name)
        return instead

    before = Engine(device="cpu")._numerics
    assert Engine(device="cpu")._numerics == before
    monkeypatch.setattr(front, "version", version)
    assert Engine(device="cpu")._numerics != before
