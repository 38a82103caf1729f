import pytest

from evenslice._core import errors
from evenslice._core.errors import EvensliceError, MissingExtraError, did_you_mean, needs_extra, reason
from evenslice._core.text import without_secrets


def test_every_error_hangs_under_the_root_and_stands_in_the_documented_tree():
    for name in errors.__all__:
        item = getattr(errors, name)
        if isinstance(item, type):
            assert issubclass(item, EvensliceError)
            assert name in errors.__doc__


def test_a_missing_extra_is_named():
    with pytest.raises(
        MissingExtraError, match=r"flying needs the package 'no_such_package'.*evenslice\[wings\]"
    ):
        with needs_extra("wings", "flying"):
            import no_such_package  # noqa: F401


@pytest.mark.parametrize(
    ("error", "package"),
    [
        (ImportError("libhdf5.so.310: cannot open shared object file"), "'evenslice[wings]'"),
        (ImportError("cannot import name 'File' from 'h5py'", name="h5py"), "--no-deps h5py"),
        (ModuleNotFoundError("No module named 'yaml._yaml'", name="yaml._yaml"), "--no-deps PyYAML"),
    ],
)
def test_a_damaged_installation_is_not_taken_for_a_missing_package(error, package):
    with pytest.raises(
        MissingExtraError, match="^flying fails, because an installed package is damaged"
    ) as raised:
        with needs_extra("wings", "flying"):
            raise error
    assert str(raised.value).endswith(
        f"({error}); reinstall it with: pip install --force-reinstall {package}"
    )


def test_the_innermost_of_missing_extras_is_named():
    with pytest.raises(MissingExtraError, match=r"^flying needs .*evenslice\[wings\]"):
        with needs_extra("airport", "travelling"), needs_extra("wings", "flying"):
            import no_such_package  # noqa: F401


def test_a_missing_extra_is_an_import_error_too():
    assert issubclass(MissingExtraError, ImportError)


def test_long_lists_are_cut_to_the_nearest():
    known = [f"network_{i}" for i in range(100)] + ["uniform"]
    text = did_you_mean("unifrm", known)
    assert text.startswith("did you mean 'uniform'?")
    assert text.endswith("(101 in all)")
    assert len(text) < 200


def test_names_known_twice_are_listed_once():
    assert did_you_mean("b", ["a", "c", "a"]) == "known: a, c"


def test_a_reason_is_one_short_printable_line():
    assert reason(ValueError("\n\tbad \x1b[31m\nsecond line")) == "bad ?[31m"
    assert reason(RuntimeError()) == "RuntimeError"
    assert len(reason(ValueError("x" * 1000))) == 300


def test_secrets_are_hidden_in_an_address_that_lost_a_slash_and_nothing_else_is():
    assert without_secrets("at s3:/me:pass@b/x.zarr?sig=1, and more") == "at s3:/***@b/x.zarr?***, and more"
    for path in ("file.h5:/a@b?c", "out.zarr:/a@b?c", "C:/a@b?c"):
        assert without_secrets(path) == path
