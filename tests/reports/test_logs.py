"""The log on a full disk: one warning, and new lines as soon as there is space."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.errors import BlockfitWarning
from optimizer.reports.logs import LogFile


def test_a_full_disk_is_one_warning(
    small_disk: Path, fill: Callable[[Path, int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that do not fit on a full disk are lost with one warning and no traceback; later lines are written."""
    handler = LogFile(small_disk / "fit.log", logging.Formatter("> %(message)s"))
    record = logging.makeLogRecord({"msg": "trial 漢 " + "." * 5000})
    filler = fill(small_disk, 0)

    with pytest.warns(BlockfitWarning) as caught:
        [handler.emit(record) for _ in range(3)]
    filler.unlink()
    handler.emit(record)
    handler.close()

    (line,) = [str(warning.message) for warning in caught]
    assert line == (
        f"{small_disk / 'fit.log'}: cannot be written (No space left on device); the fit continues without it"
    )
    assert capsys.readouterr().err == ""
    assert (small_disk / "fit.log").read_text(encoding="utf-8") == f"> {record.msg}\n"
