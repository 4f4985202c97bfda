// Charts: drawn by Plotly when they come into view.

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

/** Size of letters; charts on paper are smaller, by as much as `page.css` makes their heights. */
const inked = (size) => (onPaper ? 0.81 * size : size);

function baseLayout() {
  const ink = colour("--ink");
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: inked(12.5), color: colour("--muted") },
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
  if (ticks.length > (narrow() ? 4 : 6)) ticks = ticks.filter((v) => /^(1|0\.0*1)0*$/.test(v.toPrecision(1).replace(/e.*/, "")) || String(v).replace(/[0.]/g, "")[0] === "1");
  const label = (v) => (v >= 1000 ? v.toLocaleString("en") : String(+v.toPrecision(2)));
  return { tickmode: "array", tickvals: ticks, ticktext: ticks.map(label) };
}

function alpha(color, share) {
  const parts = /^#(..)(..)(..)$/.exec(color).slice(1).map((x) => parseInt(x, 16));
  return `rgba(${parts.join(",")},${share})`;
}

/** Line and band; the band is a polygon without hover, which may tell other numbers than are drawn. */
function lineWithBand(section, agent, x, mean, low, high, hover, told = undefined) {
  const look = style(section, agent);
  const traces = [];
  if (low && high) {
    traces.push({
      x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()],
      fill: "toself", fillcolor: alpha(look.color, 0.16), line: { width: 0 }, mode: "lines", hoverinfo: "skip", type: "scatter",
    });
  }
  traces.push({ x, y: mean, customdata: told, mode: "lines", type: "scatter", name: escaped(agent), line: { color: look.color, dash: look.dash, width: look.width }, hovertemplate: hover });
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
    text: escaped(shortened(agent, narrow() ? 11 : 16)), font: { size: inked(narrow() ? 10 : 11.5), color: style(section, agent).color },
  }));
}

const besides = () => (narrow() ? 72 : 116); // pixels for those names

const meanOver = (seeds) => `Mean over ${count(seeds, "seed")}${seeds > 1 ? ", band one standard error" : ""}.`;

const trainedOver = (panel) => Object.values(panel.lines).some((line) => line[1])
  ? "Before the scored runs: mean over trainings, band one standard error." : "Before the scored runs, one training each.";

/** How a panel's values are drawn on an axis of y that Plotly takes for a linear one, and that axis. */
function upright(panel) {
  const [low, high] = panel.yRange, linear = panel.linearBelow, floor = Math.max(low, 1e-9);
  if (panel.yScale === "linear") return { scaled: (v) => v, range: panel.yRange, ticks: {} };
  const scaled = panel.yScale === "log"
    ? (v) => Math.log10(Math.max(v, floor))
    : (v) => (Math.abs(v) <= linear ? v / linear : Math.sign(v) * (1 + Math.log10(Math.abs(v) / linear)));
  const powers = (end) => (end < linear ? [] : Array.from({ length: Math.floor(Math.log10(end / linear) + 1.001) }, (_, i) => linear * 10 ** i));
  const values = panel.yScale === "log"
    ? logTicks(floor, high).tickvals
    : [...powers(-low).map((v) => -v), 0, ...powers(high)];
  const ticks = { tickmode: "array", tickvals: values.map(scaled), ticktext: values.map((v) => v.toLocaleString("en", { maximumSignificantDigits: 2 })) };
  return { scaled, range: panel.yRange.map(scaled), ticks };
}

