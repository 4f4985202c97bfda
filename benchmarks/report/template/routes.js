// The address' hash says what is shown.

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
  if (task && task.file) { // the board's tasks come when they are asked for
    load(task.file, (part) => { Object.assign(task, part.task, { file: null }); render(move); });
    return;
  }
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
