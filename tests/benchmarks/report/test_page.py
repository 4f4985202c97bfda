"""The HTML page: self-contained and safe whatever it is told, and at work in a headless browser."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up import ORIGIN, board_of, deploy_cell, queue_cell
from plotly.offline import get_plotlyjs

from benchmarks.report import board_markdown, board_tables, draw, draw_figure
from benchmarks.report.command import make_server
from benchmarks.report.figure import _suptitle as caption
from benchmarks.report.figure import file_name
from benchmarks.report.page import board_page, page_data, script_safe
from benchmarks.report.paper import write_figure

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = "</script><script>window.pwned=1</script>"
IMAGE = "<img src=http://evil.example/x onerror=window.pwned=2>"
MARKUP = "[red]| 数🎉 `x` $\\frac{ ![i](http://evil.example/y.png) \x1b[31m"
LONG = "a" * 150
HOSTILE = (SCRIPT, IMAGE, MARKUP, LONG)
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
HERE = {**ORIGIN, "command": f"llmqueue-bench run s --agent '{IMAGE}'", "commit": "0123456789ab+"}
SERVED = [[90, 0, 0], [50, 40, 0], [10, 20, 60]]
TRAFFIC = {
    "llms": ["plain", SCRIPT, LONG],
    "arrival": [0, 100, 400],
    "starts": [0, 300, 600],
    "lengths": [300, 300, 400],
    "served": SERVED,
}


FLEET = {
    "replicas": ["replica 1", "replica 2"],
    "llms": [SCRIPT, "second"],
    "edges": [0, 10, 20, 30],
    "hosts": [[0, 0, 0], [-1, -2, 1]],
    "load": [[0.1, 0.5, 1.0], [0.0, 0.0, 0.3]],
    "people": {"waiting": [0.0, 2.0, 5.0], "in service": [1.0, 2.0, 3.0]},
}
SPENT = {"places": ["waiting", "in service"], "groups": ["all", SCRIPT], "slots": [[3, 2], [1, 2]]}


def cell(task, agent, seed, level, protocol="online", tags=("all",), kind="LLMQueue-v0"):
    """Return a cell of an agent that is as bad as its level says, from 0 to 1."""
    rng = np.random.default_rng([seed, int(100 * level)])
    spec = {"horizon": 1000, "tags": tags, "protocol": protocol, "origin": HERE, "steps": STEPS}
    spec["decision_us"] = 10 + 50 * level
    if kind == "LLMQueue-v0":
        mean = float(np.expm1(0.7 + 3 * level + rng.normal(0, 0.03)))
        drawn = {"fleet": FLEET, "spent": SPENT} if task == "q1" else {}
        return queue_cell(agent, seed, mean, task, **spec) | drawn
    ledger = 0.9 - 0.8 * level + rng.normal(0, 0.005)
    return deploy_cell(agent, seed, ledger, task, traffic=TRAFFIC, **spec)


@pytest.fixture(scope="module")
def board():
    """Two problems, two protocols, hostile names, one failed and one missing cell."""
    levels = {"oracle": 0.0, "random": 1.0, "good": 0.2, "poor": 0.6}
    levels |= {name: 0.25 + 0.1 * place for place, name in enumerate(HOSTILE)}
    tagged = {"q1": ("all", "easy", "real"), "q2": ("all", "hard"), "q3": ("all", "x", "real")}
    cells = [
        cell(task, agent, seed, level, tags=tags)
        for task, tags in tagged.items()
        for agent, level in levels.items()
        for seed in range(3)
    ]
    cells += [cell("q1", "trained", seed, 0.1, "pretrained", tagged["q1"]) for seed in range(3)] + [
        cell("q1", "trained-less", seed, 0.4, "pretrained", tagged["q1"]) for seed in range(3)
    ]
    cells += [
        cell(f"d{SCRIPT}", agent, seed, level, kind="LLMDeploy-v0")
        for agent, level in levels.items()
        for seed in range(3)
    ]
    failed = cell("q1", "breaks", 0, 0.5, tags=tagged["q1"])
    made = board_of(
        cells,
        planned=[*cells, failed],
        missing=["q1 / missing / seed 0"],
        suite=f"suite {IMAGE}",
        skipped={IMAGE: SCRIPT},
        provenance=HERE,
    )
    failures = [(f"q1 / {SCRIPT} / seed 0", {"error": f"ValueError: {SCRIPT} {IMAGE}"})]
    return replace(made, failures=failures, warnings=[f"task q1: {SCRIPT} is above the oracle"])


@pytest.fixture(scope="module")
def html(board):
    return board_page(board)


# --- without a browser ----------------------------------------------------------------------------


def test_the_data_comes_back_and_cannot_end_its_script(board, html):
    [inline] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    assert json.loads(inline) == json.loads(json.dumps(page_data(board)))
    assert html.count("</script>") == 4  # data, page, plotly.js, the end
    value = {"<!--": "]]>&\u2028\ud800"}
    assert json.loads(script_safe(value)) == value
    assert not set(script_safe(value)) & set("<>&\u2028")


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_nothing_is_loaded_from_elsewhere(html):
    found = Elements(html).found
    links = [a[name] for _, a in found for name in ("src", "href", "action") if name in a]
    assert links == ["data:,", "#main"]
    assert not {"img", "iframe", "object", "form", "base"} & {tag for tag, _ in found}
    policies = [a["content"] for _, a in found if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none'; ")
    assert "http" not in policies[0]
    assert "@import" not in html[: html.index("</style>")]


def test_hostile_names_stay_text_in_markdown_terminal_and_pictures(board, tmp_path):
    page = board_markdown(board)
    assert not re.search(r"<(img|script|/script)", re.sub(r"`[^`\n]*`", "", page))
    assert not re.search(r"(?<!\\)!?\[i\](?!\\)\(", re.sub(r"`[^`\n]*`", "", page))
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) > 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "\x1b" not in page
    printed = [str(cell) for table in board_tables(board) for cell in table.columns[1]._cells]
    assert any("[red]|" in text for text in printed)
    assert not any("\x1b" in text for text in printed)
    (tmp_path / "made").mkdir()
    pictures = draw_figure(board, tmp_path / "made")
    assert all(p.path.parent == tmp_path / "made" and p.path.exists() for p in pictures)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made"]


def test_letters_that_the_pictures_font_lacks_become_question_marks():
    assert draw.picture_text("é数ж🎉\u202e$") == "é?ж?\ufffd\\$"


@pytest.mark.parametrize("name", ["curves", "scores", "profiles", "decision-time"])
@pytest.mark.parametrize("form", ["pdf", "svg"])
def test_a_figure_for_a_paper_shows_the_chosen_agents_as_text(board, tmp_path, name, form):
    chosen = {"agents": ("good", "poor"), "labels": ("Our method", "Theirs"), "form": form}
    chosen["task"] = "q3" if name == "curves" else None
    path, *_ = write_figure(board, name, tmp_path, **chosen)
    content = path.read_bytes()
    assert path.suffix == f".{form}"
    if form == "pdf":
        assert content.startswith(b"%PDF")
        assert b"/Type3" not in content  # fonts that journals refuse
    else:
        assert b">Our method<" in content
        assert b">oracle<" not in content
    if name == "curves":  # the others are written in the same way
        write_figure(board, name, tmp_path / "again", **chosen)
        assert (tmp_path / "again" / path.name).read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"figure": "pie"}, r"'pie' is none of curves: .*sweeps: "),
        ({"figure": "curves"}, r"--figure curves needs --task NAME: one of q1, q2"),
        ({"figure": "curves", "task": "q9"}, r"--task 'q9' is not known; did you mean 'q3'"),
        ({"figure": "scores", "agents": ("goood",)}, r"'goood' is not known; did you mean 'good'"),
        ({"figure": "scores", "agents": ("good",), "labels": ("a", "b")}, r"2 names for 1"),
        ({"figure": "scores", "agents": ("good", "good")}, r"each agent once"),
        ({"figure": "sweeps"}, r"hold nothing of it"),
    ],
)
def test_a_figure_that_cannot_be_is_an_error_that_says_what_can(board, tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words):
        write_figure(board, folder=tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_says_of_how_many_seeds_its_panels_are_and_what_grey_is_if_there_is_grey():
    styles = draw.styles_of([f"agent {i}" for i in range(len(draw.COLOURS) + 1)])
    first, *_, last = (styles[label] for label in styles if label.startswith("agent"))
    assert caption("s", [10, 20], [first]) == "s: mean over 10 to 20 seeds, band one standard error"
    assert "mean over 5 seeds" in caption("s", [5, 5], [first, last])
    assert caption("s", [1], [last]) == "s: one seed; thin grey: agents ranked lower"


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "", "a\\b", "x\0y"])
def test_file_names_stay_in_their_folder(name):
    safe = file_name(name)
    assert safe == Path(safe).name != ""
    assert not safe.startswith(".")


def test_the_server_gives_its_folder_to_this_machine_only(tmp_path):
    (tmp_path / "index.html").write_text("page")
    (tmp_path.parent / "secret.txt").write_text("secret")
    with make_server(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.server_address[0] == "127.0.0.1"
        base = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(base + "/") as answer:
            assert answer.read() == b"page"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(base + "/../secret.txt")
        caught.value.close()
        server.shutdown()


@pytest.mark.skipif(os.name == "nt", reason="stops it by SIGINT")
def test_serve_opens_the_page_and_ends_with_ctrl_c(tmp_path):
    (tmp_path / "index.html").write_text("the page")
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    program = "from benchmarks.report.command import Path, serve; serve(Path())"
    command = [sys.executable, "-c", program]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "BROWSER": str(browser), "COLUMNS": "200"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as it:
        line = next(text for text in it.stdout if text.startswith("serving"))
        url = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        with urllib.request.urlopen(url) as answer:
            assert answer.read() == b"the page"
        it.send_signal(signal.SIGINT)
        it.stdout.read()
        assert it.wait(20) == 0
    assert opened.read_text().strip() == url


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(html):
    """The page before plotly.js, which takes most of the time, has come: no charts yet."""
    return html.replace(get_plotlyjs(), "").replace('new Event("plotly")', 'new Event("none")')


@pytest.fixture
def visit(browser, html, plain, tmp_path):
    """Open a page; whatever it logs, asks the network for or pops up fails the test."""
    file = tmp_path / "index.html"
    trouble, contexts = [], []

    def request(asked):
        if not asked.url.startswith((f"file://{file}", "data:", "blob:")):
            trouble.append(f"asked for {asked.url}")

    def visit(place="", scheme="light", width=1200, charts=False, other=None):
        file.write_text(other or (html if charts else plain), encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append("dialog"), dialog.dismiss()))
        page.on("request", request)
        page.goto(f"file://{file}{place}")
        return page

    yield visit
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.pwned") is None
        context.close()
    assert trouble == []


def turn(page, place):
    """Go to another view of an open page."""
    page.evaluate(
        "place => new Promise(done => { if (location.hash === place) return done(); "
        "addEventListener('hashchange', done, { once: true }); location.hash = place; })",
        place,
    )


def agents(page, table="Overall ranking"):
    return page.locator(f"[aria-label='{table}'] tr.row .name").all_text_contents()


def test_headers_sort_by_mouse_and_keyboard(visit):
    page = visit()
    *first, last = agents(page)
    assert last == "breaks"  # without a score
    assert first[:2] == ["oracle", "good"]
    assert first[-1] == "random"
    score = page.locator("[aria-label='Overall ranking'] th", has_text=re.compile("^Score"))
    assert score.get_attribute("aria-sort") == "descending"
    score.get_by_role("button").click()
    assert score.get_attribute("aria-sort") == "ascending"
    assert agents(page) == [*first[::-1], last]  # what is missing stays last
    head = page.locator("[aria-label='Overall ranking'] th", has_text="Agent")
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert score.get_attribute("aria-sort") is None
    names = agents(page)
    assert names.index("good") < names.index("oracle") < names.index("poor")
    page.keyboard.press("Enter")
    assert agents(page) == names[::-1]


def test_filters_narrow_agents_and_tasks_and_tags_rescore(visit):
    page = visit()
    page.get_by_label("Filter agents").fill("GOO")
    assert agents(page) == ["good"]
    page.get_by_label("Filter agents").fill("")
    overall = page.locator("[aria-label='Overall ranking'] tr.row").nth(1).text_content()
    page.get_by_label("Score over").select_option("easy")
    assert page.locator("[aria-label='Overall ranking'] tr.row").nth(1).text_content() != overall
    page.get_by_role("link", name="Tasks").click()
    page.get_by_role("heading", name="Tasks").wait_for()
    tasks = page.locator("[aria-label='Scores by task and agent'] tr.row")
    assert tasks.count() == 3
    page.get_by_label("Filter tasks").fill("q2")
    assert tasks.count() == 1
    page.get_by_label("Filter tasks").fill("")
    page.get_by_label("Tag").select_option("real")
    assert tasks.count() == 2


def test_the_protocol_switch_never_mixes(visit):
    page = visit()
    online = set(agents(page))
    page.get_by_role("link", name="Pretrained").click()
    page.get_by_role("heading", name="Queueing, pretrained").wait_for()
    pretrained = set(agents(page))
    assert pretrained == {"oracle", "random", "trained", "trained-less"}
    assert online & pretrained == {"oracle", "random"}
    page.get_by_role("link", name="Online").click()
    page.get_by_role("heading", name="Queueing, online").wait_for()
    assert set(agents(page)) == online
    page.go_back()
    page.get_by_role("heading", name="Queueing, pretrained").wait_for()
    assert set(agents(page)) == pretrained


def test_a_row_shows_command_commit_and_hashes(visit, board):
    page = visit("#/queueing/online/task/q1")
    row = page.get_by_role("button", name="Where good comes from")
    row.click()
    assert row.get_attribute("aria-expanded") == "true"
    text = page.locator("tr.detail").text_content()
    keys = next(r for r in board.tasks[0].rows if r.agent == "good").origin.keys
    for expected in (
        "0123456789ab with uncommitted changes",
        IMAGE,
        "NumPy",
        *(k[:12] for k in keys),
    ):
        assert expected in text
    row.click()
    assert page.locator("tr.detail").count() == 0


def test_curves_have_bands_and_hover(visit):
    page = visit("#/queueing/online/task/q1", charts=True)
    page.wait_for_selector(".chart[data-drawn] .scatterlayer .trace")
    charts = page.locator(".chart")
    assert charts.count() == 2 + 4  # and a fleet and users' time of another problem's make
    assert charts.nth(0).locator(".fills path").count() == 7  # a band a visible agent
    names = charts.nth(0).locator(".annotation").all_text_contents()
    assert {"good", "oracle", "random"} <= set(names)  # beside the ends of their lines
    charts.nth(0).scroll_into_view_if_needed()
    box = charts.nth(0).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".hoverlayer text")
    assert "good" in page.locator(".hoverlayer").first.text_content()
    page.get_by_role("button", name="good", exact=True).click()
    page.wait_for_function("document.querySelectorAll('.chart')[0].data.length === 12")


def test_overview_draws_clock_profile_and_tags(visit):
    page = visit(charts=True)
    for place in page.locator(".chart").all():
        place.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('.chart[data-drawn]').length === 3")
    tags = page.locator(".chart").nth(2)
    assert tags.locator(".scatterlayer .trace .point").count() >= 3 * 5  # of five agents or more


def test_a_deployment_task_draws_heat_maps(visit):
    page = visit(charts=True)
    page.get_by_role("link", name="Deployment").click()
    page.get_by_role("link", name="Tasks").click()
    page.locator("td.first a").click()
    page.locator(".chart").last.scroll_into_view_if_needed()
    page.wait_for_selector(".heatmaplayer image")
    page.get_by_label("Right").select_option("poor")
    page.get_by_text("Traffic of poor").wait_for()


def test_a_fleet_is_drawn_over_time_and_where_its_users_are(visit):
    page = visit(charts=True)
    turn(page, "#/queueing/online/task/q1")
    page.get_by_text("Fleet of oracle").scroll_into_view_if_needed()
    page.wait_for_selector(".heatmaplayer image")
    page.get_by_label("Right").select_option("poor")
    page.get_by_text("Fleet of poor").wait_for()
    page.get_by_text("Where users spend their time").scroll_into_view_if_needed()
    page.wait_for_selector(".barlayer .point")
    assert page.locator("section .grid.small figure").count() == 2


VIEWS = ["", *(f"#/queueing/online/{v}" for v in ("tasks", "task/q1", "pairs", "runs", "about"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_view_without_sideways_scrolling(visit, scheme):
    page = visit(width=360, scheme=scheme, charts=True)
    places = [*VIEWS, f"#/deployment/online/task/{urllib.parse.quote('d' + SCRIPT, safe='')}"]
    for place in places:
        page.evaluate("place => { location.hash = place }", place or "#/")
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") == 360, place
        assert page.locator("main h2").count() >= 1


def test_a_phone_shows_names_whole_and_says_what_is_out_of_sight(visit):
    page = visit(width=390)
    page.wait_for_function("document.querySelector('.hint').textContent.startsWith('Scroll right')")
    whole = "e => e.scrollWidth <= e.clientWidth + 1"
    for name in page.locator(".name").all():
        assert name.evaluate(whole), name.text_content()
    scroll = page.locator("[aria-label='Overall ranking']")
    assert (
        "Cells" in page.locator(".hint").first.text_content()
        or "more" in page.locator(".hint").first.text_content()
    )
    scroll.evaluate("e => { e.scrollLeft = e.scrollWidth }")
    page.wait_for_function("document.querySelector('.hint').textContent === ''")
    page.evaluate("location.hash = '#/queueing/online/tasks'")
    page.get_by_role("heading", name="Tasks").wait_for()
    for link in page.locator("td.first a").all():
        assert link.evaluate(whole)


def test_colours_tell_0_from_far_below_and_the_first_rank_names_all_that_share_it(visit):
    levels = {"oracle": 0.0, "random": 1.0, "good": 0.2, "same": 0.2, "awful": 1.5}
    cells = [cell("t", agent, seed, level) for agent, level in levels.items() for seed in range(3)]
    page = visit("#/queueing/online/tasks", other=board_page(board_of(cells)))
    row = page.locator("[aria-label='Scores by task and agent'] tr.row")
    assert "and 1 more" in row.text_content()
    page.wait_for_function("document.querySelector('td.cell').style.background !== ''")
    shades = row.locator("td.cell").evaluate_all("all => all.map(e => e.style.background)")
    assert "--heat" in shades[0]
    assert "--warm" in shades[-1]


def test_both_protocols_stand_on_one_axis_without_a_common_rank(visit):
    page = visit("#/queueing/online/task/q1")
    both = page.locator("[aria-label='Scores under both protocols']")
    text = both.text_content()
    assert "online: ignorant at the start" in text
    assert "pretrained: trained before" in text
    assert {"good", "trained"} <= set(both.locator(".name").all_text_contents())
    assert both.locator("b.pretrained").count() == 2
    assert "Rank" not in text
    page.evaluate("location.hash = '#/queueing/online/task/q2'")  # nobody was trained for it
    page.get_by_role("heading", name="q2").wait_for()
    assert page.locator("[aria-label='Scores under both protocols']").count() == 0


def test_paper_keeps_the_dots_and_draws_what_was_never_scrolled_to(visit):
    page = visit(scheme="dark", charts=True)
    page.wait_for_function("window.Plotly !== undefined")
    for place, charts in (("#/queueing/online/task/q1", 6), ("#/", 3)):  # the first: a fleet's
        turn(page, place)
        page.evaluate(
            "window.dispatchEvent(new Event('beforeprint'))"
        )  # browsers: before the rules
        page.emulate_media(media="print")
        page.wait_for_function(
            f"document.querySelectorAll('.chart[data-drawn]').length === {charts}"
        )
        for part in page.locator(".chart").all():
            sizes = part.evaluate(
                "e => [e.clientHeight, e.querySelector('.main-svg').clientHeight]"
            )
            assert sizes[1] <= sizes[0] + 1  # what is drawn does not run into what follows
        wide = "all => all.filter(e => e.scrollWidth > e.clientWidth + 4).map(e => e.ariaLabel)"
        assert page.locator(".scroll").evaluate_all(wide) == []
        if place != "#/":
            page.emulate_media(media="screen")
            page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    dot = page.locator(".track b").first
    assert dot.evaluate("e => getComputedStyle(e).webkitPrintColorAdjust") == "exact"
    assert lightness(page, "color") < 60
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")


def lightness(page, of="background-color"):
    """Of the page's background or text, 0 to 255."""
    value = page.evaluate("of => getComputedStyle(document.body).getPropertyValue(of)", of)
    return np.mean([float(part) for part in re.findall(r"[\d.]+", value)[:3]])


