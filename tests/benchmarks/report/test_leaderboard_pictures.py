"""Pictures of committed results and of made-up lines: every text can be read, and told whose."""

import itertools
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from benchmarks.problems.kind import Panel
from benchmarks.report import draw_figure, figure
from benchmarks.report.choice import place_names
from benchmarks.report.draw import COLOURS, draw_panel, draw_scores, draw_times, styles_of
from benchmarks.score.export import open_results
from benchmarks.score.scoring import load_board

RESULTS = Path(__file__).resolve().parents[3] / "benchmarks" / "results"


@cache
def drawn(suite):
    """Return the pictures of committed results by name, unsaved."""
    pictures = {}

    def keep(picture, folder, name, caption, section):
        picture.draw_without_rendering()
        pictures[name] = picture
        return figure.Picture(folder / name, caption, section)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure, "_save", keep)
        draw_figure(load_board(open_results(RESULTS / f"{suite}.json.gz")), Path())
    return pictures


def texts(picture):
    """Return what is written in a picture and where, without ticks outside their axes."""
    hidden = set()
    for axis in (part for axes in picture.axes for part in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low <= tick.get_loc() <= high:
                hidden |= {tick.label1, tick.label2}
    shown = [text for text in picture.findobj(Text) if text.get_visible() and text not in hidden]
    return [(t.get_text(), Text.get_window_extent(t)) for t in shown if t.get_text().strip()]


def cover(one, other, margin=2.0):
    """Whether two boxes share more than a margin, in pixels."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    return width > margin and min(one.y1, other.y1) - max(one.y0, other.y0) > margin


@pytest.mark.parametrize("suite", ["quick", "queueing-tuning", "serving"])
def test_no_text_of_a_picture_covers_another_or_is_cut_off(suite):
    for name, picture in drawn(suite).items():
        found = texts(picture)
        assert len(found) > 10
        for text, box in found:
            room = picture.bbox.padded(1)
            assert room.contains(box.x0, box.y0), (name, text)
            assert room.contains(box.x1, box.y1), (name, text)
        both = [(a, b) for (a, x), (b, y) in itertools.combinations(found, 2) if cover(x, y)]
        assert not both, name


def test_every_axis_of_a_picture_says_what_it_shows_and_curves_what_is_better():
    for name, picture in drawn("quick").items():
        for axes in picture.axes:
            words = axes.get_xlabel() + axes.get_ylabel()
            assert words, name
            if not name.startswith("traffic") and "money spent" not in words:
                assert "is better" in words, (name, words)


def test_an_agent_has_one_colour_on_a_task_while_it_is_trained_and_when_it_is_scored():
    pictures = drawn("rl")
    names = {
        part: {
            axes.get_title(loc="left").split()[0]: {
                text.get_text(): text.get_color()
                for text in axes.texts
                if isinstance(text, Annotation)
            }
            for axes in pictures[part].axes
            if axes.get_title(loc="left")
        }
        for part in ("leaderboard-pretrained", "training-queueing")
    }
    trained, scored = names["training-queueing"], names["leaderboard-pretrained"]
    assert len(trained) == 3
    for task, own in trained.items():
        assert own
        assert own.items() <= scored[task].items()


def test_names_stand_in_the_order_of_their_lines_apart_and_near_and_tell_who_left_the_panel():
    ends = dict(zip("abcdefgh", [0.5, 0.5, 0.5, 0.9, 0.1, 0.52, 3.0, -3.0], strict=True))
    x = np.array([0.0, 1.0])
    lines = {label: (x, np.array([[0.5, end]])) for label, end in ends.items()}
    panel = Panel("t", "y", lines, "linear", "linear", (0.0, 1.0), (0.0, 1.0))
    styles = styles_of([])
    styles |= {label: {"color": COLOURS[0]} for label in ends}
    picture = Figure()
    axes = picture.subplots()
    draw_panel(axes, panel, styles)
    places = {text.get_text(): text.xyann[1] for text in axes.texts}
    assert {"g ↑", "h ↓"} <= places.keys()
    heights = {label[0]: height for label, height in places.items()}
    order = sorted(heights, key=heights.__getitem__)
    assert [ends[label] for label in order] == sorted(ends.values())
    assert np.diff(sorted(heights.values())).min() > 0.049
    assert 0.0 <= min(heights.values()) <= max(heights.values()) <= 1.0
    assert heights["d"] == pytest.approx(0.9)  # who stands alone stays
    crowd = [heights[label] - ends[label] for label in "abcf"]
    assert sum(crowd) == pytest.approx(0.0)  # least squares: moved as much up as down
    for text in axes.texts:
        assert text.xy[1] == pytest.approx(np.clip(ends[text.get_text()[0]], 0.0, 1.0))


def test_times_stand_in_the_rows_of_their_scores():
    board = load_board(open_results(RESULTS / "quick.json.gz"))
    rows = [row for row in board.standings[0].rows if row.rank is not None]
    scores, times = Figure().subplots(1, 2, sharey=True)
    draw_scores(scores, rows, styles := styles_of([row.agent for row in rows]))
    draw_times(times, rows, styles)
    assert [label.get_text() for label in scores.get_yticklabels()] == [row.agent for row in rows]
    points = [line.get_xydata()[0].tolist() for line in times.get_lines()]
    assert points == [[row.decision_us, place] for place, row in enumerate(rows)]


def test_names_of_points_without_a_free_place_are_left_out_the_first_are_kept():
    picture = Figure()
    axes = picture.subplots()
    axes.plot([0.5] * 30, "o")
    options = {"xytext": (5, 0), "textcoords": "offset points"}
    names = [axes.annotate(f"agent {i}", (15, 0.5), **options) for i in range(30)]
    place_names(picture, axes, names)
    shown = [name for name in names if name.get_visible()]
    assert names[0] in shown
    assert 1 < len(shown) < len(names)
    boxes = [Text.get_window_extent(name) for name in shown]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
