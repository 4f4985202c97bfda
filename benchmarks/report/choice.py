"""The page of ``llmqueue-bench choose``: one sentence, one chart, and the tables behind them.

Markdown and HTML are made of the same document, the command's JSON.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import Environment
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from benchmarks.report.draw import COLOURS, new_figure, picture_text
from benchmarks.report.tables import escaped, markdown_table
from benchmarks.report.words import Lines
from benchmarks.score.choice import OWN

Json = Mapping[str, Any]

_GREY = "#7A828F"
_POINT = 6  # pixels from the middle of a point to its edge
_PLACES: tuple[tuple[Literal["left", "right", "center"], float, float], ...] = (
    ("left", 6.0, 0.0),  # points from the point to the name
    ("right", -6.0, 0.0),
    ("center", 0.0, 10.0),
    ("center", 0.0, -10.0),
)

_KEPT = {True: "keeps", False: "exceeds", None: "may exceed"}


class Part(NamedTuple):
    """A part of the page: a title, and sentences, a table and code as far as it has them."""

    title: str
    notes: list[str]
    columns: list[str]
    lines: Lines
    code: str = ""


# --- in words -------------------------------------------------------------------------------------


def choice_words(document: Json) -> dict[str, Any]:
    """Return the headline, the sentences below it and what to paste, of what was found."""
    if refused := document["refused"]:
        more = "No number of further requests of this kind would do; see what to log below."
        if refused["requests"]:
            have = document["log"]["requests"]
            more = (
                f"About {refused['requests']:,} requests of this kind would do: "
                f"{max(0, refused['requests'] - have):,} more than these {have:,}."
            )
        headline = f"No recommendation: {refused['why']}."
        return {"headline": headline, "details": [more], "recommended": None, "paste": ""}
    best, own = document["best"], document["own"]
    what, gain = _earned(document, best["doubly robust"][0]), _gained(document, best["gain"])
    value = f"{what} in place of {_earned(document, own['value'][0], False)}"
    if document["recommended"] == OWN:
        which = "policy that surely keeps the budget" if document["may_exceed"] else "policy"
        headline = f"Stay with {OWN}: no {which} is surely better on this log."
        details = [f"The best of them is {best['agent']}: {value}, {gain}{_money(best, own)}."]
    else:
        may = ", which may exceed the budget" * _may_exceed(document, best)
        headline = f"Route with {best['agent']}{may}: {value}{_money(best, own)}."
        details = [f"That is {gain} against what {OWN} got from the same requests."]
    if document["recommended"] != OWN:
        tied = document["not_separated"]
        details.append(
            f"The log does not separate it from {_listed(tied)}."
            if tied
            else "It is separated from every other policy that could be judged."
        )
        if tied and document["load"]["tasks"]:
            details.append("Of these it scores best under load, where that was played.")
    if (cheapest := document["cheapest_not_separated"]) not in (None, best["agent"]):
        lead = _gained(document, [-document["leads"][cheapest][part] for part in (0, 2, 1)])
        details.append(
            f"The cheapest policy that is not surely worse is {cheapest}: {lead} against "
            f"{best['agent']}, at ${document['cheapest_usd']:.3g} a request."
        )
    details += _budget(document)
    runs = document["runs"]
    if runs is not None and runs["agent"] != best["agent"]:
        details.append(
            f"LiteLLM's router does not run {best['agent']}; of those it runs, {runs['agent']} is "
            f"best: {_gained(document, runs['gain'])} against {OWN}."
        )
    return {"headline": headline, "details": details, "paste": router_lines(document)}


def _may_exceed(document: Json, one: Json) -> bool:
    return document["budget"] is not None and one["within_budget"] is None


def _budget(document: Json) -> list[str]:
    """Say whether the budget is kept, and what would earn more if it were not."""
    best = document["best"]
    if document["budget"] is None or best["usd"] is None:
        return []
    budget = f"the budget of {document['budget']:g} USD a request"
    if _may_exceed(document, best):
        return [
            f"No policy here surely keeps {budget}: {best['agent']} spends {_dollars(best['usd'])}."
        ]
    said = [f"{best['agent']} keeps {budget}: {_dollars(best['usd'])}."]
    passed = [one for one in document["candidates"] if one["agent"] in document["may_exceed"]]
    most = max(passed, key=lambda one: one["gain"][0], default=best)
    if most["gain"][0] > best["gain"][0]:
        said.append(
            f"{most['agent']} earns more, {_gained(document, most['gain'])} against {OWN}, but may "
            f"exceed the budget: {_dollars(most['usd'])}."
        )
    return said


def router_lines(document: Json) -> str:
    """Return the lines that run the recommended policy in LiteLLM's router."""
    best, runs, budget = document["best"], document["runs"], document["budget"]
    if runs is None:
        return (
            f"# {best['agent']} is no agent that LiteLLM's router can run, nor is any other here."
        )
    other: bool = runs["agent"] != best["agent"]
    instead = f"# {best['agent']} does not run in LiteLLM's router; {runs['agent']} does.\n" * other
    lines = [
        "# llmqueue_router.py beside LiteLLM's config.yaml, which names it:",
        "#   litellm_settings: { callbacks: llmqueue_router.router }",
        f"from llmqueue_gym.live.litellm import {'Budget, ' * (budget is not None)}LearningRouter",
        "",
        "router = LearningRouter(",
        f"    {runs['file']!r},",
        f"    llms={document['llms']!r},",
        "    # those are the log's names: write the litellm_params.model of each, in this order",
        '    model_name="auto",  # the model group that callers ask for',
        "    explore=0.05,  # so that the next log has propensities",
        '    state="router.llmq",  # where it goes on learning',
    ]
    if document["log"]["queries"] == "vectors":
        lines.append("    contexts=embed,  # your function: a text to a vector as the log has them")
    if budget is not None:
        pairs = zip(document["llms"], document["prices"], strict=True)
        listed = {llm: float(f"{usd:.3g}") for llm, usd in pairs}
        span = document["log"]["seconds"]
        hourly = f"{3600 * document['log']['requests'] / span:.3g}" if span else "REQUESTS_AN_HOUR"
        lines.append(f'    budget=Budget({budget:g} * {hourly}, "hour", {listed!r}),')
    if document["recommended"] == OWN or (other and runs["gain"][1] <= 0.0):
        lines.append("    shadow=True,  # LiteLLM chooses; only written: what it would have chosen")
    return instead + "\n".join([*lines, ")"])


