// The views of a section: overview, tasks, one task, pairs, runs, how to read it.

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
    { label: "Task", cls: "first", up: true, sort: (t) => t.task, cell: (t) => [taskLink(section, t), t.retired ? h("span", { class: "tag" }, "retired") : null] },
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
    ...task.columns.map((label, i) => ({ label, sort: (r) => leading(r.figures[i]), cell: (r) => unbroken(r.figures[i]), up: true })),
  ];
  const table = sortable({ name: `Agents on ${task.task}`, columns, rows, order: [2, "descending"], details: (row) => originList(row, [["Cells", hashes(row.keys)]]) });
  const parts = [
    h("div", { class: "crumbs" }, h("a", { href: address(section, "tasks") }, "All tasks"), h("span", {}, near(-1, "←"), " ", near(1, "→"))),
    h("section", {},
      h("h2", {}, task.task),
      h("p", { class: "lead" }, [task.about, `T = ${task.horizon.toLocaleString("en")}`, count(task.seeds, "seed")].filter(Boolean).join(", "),
        task.inverted ? `. ${DATA.inverted}: ${task.inverted}.`
          : task.tied ? `. ${task.tied.replace(/\.$/, "")}` : "",
        task.retired ? ". Retired: the interval of the best score reaches 1 and begins at .95 or above, so there is next to nothing left to win." : ""),
      h("p", {}, task.tags.map((t) => h("span", { class: "tag" }, t))),
      task.warnings.map((w) => h("p", { class: "warning" }, `Warning: ${w}.`)),
      h("p", { class: "small" }, h("code", {}, `${task.env} ${task.kwargs}`)),
      task.data.length ? h("p", { class: "small muted" }, "Data: ", task.data.map((d, i) => [i ? "; " : "", d])) : null),
    h("section", {}, chips(section, task), h("div", { class: "grid" }, task.panels.map((panel) => panelChart(section, task, panel, meanOver(task.seeds))),
      task.training ? panelChart(section, task, task.training, trainedOver(task.training)) : null)),
    h("section", {}, h("h3", {}, "Agents"), table.element),
  ];
  const both = protocolsPart(section, task);
  if (both) parts.push(both);
  if (task.published) parts.push(publishedPart(task));
  if (task.llms) parts.push(h("section", {}, h("h3", {}, "LLMs"), h("p", { class: "lead" }, task.llms.note), folded(task.llms.lines.length, "LLM", plainTable(`LLMs of ${task.task}`, task.llms.columns, task.llms.lines))));
  if (task.heat) {
    parts.push(beside("Which LLM answers, stage by stage", null, task, Object.keys(task.heat.shares), (agent) => heatChart(section, task, agent)));
  }
  if (task.spent) parts.splice(3, 0, spentPart(section, task));
  if (Object.keys(task.fleets).length) {
    const drawn = drawable(section, task).filter((a) => task.fleets[a]);
    const order = [...drawn.filter((a) => a === "oracle"), ...task.rows.map((r) => r.agent).filter((a) => a !== "oracle" && drawn.includes(a))];
    parts.splice(3, 0, beside("The fleet over time", "What each replica hosts and how busy it is, and below it how many users wait, are served, and think before they come back.", task, order, (agent) => fleetChart(task, agent)));
  }
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

/** A table that is open at first unless it is long. */
const folded = (length, what, table) => h("details", { open: length <= 30 }, h("summary", {}, length > 1 ? `All ${count(length, what)}` : count(length, what)), table);

/** Lines of text under their columns, as they come. */
function plainTable(title, columns, lines) {
  const head = h("tr", {}, columns.map((c, i) => h("th", { scope: "col", class: i ? null : "left" }, c)));
  const rows = lines.map((line) => h("tr", {}, line.map((c, i) => h("td", { class: i ? null : "left" }, c))));
  return scrolling(title, h("table", {}, h("caption", { class: "sr" }, title), h("thead", {}, head), h("tbody", {}, rows)));
}

/** Charts of two agents side by side, each to be chosen: at first the first one and the best that is ranked. */
function beside(title, lead, task, agents, draw) {
  const best = agents.find((a) => task.rows.some((r) => r.agent === a && r.rank === 1)) || agents.at(-1);
  const grid = h("div", { class: "grid" });
  const chosen = [agents[0], best];
  const selects = chosen.map((value, i) => h("label", {}, i ? "Right" : "Left", h("select", {
    onchange: (e) => { chosen[i] = e.target.value; fill(); },
  }, agents.map((a) => h("option", { value: a, selected: a === value }, a)))));
  const fill = () => grid.replaceChildren(...chosen.map(draw));
  fill();
  return h("section", {}, h("h3", {}, title), lead ? h("p", { class: "lead" }, lead) : null, h("div", { class: "controls" }, selects), grid);
}

/** Where users spend their time: small multiples of one axis, a group of attempts or queries each. */
function spentPart(section, task) {
  const { places, groups, slots } = task.spent;
  const all = Object.values(slots);
  const seen = groups.map((_, g) => all.some((of) => of[g].some((v) => v > 0)));
  task.spentGroups = Object.fromEntries(groups.map((name, g) => [capital(name), (of) => of[g]]).filter((_, g) => seen[g]));
  const key = h("p", { class: "key squares" }, places.map((place, k) => h("span", { class: `place${k}` }, place)));
  return h("section", {}, h("h3", {}, "Where users spend their time"),
    h("p", { class: "lead" }, `Mean slots a user of the run, of ${count(task.seeds, "seed")}; all charts have one axis, which random may leave (→).`), key,
    h("div", { class: "grid small" }, Object.entries(task.spentGroups).map(([title, of]) => spentChart(section, task, title, of))));
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
    h("section", {}, h("h2", {}, "Paired differences"), h("p", { class: "lead" }, "Both with 95% intervals of the same bootstrap over seeds: a seed is drawn with its runs of all tasks."),
      folded(section.comparisons.length, "pair", pairs.element)),
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
