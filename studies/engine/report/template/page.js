"use strict";
// Two things are shared by the table, the charts and the card: which trials are picked, and which one is pointed at.
// A trial is known by its row in the tables of all studies together. Trials that a chart picked come first in the
// table; a click on a row leaves the order as it is.

const page = JSON.parse(document.getElementById("data").textContent);
const PAGE_ROWS = 25, SVG_TRIALS = 500, ERRORS_ALONE = 1;
const table = page.table, states = page.states;
const trials = page.trials.id.map((_, i) =>
  Object.fromEntries(Object.entries(page.trials).map(([name, column]) => [name, column[i]])));
const trialOf = new Map(trials.map(trial => [trial.id, trial]));
const dark = matchMedia("(prefers-color-scheme: dark)"), touch = matchMedia("(pointer: coarse)");
const find = selector => document.querySelector(selector);
const views = new Map();  // of the charts, by the elements that hold them

let picked = null, gathered = false, pointed = null;
let shown = states.includes("finished") ? "finished" : states[0], sorted = {name: "rank", up: true}, first = 0;

function make(tag, text = "", properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  element.textContent = text;
  return element;
}

// --- the table

function rowsShown() {
  const values = table.values[sorted.name] ?? table.values.trial;
  const rows = states.map((_, row) => row).filter(row => states[row] === shown);
  const direction = sorted.up ? 1 : -1;
  const order = (a, b) => {
    const [x, y] = [values[a], values[b]];
    if (x === null || y === null) return (x === null) - (y === null);  // what is missing comes last, both ways
    return direction * (x < y ? -1 : x > y ? 1 : 0) || a - b;
  };
  rows.sort(order);
  return picked && gathered ? [...rows.filter(row => picked.has(row)), ...rows.filter(row => !picked.has(row))] : rows;
}

function columnsShown() {
  return table.columns.filter(name => states.some((state, row) => state === shown && table.texts[name][row] !== ""));
}

function drawTable() {
  const columns = columnsShown(), rows = rowsShown();
  first = Math.max(0, Math.min(first, rows.length - 1));
  first -= first % PAGE_ROWS;
  const head = document.createElement("tr");
  for (const name of columns) {
    const cell = make("th");
    if (name === sorted.name) cell.ariaSort = sorted.up ? "ascending" : "descending";
    cell.append(make("button", name.replace(/[./]/, "$&\n"), {onclick: () => sortBy(name), title: `sort by ${name}`}));
    cell.dataset.column = name;
    head.append(cell);
  }
  head.append(make("th", "again"));
  find(".trials thead").replaceChildren(head);
  find(".trials tbody").replaceChildren(...rows.slice(first, first + PAGE_ROWS).map(row => drawRow(row, columns)));
  drawTabs();
  const last = Math.min(first + PAGE_ROWS, rows.length);
  find("#pages span").textContent = `${first + 1} to ${last} of ${rows.length}`;
  find("#pages").hidden = rows.length <= PAGE_ROWS;
  find("#back").disabled = first === 0;
  find("#next").disabled = last === rows.length;
}

function drawRow(row, columns) {
  const line = document.createElement("tr");
  line.dataset.row = row;
  line.className = page.groups[row] + (picked?.has(row) ? " picked" : "") + (row === pointed ? " pointed" : "");
  line.append(...columns.map(name => make("td", table.texts[name][row], {className: name === "trial" ? "group" : ""})));
  const cell = make("td");
  if (page.commands[row]) cell.append(copyButton(row));
  line.append(cell);
  line.onmouseenter = () => point(row);
  line.onclick = () => { togglePicked(row); hold(row); };
  return line;
}

function drawTabs() {
  const counts = new Map();
  for (const state of states) counts.set(state, (counts.get(state) ?? 0) + 1);
  find("#tabs").replaceChildren(...[...counts].map(([state, count]) => {
    const button = make("button", `${count} ${state}`, {onclick: () => showState(state)});
    button.ariaPressed = String(state === shown);
    return button;
  }));
}

