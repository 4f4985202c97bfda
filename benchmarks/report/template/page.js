// The leaderboard page: routes by the address' hash, builds tables and draws charts when seen.
// Text from the data only ever becomes text nodes, or is escaped for Plotly.
"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const PALETTE = {
    light: ["#0072B2", "#D55E00", "#009E73", "#C2599B", "#B87900", "#2E9BD6", "#7A4FBF"],
    dark: ["#5AAEFF", "#FF8A4C", "#2FCB9B", "#EE9FCC", "#F2B632", "#8AD4FF", "#B497F5"],
  };
  const DASHES = ["solid", "dash", "dot"];
  const SVG_DASHES = ["", "5 3", "1.5 2.5"];
  const VISIBLE = 5; // agents drawn at first, besides the references: more cannot be told apart
  const VIEWS = [["overview", "Overview"], ["tasks", "Tasks"], ["pairs", "Pairs"], ["runs", "Runs"], ["about", "How to read it"]];

  // --- small parts -------------------------------------------------------------------------------

  const byId = (id) => document.getElementById(id);
  const text = (value) => document.createTextNode(value);

  /** An element with attributes and children; strings become text. */
  function h(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name.startsWith("--")) element.style.setProperty(name, value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
    return element;
  }

  /** Plotly reads a little HTML in its texts: make it text. */
  const escaped = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const narrow = () => window.matchMedia("(max-width: 40rem)").matches;

  /** Names differ at their ends more often than in the middle. */
  function shortened(value, size) {
    if (value.length <= size) return value;
    const head = Math.ceil((size - 1) / 2);
    return `${value.slice(0, head)}…${value.slice(value.length - (size - 1 - head))}`;
  }
  const fixed = (value, digits = 3) => (value === null || value === undefined ? "" : value.toFixed(digits));
  const count = (number, one, many = one + "s") => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
  const capital = (word) => word.replace(/^[a-z]/, (letter) => letter.toUpperCase()); // not µs

  function micros(value) {
    if (value === null) return "";
    return value >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(3);
  }

  function range(score) {
    return `[${score[1] === null ? "-∞" : fixed(score[1])}, ${score[2] === null ? "∞" : fixed(score[2])}]`;
  }

  /** The number that a table's text begins with, for sorting; nothing sorts last. */
  function leading(value) {
    if (value.startsWith("∞")) return Infinity;
    const number = parseFloat(value.replace(/,/g, ""));
    return Number.isNaN(number) ? null : number;
  }

  /** Legends are written with *stars* around the names of columns. */
  function emphasised(source) {
    return source.split(/\*([^*]+)\*/).map((part, i) => (i % 2 ? h("strong", {}, part) : text(part)));
  }

  // --- theme -------------------------------------------------------------------------------------

  const media = window.matchMedia("(prefers-color-scheme: dark)");
  let theme = "auto";
  try { theme = localStorage.getItem("llmqueue-theme") || "auto"; } catch { /* from the disk */ }
  let onPaper = false;
  const isDark = () => !onPaper && (theme === "auto" ? media.matches : theme === "dark");

  function applyTheme() {
    const root = document.documentElement;
    if (onPaper) root.dataset.theme = "light";
    else if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    const label = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[theme];
    byId("theme").textContent = label;
    byId("theme").setAttribute("aria-label", `${label}; press to change`);
  }

  function setTheme(next) {
    theme = next;
    try { localStorage.setItem("llmqueue-theme", theme); } catch { /* from the disk */ }
    applyTheme();
    render(false);
  }

  byId("theme").addEventListener("click", () => {
    const opposite = media.matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
    setTheme(opposite[(opposite.indexOf(theme) + 1) % 3]);
  });
  media.addEventListener("change", () => { if (theme === "auto") render(false); });

  /** Paper is white, and shows what was never scrolled to. */
  function print(now) {
    const dark = isDark();
    onPaper = now;
    document.documentElement.classList.toggle("paper", now); // as wide as the sheet, which charts measure
    applyTheme();
    if (isDark() !== dark) render(false);
    for (const place of charts) {
      if (window.Plotly && "drawn" in place.dataset) window.Plotly.purge(place);
      place.seen ||= now;
      draw(place);
    }
  }
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));

  /** What a colour variable is at the moment. */
  function colour(name) {
    const probe = h("span", {});
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const value = getComputedStyle(probe).color;
    probe.remove();
    return value;
  }

  // --- agents ------------------------------------------------------------------------------------

  function style(section, agent) {
    if (agent === "oracle") return { color: isDark() ? "#FFFFFF" : "#000000", dash: "dash", svg: "5 3", width: 2 };
    if (agent === "random") return { color: isDark() ? "#6D7684" : "#A9A9A9", dash: "solid", svg: "", width: 3 };
    const place = section.agents.indexOf(agent);
    const turn = Math.floor(place / PALETTE.light.length) % DASHES.length;
    const color = PALETTE[isDark() ? "dark" : "light"][place % PALETTE.light.length];
    return { color, dash: DASHES[turn], svg: SVG_DASHES[turn], width: 2 };
  }

  function swatch(section, agent) {
    const look = style(section, agent);
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    for (const [k, v] of [["width", 18], ["height", 10], ["aria-hidden", "true"]]) svg.setAttribute(k, v);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const attributes = { x1: 0, x2: 18, y1: 5, y2: 5, stroke: look.color, "stroke-width": 3, "stroke-dasharray": look.svg };
    for (const [k, v] of Object.entries(attributes)) line.setAttribute(k, v);
    svg.append(line);
    return svg;
  }

  const who = (section, agent) =>
    h("span", { class: "who", title: agent }, swatch(section, agent), h("span", { class: "name" }, agent));

  function hiddenAgents(section) {
    if (!section.hidden) {
      const learning = section.agents.filter((a) => !section.references.includes(a));
      section.hidden = new Set(learning.slice(VISIBLE));
    }
    return section.hidden;
  }

  const shown = (section) => section.agents.filter((a) => !hiddenAgents(section).has(a));

  function chips(section) {
    const list = h("ul", { class: "chips", "aria-label": "Agents in the charts" });
    for (const agent of section.agents) {
      const button = h("button", {
        type: "button", class: "chip", title: agent, "aria-pressed": String(!hiddenAgents(section).has(agent)),
        onclick: () => {
          const hidden = hiddenAgents(section);
          if (!hidden.delete(agent)) hidden.add(agent);
          button.setAttribute("aria-pressed", String(!hidden.has(agent)));
          redraw();
        },
      }, swatch(section, agent), h("span", {}, agent));
      list.append(h("li", {}, button));
    }
    return list;
  }

  // --- charts: drawn when they come into view ----------------------------------------------------

  const charts = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) { entry.target.seen = true; draw(entry.target); }
    }
  }, { rootMargin: "300px" });

  function chart(title, note, build, tall = false) {
    const place = h("div", { class: tall ? "chart tall" : "chart", role: "img", "aria-label": `Chart: ${title}. ${note}` });
    place.build = build;
    charts.add(place);
    observer.observe(place);
    return h("figure", { class: "card" }, h("figcaption", {}, title, h("span", {}, note)), place);
  }

  function draw(place) {
    if (!window.Plotly || !place.isConnected || !place.seen) return;
    const { data, layout } = place.build();
    const config = { responsive: true, displaylogo: false, displayModeBar: false };
    window.Plotly.react(place, data, { ...baseLayout(), ...layout }, config);
    place.dataset.drawn = "";
  }

  function redraw() { charts.forEach(draw); }

  function forgetCharts() {
    for (const place of charts) {
      observer.unobserve(place);
      if (window.Plotly && "drawn" in place.dataset) window.Plotly.purge(place);
    }
    charts.clear();
  }

  function baseLayout() {
    const ink = colour("--ink");
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("--muted") },
      margin: { l: 58, r: 14, t: 12, b: 46 },
      showlegend: false,
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: ink, size: 12.5 }, namelength: 28 },
      hovermode: "closest",
      dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom",
    };
  }

  function axis(title, more = {}) {
    const line = colour("--line");
    return { title: { text: title, standoff: 8 }, gridcolor: line, linecolor: line, zerolinecolor: line, ticks: "", automargin: true, fixedrange: false, ...more };
  }

  function logTicks(low, high) {
    const all = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const m of [1, 2, 5]) all.push(m * 10 ** e);
    let ticks = all.filter((v) => v >= low * 0.999 && v <= high * 1.001);
    if (ticks.length > 6) ticks = ticks.filter((v) => /^(1|0\.0*1)0*$/.test(v.toPrecision(1).replace(/e.*/, "")) || String(v).replace(/[0.]/g, "")[0] === "1");
    const label = (v) => (v >= 1000 ? v.toLocaleString("en") : String(+v.toPrecision(2)));
    return { tickmode: "array", tickvals: ticks, ticktext: ticks.map(label) };
  }

  function alpha(color, share) {
    const parts = /^#(..)(..)(..)$/.exec(color).slice(1).map((x) => parseInt(x, 16));
    return `rgba(${parts.join(",")},${share})`;
  }

  /** Line and band; the band is a polygon without hover. */
  function lineWithBand(section, agent, x, mean, low, high, hover) {
    const look = style(section, agent);
    const traces = [];
    if (low && high) {
      traces.push({
        x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()],
        fill: "toself", fillcolor: alpha(look.color, 0.16), line: { width: 0 }, mode: "lines", hoverinfo: "skip", type: "scatter",
      });
    }
    traces.push({ x, y: mean, mode: "lines", type: "scatter", name: escaped(agent), line: { color: look.color, dash: look.dash, width: look.width }, hovertemplate: hover });
    return traces;
  }

  const ROOM = 15; // pixels from one name to the next

  /**
   * Names at the right ends of lines, moved apart where the lines end close to one another.
   * ends: [agent, y] with y on the axis' own scale; range: both ends of the axis on that scale.
   */
  function endLabels(section, ends, range, height) {
    const [bottom, top] = range;
    const least = (ROOM / height) * (top - bottom);
    const inside = ends.map(([agent, y]) => [agent, Math.min(Math.max(y, bottom), top)]).sort((a, b) => a[1] - b[1]);
    for (let i = 1; i < inside.length; i++) inside[i][1] = Math.max(inside[i][1], inside[i - 1][1] + least);
    let limit = top;
    for (let i = inside.length - 1; i >= 0; i--) { inside[i][1] = Math.min(inside[i][1], limit); limit = inside[i][1] - least; }
    return inside.map(([agent, y]) => ({
      xref: "paper", x: 1, xanchor: "left", xshift: 4, yref: "y", y, yanchor: "middle", showarrow: false, align: "left",
      text: escaped(shortened(agent, narrow() ? 11 : 16)), font: { size: narrow() ? 10 : 11.5, color: style(section, agent).color },
    }));
  }

  const besides = () => (narrow() ? 72 : 116); // pixels for those names

  const meanOver = (seeds) => `Mean over ${count(seeds, "seed")}${seeds > 1 ? ", band one standard error" : ""}.`;

  function panelChart(section, panel, note) {
    const [low, high] = panel.xRange;
    return chart(capital(panel.quantity), note, () => {
      const logarithmic = panel.yScale !== "linear";
      const floor = logarithmic ? Math.max(panel.yRange[0], panel.yScale === "symlog" ? 0.3 : 1e-9) : -Infinity;
      const data = panel.marks.map(([x, y]) => ({
        x, y, mode: "lines", hoverinfo: "skip", type: "scatter", line: { color: colour("--muted"), width: 1, dash: y[0] === y[1] ? "solid" : "dot" },
      }));
      const scaled = (v) => (logarithmic ? Math.log10(Math.max(v, floor)) : v);
      const bottom = logarithmic ? [Math.log10(floor), Math.log10(panel.yRange[1])] : panel.yRange;
      const ends = [];
      for (const agent of shown(section)) {
        const line = panel.lines[agent];
        if (!Array.isArray(line)) continue;
        const [mean, error, own] = line;
        ends.push([agent, scaled(mean.at(-1))]);
        const x = own || panel.x;
        const lower = error && mean.map((m, i) => Math.max(m - error[i], floor));
        const upper = error && mean.map((m, i) => Math.max(m + error[i], floor));
        data.push(...lineWithBand(section, agent, x, mean.map((m) => (m < floor ? null : m)), lower, upper, "%{y:.4~g}"));
      }
      const across = panel.xScale === "log"
        ? { type: "log", range: [Math.log10(low), Math.log10(high)], ...logTicks(low, high) }
        : { range: [low, high], tickformat: "," };
      return {
        data,
        layout: {
          hovermode: "x unified",
          margin: { ...baseLayout().margin, r: besides() },
          annotations: endLabels(section, ends, bottom, narrow() ? 240 : 300),
          xaxis: axis(panel.across, { ...across, unifiedhovertitle: { text: "t = %{x:,.0f}" } }),
          yaxis: axis("", logarithmic ? { type: "log", range: bottom, ...logTicks(floor, panel.yRange[1]) } : { range: bottom }),
        },
      };
    });
  }

  // Where each label of a scatter plot goes, on a plane of about 380 x 220 pixels: the first place
  // that covers neither another label nor a point.
  function labelPlaces(points) {
    const across = (values, size) => {
      const low = Math.min(...values), span = Math.max(...values) - low || 1;
      return values.map((v) => ((v - low) / span) * size);
    };
    const xs = across(points.map((p) => Math.log(p.x)), 380), ys = across(points.map((p) => -p.y), 220);
    const taken = xs.map((x, i) => [x - 6, ys[i] - 6, x + 6, ys[i] + 6]);
    return points.map((point, i) => {
      const width = 6.4 * point.text.length, height = 13, gap = 7;
      const box = (side, rise) => {
        const left = side === "center" ? xs[i] - width / 2 : side === "right" ? xs[i] + gap : xs[i] - gap - width;
        const top = rise === "middle" ? ys[i] - height / 2 : rise === "bottom" ? ys[i] + gap : ys[i] - gap - height;
        return [left, top, left + width, top + height];
      };
      const places = ["top center", "bottom center", "middle left", "middle right", "top left", "top right", "bottom left", "bottom right"];
      const free = places.find((place) => {
        const [rise, side] = place.split(" "), b = box(side, rise);
        return taken.every((t, j) => j === i || b[2] <= t[0] || t[2] <= b[0] || b[3] <= t[1] || t[3] <= b[1]);
      }) ?? "top center";
      const [rise, side] = free.split(" ");
      taken.push(box(side, rise));
      return free;
    });
  }

  function clockChart(section) {
    return chart("Score against decision time", "Up and left is better; bars are 95% intervals.", () => {
      const rows = section.rows.filter((r) => r.score && r.decision_us && !section.references.includes(r.agent) && !hiddenAgents(section).has(r.agent));
      const places = labelPlaces(rows.map((r) => ({ x: r.decision_us, y: r.score[0], text: shortened(r.agent, 20) })));
      const data = rows.map((row, i) => ({
        x: [row.decision_us], y: [row.score[0]], type: "scatter", mode: "markers+text",
        text: [escaped(shortened(row.agent, 20))], textposition: places[i], textfont: { color: colour("--ink"), size: 11.5 },
        cliponaxis: false,
        marker: { color: style(section, row.agent).color, size: 10 },
        error_y: { type: "data", symmetric: false, array: [(row.score[2] ?? row.score[0]) - row.score[0]], arrayminus: [row.score[0] - (row.score[1] ?? row.score[0])], color: alpha(style(section, row.agent).color, 0.5), thickness: 2, width: 0 },
        hovertemplate: `<b>${escaped(row.agent)}</b><br>${micros(row.decision_us)} µs<br>${fixed(row.score[0])} ${row.score[1] === null ? "" : range(row.score)}<extra></extra>`,
      }));
      const times = rows.map((r) => r.decision_us);
      const low = Math.min(...times) / 1.8, high = Math.max(...times) * 1.8;
      return { data, layout: { xaxis: axis("µs a decision", rows.length ? { type: "log", range: [Math.log10(low), Math.log10(high)], ...logTicks(low, high) } : {}), yaxis: axis("score") } };
    });
  }

  function profileChart(section) {
    return chart("Performance profiles", "Share of runs that score above x; bands are 95% intervals.", () => ({
      data: shown(section).filter((a) => section.profiles[a]).flatMap((agent) => {
        const [share, low, high] = section.profiles[agent];
        return lineWithBand(section, agent, section.thresholds, share, low, high, "%{y:.0%}");
      }),
      layout: {
        hovermode: "x unified",
        xaxis: axis("score x", { range: [0, 1], unifiedhovertitle: { text: "score above %{x:.2f}" } }),
        yaxis: axis("", { range: [0, 1.02], tickformat: ".0%" }),
      },
    }));
  }

  function tagChart(section) {
    const tags = Object.keys(section.tags);
    if (!tags.length) return null;
    const agents = () => shown(section).filter((a) => section.tags[tags[0]][a]);
    const value = (tag, agent) => section.tags[tag][agent];
    return chart("Score by tag", "Scores over the tasks of a tag, 95% intervals.", () => {
      const drawn = agents();
      const step = 0.7 / Math.max(1, drawn.length); // a lane an agent, so that no dot hides another
      return {
        data: drawn.map((agent, place) => {
          const look = style(section, agent), scores = tags.map((t) => value(t, agent));
          return {
            x: scores.map((v) => v[0]), y: tags.map((_, i) => i + step * (place - (drawn.length - 1) / 2)),
            type: "scatter", mode: "markers", name: escaped(agent), marker: { color: look.color, size: 8 },
            error_x: { type: "data", symmetric: false, array: scores.map((v) => (v[2] ?? v[0]) - v[0]), arrayminus: scores.map((v) => v[0] - (v[1] ?? v[0])), color: alpha(look.color, 0.5), thickness: 2.5, width: 0 },
            customdata: tags.map(escaped), text: scores.map(range), hovertemplate: `<b>${escaped(agent)}</b><br>%{customdata}: %{x:.3f} %{text}<extra></extra>`,
          };
        }),
        layout: {
          xaxis: axis("score"),
          yaxis: axis("", { tickmode: "array", tickvals: tags.map((_, i) => i), ticktext: tags.map((t) => escaped(shortened(t, narrow() ? 12 : 24))), range: [tags.length - 0.4, -0.6], zeroline: false }),
        },
      };
    });
  }

  function sweepCharts(section, sweep) {
    return [["ledger", "Ledger score per query"], ["regret", "Regret at the end"]].map(([name, title]) =>
      chart(title, "Mean over seeds, band one standard error.", () => ({
        data: shown(section).filter((a) => sweep[name][a] && !(name === "regret" && a === "oracle")).flatMap((agent) => {
          const [mean, error] = sweep[name][agent];
          const lower = error && mean.map((m, i) => m - error[i]), upper = error && mean.map((m, i) => m + error[i]);
          return lineWithBand(section, agent, sweep.values, mean, lower, upper, "%{y:,.4~g}");
        }),
        layout: {
          hovermode: "x unified",
          xaxis: axis(sweep.across, { type: "log", tickmode: "array", tickvals: sweep.values, ticktext: sweep.values.map((v) => v.toLocaleString("en")) }),
          yaxis: axis("", { tickformat: ",.3~g" }),
        },
      })));
  }

  function heatChart(section, task, agent) {
    const heat = task.heat;
    const which = heat.seeds > 1 ? `Mean over ${heat.seeds} seeds` : "One seed";
    const note = `${which}: share of a stage's queries by LLM, in order of arrival; grey before it is there.`;
    const figure = chart(`Traffic of ${agent}`, note, () => {
      const rows = heat.shares[agent].map((row) => row.map((v) => (v < 0 ? null : v / 1000)));
      const single = heat.others ? -1 : undefined;
      const peaks = Object.values(heat.shares).map((s) => Math.max(0.01, ...s.slice(0, single).flat().map((v) => v / 1000)));
      const labels = heat.names.map((_, i) => i);
      const low = colour("--card"), strong = isDark() ? "#9CC6FF" : "#0B3D91", middle = isDark() ? "#2F66B5" : "#6FA4E8";
      return {
        data: [{
          type: "heatmap", z: rows, x: heat.edges, y: labels, zmin: 0, zmax: Math.min(1, Math.max(...peaks)), xgap: 0.6, ygap: 0.6,
          colorscale: [[0, low], [0.5, middle], [1, strong]],
          colorbar: { tickformat: ".0%", thickness: 9, outlinewidth: 0, len: 0.9, x: 1.01, xpad: 4 },
          customdata: rows.map((row, i) => row.map((v, j) => [escaped(heat.names[i]), heat.edges[j], heat.edges[j + 1]])),
          hovertemplate: "<b>%{customdata[0]}</b><br>queries %{customdata[1]:,} to %{customdata[2]:,}<br>%{z:.1%}<extra></extra>",
        }],
        layout: {
          plot_bgcolor: colour("--absent"),
          margin: { l: 20, r: 10, t: 6, b: 44 },
          xaxis: axis("query", { showgrid: false, nticks: narrow() ? 4 : 7, tickformat: "," }),
          yaxis: axis("", { showgrid: false, autorange: "reversed", tickmode: "array", tickvals: labels, ticktext: heat.names.map((n) => escaped(shortened(n, narrow() ? 14 : 26))), tickfont: { size: 11 } }),
        },
      };
    }, true);
    figure.querySelector(".chart").style.height = `${Math.max(15, 5 + heat.names.length * 1.05)}rem`;
    return figure;
  }

  // --- tables ------------------------------------------------------------------------------------

  /**
   * A table whose headers sort it.
   * columns: label, cell(row) -> node or string, sort(row) -> value, and optionally title, cls, head.
   */
  function sortable({ name, columns, rows, order, details, cls }) {
    const state = { place: order[0], up: order[1] === "ascending" };
    const body = h("tbody", {});
    const heads = columns.map((column, place) => {
      if (!column.sort) return h("th", { scope: "col", class: column.cls }, h("span", { class: "sr" }, column.label), column.scale || null);
      const button = h("button", {
        type: "button", class: "sort", title: column.title,
        onclick: () => {
          if (state.place === place) state.up = !state.up;
          else { state.place = place; state.up = column.up ?? false; }
          fill();
        },
      }, column.label);
      return h("th", { scope: "col", class: column.head || column.cls }, button);
    });

    function compare(a, b) {
      const x = columns[state.place].sort(a), y = columns[state.place].sort(b);
      const none = (v) => v === null || v === undefined;
      if (none(x) || none(y)) return none(x) - none(y);
      const least = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
      return state.up ? least : -least;
    }

    let current = rows;
    function fill() {
      heads.forEach((head, place) => {
        if (place === state.place) head.setAttribute("aria-sort", state.up ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
      body.replaceChildren(...[...current].sort(compare).map(line));
    }

    function line(row) {
      const cells = columns.map((column) => h("td", { class: column.cls }, column.cell(row)));
      const tr = h("tr", { class: row.reference ? "row reference" : "row" }, cells);
      if (details) {
        const button = h("button", {
          type: "button", class: "more", "aria-expanded": "false", "aria-label": `Where ${row.agent} comes from`,
          onclick: () => {
            const open = button.getAttribute("aria-expanded") === "true";
            if (open) tr.nextSibling.remove();
            else tr.after(h("tr", { class: "detail" }, h("td", { colspan: columns.length + 1 }, details(row))));
            button.setAttribute("aria-expanded", String(!open));
            button.textContent = open ? "▸" : "▾";
          },
        }, "▸");
        tr.prepend(h("td", { class: "details" }, button));
      }
      return tr;
    }

    fill();
    const first = details ? h("th", { scope: "col", class: "details" }, h("span", { class: "sr" }, "origin")) : null;
    const table = h("table", { class: cls }, h("caption", { class: "sr" }, name), h("thead", {}, h("tr", {}, first, heads)), body);
    return {
      element: scrolling(name, table),
      show(some) { current = some; fill(); },
      sortBy(place, up) { state.place = place; state.up = up; fill(); },
    };
  }

  /** A table that may be wider than the page, and a line that says what is out of sight. */
  function scrolling(name, table) {
    const region = h("div", { class: "card scroll", role: "region", "aria-label": name, tabindex: "0" }, table);
    const hint = h("p", { class: "hint" });
    const say = () => {
      const end = region.getBoundingClientRect().right - 4;
      const hidden = [...table.tHead.rows[0].cells].filter((head) => head.offsetWidth && head.getBoundingClientRect().right > end + 12);
      const names = hidden.map((head) => head.textContent.trim()).join(", ");
      hint.textContent = hidden.length ? `Scroll right for ${hidden.length < 7 && names.length < 90 ? names : count(hidden.length, "more column")} →` : "";
      region.classList.toggle("cut", hidden.length > 0);
    };
    region.addEventListener("scroll", say, { passive: true });
    const watch = new ResizeObserver(say);
    watch.observe(region);
    watch.observe(table);
    return h("div", {}, hint, region);
  }

  function scoreBar(section, row, domain) {
    if (!row.score) return "";
    const [value, low, high] = row.score;
    const left = share(low ?? -Infinity, domain), right = share(high ?? Infinity, domain);
    const interval = h("i", {});
    interval.style.left = `${left}%`;
    interval.style.width = `${right - left}%`;
    const beyond = value < domain[0] ? "◂" : value > domain[1] ? "▸" : null;
    const dot = h("b", { class: beyond ? "beyond" : row.protocol }, beyond);
    dot.style.left = `${share(value, domain)}%`;
    return h("span", { class: "track", "--c": style(section, row.agent).color, "aria-hidden": "true" }, ticks(domain).map(([, at]) => tick(at)), interval, dot);
  }

  /** Where a value lies between the ends of an axis, in percent. */
  const share = (v, [low, high]) => (100 * (Math.min(Math.max(v, low), high) - low)) / (high - low);

  /** Marks of a strip's axis, and where they lie. */
  const ticks = (domain) =>
    [-0.5, 0, 0.5, 1].filter((v) => v >= domain[0] && v <= domain[1]).map((v) => [v, share(v, domain)]);

  function tick(at, label) {
    const mark = h("s", {}, label);
    mark.style.left = `${at}%`;
    return mark;
  }

  const scaleOf = (domain) =>
    h("span", { class: "track scale", "aria-hidden": "true" }, ticks(domain).map(([v, at]) => tick(at, String(v))));

  function scoreDomain(rows) {
    const ends = rows.flatMap((r) => (r.score ? r.score.filter((v) => v !== null) : []));
    return [Math.max(-0.5, Math.min(0, ...ends)), Math.min(1.25, Math.max(1, ...ends))];
  }

  function originList(row, extra = []) {
    const origin = DATA.origins[row.origin];
    const dirty = (commit) => (commit.endsWith("+") ? `${commit.slice(0, -1)} with uncommitted changes` : commit);
    const entries = [
      ["Command", origin.commands.map((c) => h("code", {}, c))],
      ["Version", origin.versions.map((v) => `llmqueue_gym ${v}`).join(", ")],
      ["Git commit", origin.commits.map(dirty).join(", ")],
      ["Python, NumPy", `${origin.pythons.join(", ")}; ${origin.numpys.join(", ")}`],
      ["Machine", origin.machines.join("; ")],
      ["Seeds", row.seeds],
      ["Wall time", row.wall],
      ...extra,
    ];
    return h("dl", { class: "origin" }, entries.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }

  const hashes = (keys) => h("ul", { class: "hashes" }, keys.map((key) => h("li", {}, h("code", {}, key))));

  const rankColumn = { label: "Rank", cls: "rank", up: true, sort: (r) => r.rank, cell: (r) => (r.rank === null ? "" : String(r.rank)) };
  const agentColumn = (section) => ({ label: "Agent", cls: "left", up: true, sort: (r) => r.agent, cell: (r) => who(section, r.agent) });
  const scoreColumn = {
    label: "Score", title: "0 is random, 1 the oracle", sort: (r) => (r.score ? r.score[0] : null),
    cell: (r) => (r.score ? [fixed(r.score[0]), r.reference ? null : h("span", { class: "range under" }, range(r.score))] : ""),
  };

  function barColumn(section, rows) {
    const domain = scoreDomain(rows);
    return { label: "score and interval, drawn", cls: "bar wide", scale: scaleOf(domain), cell: (r) => scoreBar(section, r, domain) };
  }

  // --- views -------------------------------------------------------------------------------------

  function overview(section) {
    const title = h("h2", {}, `${capital(section.kind)}, ${section.protocol}`);
    const sweeps = section.sweeps.map((sweep) => h("section", {}, h("h3", {}, `Sweep: ${sweep.title}`), h("div", { class: "grid spaced" }, sweepCharts(section, sweep)), plainTable(`Sweep: ${sweep.title}`, sweep.columns, sweep.lines)));
    const inverted = section.tasks.filter((t) => t.inverted).map((t) => t.inverted);
    const left = inverted.length ? `${DATA.inverted}: ${inverted.join(", ")}. ` : "";
    if (section.nothing) { // nothing to rank: no empty table, filter or axes
      const link = h("a", { href: address(section, "tasks") }, "Scores task by task");
      return [h("section", {}, title, h("p", { class: "lead" }, `${section.nothing} ${left}`, link, ".")), ...sweeps];
    }
    const rows = section.rows.map((r) => ({ ...r, reference: section.references.includes(r.agent) }));
    const columns = [
      rankColumn,
      agentColumn(section),
      { ...scoreColumn, sort: (r) => (r.score && r.cells === r.expected ? r.score[0] : null) }, // partial scores last
      barColumn(section, rows),
      ...section.families.map((family) => ({
        label: capital(family), title: `Mean over the tasks with ${family} queries`, cls: "wide", sort: (r) => r.families[family]?.[0] ?? null,
        cell: (r) => (r.families[family] ? [fixed(r.families[family][0]), r.reference ? null : h("span", { class: "range under" }, range(r.families[family]))] : ""),
      })),
      { label: "IQM", title: "Interquartile mean over tasks × seeds", cls: "wide", sort: (r) => r.iqm?.[0] ?? null, cell: (r) => (r.iqm ? fixed(r.iqm[0]) : "") },
      { label: "µs", title: "Median microseconds a decision", up: true, sort: (r) => r.decision_us, cell: (r) => micros(r.decision_us) },
      { label: "Cells", title: "Runs scored of those planned", sort: (r) => r.cells, cell: (r) => (r.cells === r.expected ? String(r.cells) : `${r.cells}/${r.expected}`) },
    ];
    if (section.protocol === "pretrained") {
      columns.push(
        { label: "Training steps", title: "Environment steps of the trainings for these tasks", sort: (r) => r.train_steps, cell: (r) => (r.train_steps === null ? "" : Math.round(r.train_steps).toLocaleString("en")) },
        { label: "Training time", up: true, sort: (r) => r.train_seconds, cell: (r) => r.train_time || "" },
      );
    }
    const table = sortable({
      name: "Overall ranking", columns, rows, order: [2, "descending"],
      details: (row) => originList(row, [["Cells", `${row.cells} of ${row.expected}; their hashes stand in the rows of each task`]]),
    });
    const total = h("span", { class: "count", role: "status" });
    let needle = "", tag = "";
    function filter() {
      const kept = rows.filter((r) => r.agent.toLowerCase().includes(needle)).map((r) => {
        if (!tag) return r;
        const score = section.tags[tag][r.agent] || (r.agent === "oracle" ? [1, 1, 1] : r.agent === "random" ? [0, 0, 0] : null);
        return { ...r, score, families: {}, iqm: null, rank: null };
      });
      total.textContent = `${kept.length} of ${count(rows.length, "agent")}`;
      table.show(kept);
    }
    const tags = Object.keys(section.tags);
    const controls = h("div", { class: "controls" },
      h("label", {}, "Filter agents", h("input", { type: "search", id: "filter", oninput: (e) => { needle = e.target.value.trim().toLowerCase(); filter(); } })),
      tags.length ? h("label", {}, "Score over", h("select", { id: "tag", onchange: (e) => { tag = e.target.value; filter(); } },
        h("option", { value: "" }, "all headline tasks"), tags.map((t) => h("option", { value: t }, `tasks tagged ${t}`)))) : null,
      total);
    filter();
    const tied = section.tasks.filter((t) => !t.separates && !t.inverted).map((t) => t.task);
    const aside = section.tasks.filter((t) => t.separates && !t.headline).map((t) => t.task);
    const note = [
      `Mean score over ${section.families.length ? `the families ${section.families.join(" and ")} of ` : ""}${count(section.headline.length, "task")}: 0 is the random policy, 1 the oracle that knows the truth. `,
      "Agents share a rank unless a paired interval separates them from the best of it. ",
      tied.length ? `Left out because no pair of agents is separated on them: ${tied.join(", ")}. ` : "",
      left,
      aside.length ? `With a table of their own only: ${aside.join(", ")}.` : "",
    ].join("");
    return [
      h("section", {}, title, h("p", { class: "lead" }, note), controls, table.element),
      h("section", {}, h("h2", {}, "In pictures"), chips(section),
        h("div", { class: "grid" }, [clockChart(section), profileChart(section), tagChart(section)].filter(Boolean))),
      ...sweeps,
    ];
  }

  function taskLink(section, task) {
    return h("a", { href: address(section, "task", task.task), title: task.task }, task.task);
  }

  function tasksView(section) {
    const learning = section.agents.filter((a) => a !== "oracle" && a !== "random");
    const scores = new Map(section.tasks.map((t) => [t, new Map(t.rows.map((r) => [r.agent, r.score]))]));
    const first = (task) => task.rows.filter((r) => r.rank === 1).map((r) => r.agent);
    const firsts = (task) => {
      const [agent, ...others] = first(task);
      if (agent === undefined) return "";
      const more = others.length ? h("span", { class: "muted" }, ` and ${others.length} more`) : null;
      return h("span", { title: `Rank 1: ${first(task).join(", ")}` }, who(section, agent), more);
    };
    const columns = [
      { label: "Task", cls: "first", up: true, sort: (t) => t.task, cell: (t) => taskLink(section, t) },
      { label: "T", title: "Slots or queries of a run", cls: "wide", sort: (t) => t.horizon, cell: (t) => t.horizon.toLocaleString("en") },
      { label: "Rank 1", title: "The agents that share the first rank, best mean first", cls: "left", up: true, sort: (t) => first(t)[0] ?? null, cell: firsts },
      ...learning.map((agent) => ({
        label: agent, title: `${agent}: mean score on the task`, head: "agent", cls: "cell",
        sort: (t) => scores.get(t).get(agent)?.[0] ?? null,
        cell: (t) => {
          const score = scores.get(t).get(agent);
          return score ? fixed(score[0], 2) : "·";
        },
        shade: (t) => scores.get(t).get(agent)?.[0] ?? null,
      })),
    ];
    const table = sortable({ name: "Scores by task and agent", columns: columns.map(shaded), rows: section.tasks, order: [0, "ascending"], cls: "matrix" });
    const total = h("span", { class: "count", role: "status" });
    const tags = [...new Set(section.tasks.flatMap((t) => t.tags))].sort();
    let needle = "", tag = "";
    function filter() {
      const kept = section.tasks.filter((t) => t.task.toLowerCase().includes(needle) && (!tag || t.tags.includes(tag)));
      total.textContent = `${kept.length} of ${count(section.tasks.length, "task")}`;
      table.show(kept);
    }
    filter();
    return [h("section", {},
      h("h2", {}, "Tasks"),
      h("p", { class: "lead" }, "Mean score of every agent on every task; a task's page has its curves, its intervals and the hashes of its cells."),
      shadeKey(),
      h("div", { class: "controls" },
        h("label", {}, "Filter tasks", h("input", { type: "search", id: "filter", oninput: (e) => { needle = e.target.value.trim().toLowerCase(); filter(); } })),
        h("label", {}, "Tag", h("select", { id: "tag", onchange: (e) => { tag = e.target.value; filter(); } }, h("option", { value: "" }, "any"), tags.map((t) => h("option", { value: t }, t)))),
        total),
      table.element)];
  }

  const tint = (name, share) => `color-mix(in srgb, var(${name}) ${Math.round(100 * share)}%, transparent)`;

  /** Blue above 0, orange below: no better than random. */
  function shade(value) {
    const size = Math.min(1, Math.abs(value));
    return size < 0.005 ? "transparent" : tint(value > 0 ? "--heat" : "--warm", 0.06 + 0.5 * size);
  }

  function shadeKey() {
    const steps = [-1, -0.5, -0.1, 0, 0.1, 0.5, 1].map((value) => {
      const step = h("span", {}, value === -1 ? "≤ −1" : String(value).replace("-", "−"));
      step.style.background = shade(value);
      return step;
    });
    return h("p", { class: "key", "aria-label": "Colours of the scores" }, steps, h("span", {}, "· not played"));
  }

  /** Wrap a column's cells in a shade of their value. */
  function shaded(column) {
    if (!column.shade) return column;
    return { ...column, cell: (row) => {
      const value = column.shade(row);
      const content = h("span", {}, column.cell(row));
      if (value !== null) queueMicrotask(() => {
        if (content.parentElement) content.parentElement.style.background = shade(value);
      });
      return content;
    } };
  }

  function taskView(section, task) {
    const place = section.tasks.indexOf(task);
    const near = (step, word) => {
      const other = section.tasks[place + step];
      return other ? h("a", { href: address(section, "task", other.task) }, word, " ", other.task) : h("span", {});
    };
    const rows = task.rows.map((r) => ({ ...r, reference: section.references.includes(r.agent) }));
    const columns = [
      rankColumn, agentColumn(section), scoreColumn, barColumn(section, rows),
      ...task.columns.map((label, i) => ({ label, sort: (r) => leading(r.figures[i]), cell: (r) => r.figures[i], up: true })),
    ];
    const table = sortable({ name: `Agents on ${task.task}`, columns, rows, order: [2, "descending"], details: (row) => originList(row, [["Cells", hashes(row.keys)]]) });
    const parts = [
      h("div", { class: "crumbs" }, h("a", { href: address(section, "tasks") }, "All tasks"), h("span", {}, near(-1, "←"), " ", near(1, "→"))),
      h("section", {},
        h("h2", {}, task.task),
        h("p", { class: "lead" }, [task.about, `T = ${task.horizon.toLocaleString("en")}`, count(task.seeds, "seed")].filter(Boolean).join(", "),
          task.inverted ? `. ${DATA.inverted}: ${task.inverted}.`
            : task.tied ? `. ${task.tied}` : ""),
        h("p", {}, task.tags.map((t) => h("span", { class: "tag" }, t))),
        task.warnings.map((w) => h("p", { class: "warning" }, `Warning: ${w}.`)),
        h("p", { class: "small" }, h("code", {}, `${task.env} ${task.kwargs}`)),
        task.data.length ? h("p", { class: "small muted" }, "Data: ", task.data.map((d, i) => [i ? "; " : "", d])) : null),
      h("section", {}, chips(section), h("div", { class: "grid" }, task.panels.map((panel) => panelChart(section, panel, meanOver(task.seeds))),
        task.training ? panelChart(section, task.training, "Before the scored runs, one training each.") : null)),
      h("section", {}, h("h3", {}, "Agents"), table.element),
    ];
    const both = protocolsPart(section, task);
    if (both) parts.push(both);
    if (task.published) parts.push(publishedPart(task));
    if (task.llms) parts.push(h("section", {}, h("h3", {}, "LLMs"), h("p", { class: "lead" }, task.llms.note), plainTable(`LLMs of ${task.task}`, task.llms.columns, task.llms.lines)));
    if (task.heat) parts.push(trafficPart(section, task));
    return parts;
  }

  /** Agents of both protocols on one axis: to look at side by side, each block in its own order. */
  function protocolsPart(section, task) {
    const found = DATA.sections.filter((s) => s.kind === section.kind).flatMap((s) =>
      s.tasks.filter((t) => t.task === task.task).map((t) => [s, t.rows.filter((r) => r.score && !s.references.includes(r.agent)).map((r) => ({ ...r, protocol: s.protocol }))]));
    const blocks = found.filter(([, rows]) => rows.length);
    if (blocks.length < 2) return null;
    const domain = scoreDomain(blocks.flatMap(([, rows]) => rows));
    const head = h("tr", {}, ["Agent", "Score"].map((label, i) => h("th", { scope: "col", class: i ? null : "left" }, label)), h("th", { scope: "col", class: "bar" }, h("span", { class: "sr" }, "score and interval, drawn"), scaleOf(domain)));
    const bodies = blocks.map(([own, rows]) => h("tbody", {},
      h("tr", {}, h("th", { class: "left block", colspan: "3", scope: "rowgroup" }, own.protocol === "online" ? "● online: ignorant at the start, scored from the first step" : "◆ pretrained: trained before, then scored")),
      rows.map((row) => h("tr", { class: "row" }, h("td", { class: "left" }, who(own, row.agent)), h("td", {}, fixed(row.score[0]), h("span", { class: "range under" }, range(row.score))), h("td", { class: "bar" }, scoreBar(own, row, domain))))));
    const table = h("table", {}, h("caption", { class: "sr" }, "Scores under both protocols"), h("thead", {}, head), bodies);
    return h("section", {}, h("h3", {}, "Online and pretrained side by side"),
      h("p", { class: "lead" }, "The same task and seeds on one axis, 0 random, 1 the oracle. They are not ranked together: who was trained before knows more at the start."),
      scrolling("Scores under both protocols", table));
  }

  /** Figures of others beside the run's. */
  function publishedPart(task) {
    return h("section", {}, h("h3", {}, "Published figures"), h("p", { class: "lead" }, task.published),
      plainTable(task.published, task.published_columns, task.published_lines));
  }

  /** Lines of text under their columns, as they come. */
  function plainTable(title, columns, lines) {
    const head = h("tr", {}, columns.map((c, i) => h("th", { scope: "col", class: i ? null : "left" }, c)));
    const rows = lines.map((line) => h("tr", {}, line.map((c, i) => h("td", { class: i ? null : "left" }, c))));
    return scrolling(title, h("table", {}, h("caption", { class: "sr" }, title), h("thead", {}, head), h("tbody", {}, rows)));
  }

  function trafficPart(section, task) {
    const agents = Object.keys(task.heat.shares);
    const best = agents.find((a) => !section.references.includes(a)) || agents[0];
    const grid = h("div", { class: "grid" });
    const chosen = [agents[0], best];
    const selects = chosen.map((value, i) => h("label", {}, i ? "Right" : "Left", h("select", {
      id: `heat${i}`, onchange: (e) => { chosen[i] = e.target.value; fill(); },
    }, agents.map((a) => h("option", { value: a, selected: a === value }, a)))));
    const fill = () => grid.replaceChildren(...chosen.map((agent) => heatChart(section, task, agent)));
    fill();
    return h("section", {}, h("h3", {}, "Which LLM answers, stage by stage"), h("div", { class: "controls" }, selects), grid);
  }

  function pairsView(section) {
    const labels = section.agents.filter((a) => section.comparisons.some((p) => p.first === a || p.second === a));
    if (!labels.length) return [h("section", {}, h("h2", {}, "Pairs"), h("p", { class: "lead" }, section.nothing || "Fewer than two agents are ranked."))];
    const found = new Map();
    const key = (agent, other) => JSON.stringify([agent, other]);
    const turned = ([value, low, high], f) => [value, high, low].map((v) => (v === null ? null : f(v)));
    for (const { first, second, difference, improvement } of section.comparisons) {
      found.set(key(first, second), { difference, improvement });
      found.set(key(second, first), { difference: turned(difference, (x) => -x), improvement: turned(improvement, (x) => 1 - x) });
    }
    const rows = labels.map((agent) => {
      const cells = labels.map((other) => {
        const pair = found.get(key(agent, other));
        if (!pair) return h("td", { class: "cell muted" }, "·");
        const sure = pair.difference[1] > 0 || pair.difference[2] < 0;
        const p = pair.improvement[0];
        const cell = h("td", {
          class: sure ? "cell sure" : "cell",
          title: `${agent} against ${other}: probability ${fixed(p, 2)} ${range(pair.improvement)}; difference ${fixed(pair.difference[0])} ${range(pair.difference)}`,
        }, `${Math.round(100 * p)}`);
        cell.style.background = tint(p >= 0.5 ? "--heat" : "--warm", 0.9 * Math.abs(p - 0.5));
        return cell;
      });
      return h("tr", {}, h("th", { scope: "row", class: "first" }, who(section, agent)), cells);
    });
    const head = h("tr", {}, h("th", { class: "first", scope: "col" }, "better than →"), labels.map((a) => h("th", { scope: "col", class: "agent", title: a }, h("span", {}, a))));
    const table = h("table", { class: "matrix" }, h("caption", { class: "sr" }, "Probability of improvement"), h("thead", {}, head), h("tbody", {}, rows));
    const columns = [
      { label: "Agent", cls: "left", up: true, sort: (r) => r.first, cell: (r) => who(section, r.first) },
      { label: "against", cls: "left", up: true, sort: (r) => r.second, cell: (r) => who(section, r.second) },
      { label: "Difference", title: "Of the scores, paired by seed", sort: (r) => r.difference[0], cell: (r) => [fixed(r.difference[0]), h("span", { class: "range" }, range(r.difference))] },
      { label: "Probability of improvement", sort: (r) => r.improvement[0], cell: (r) => [fixed(r.improvement[0], 2), h("span", { class: "range" }, range(r.improvement))] },
    ];
    const pairs = sortable({ name: "Paired differences", columns, rows: section.comparisons, order: [2, "descending"] });
    return [
      h("section", {}, h("h2", {}, "Probability of improvement"),
        h("p", { class: "lead" }, "How often, in percent, a run of the row's agent scores above one of the column's, averaged over the headline tasks with the weights of the score. Bold: the paired difference of the two scores is separated from 0."),
        scrolling("Probability of improvement", table)),
      h("section", {}, h("h2", {}, "Paired differences"), h("p", { class: "lead" }, "Both with 95% intervals of the same stratified bootstrap: tasks are strata, seeds are resampled together."),
        h("details", { open: section.comparisons.length <= 30 }, h("summary", {}, `All ${count(section.comparisons.length, "pair")}`), pairs.element)),
    ];
  }

  function runsView() {
    const parts = [h("section", {}, h("h2", {}, "Where the runs come from"),
      h("p", { class: "lead" }, `${count(DATA.cells, "cell")} on the board. A cell is task × agent × seed × protocol, stored under the SHA-256 of all that decides its result.`),
      h("div", { class: "grid" }, DATA.origins.map((_, i) => h("div", { class: "card pad" }, originList({ origin: i, seeds: "", wall: "" }).cloneNode(true)))))];
    parts[0].querySelectorAll("dl").forEach((list) => { while (list.children.length > 10) list.lastChild.remove(); });
    const lists = [
      ["The oracle was beaten", DATA.violations.map((v) => [v])],
      ["Above the oracle, perhaps by chance", DATA.warnings.map((v) => [v])],
      ["Failed cells", DATA.failures],
      ["Skipped", DATA.skipped],
      ["Not run", DATA.missing.map((m) => [m])],
    ];
    for (const [title, entries] of lists) {
      if (!entries.length) continue;
      parts.push(h("section", {}, h("h2", {}, title, " ", h("span", { class: "muted small" }, String(entries.length))),
        h("div", { class: "card pad" }, entries.map(([name, reason]) => h("p", {}, name, reason ? [": ", h("code", {}, reason)] : "")))));
    }
    if (parts.length === 1) parts.push(h("p", { class: "lead" }, "No cell failed, none is missing, nothing was skipped."));
    return parts;
  }

  function aboutView(section) {
    const [score, ...rest] = section.legend.split(/(?<!\()(?=\*[^*]+\*:)/);
    const entry = (part) => {
      const found = /^\*([^*]+)\*: ?([\s\S]*)$/.exec(part.trim());
      return found ? [h("dt", {}, capital(found[1])), h("dd", {}, emphasised(found[2].replace(/[;,]\s*$/, ".")))] : [h("dd", {}, emphasised(part))];
    };
    return [h("section", { class: "prose" },
      h("h2", {}, "How to read it"),
      h("dl", {}, [score, ...rest].filter((p) => p.trim()).flatMap(entry),
        h("dt", {}, "Score over several tasks"), h("dd", {}, emphasised(DATA.score)),
        h("dt", {}, "Intervals and ranks"), h("dd", {}, emphasised(DATA.intervals)),
        h("dt", {}, "Pairs"), h("dd", {}, "The probability of improvement is Mann and Whitney's U over its maximum, averaged over tasks with the weights of the score. Being separated is not transitive, so look there before reading much into two neighbouring ranks."),
        h("dt", {}, "Protocols"), h("dd", {}, "online: every agent starts ignorant and is scored from its first step. pretrained: an agent was trained before the scored run and is frozen. A table never mixes them."),
        section.sweeps.length ? [h("dt", {}, "Sweeps"), h("dd", {}, emphasised(section.sweeps[0].note))] : null))];
  }

  // --- routes ------------------------------------------------------------------------------------

  function address(section, view, name) {
    return "#" + ["", section.kind, section.protocol, view, ...(name === undefined ? [] : [name])].map(encodeURIComponent).join("/");
  }

  function place() {
    let parts = [];
    try { parts = location.hash.slice(1).split("/").slice(1).map(decodeURIComponent); } catch { /* not ours */ }
    const [kind, protocol, view, name] = parts;
    const section = DATA.sections.find((s) => s.kind === kind && s.protocol === protocol)
      || DATA.sections.find((s) => s.kind === kind) || DATA.sections[0];
    const task = view === "task" && section ? section.tasks.find((t) => t.task === name) : null;
    return { section, view: task ? "task" : VIEWS.some(([v]) => v === view) ? view : "overview", task };
  }

  function navigation({ section, view, task }) {
    const kinds = [...new Set(DATA.sections.map((s) => s.kind))];
    const here = view === "task" ? "tasks" : view;
    byId("problems").replaceChildren(...(kinds.length > 1 ? kinds : []).map((kind) => {
      const target = DATA.sections.find((s) => s.kind === kind && s.protocol === section.protocol) || DATA.sections.find((s) => s.kind === kind);
      return h("a", { href: address(target, here), "aria-current": kind === section.kind ? "true" : null }, capital(kind));
    }));
    byId("protocols").replaceChildren(...["online", "pretrained"].map((protocol) => {
      const target = DATA.sections.find((s) => s.kind === section.kind && s.protocol === protocol);
      if (!target) return h("span", { "aria-disabled": "true", title: `No agent was run ${protocol} here` }, capital(protocol));
      const same = task && target.tasks.some((t) => t.task === task.task);
      const href = same ? address(target, "task", task.task) : address(target, here);
      return h("a", { href, "aria-current": protocol === section.protocol ? "true" : null }, capital(protocol));
    }));
    byId("views").replaceChildren(...VIEWS.map(([name, label]) =>
      h("a", { href: address(section, name), "aria-current": name === here ? "page" : null }, label)));
  }

  function render(move = true) {
    const { section, view, task } = place();
    forgetCharts();
    const main = byId("main");
    if (!section) {
      main.replaceChildren(...runsView());
      return;
    }
    navigation({ section, view, task });
    const build = {
      overview: () => overview(section), tasks: () => tasksView(section), task: () => taskView(section, task),
      pairs: () => pairsView(section), runs: runsView, about: () => aboutView(section),
    }[view];
    const alarms = [
      ...DATA.violations.map((v) => h("p", { class: "alarm", role: "alert" }, `The oracle was beaten. ${v}`)),
      DATA.failures.length && view !== "runs" ? h("p", { class: "alarm" }, `${count(DATA.failures.length, "cell")} failed: `, h("a", { href: address(section, "runs") }, "see which and why"), ".") : null,
      DATA.missing.length && view !== "runs" ? h("p", { class: "muted" }, `${count(DATA.missing.length, "cell")} not run yet.`) : null,
    ].filter(Boolean);
    main.replaceChildren(...alarms, ...build());
    document.title = `${task ? task.task + " · " : ""}${DATA.suite} · llmqueue_gym leaderboard`;
    if (move) window.scrollTo(0, 0);
  }

  const agents = new Set(DATA.sections.flatMap((s) => s.agents)).size;
  const tasks = new Set(DATA.sections.flatMap((s) => s.tasks.map((t) => t.task))).size;
  byId("facts").textContent = [count(tasks, "task"), count(agents, "agent"), count(DATA.cells, "run")].join(" · ");
  byId("command").textContent = DATA.command;
  window.addEventListener("hashchange", () => { render(); byId("main").focus({ preventScroll: true }); });
  window.addEventListener("plotly", redraw);
  applyTheme();
  render(false);
})();
