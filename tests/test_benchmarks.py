"""What benchmarks share."""

from __future__ import annotations

import pytest

from benchmarks.command import command_line


@pytest.mark.quick
def test_tables_quote_the_command_that_made_them(monkeypatch):
    given = [
        "--case",
        "MLP, K = 1",
        "--out",
        "results/new.md",
        "--quick",
        "--data=/some/where/fashion",
        "--root",
        "/here/it/is",
    ]
    expected = "python -m benchmarks.one --case 'MLP, K = 1' --quick --data=fashion --root is"
    assert command_line("benchmarks.one", given) == expected
    monkeypatch.setattr("sys.argv", ["ignored", "--out=here.md", "--steps", "-3", "../beside"])
    assert command_line("benchmarks.one") == "python -m benchmarks.one --steps -3 ../beside"