function sortBy(name) {
  sorted = {name, up: sorted.name === name ? !sorted.up : true};
  first = 0;
  drawTable();
}

function showState(state) {
  [shown, first] = [state, 0];
  if (!columnsShown().includes(sorted.name)) sorted = {name: page.target, up: page.up};
  drawTable();
}

function copyButton(row) {
  const button = make("button", "copy", {title: page.commands[row]});
  button.onclick = async event => {
    event.stopPropagation();
    await copy(page.commands[row]);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  };
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page from the disk may lack the right
    const area = make("textarea", text);
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

// --- selection

function pick(rows, source = null) {
  picked = rows && rows.size ? rows : null;
  gathered = picked !== null && (source !== null || gathered);
  if (source !== null) first = 0;
  const signal = picked && Object.fromEntries([...picked].map(row => [row, true]));
  for (const [holder, view] of views) {
    if (holder !== source) clearBrush(view);
    view.signal("picked", signal).runAsync();
  }
  const count = picked?.size ?? 0;
  find("#selection").textContent = count
    ? `${count} selected${gathered ? " (they come first)" : ""}` : "Drag over a chart, or click rows, to select trials.";
  find("#clear").hidden = !count;
  drawTable();
}

function togglePicked(row) {
  const rows = new Set(picked ?? []);
  if (!rows.delete(row)) rows.add(row);
  pick(rows);
}

function clearBrush(view) {
  try {
    view.signal("brush_x", [0, 0]).signal("brush_y", [0, 0]);
  } catch { /* a chart without a brush */ }
}

// Return the trials within a brush: what lies beyond the end of an axis is drawn at the end.
function within(view, brush) {
  const ranges = Object.entries(brush).map(([name, range]) => [name.replaceAll("\\", ""), range]);
  const domains = {x: view.scale("x"), y: view.scale("y")};
  const inside = (value, range, scale) => {
    if (value === null || value === undefined) return false;
    if (typeof range[0] !== "number") return range.includes(value);
    const ends = scale && typeof scale.domain()[0] === "number" ? scale.domain() : [-Infinity, Infinity];
    const clipped = Math.min(Math.max(value, Math.min(...ends)), Math.max(...ends));
    return clipped >= Math.min(...range) && clipped <= Math.max(...range);
  };
  const axes = brush.axis;
  const holds = trial => axes
    ? trial.drawn && axes.every(axis => inside(trial[axis], brush.height))
    : ranges.every(([name, range], i) => inside(trial[name], range, domains["xy"[i]]));
  return new Set(trials.filter(holds).map(trial => trial.id));
}

// --- pointing

function point(row) {
  if (row === pointed) return;
  find(`tr[data-row="${pointed}"]`)?.classList.remove("pointed");
  pointed = row;
  find(`tr[data-row="${pointed}"]`)?.classList.add("pointed");
  for (const view of views.values()) {
    try {
      view.data("pointed", trialPointed()).runAsync();
    } catch { /* a chart without trials */ }
  }
  showCard(row);
}

function trialPointed() {
  return trialOf.has(pointed) ? [{...trialOf.get(pointed)}] : [];
}

function hold(row) {
  point(row);
  find("#card").classList.add("shown");
}

function showCard(row) {
  if (row === null) return;
  const card = find("#card"), entries = document.createElement("dl");
  const title = make("h3", `Trial ${table.values.trial[row]}, ${page.groups[row]}`);
  for (const name of table.columns) {
    if (["trial", "rank"].includes(name) || table.texts[name][row] === "") continue;
    entries.append(make("dt", name), make("dd", table.texts[name][row]));
  }
  const bar = make("div", "", {className: "bar"});
  if (page.commands[row]) bar.append(make("span", "Train it again:"), copyButton(row));
  bar.append(make("button", "close", {className: "close", onclick: () => card.classList.remove("shown")}));
  card.replaceChildren(title, bar, ...drawPictures(row), entries);
}

function drawPictures(row) {
  const pictures = page.pictures[row];
  if (!pictures) return [make("p", "Pictures are drawn of the best trials alone.", {className: "quiet"})];
  const figures = Object.entries(pictures.embedded).map(([name, source]) => {
    const figure = make("figure");
    figure.append(make("img", "", {src: source, alt: name}), make("figcaption", page.captions[name]));
    return figure;
  });
  const links = Object.entries(pictures.links).map(([name, address]) => make("a", `${name} `, {href: address}));
  const more = make("p", links.length ? "More: " : "", {className: "quiet"});
  more.append(...links);
  return [...figures, more];
}

// --- charts

async function draw(holder, spec) {
  views.get(holder)?.finalize();
  views.delete(holder);
  const whole = {
    ...structuredClone(spec), width: "container", autosize: {type: holder.id === "importances" ? "fit-x" : "fit", contains: "padding"},
    datasets: {...page.sets, trials, pointed: trialPointed()}, config: page.themes[dark.matches ? "dark" : "light"],
  };
  if (touch.matches) for (const layer of whole.layer) delete layer.params;  // a finger scrolls the page
  const renderer = trials.length > SVG_TRIALS ? "canvas" : "svg";
  const {view} = await vegaEmbed(holder, whole, {renderer, actions: false, tooltip: false, logLevel: ERRORS_ALONE});
  views.set(holder, view);
  const idOf = item => item?.datum?.id ?? item?.items?.[0]?.datum?.id;
  view.addEventListener("mousemove", (_, item) => { if (idOf(item) !== undefined) point(idOf(item)); });
  view.addEventListener("click", (_, item) => { if (idOf(item) !== undefined) hold(idOf(item)); });
  try {
    view.addSignalListener("brush", (_, brush) => brushed(holder, view, brush));
  } catch { /* a chart without a brush */ }
}

let waiting = 0;
function brushed(holder, view, brush) {
  if (!Object.keys(brush).length && !views.has(holder)) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    if (Object.keys(brush).length) pick(within(view, brush), holder);
  }, 60);
}