def _earned(document: Json, value: float, named: bool = True) -> str:
    """Return a mean reward in words."""
    if document["log"]["outcome"] == "share kept":
        return f"{value:.1%}" + " of the answers kept" * named
    return "a mean score of " * named + f"{value:.3f}"


def _gained(document: Json, gain: list[float]) -> str:
    """Return a difference of mean rewards in words, with its interval."""
    if document["log"]["outcome"] == "share kept":
        value, low, high = (f"{100 * part:+.1f}" for part in gain)
        return f"{value} points [{low}, {high}]"
    return f"{gain[0]:+.3f} {_limits(gain, '+.3f')}"


def _money(best: Json, own: Json) -> str:
    if best["usd"] is None:
        return ""
    return f", at ${best['usd'][0]:.3g} a request in place of ${own['usd']:.3g}"


def _listed(labels: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))


def _limits(interval: list[float], spec: str = ".3f") -> str:
    return f"[{interval[1]:{spec}}, {interval[2]:{spec}}]"


def _dollars(interval: list[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.3g} {_limits(interval, '.3g')}"


# --- the parts ------------------------------------------------------------------------------------


def choice_parts(document: Json) -> list[Part]:
    """Return what stands below the chart."""
    parts = [_predictable(document)]
    if "candidates" in document:
        parts.append(_candidates(document))
    for task in document.get("load", {}).get("tasks", ()):
        where = document["load"]
        notes = [
            f"Load {where['load']:g} ({where['from']}); queries arrive {where['arrivals']}."
            if task["task"] == "queue"
            else "Every query has a cost, and money that is spent is gone.",
            "Users keep or retry as an outcome model fitted on the log expects; agents start "
            f"{task['agents_start']}. Score: 0 as good as random, 1 as good as the oracle.",
        ]
        parts.append(Part(f"Under load: {task['task']}", notes, task["columns"], task["lines"]))
    more = [f"{text}." for text in document["log_more"]] or ["Nothing is missing."]
    parts.append(Part("What to log to know more", more, [], []))
    if document["paste"]:
        parts.append(Part("In LiteLLM", [], [], [], document["paste"]))
    log = document["log"]
    notes = [f"{log['requests']:,} requests of {Path(log['path']).name}."]
    notes += [f"Left out: {count:,} rows with {why}." for why, count in log["left_out"].items()]
    notes += document.get("notes", log["notes"])
    parts.append(Part("Behind it", notes, [], [], "\n".join(document["commands"])))
    return parts


def _predictable(document: Json) -> Part:
    found = document.get("predictable")
    notes = ["No outcome model could be judged on this log."]
    if found:
        lower = 1.0 - found["log_loss"] / found["base_log_loss"]
        notes = [
            f"Log loss of an outcome model that reads the query, on the last {found['turns']:,} "
            f"requests: {found['log_loss']:.4f}; of each LLM's share alone: "
            f"{found['base_log_loss']:.4f}. "
            + (
                f"Reading queries lowers it by {lower:.1%}."
                if lower > 0.0
                else "Queries tell nothing, so that a policy without them will do."
            )
        ]
    rows = document["log"]["llms"]
    lines = [
        [
            row["llm"],
            f"{row['requests']:,}",
            f"{row['kept']:.3f}",
            "" if row["mean_cost"] is None else f"{row['mean_cost']:.3g}",
        ]
        for row in rows
    ]
    columns = ["agent", "requests", document["log"]["outcome"], "USD a request"]
    return Part("Can the outcome be predicted?", notes, columns, lines)


def _candidates(document: Json) -> Part:
    leads = document.get("leads", {})
    lines = []
    for one in sorted(document["candidates"], key=lambda one: -_finite(one["gain"][0])):
        known = _finite(one["gain"][0]) > -1e9
        lead = leads.get(one["agent"])
        lines.append(
            [
                one["agent"],
                f"{one['gain'][0]:+.3f} {_limits(one['gain'], '+.3f')}" if known else "none",
                _dollars(one["usd"]) if known else "",
                _KEPT[one["within_budget"]] if known and document["budget"] is not None else "",
                f"{one['effective_requests']:,.0f}",
                "" if lead is None else f"{lead[0]:+.3f} {_limits(lead, '+.3f')}",
                one["left_out"] or "",
            ]
        )
    notes = [
        "Doubly robust estimates on the second half of the log, 95% intervals, paired by request."
    ]
    if leads:
        notes.append(
            f"Lead: what {document['best']['agent']} earns beyond that policy; these intervals "
            "hold 95% together."
        )
    columns = ["agent", "gain on the log", "USD a request", "budget", "effective", "lead"]
    columns.append("left out because")
    filled = [place for place, cells in enumerate(zip(*lines, strict=True)) if any(cells)]
    lines = [[line[place] for place in filled] for line in lines]
    return Part("What would each have earned?", notes, [columns[p] for p in filled], lines)


def _finite(value: float) -> float:
    return value if value == value else -1e18  # NaN where there is no estimate


# --- the two forms --------------------------------------------------------------------------------


def choice_markdown(document: Json) -> str:
    """Return the page as Markdown."""
    lines = [f"# {escaped(document['headline'])}", *map(escaped, document["details"])]
    for part in choice_parts(document):
        lines += [f"## {escaped(part.title)}", *map(escaped, part.notes)]
        if part.lines:
            lines.append(markdown_table(part.columns, part.lines))
        if part.code:
            lines.append(f"```\n{part.code}\n```")
    return "\n\n".join(lines) + "\n"


def choice_html(document: Json) -> str:
    """Return the page: one file that needs no network and no script."""
    folder = files("benchmarks.report") / "template"
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in (_PAGE, "page.css")}
    drawn = [one for one in document.get("candidates", ()) if one["left_out"] is None]
    page = Environment(autoescape=True, keep_trailing_newline=True).from_string(texts[_PAGE])
    return page.render(
        document=document,
        parts=choice_parts(document),
        style=texts["page.css"],
        chart=_chart(document, drawn) if "best" in document else "",
    )


