"""Drawing in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tinyr1 import plot

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def painter():
    plot.start_painter()
    yield plot._painter
    plot.painted(len, "")  # ends it if it still waits


def picture(path):
    plot.heat_map(path, ["0", "1"], ["q", "k"], [[1.0, 2.0], [float("nan"), 4.0]], "shares", "%")
    return os.getpid()


def test_a_painter_draws_the_same_elsewhere(painter, tmp_path):
    assert plot.painted(picture, tmp_path / "there.png") == painter._pid != os.getpid()
    assert plot.painted(picture, tmp_path / "here.png") == os.getpid()  # one picture each
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_without_a_painter_it_is_drawn_here(painter, tmp_path):
    os.kill(painter._pid, signal.SIGKILL)
    assert plot.painted(picture, tmp_path / "a.png") == os.getpid()
    with pytest.raises(IsADirectoryError):
        plot.painted(picture, tmp_path)


def test_an_error_there_is_raised_here(painter, tmp_path):
    with pytest.raises(IsADirectoryError):
        plot.painted(picture, tmp_path)


def test_a_painter_ends_with_its_owner():
    code = "from tinyr1 import plot; plot.start_painter(); assert plot._painter"
    # Its output ends when all that hold it have ended.
    subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, timeout=60
    )


def test_names_are_drawn_as_they_stand(tmp_path):
    broken = "$5^$"  # no formula that anybody could set
    assert plot.drawn(plot.heat_map, tmp_path / "heat.png", [broken], [broken], [[1.0]], broken, "")
    rows = [{"step": 1, "loss": 1.0, "lr": 1.0}]
    assert plot.drawn(plot.loss_curve, tmp_path / "loss.png", rows, broken)
    assert plot.drawn(plot.histogram, tmp_path / "h.png", [1, 2], "tokens", broken)
    bars = [broken], [broken], [[1.0]], [[0.0]], "%"
    assert plot.drawn(plot.grouped_bars, tmp_path / "bars.png", *bars)


def test_what_fails_in_drawing_is_a_warning(tmp_path, monkeypatch, capsys):
    taken = tmp_path / "loss.png"
    taken.mkdir()
    assert not plot.drawn(plot.histogram, taken, [1, 2], "tokens", "title")
    assert f"warning: {taken}: not drawn (" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # it is installed and cannot be imported
    monkeypatch.setattr(plot, "available", lambda: True)
    assert not plot.drawn(plot.histogram, tmp_path / "a.png", [1, 2], "tokens", "title")
    assert f"warning: {tmp_path / 'a.png'}: not drawn (" in capsys.readouterr().err