async function drawEffects() {
  const panels = find("#panels");
  if (!panels) return;
  for (const holder of panels.querySelectorAll(".chart")) {
    views.get(holder)?.finalize();
    views.delete(holder);
  }
  const specs = Object.values(page.effects[find("#effects select").value]);
  const figures = specs.map(() => { const figure = make("figure"); figure.append(make("div", "", {className: "chart"})); return figure; });
  panels.replaceChildren(...figures);
  for (const [i, spec] of specs.entries()) await draw(figures[i].firstChild, spec);
}

async function drawCharts() {
  const charts = Object.entries(page.charts);
  for (const [name] of charts) find(`figure.${name}`).hidden = false;  // all, before one is given its width
  for (const [name, spec] of charts) await draw(document.getElementById(name), spec);
  await drawEffects();
  if (picked) pick(picked);
  document.body.dataset.drawn = "yes";
}

find("#clear").onclick = () => pick(null);
find("#back").onclick = () => { first -= PAGE_ROWS; drawTable(); };
find("#next").onclick = () => { first += PAGE_ROWS; drawTable(); };
if (find("#effects")) find("#effects select").onchange = async () => { await drawEffects(); if (picked) pick(picked); };
for (const chip of document.querySelectorAll(".chip")) {
  const is = row => String(table.values.trial[row]) === chip.dataset.trial;
  const row = states.findIndex((_, i) => is(i) && (!table.values.study || table.values.study[i] === chip.dataset.study));
  chip.onmouseenter = () => point(row);
  chip.onclick = () => { togglePicked(row); hold(row); };
}
dark.addEventListener("change", drawCharts);
drawTable();
const best = page.groups.indexOf("best");  // of several targets there is none
if (best >= 0) point(best);
drawCharts();
