"""A log on a full disk: told once, and gone on with when there is room."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from optimizer.errors import BlockfitWarning
from optimizer.reports.logs import LogFile


def test_full_disk(small_disk: Path, fill: Callable[[Path, int], Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What a full disk does not take is left out, with one warning and no traceback; later lines are written again."""
    handler = LogFile(small_disk / "fit.log", logging.Formatter("> %(message)s"))
    record = logging.makeLogRecord({"msg": "trial 漢 " + "." * 5000})
    filler = fill(small_disk, 0)

    with pytest.warns(BlockfitWarning) as told:
        [handler.emit(record) for _ in range(3)]
    filler.unlink()
    handler.emit(record)
    handler.close()

    (line,) = [str(one.message) for one in told]
    assert line == (
        f"{small_disk / 'fit.log'}: cannot be written (No space left on device); the work goes on without it"
    )
    assert capsys.readouterr().err == ""
    assert (small_disk / "fit.log").read_text(encoding="utf-8") == f"> {record.msg}\n"
