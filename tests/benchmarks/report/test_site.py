"""The public board: whole, safe whatever strangers are called, and the same bytes twice."""

import json
import re
import urllib.parse
from html.parser import HTMLParser

import pytest
from made_up import board_of, cells_of, queue_cell

from benchmarks.plan.suite import spec_key
from benchmarks.report.site import write_board
from benchmarks.score.export import export_run
from benchmarks.submissions.entry import (
    Submission,
    cells_path,
    file_digest,
    slug,
    write_submission,
)
from benchmarks.submissions.folder import MARKS_FILE
from llmqueue_gym.errors import UsageError

SCRIPT = "</script><script>window.pwned=1</script>"
IMAGE = "<img src=//evil.example onerror=window.pwned=2>"
SCORES = {"oracle": [2, 2.1], "random": [300, 310], "good": [4, 5], SCRIPT: [40, 44]}
TEXT = {
    "code_url": "https://github.com/a/b",
    "code_commit": "0123456789" * 4,
    "code_sha256": "ab" * 32,
    "suite": "s-1",
    "plan": "cd" * 32,
    "version": "0.1.0",
    "protocol": "online",
    "machine": f"m {IMAGE}",
    "isolation": "namespaces",
    "wall_seconds": 1.0,
}


class Run:
    """Cells as a store holds them."""

    def __init__(self, cells, **more):
        self.cells = {spec_key(cell["spec"]): cell for cell in cells}
        specs = [cell["spec"] for cell in cells]
        origin = cells[0]["provenance"] | {"scipy": "1"}
        self.run = {"suite": "s", "cells": specs, "skipped": {}, "provenance": origin, **more}

    def load_run(self):
        return self.run

    def load(self, key):
        return self.cells.get(key)

    def load_failure(self, key):
        return None


def made(scores, **more):
    """Return cells of two tasks, all of which separate their agents."""
    return [
        cell for task in ("t1", f"t2 {IMAGE}") for cell in cells_of(queue_cell, scores, task=task)
    ]


