// What everything on the page is made of: elements, numbers as text, the theme, the agents' looks.
// Text from the data only ever becomes text nodes, or is escaped for Plotly.

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
  h("span", { class: "who", title: agent }, swatch(section, agent), named(agent));

/** An agent's name; on the board it leads to the agent's page. */
const named = (agent) =>
  (DATA.pages?.[agent] ? h("a", { class: "name", href: DATA.pages[agent] }, agent) : h("span", { class: "name" }, agent));

/** What the board knows of an agent that somebody has handed in. */
const submitted = (agent) => DATA.submissions?.[agent];

/** The agents that a page of a section, or of one of its tasks, can draw. */
const drawable = (section, task) => (task ? section.agents.filter((a) => task.rows.some((r) => r.agent === a)) : section.agents);

/** Those not drawn; at first all but the best, by the rows of the task if there is one. */
function hiddenAgents(section, task) {
  const owner = task || section;
  if (!owner.hidden) {
    const learning = (task ? task.rows.map((r) => r.agent) : section.agents).filter((a) => !section.references.includes(a));
    owner.hidden = new Set(learning.slice(VISIBLE));
  }
  return owner.hidden;
}

const shown = (section, task) => drawable(section, task).filter((a) => !hiddenAgents(section, task).has(a));

function chips(section, task) {
  const list = h("ul", { class: "chips", "aria-label": "Agents in the charts" });
  for (const agent of drawable(section, task)) {
    const button = h("button", {
      type: "button", class: "chip", title: agent, "aria-pressed": String(!hiddenAgents(section, task).has(agent)),
      onclick: () => {
        const hidden = hiddenAgents(section, task);
        if (!hidden.delete(agent)) hidden.add(agent);
        button.setAttribute("aria-pressed", String(!hidden.has(agent)));
        redraw();
      },
    }, swatch(section, agent), h("span", {}, agent));
    list.append(h("li", {}, button));
  }
  return list;
}
