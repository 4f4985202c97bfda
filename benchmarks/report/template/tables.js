// Tables: sorted by their headers; scores drawn as bars; where a row comes from.

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
    const least = typeof x === "string" ? byNumbers(x, y) : x - y;
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
    const tr = h("tr", { class: ["row", row.reference ? "reference" : "", submitted(row.agent)?.mark || ""].join(" ").trim() }, cells);
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

/** Compare texts, and the decimal numbers in them by their size: load0.59 before load0.7. */
function byNumbers(a, b) {
  const [x, y] = [a, b].map((text) => text.split(/(\d+(?:\.\d+)?)/));
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    const least = i % 2 ? x[i] - y[i] : x[i].localeCompare(y[i], "en");
    if (least) return least;
  }
  return x.length - y.length;
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

/** A figure whose interval stays on one line where paper makes the columns narrow. */
const unbroken = (figure) => figure.split(/ (?=\[)/).map((part, i) => [i ? " " : "", h("span", { class: "figure" }, part)]);

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
    ...(submitted(row.agent)?.facts || []).map(([name, links]) =>
      [name, links.map(([label, href], i) => [i ? ", " : "", href ? h("a", { href }, label) : label])]),
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