def hand_in(folder, name, scores, **said):
    """Hand in an agent that calls itself the oracle's equal, with references of its own."""
    cells = made({"oracle": [9, 9], "random": [10, 10], "oracle2": scores})
    folder.mkdir(exist_ok=True)
    path = folder / f"{slug(name)}.cells.json.gz"
    export_run(Run(cells), path)
    digest = file_digest(path.read_bytes())
    return write_submission(
        Submission(name=name, agent="a.b:C", cells_sha256=digest, **{**TEXT, **said}), folder
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two releases, and four submissions: one of each mark, one of another plan."""
    root = tmp_path_factory.mktemp("board")
    for number, more in enumerate(({"good": [6, 7]}, {})):
        origin = {"version": f"0.{number}", "commit": f"{number}" * 12}
        cells = [c | {"provenance": c["provenance"] | origin} for c in made({**SCORES, **more})]
        export_run(Run(cells), root / f"{number}.json.gz")
    told = {"tuning_runs": 7, "trained_on": SCRIPT}
    hand_in(root / "in", SCRIPT, [3, 3.1], **told)
    replayed = hand_in(root / "in", "Replayed", [3, 3.1], division="closed")
    held_out = hand_in(root / "in", "Held out", [3, 3.1])
    hand_in(root / "in", "Elsewhere", [3, 3.1], suite="t-1")
    marks = [
        f'[{path.stem}]\nsha256 = "{file_digest(path.read_bytes())}"\nreplayed = "{IMAGE}"\n'
        for path in (replayed, held_out)
    ]
    marks.append(f'[{held_out.stem}.held_out."0.1"]\nqueueing = [0.7, 0.6, 0.8]\n')
    (root / "in" / MARKS_FILE).write_text("".join(marks))
    write_board(root / "site", [root / "0.json.gz", root / "1.json.gz"], root / "in")
    return root


class Links(HTMLParser):
    """What a page leads to or loads, and its elements."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.attributes = [], set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("src", "href")]


def data_of(page):
    [inline] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(inline)


def part(path):
    """Return what a task's file hands over."""
    name, _, rest = path.read_text().removeprefix("llmqueue(").partition(", ")
    return json.loads(name), json.loads(rest.removesuffix(");\n"))


def table(page, name):
    """Rows of a plain table as texts."""
    inside = page.partition(f'aria-label="{name}"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr class=.*?</tr>", inside, re.DOTALL)
    return [
        [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row)] for row in rows
    ]


def test_every_link_leads_to_a_file_of_the_board_or_to_https(folder):
    site = folder / "site"
    pages = {path: path.read_text() for path in site.rglob("*.html")}
    followed = 0
    for path, text in pages.items():
        inner = data_of(text)
        facts = [fact for own in inner.get("submissions", {}).values() for fact in own["facts"]]
        links = [*Links(text).links, *inner.get("pages", {}).values()]
        links += [href for _, shown in facts for _, href in shown if href]
        links += [f"{inner['base']}{file}.js" for _, file in inner.get("curves", [])]
        links += [f"{task['file']}.js" for s in inner.get("sections", []) for task in s["tasks"]]
        for link in links:
            if link.startswith(("https://github.com/a/b/tree/", "data:,")):
                continue
            file, _, place = link.partition("#")
            target = path.parent / urllib.parse.unquote(file) if file else path
            assert target.resolve().is_relative_to(site.resolve()), link
            assert target.is_file(), link
            followed += 1
            if place.startswith("/"):
                kind, protocol, view, *task = map(urllib.parse.unquote, place[1:].split("/"))
                sections = data_of(target.read_text())["sections"]
                [own] = [s for s in sections if (s["kind"], s["protocol"]) == (kind, protocol)]
                assert view == "overview" or task[0] in [t["task"] for t in own["tasks"]]
    assert followed > 100


def test_every_agent_task_and_submission_has_its_page_and_files(folder):
    site = folder / "site"
    page = data_of((site / "suites" / "s.html").read_text())
    [section] = page["sections"]
    assert set(section["agents"]) == set(page["pages"]) - {"Elsewhere (self-reported)"}
    for task in section["tasks"]:
        name, whole = part(site / "suites" / f"{task['file']}.js")
        assert (name, whole["task"]["task"]) == (task["file"], task["task"])
        assert whole["section"]["agents"] == section["agents"]
        assert set(whole["task"]["panels"][0]["lines"]) == set(section["agents"])
    for label, path in page["pages"].items():
        text = (site / "suites" / path).read_text()
        assert data_of(text)["agent"] == label
        curves = data_of(text)["curves"]
        assert [part(site / "suites" / f"{file}.js")[1]["task"]["task"] for _, file in curves] == [
            shown.removeprefix("s: ") for shown, _ in curves
        ]
    for toml in (folder / "in").glob("*-*.toml"):
        for file in (toml, cells_path(toml)):
            assert (site / "submissions" / file.name).read_bytes() == file.read_bytes()


def test_strangers_names_are_text_and_only_https_leads_away(folder):
    for path in (folder / "site").rglob("*.html"):
        found = Links(path.read_text())
        assert not found.tags & {"img", "iframe", "object", "form", "base"}
        assert not {name for name in found.attributes if name.startswith("on")}
        assert path.read_text().count("<script") == 3  # data, the board's script, plotly.js
        assert "'unsafe-inline'" not in path.read_text().partition("style-src")[0]
        away = [link for link in found.links if ":" in link and link != "data:,"]
        assert all(link.startswith("https://github.com/a/b/tree/") for link in away)
    for path in (folder / "site" / "suites" / "s").glob("*.js"):
        assert not set(path.read_text()) & set("<>&")


@pytest.fixture(scope="module")
def alone(folder):
    """The board of the last release, without submissions."""
    write_board(folder / "alone", [folder / "1.json.gz"], folder / "nothing")
    return folder / "alone"


def test_who_is_not_held_out_has_no_rank_and_moves_nobody(folder, alone):
    text = (folder / "site" / "suites" / "s.html").read_text()
    [section] = data_of(text)["sections"]
    handed_in = [row for row in section["rows"] if row["agent"].endswith(")")]
    assert [row["rank"] for row in handed_in] == [None] * 3
    assert all(
        0.8 < row["score"][0] < 1 for row in handed_in
    )  # by the run's references, not theirs
    [own] = data_of((alone / "suites" / "s.html").read_text())["sections"]
    rows = [row for row in section["rows"] if row not in handed_in]
    shown = ("agent", "rank", "score", "families", "iqm", "cells")
    assert [[row[name] for name in shown] for row in rows] == [
        [row[name] for name in shown] for row in own["rows"]
    ]
    front = (folder / "site" / "index.html").read_text()
    assert table(front, "Ranked on held-out seeds") == [
        ["1", "Held out (held-out)", "0.700 [0.600, 0.800]", "0.1", "queueing", "open"]
    ]
    assert [row[0] for row in table(front, "Closed division")] == ["Replayed (replayed)"]
    opened = {row[0]: row for row in table(front, "Open division")}
    assert opened["Elsewhere (self-reported)"][1:4] == ["", "t-1", "another version of it"]
    assert opened["Held out (held-out)"][6:8] == ["a/b@012345678901", "cells"]
    told = next(row for row in opened.values() if row[4] == "7")
    assert "script" in told[5]
    assert told[8] == "nobody"


def test_an_agents_page_has_its_history(folder):
    rows = table((folder / "site" / "agents" / "good.html").read_text(), "Standings")
    assert [(row[5], row[7], row[8]) for row in rows] == [
        ("today", "0.1", "1" * 12),
        ("same tasks", "0.0", "0" * 12),
    ]
    assert float(rows[0][2].split()[0]) > float(rows[1][2].split()[0])


def test_the_same_results_give_the_same_bytes(folder, alone, tmp_path):
    write_board(tmp_path, [folder / "1.json.gz"], folder / "nothing")
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (alone, tmp_path)
    )
    assert first == second