function panelChart(section, task, panel, note) {
  const [low, high] = panel.xRange;
  return chart(capital(panel.quantity), note, () => {
    const { scaled, range, ticks } = upright(panel);
    const data = panel.marks.map(([x, y]) => ({
      x, y: y.map(scaled), mode: "lines", hoverinfo: "skip", type: "scatter", line: { color: colour("--muted"), width: 1, dash: y[0] === y[1] ? "solid" : "dot" },
    }));
    const ends = [];
    for (const agent of shown(section, task)) {
      const line = panel.lines[agent];
      if (!Array.isArray(line)) continue;
      const [mean, error, own] = line;
      ends.push([agent, scaled(mean.at(-1))]);
      const lower = error && mean.map((m, i) => scaled(m - error[i]));
      const upper = error && mean.map((m, i) => scaled(m + error[i]));
      data.push(...lineWithBand(section, agent, own || panel.x, mean.map(scaled), lower, upper, "%{customdata:,.4~g}", mean));
    }
    const across = panel.xScale === "log"
      ? { type: "log", range: [Math.log10(low), Math.log10(high)], ...logTicks(low, high) }
      : { range: [low, high], tickformat: "," };
    return {
      data,
      layout: {
        hovermode: "x unified",
        margin: { ...baseLayout().margin, r: besides() },
        annotations: endLabels(section, ends, range, narrow() ? 240 : 300),
        xaxis: axis(panel.across, { ...across, unifiedhovertitle: { text: "t = %{x:,.0f}" } }),
        yaxis: axis("", { range, ...ticks }),
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
      text: [escaped(shortened(row.agent, 20))], textposition: places[i], textfont: { color: colour("--ink"), size: inked(11.5) },
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
        yaxis: axis("", { showgrid: false, autorange: "reversed", tickmode: "array", tickvals: labels, ticktext: heat.names.map((n) => escaped(shortened(n, narrow() ? 14 : 26))), tickfont: { size: inked(11) } }),
      },
    };
  }, true);
  figure.querySelector(".chart").style.height = `${Math.max(15, 5 + heat.names.length * 1.05)}rem`;
  return figure;
}

// --- fleets: what replicas host, and where users are ------------------------------------------

const placeColours = () => [colour("--warm"), colour("--accent"), isDark() ? "#7d8694" : "#9a9a9a"];

/** Runs of the same number: [from, to), number. */
function runsOf(row) {
  const found = [];
  row.forEach((value, i) => {
    if (i && value === row[i - 1]) found.at(-1)[1] = i + 1;
    else found.push([i, i + 1, value]);
  });
  return found;
}

function fleetChart(task, agent) {
  const fleet = task.fleets[agent];
  const note = `Seed ${fleet.seed}. A row is a replica, a colour an LLM, the fuller the busier; grey: loading; blank: empty.`;
  const figure = chart(`Fleet of ${agent}`, note, () => {
    const rows = fleet.replicas.map((_, r) => r);
    const centre = fleet.edges.slice(1).map((edge, i) => (edge + fleet.edges[i]) / 2);
    const look = PALETTE[isDark() ? "dark" : "light"];
    const layer = (z, colorscale, name) => ({
      type: "heatmap", z, x: fleet.edges, y: rows, zmin: 0, zmax: 100, colorscale, showscale: false, ygap: 3,
      customdata: rows.map((r) => centre.map((_, i) => [escaped(fleet.replicas[r]), fleet.edges[i], fleet.edges[i + 1]])),
      hovertemplate: `<b>%{customdata[0]}</b>, slots %{customdata[1]:,} to %{customdata[2]:,}<br>${name}<extra></extra>`,
      yaxis: "y",
    });
    const where = (host, value) => fleet.hosts.map((row, r) => row.map((h, i) => (h === host ? value(r, i) : null)));
    const data = fleet.llms.map((llm, m) => {
      const tone = look[m % look.length];
      return layer(where(m, (r, i) => fleet.load[r][i]), [[0, alpha(tone, 0.16)], [1, alpha(tone, isDark() ? 0.6 : 0.75)]], `${escaped(llm)}, %{z:.0f}% of its places in use`);
    });
    const grey = isDark() ? "#4a525f" : "#c9c7c0";
    data.push(layer(where(-2, () => 50), [[0, grey], [1, grey]], "loading"));
    const least = (narrow() ? 0.24 : 0.13) * centre.length;
    const annotations = fleet.hosts.flatMap((row, r) => runsOf(row).filter(([from, to, host]) => host >= 0 && to - from >= least).map(([from, to, host]) => ({
      x: fleet.edges[from], y: r, xref: "x", yref: "y", xanchor: "left", xshift: 3, showarrow: false, align: "left",
      text: escaped(shortened(fleet.llms[host], Math.floor(((narrow() ? 38 : 64) * (to - from)) / centre.length))), font: { size: inked(11), color: colour("--ink") },
    })));
    const names = task.spent ? task.spent.places : Object.keys(fleet.people), tones = placeColours();
    const highest = Math.max(1, ...names.flatMap((name) => fleet.people[name])) * 1.08;
    names.forEach((name, k) => {
      data.push({ type: "scatter", mode: "lines", x: centre, y: fleet.people[name], yaxis: "y2", line: { color: tones[k], width: 1.8 }, name, hovertemplate: `${name} %{y:.3~g}<extra></extra>` });
    });
    const ends = names.map((name, k) => [name, fleet.people[name].at(-1), tones[k]]).sort((a, b) => a[1] - b[1]);
    const least2 = (ROOM / 105) * highest;
    ends.forEach((end, i) => { if (i) end[1] = Math.max(end[1], ends[i - 1][1] + least2); });
    annotations.push(...ends.map(([name, y, tone]) => ({
      xref: "paper", x: 1, xanchor: "left", xshift: 4, yref: "y2", y, yanchor: "middle", showarrow: false, text: name, font: { size: inked(narrow() ? 10 : 11.5), color: tone },
    })));
    const span = [fleet.edges[0], fleet.edges.at(-1)], top = 1 - rows.length * 26 / (rows.length * 26 + 130);
    return {
      data,
      layout: {
        margin: { l: 20, r: 74, t: 6, b: 44 },
        annotations,
        xaxis: axis("slot", { showgrid: false, range: span, nticks: narrow() ? 4 : 7, tickformat: ",", anchor: "y2" }),
        yaxis: axis("", { showgrid: false, zeroline: false, domain: [top, 1], range: [rows.length - 0.5, -0.5], tickmode: "array", tickvals: rows, ticktext: fleet.replicas.map((n) => escaped(n)), tickfont: { size: inked(11) } }),
        yaxis2: axis("users", { domain: [0, top - 0.06], range: [0, highest], nticks: 4, zeroline: false }),
      },
    };
  });
  figure.querySelector(".chart").style.height = `${13 + 1.75 * fleet.replicas.length}rem`;
  return figure;
}

