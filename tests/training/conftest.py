import sys
from types import SimpleNamespace

import pytest

from evenslice import cli


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command line within this process, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["evenslice", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=end.value.code, stdout=captured.out, stderr=captured.err)

    return command
