// The board's plain pages: their tables sort, an agent's page draws its curves.

const render = () => redraw();

/** Make the headers of a table that is there already sort it; what is missing stays last. */
function sortedByHeads(table) {
  const body = table.tBodies[0];
  const value = (row, place) => {
    const cell = row.cells[place];
    return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
  };
  const compare = (x, y) => (typeof x === "string" || typeof y === "string" ? byNumbers(String(x), String(y)) : x - y);
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const button = h("button", {
      type: "button", class: "sort",
      onclick: () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const some = [...body.rows].filter((row) => value(row, place) !== "");
        const none = [...body.rows].filter((row) => value(row, place) === "");
        some.sort((a, b) => (up ? 1 : -1) * compare(value(a, place), value(b, place)));
        body.replaceChildren(...some, ...none);
      },
    }, head.textContent);
    head.replaceChildren(button);
  });
  return table;
}

for (const region of document.querySelectorAll(".scroll")) {
  region.replaceWith(scrolling(region.getAttribute("aria-label"), sortedByHeads(region.querySelector("table"))));
}

/** An agent's curves on a task that is to be chosen, beside the references. */
function curves(place) {
  const drawing = h("div", {});
  const show = (file) => load(file, ({ section, task }) => {
    const others = section.agents.filter((agent) => agent !== DATA.agent && !section.references.includes(agent));
    task.hidden ??= new Set(others);
    forgetCharts();
    const grid = h("div", { class: "grid" }, task.panels.map((panel) => panelChart(section, task, panel, meanOver(task.seeds))));
    drawing.replaceChildren(chips(section, task), grid);
  });
  const select = h("select", { onchange: (e) => show(e.target.value) }, DATA.curves.map(([name, file]) => h("option", { value: file }, name)));
  place.replaceChildren(h("div", { class: "controls" }, h("label", {}, "Task", select)), drawing);
  show(DATA.curves[0][1]);
}

if (byId("curve")) curves(byId("curve"));
window.addEventListener("plotly", redraw);
applyTheme();