def test_dark_mode_follows_the_system_and_the_button(visit):
    light, dark = visit(), visit(scheme="dark")
    assert lightness(light) > 200 > 60 > lightness(light, "color")
    assert lightness(dark) < 60 < 200 < lightness(dark, "color")
    dark.get_by_role("button", name="Theme").click()
    assert lightness(dark) > 200
    assert "light" in dark.get_by_role("button", name="Theme").text_content()
    dark.get_by_role("button", name="Theme").click()
    assert lightness(dark) < 60


def test_troubles_are_named_in_words(visit):
    page = visit("#/queueing/online/runs")
    text = page.locator("main").text_content()
    assert f"ValueError: {SCRIPT} {IMAGE}" in text
    assert "q1 / missing / seed 0" in text
    assert "Above the oracle, perhaps by chance" in text
    assert f"task q1: {SCRIPT} is above the oracle" in text
    assert "Skipped" in text


def test_the_legend_names_every_column(visit):
    page = visit("#/deployment/online/about")
    names = page.locator("dt").all_text_contents()
    assert {"Score", "Spend / b", "µs / decision", "Intervals and ranks"} <= set(names)


@cache
def odd_boards():
    """Boards on which a figure cannot be had: nothing computed, one seed, one agent."""
    levels = {"oracle": 0.0, "random": 1.0, "a": 0.3, "b": 0.5}
    kinds = ("LLMQueue-v0", "LLMDeploy-v0")
    cells = [cell(f"t{k}", a, 0, x, kind=k) for k in kinds for a, x in levels.items()]
    few = [c for c in cells if c["spec"]["agent"]["label"] != "b"]
    tagged = [
        cell(f"t{k}{tag}", a, 0, levels[a], tags=(tag,), kind=k)
        for k in kinds
        for tag in ("x", "y")
        for a in ("oracle", "random", "a")
    ]
    return {
        "nothing": board_of([], planned=cells, missing=[str(i) for i in range(len(cells))]),
        "one seed": board_of(cells),
        "one agent": board_of(few),
        "tags of one seed": board_of(tagged),
        "no oracle": board_of([c for c in cells if "oracle" not in str(c["spec"])], planned=cells),
        "no plan": board_of([]),
    }


@pytest.mark.parametrize(
    "name", ["nothing", "one seed", "one agent", "tags of one seed", "no oracle", "no plan"]
)
def test_a_board_with_little_on_it_is_still_a_page(visit, name):
    page = visit(other=board_page(odd_boards()[name]))
    for kind in ("queueing", "deployment"):
        task = f"task/tLLM{'Queue' if kind == 'queueing' else 'Deploy'}-v0"
        for view in ("overview", "tasks", task, "pairs", "runs", "about"):
            turn(page, f"#/{kind}/online/{view}")
            page.evaluate("window.dispatchEvent(new Event('beforeprint'))")  # draws every chart
            assert page.locator(".chart:not([data-drawn])").count() == 0
            assert page.locator("main h2").count() >= 1


def test_every_control_has_a_name(visit):
    page = visit()
    for place in VIEWS:
        turn(page, place or "#/")
        for control in page.locator("button, a[href], input, select").all():
            name = control.evaluate(
                "e => e.getAttribute('aria-label') || e.textContent || e.labels?.[0]?.textContent"
            )
            assert name.strip(), control.evaluate("e => e.outerHTML")