/** Stacked bars of one group of users, an agent a row; all groups of a task have one axis. */
function spentChart(section, task, title, of) {
  const { places, slots } = task.spent;
  const agents = () => shown(section, task).filter((a) => slots[a]);
  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const figure = chart(title, "", () => {
    const drawn = agents(), tones = placeColours(), size = narrow() ? 13 : 17;
    const totals = drawn.map((a) => sum(of(slots[a])));
    // What is random may wait for ever: the axis is for the others.
    const others = drawn.filter((a) => a !== "random");
    const most = Math.max(1e-9, ...(others.length ? others : drawn).map((a) => Math.max(...Object.values(task.spentGroups).map((f) => sum(f(slots[a])))))) * 1.35;
    return {
      data: places.map((place, k) => ({
        type: "bar", orientation: "h", x: drawn.map((a) => of(slots[a])[k]), y: drawn.map((_, i) => i), marker: { color: tones[k] },
        customdata: drawn.map(escaped), hovertemplate: `<b>%{customdata}</b><br>${escaped(place)}: %{x:.3~g} slots<extra></extra>`,
      })),
      layout: {
        barmode: "stack", bargap: 0.3,
        margin: { l: 10, r: 10, t: 4, b: 30 },
        annotations: drawn.map((_, i) => {
          const beyond = totals[i] > most, text = (+totals[i].toPrecision(3)).toLocaleString("en");
          return {
            x: beyond ? most : totals[i], y: i, xanchor: beyond ? "right" : "left", xshift: beyond ? 0 : 3, showarrow: false, font: { size: inked(11), color: colour("--ink") },
            ...(beyond ? { bgcolor: colour("--card"), text: ` ${text} →` } : { text }),
          };
        }),
        xaxis: axis("", { range: [0, most], nticks: 4 }),
        yaxis: axis("", { showgrid: false, zeroline: false, tickmode: "array", tickvals: drawn.map((_, i) => i), ticktext: drawn.map((a) => escaped(shortened(a, size))), tickfont: { size: inked(11) }, range: [drawn.length - 0.5, -0.5] }),
      },
    };
  });
  figure.querySelector(".chart").style.height = "15rem";
  return figure;
}
