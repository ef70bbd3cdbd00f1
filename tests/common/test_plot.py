"""Drawing: names as they stand, and faults that cost no result."""

import sys

import pytest

from tinyr1.common import plot

pytest.importorskip("matplotlib")


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