_PAGE = "choice.html.jinja"


def _chart(document: Json, drawn: list[Json]) -> str:
    """Return gains with their intervals against costs, as an SVG in the page's own colours."""
    best, own = document["best"]["agent"], document["own"]
    priced = own["usd"] is not None
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "llmqueue_gym", "font.size": 9}):
        figure = new_figure(5.2, 3.9)
        axis = figure.subplots()
        axis.axhline(0.0, color=_GREY, linewidth=0.8, linestyle="--")
        names: list[Annotation] = []
        points = [(one["usd"][0] if priced else place, *one["gain"], one["agent"])
                  for place, one in enumerate(drawn)]  # fmt: skip
        points.append((own["usd"] if priced else len(drawn), 0.0, 0.0, 0.0, OWN))
        points.sort(key=lambda point: point[-1] not in (best, OWN))  # they are named first
        for x, gain, low, high, label in points:
            colour = COLOURS[0] if label == best else COLOURS[1] if label == OWN else _GREY
            axis.plot([x, x], [low, high], color=colour, linewidth=1.6)
            axis.plot([x], [gain], "s" if label == OWN else "o", color=colour, markersize=5)
            names.append(
                axis.annotate(
                    picture_text(label, 24),
                    (x, gain),
                    xytext=(5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    fontweight="bold" if label in (best, OWN) else "normal",
                )
            )
        if priced:
            costs = [x for x, *_ in points if x > 0.0]
            if costs and max(costs) > 10 * min(costs):
                axis.set_xscale("log")
            if document["budget"] is not None:
                axis.axvline(document["budget"], color=COLOURS[1], linewidth=0.8)
        else:
            axis.set_xticks([])
        axis.margins(x=0.2, y=0.12)
        axis.set_xlabel("USD a request" if priced else "policies")
        axis.set_ylabel(f"gain in {document['log']['outcome']}")
        axis.spines[["top", "right"]].set_visible(False)
        place_names(figure, axis, names)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("#000000", "currentColor")


def place_names(figure: Figure, axis: Axes, names: list[Annotation]) -> None:
    """Put names right, left, above or below their points, where they cover no name and no point.

    One that finds no such place is left out: the table below the picture has all.
    """
    figure.draw_without_rendering()  # only then is it known where the points are
    centres = axis.transData.transform([name.xy for name in names])
    taken = [Bbox.from_bounds(x - _POINT, y - _POINT, 2 * _POINT, 2 * _POINT) for x, y in centres]
    for name in names:
        for side, x, y in _PLACES:
            name.set_horizontalalignment(side)
            name.set_position((x, y))
            box = Text.get_window_extent(name)
            free = not any(box.overlaps(other) for other in taken)
            if free and axis.bbox.x0 < box.x0 and box.x1 < figure.bbox.x1:
                taken.append(box)
                break
        else:
            name.set_visible(False)
