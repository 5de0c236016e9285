"""Every stop of every widget, without a front end."""

import base64
import io
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rp_course.show import WIDGET_VIEW
from rp_course.widgets import (
    Slides,
    Value,
    alpha_widget,
    caption,
    padding_widget,
    points_widget,
    slider_widget,
    threshold_widget,
)

from rp_lib.metrics import ood_metrics
from rp_lib.programs import ImageProgram
from rp_lib.utils.errors import RPLibError

RNG = np.random.default_rng(0)
ID, OOD = RNG.normal(1, 1, 200), RNG.normal(-1, 1, 150)
PICTURES = torch.randint(0, 256, (12, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
XY = RNG.normal(size=(12, 2))
LABELS = ["cat", "dog", "cup"] * 4


def frontier():
    rows = []
    for k, method in enumerate(("rrp", "wise-ft")):
        for alpha in (0.0, 0.5, 1.0):
            for data, metric in (("test", "accuracy"), ("mean of shifts", "accuracy"), ("mean of OOD sets", "fpr")):
                value = 0.5 + 0.1 * alpha + 0.05 * k + 0.02 * (metric == "fpr")
                rows.append(
                    {
                        "rule": "grid",
                        "alpha": alpha,
                        "method": method,
                        "versus": None,
                        "set": data,
                        "metric": metric,
                        "value": value,
                    }
                )
    noise = [
        {**rows[0], "rule": "picked", "value": 9.0}, {**rows[0], "versus": "rp", "value": 9.0}, {**rows[0], "alpha": np.nan, "value": 9.0}
    ]  # fmt: skip
    return pd.DataFrame(rows + noise)


MAKE = {
    "padding": lambda: padding_widget(PICTURES, 32),
    "alpha": lambda: alpha_widget(frontier()),
    "threshold": lambda: threshold_widget(ID, OOD),
    "points": lambda: points_widget(XY, PICTURES, LABELS, "a map"),
    "generic": lambda: slider_widget("n", (1, 2, 3), bars, lambda n: {"bars": n}, alt="A bar chart with n bars"),
}


def bars(n):
    figure = Figure(figsize=(2, 1))
    figure.subplots().bar(range(n), 1)
    return figure


@pytest.fixture(params=MAKE)
def widget(request):
    return MAKE[request.param]()


def test_every_stop_has_its_own_picture_and_facts(widget):
    frames = {}
    for stop in widget.stops:
        facts = widget.at(stop)
        assert widget.slider.value == stop and isinstance(facts, dict) and facts
        frames[stop] = widget.image.value
        image = Image.open(io.BytesIO(frames[stop]))
        assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 1
        assert widget.caption.value == caption(widget._say(facts))
    assert len(set(frames.values())) == len(widget.stops)
    for stop in reversed(widget.stops):  # the frames come back as they were
        widget.slider.value = stop
        assert widget.image.value == frames[stop]


@pytest.mark.parametrize("name", MAKE)
def test_frames_do_not_depend_on_the_way_to_them(name):
    forth, back = MAKE[name](), MAKE[name]()
    frames = [(forth.at(stop), forth.image.value)[1] for stop in forth.stops]
    others = [(back.at(stop), back.image.value)[1] for stop in reversed(back.stops)]
    assert frames == others[::-1]


def test_answers_within_a_tenth_of_a_second(widget):
    times = []
    for stop in widget.stops:
        start = time.process_time()
        widget.slider.value = stop
        times.append(time.process_time() - start)
    assert np.median(times) < 0.1


def test_still_picture_and_text_do_not_depend_on_where_the_slider_stands(widget):
    before, metadata = widget._repr_mimebundle_()
    start = widget.image.value
    widget.at(widget.stops[-1])
    widget.at(widget.stops[0])
    after, _ = widget._repr_mimebundle_()
    assert set(before) == {"image/png", "text/plain", WIDGET_VIEW}
    assert all(before[k] == after[k] for k in ("image/png", "text/plain"))
    assert base64.b64decode(before["image/png"]) == start
    assert before["text/plain"] == f"figure:\n{metadata['image/png']['alt']}" == repr(widget)
    assert before[WIDGET_VIEW]["model_id"]


def test_unknown_stops_are_refused(widget):
    with pytest.raises(RPLibError, match="no stop of this slider"):
        widget.at("nowhere")


@pytest.mark.parametrize("name", MAKE)
def test_without_ipywidgets_all_but_the_view_is_there(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    widget = MAKE[name]()
    assert isinstance(widget.slider, Value)
    first = widget.image.value
    widget.at(widget.stops[-1])
    last = widget.image.value
    assert last != (widget.at(widget.stops[0]) and widget.image.value)
    assert set(widget._repr_mimebundle_()[0]) == {"image/png", "text/plain"} and first


def test_padding_geometry_is_that_of_the_program():
    widget = padding_widget(PICTURES, 32)
    for stop in widget.stops:
        facts = widget.at(stop)
        program = ImageProgram(32, stop)
        assert facts["inner"] == program.inner_size and facts["border pixels"] == int(program.M.sum())
        assert facts["trained values"] == 3 * (32**2 - program.inner_size**2)
    assert widget.at(0)["border pixels"] == 0 and widget.stops[-1] < 16


def test_driving_visits_every_stop_and_comes_back(widget):
    visited = []
    widget.slider.observe(lambda change: visited.append(change["new"]), "value")
    stood, shown = widget.slider.value, widget.image.value
    driven = widget.drive()
    assert set(visited) == set(widget.stops) and widget.slider.value == stood and widget.image.value == shown
    assert driven == [widget.at(stop) for stop in widget.stops]


@pytest.mark.parametrize(
    ("name", "stop", "said"),
    [
        ("padding", 4, "picture: 24 x 24 of 32 x 32 pixels<br>border: 448 pixels (44%), 1344 trained values"),
        ("alpha", 0.5, "Residual Reprogrammer (RRP): ID accuracy 55.0 %, Accuracy under shift 55.0 %, OOD FPR"),
        ("threshold", 0.95, "ID images accepted (TPR): 95.0%<br>OOD images accepted (FPR): "),
        ("points", 4, "label: dog<br>neighbours with this label: 1 of 5"),
        ("points", "overview", "points: 12<br>labels: 3"),
        ("generic", 2, "bars: 2"),
    ],
)
def test_the_line_below_speaks_to_readers(name, stop, said):
    widget = MAKE[name]()
    widget.at(stop)
    assert said in widget.caption.value


def test_a_picture_is_shown_at_its_own_size_unless_it_is_too_wide(widget):
    assert widget.image.layout.align_self == "flex-start" and widget.image.layout.max_width == "100%"


def test_no_legend_covers_a_curve():
    import rp_course.widgets as module

    figures = []
    made = module.Figure
    module.Figure = lambda **size: figures.append(made(**size)) or figures[-1]
    try:
        alpha_widget(frontier())
    finally:
        module.Figure = made
    (figure,) = figures
    (legend,) = figure.legends
    assert not any(panel.get_legend() for panel in figure.axes)
    box = legend.get_window_extent()
    assert box.y0 >= 0 and all(box.y1 < panel.get_tightbbox().y0 for panel in figure.axes)


def test_another_picture_is_drawn_at_once():
    widget = padding_widget(PICTURES, 32, [f"icon {i}" for i in range(12)])
    assert widget.selector.options[3] == ("icon 3", 3)
    first = widget.image.value
    widget.selector.value = 3
    third = widget.image.value
    assert third != first
    widget.selector.value = 0
    assert widget.image.value == first
    with pytest.raises(RPLibError, match="2 names for 12"):
        padding_widget(PICTURES, 32, ["a", "b"])
    with pytest.raises(RPLibError, match=r"got \(3, 24, 24\)"):
        padding_widget(PICTURES[0], 32)


def test_threshold_reaches_the_share_asked_for_and_the_fpr_of_the_metrics():
    widget = threshold_widget(torch.tensor(ID), list(OOD))
    previous = np.inf
    for stop in widget.stops:
        facts = widget.at(stop)
        assert facts["tpr"] == np.mean(facts["threshold"] <= ID) >= stop
        assert facts["fpr"] == np.mean(facts["threshold"] <= OOD) == ood_metrics(ID, OOD, tpr=stop)["fpr"]
        assert facts["threshold"] <= previous
        previous = facts["threshold"]
    assert 0.95 in widget.stops and widget.at(1.0)["threshold"] == ID.min()


@pytest.mark.parametrize("scores", [np.ones(5), np.array([-np.inf, 0.0, 1.0, np.inf])])
def test_threshold_of_odd_scores(scores):
    widget = threshold_widget(scores, scores)
    assert all(widget.at(stop)["fpr"] == widget.at(stop)["tpr"] for stop in widget.stops)


def test_alpha_reads_the_grid_alone():
    widget = alpha_widget(frontier())
    assert widget.stops == (0.0, 0.5, 1.0)
    assert widget.at(0.5) == {
        "alpha": 0.5,
        "rrp": pytest.approx({"ID accuracy": 0.55, "Accuracy under shift": 0.55, "OOD FPR at 95 % TPR": 0.57}),
        "wise-ft": pytest.approx({"ID accuracy": 0.6, "Accuracy under shift": 0.6, "OOD FPR at 95 % TPR": 0.62}),
    }
    records = frontier()
    with pytest.raises(RPLibError, match="no column alpha"):
        alpha_widget(records.drop(columns="alpha"))
    with pytest.raises(RPLibError, match="no fpr of"):
        alpha_widget(records[records["metric"] != "fpr"])
    with pytest.raises(RPLibError, match="no sweep"):
        alpha_widget(records[records["alpha"] == 0.5])
    assert alpha_widget(records.drop(columns=["rule", "versus"]).iloc[:18]).stops == widget.stops


def test_points_name_their_neighbours():
    widget = points_widget(XY, PICTURES, LABELS)
    assert widget.stops[0] == "overview" and sorted(widget.stops[1:]) == list(range(12))
    assert widget.at("overview") == {"points": 12, "labels": 3}
    for i in widget.stops[1:]:
        facts = widget.at(i)
        distance = np.linalg.norm(XY - XY[i], axis=1)
        assert facts["label"] == LABELS[i] and i not in facts["neighbours"]
        assert facts["neighbours"] == np.argsort(distance)[1:6].tolist()
        assert facts["alike"] == sum(LABELS[j] == LABELS[i] for j in facts["neighbours"])
    with pytest.raises(RPLibError, match="must be"):
        points_widget(XY[:5], PICTURES, LABELS)
    with pytest.raises(RPLibError, match="at least 6 points"):
        points_widget(XY[:5], PICTURES[:5], LABELS[:5])


def test_many_points_are_thinned_evenly():
    n = 500
    labels = torch.arange(n) % 10
    widget = points_widget(RNG.normal(size=(n, 2)), torch.zeros(n, 3, 4, 4), labels)
    assert len(widget.stops) <= 121 and {widget.at(s)["label"] for s in widget.stops[1::12]} == {
        str(i) for i in range(10)
    }


def test_frames_are_drawn_once_and_beforehand():
    calls = []

    def draw(n):
        calls.append(n)
        return bars(n)

    widget = slider_widget("n", (1, 2, 3), draw, lambda n: {"n": n}, alt="A bar chart with n bars", start=2)
    assert calls == [2, 1, 3] and widget.slider.value == 2
    for stop in (*widget.stops, *widget.stops):
        widget.at(stop)
    assert len(calls) == 3


def test_slider_needs_stops_and_words():
    with pytest.raises(RPLibError, match="at least two stops"):
        slider_widget("n", (1,), bars, lambda n: {}, alt="A bar chart with n bars")
    with pytest.raises(RPLibError, match="no stop of this slider"):
        slider_widget("n", (1, 2), bars, lambda n: {}, alt="A bar chart with n bars", start=3)
    with pytest.raises(RPLibError, match="says too little"):
        slider_widget("n", (1, 2), bars, lambda n: {}, alt="bars")


def test_caption_is_text():
    said = caption({"a<b": 0.12345, "m": {"x": 1, "y": [1, 2.0]}})
    assert said == '<div style="line-height: 1.5">a&lt;b: 0.123<br>m: x 1, y 1, 2</div>'


def test_a_slider_is_a_plain_object():
    widget = slider_widget("n", (1, 2), bars, lambda n: {"n": n}, alt="A bar chart with n bars")
    assert type(widget) is Slides and widget.controls() == (widget.slider, widget.image, widget.caption)
