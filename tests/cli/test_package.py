import subprocess
import sys
from importlib import metadata

import pytest

import evenslice


def test_public_names_are_sorted_and_there():
    assert evenslice.__all__ == sorted(evenslice.__all__)
    for name in evenslice.__all__:
        assert getattr(evenslice, name).__name__ == name


def test_the_version_is_that_of_the_package():
    assert evenslice.__version__ == metadata.version("evenslice")


def test_functions_are_not_hidden_by_modules_of_the_same_name():
    import evenslice.auditing.auditor  # importing a submodule sets an attribute on the package
    import evenslice.neutralizing.neutralization

    assert callable(evenslice.audit)
    assert callable(evenslice.neutralize)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'colour'"):
        _ = evenslice.colour


@pytest.mark.parametrize(
    "statement", ["import evenslice", "import evenslice.cli.app", "import evenslice._core.errors"]
)
def test_import_brings_nothing_heavy(statement):
    heavy = ["torch", "numpy", "scipy", "matplotlib", "timm", "zarr"]
    code = f"import sys; {statement}; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_mistake_in_a_study_is_told_before_the_libraries_of_training_are_imported(tmp_path):
    (tmp_path / "study.yaml").write_text("nothing: 1")
    code = """
import sys
from evenslice.cli.app import run
status = run(["study", "study.yaml", "--out", "out"])
early = "lightning" in sys.modules
import evenslice.training.lightning_parts
print(status, early, "monai" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "False", "False"], done.stderr