def test_suites_stand_by_name_a_tuning_behind_what_it_tunes(tmp_path):
    paths = []
    for name in ("s-tuning", "s", "a"):
        paths.append(tmp_path / f"{name}.json.gz")
        export_run(Run(made(SCORES), suite=name), paths[-1])
    write_board(tmp_path / "site", paths, tmp_path / "nothing")
    home = (tmp_path / "site" / "index.html").read_text()
    shown = re.findall(r'href="suites/([^"#]*)\.html', home)
    assert list(dict.fromkeys(shown)) == ["a", "s", "s-tuning"]


@pytest.mark.parametrize(
    ("best", "retired"),
    # Close to the oracle; too far; of one seed nothing is known; so wide that little is known.
    [([2.1, 2.9, 2.1], True), ([5, 6, 5], False), ([2.1], False), ([2, 40, 2], False)],
)
def test_a_task_retires_when_the_best_interval_reaches_1_and_not_by_its_width(best, retired):
    cells = cells_of(queue_cell, {"oracle": [2, 3, 2], "random": [200, 300, 250], "a": best})
    assert board_of(cells).tasks[0].retired == retired


def test_a_page_that_is_too_large_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.report.site.MOST_BYTES", 50_000)
    with pytest.raises(
        UsageError, match=r"has [\d,]+ bytes, and no page may have more than 50,000"
    ):
        write_board(tmp_path, [folder / "1.json.gz"], folder / "nothing")


def test_wrong_input_is_named(folder, tmp_path):
    with pytest.raises(UsageError, match=r"--repository 'http://x' must read https://"):
        write_board(tmp_path, [folder / "0.json.gz"], folder / "in", "http://x")
    (tmp_path / "in").mkdir()
    path = hand_in(tmp_path / "in", "Changed", [3, 3])
    cells_path(path).write_bytes(b"other")
    with pytest.raises(UsageError, match=r"changed\.cells\.json\.gz is not the file"):
        write_board(tmp_path / "site", [folder / "0.json.gz"], tmp_path / "in")


def test_a_browser_loads_tasks_sorts_tables_and_never_scrolls_sideways(folder, browser):
    site, trouble = folder / "site", []
    context = browser.new_context(viewport={"width": 390, "height": 800}, offline=True)
    page = context.new_page()
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))

    def fits():
        assert page.evaluate("document.documentElement.scrollWidth") == 390, page.url
        assert page.evaluate("window.pwned") is None

    page.goto(f"file://{site}/index.html")
    fits()
    head = page.locator("[aria-label='Agents'] th").first
    head.get_by_role("button").click()
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    names = page.locator("[aria-label='Agents'] td:first-child").all_text_contents()
    assert names == sorted(names, key=str.lower, reverse=True)
    page.locator("[aria-label='Agents'] a", has_text="good").first.click()
    page.wait_for_selector(".chart[data-drawn] .scatterlayer .trace")
    fits()
    page.locator("#curve select").select_option(index=1)
    page.wait_for_selector(".chart[data-drawn] .scatterlayer .trace")
    page.locator("[aria-label='Task by task'] a", has_text="evil").click()
    page.get_by_role("heading", name=f"t2 {IMAGE}").wait_for()
    page.wait_for_selector(".chart[data-drawn]")
    fits()
    page.get_by_role("button", name=f"Where {SCRIPT} (self-reported) comes from").click()
    assert "a/b@0123456789" in page.locator("tr.detail").text_content()
    context.close()
    assert trouble == []
