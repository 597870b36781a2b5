"use strict";
// All text reaches the document as text nodes or attributes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function el(tag, attributes = {}, ...children) {
  const svg = tag.startsWith("svg:");
  const node = svg ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const known = (x) => typeof x === "number" && Number.isFinite(x);
function figures(x, digits = 4) {
  if (!known(x)) return "";
  const text = Math.abs(x) >= 1e6 || (x !== 0 && Math.abs(x) < 1e-4) ? x.toExponential(digits - 2) : x.toPrecision(digits);
  return String(Number(text));
}
const unique = (list) => [...new Set(list)];

// --- theme
function paint(theme) {
  const dark = theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
}
$("theme").addEventListener("change", () => paint($("theme").value));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint($("theme").value));
paint("auto");

// --- controls
function select(label, options, value, change) {
  const made = el("select", { "aria-label": label, onchange: () => change(made.value) }, ...options.map(([key, text]) => el("option", { value: key, selected: key === value }, text)));
  return el("label", {}, label, " ", made);
}
function check(label, checked, change) {
  const box = el("input", { type: "checkbox", checked, onchange: () => change(box.checked) });
  return el("label", {}, box, " ", label);
}
function search(label, change) {
  const box = el("input", { type: "search", "aria-label": label, placeholder: "words to find", oninput: () => change(box.value) });
  return el("label", {}, label, " ", box);
}
const all = (name) => [["", `all ${name}`]];
const options = (list) => list.map((item) => [String(item), String(item)]);

const classes = (column) => [column.numeric ? "number" : "", column.word ? "word" : ""].filter(Boolean).join(" ") || null;

// --- sortable and filterable tables
// A column: {title, small, numeric, value(row), cell(row), head}; value sorts, cell shows (a node or a text).
function table(place, more, columns, rows, page = 200, details = null) {
  const state = { sort: null, up: true, keep: () => true, shown: page, columns };
  const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
  function sorted() {
    const kept = rows.filter(state.keep);
    const column = state.columns.find((c) => c.title + c.small === state.sort);
    if (!column) return kept;
    const missing = (x) => x === null || x === undefined || x === "" || Number.isNaN(x);
    return kept.sort((p, q) => {
      const [a, b] = [column.value(p), column.value(q)];
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return (state.up ? 1 : -1) * order(a, b);
    });
  }
  function header(column) {
    const name = column.title + column.small;
    const now = state.sort === name ? (state.up ? "ascending" : "descending") : "none";
    const press = () => { state.up = state.sort === name ? !state.up : column.up !== false; state.sort = name; draw(); place.querySelector(`[aria-sort="ascending"] button, [aria-sort="descending"] button`).focus(); };
    const sign = el("span", { class: "sign", "aria-hidden": "true" }, now === "none" ? "" : state.up ? "▲" : "▼");
    return el("th", { scope: "col", class: classes(column), "aria-sort": now, title: column.tip }, el("button", { type: "button", onclick: press }, column.title, sign), ...sup(column.marks || []), column.small ? el("small", {}, column.small) : null);
  }
  function line(row) {
    const cells = state.columns.map((c) => el(c.head ? "th" : "td", { scope: c.head ? "row" : null, class: classes(c) }, c.cell(row)));
    const made = [el("tr", {}, ...cells)];
    if (details) {
      const below = el("tr", { class: "details", hidden: true }, el("td", { colspan: cells.length }));
      const open = el("button", { type: "button", "aria-expanded": "false", class: "open", "aria-label": `Details of ${row.id}`, onclick: () => {
        if (below.hidden && !below.firstChild.firstChild) below.firstChild.append(details(row));
        below.hidden = !below.hidden; open.setAttribute("aria-expanded", String(!below.hidden)); } }, "details");
      cells[0].append(" ", open);
      made.push(below);
    }
    return made;
  }
  function draw() {
    const found = sorted();
    place.replaceChildren(el("thead", {}, el("tr", {}, ...state.columns.map(header))), el("tbody", {}, ...found.slice(0, state.shown).flatMap(line)));
    more.replaceChildren(`${Math.min(found.length, state.shown)} of ${found.length} lines${found.length < rows.length ? `, ${rows.length - found.length} filtered out` : ""}`);
    if (found.length > state.shown) more.append(el("button", { type: "button", onclick: () => { state.shown += page; draw(); } }, `Show ${page} more`));
  }
  return { draw, set: (changes) => { Object.assign(state, changes); draw(); } };
}

// --- results
const several = (key) => unique(data.rows.map((row) => row[key])).length > 1;
const metric = (name) => data.columns.find((c) => c.key === name || c.name === name);
const number = (row, key) => (row.v[key] ? row.v[key][0] : null);
function interval(row, key) {
  const [, low, high] = row.v[key] || [];
  return known(low) && known(high) ? `[${figures(low, 3)}, ${figures(high, 3)}]` : "";
}
function numberColumn(c) {
  const arrow = c.higher === null ? "" : c.higher ? " ↑" : " ↓";
  const show = (row) => {
    if (!known(number(row, c.key))) return "";
    const [text, range] = [figures(number(row, c.key)), interval(row, c.key)];
    return el("span", { class: (row.best || []).includes(c.key) ? "best" : null }, text, range ? el("small", {}, range) : null);
  };
  return { key: c.key, title: c.name + arrow, small: c.network, marks: c.marks, numeric: true, up: c.higher === false || c.cost, value: (row) => number(row, c.key), cell: show, tip: c.higher === null ? null : c.higher ? "higher is better" : "lower is better" };
}
const sup = (marks) => (marks.length ? [el("sup", {}, marks.join(","))] : []);
function words(title, key, head = false) {
  return { title, small: "", head, word: !head, value: (row) => row[key], cell: (row) => (row[key] === null || row[key] === undefined ? "" : String(row[key])) };
}
// On a narrow screen this stands below the method, in place of columns of its own.
const where = (row) => [row.dataset, several("settings") ? row.settings : null, known(row.strength) ? `strength ${figures(row.strength)}` : null, `n ${row.n}`, row.status === "done" ? null : row.status].filter(Boolean).join(", ");
const alike = (a, b) => ["method", "dataset", "backbone", "settings"].every((key) => a[key] === b[key]);
const atDefault = (row) => row.main || !known(row.strength) || !data.rows.some((other) => other.main && alike(row, other));
function results() {
  const keep = { text: "", dataset: "", method: "", backbone: "", strengths: false };
  const marked = { ...words("method", "method", true), cell: (row) => el("span", {}, row.method, ...sup(row.marks), el("small", { class: "where" }, where(row))) };
  const front = [marked, words("dataset", "dataset")];
  if (several("backbone")) front.push(words("backbone", "backbone"));
  if (data.rows.some((row) => data.rows.some((r) => r.method === row.method && r.backbone === row.backbone && r.settings !== row.settings))) front.push(words("settings", "settings"));
  front.push({ ...words("strength", "strength"), numeric: true }, { ...words("n", "n"), numeric: true, tip: "training seeds" });
  const state = { title: "status", small: "", word: true, value: (row) => row.status, cell: (row) => (row.status === "done" ? "" : el("span", { class: `status ${row.status}`, title: row.reason }, row.status)) };
  if (data.rows.some((row) => row.status !== "done")) front.push(state);
  const columns = (everything) => [...front, ...data.columns.filter((c) => everything || c.first).map(numberColumn)];
  const made = table($("results-table"), $("results-more"), columns(false), data.rows);
  const defaults = new Set(data.rows.filter(atDefault));
  const text = (row) => [row.method, row.dataset, row.backbone, row.settings, row.status, row.reason].join(" ").toLowerCase();
  const refresh = () => made.set({ keep: (row) => (keep.strengths || defaults.has(row)) && ["dataset", "method", "backbone"].every((k) => !keep[k] || String(row[k]) === keep[k]) && keep.text.toLowerCase().split(/\s+/).every((word) => text(row).includes(word)) });
  const choice = (key, name) => select(key, [...all(name), ...options(unique(data.rows.map((row) => row[key])))], "", (value) => { keep[key] = value; refresh(); });
  $("results-controls").append(search("Find", (value) => { keep.text = value; refresh(); }), choice("method", "methods"), choice("dataset", "datasets"), several("backbone") ? choice("backbone", "backbones") : "", check("all metrics and costs", false, (on) => made.set({ columns: columns(on) })), check("every strength", false, (on) => { keep.strengths = on; refresh(); }));
  refresh();
}

// --- plots
const seriesName = (row) => row.method + (several("backbone") ? ` on ${row.backbone}` : "") + (several("settings") && data.rows.some((r) => r.method === row.method && r.backbone === row.backbone && r.settings !== row.settings) ? ` ${row.settings}` : "");
const plotted = data.rows.filter((row) => row.status === "done");
const names = unique(plotted.map(seriesName)).sort();
const colour = (name) => `var(--c${names.indexOf(name) % 10})`;
const SHAPES = ["M-4,0A4,4 0 1,0 4,0A4,4 0 1,0 -4,0Z", "M-4,-4H4V4H-4Z", "M0,-5L5,4H-5Z", "M0,-5.5L5,0L0,5.5L-5,0Z", "M0,5L5,-4H-5Z", "M-5,-2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z"];
const shape = (name) => SHAPES[names.indexOf(name) % SHAPES.length];
function ticks(low, high, count = 5) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const made = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) made.push(Number((k * step).toPrecision(12)));
  return made;
}
function scale(values, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= pad; high += pad; }
  const pad = (high - low) * 0.06;
  low -= pad; high += pad;
  return { low, high, at: (x) => from + ((x - low) / (high - low)) * (to - from), ticks: ticks(low, high) };
}
// series: [{name, points: [{x, xl, xh, y, yl, yh, strength}]}]
function plot(title, series, xlabel, ylabel, front = null) {
  const [w, h, left, right, top, bottom] = [420, 300, 54, 10, 10, 40];
  const points = series.flatMap((s) => s.points);
  const range = (k) => points.flatMap((p) => [p[k], p[`${k}l`], p[`${k}h`]]).filter(known);
  const x = scale(range("x"), left, w - right), y = scale(range("y"), h - bottom, top);
  const svg = el("svg:svg", { viewBox: `0 0 ${w} ${h}`, role: "group", "aria-label": `${title}: ${ylabel} over ${xlabel}` });
  for (const t of x.ticks) svg.append(el("svg:line", { class: "grid", x1: x.at(t), x2: x.at(t), y1: top, y2: h - bottom }), el("svg:text", { x: x.at(t), y: h - bottom + 15, "text-anchor": "middle" }, figures(t)));
  for (const t of y.ticks) svg.append(el("svg:line", { class: "grid", x1: left, x2: w - right, y1: y.at(t), y2: y.at(t) }), el("svg:text", { x: left - 6, y: y.at(t) + 4, "text-anchor": "end" }, figures(t)));
  svg.append(el("svg:line", { class: "axis", x1: left, x2: w - right, y1: h - bottom, y2: h - bottom }), el("svg:line", { class: "axis", x1: left, x2: left, y1: top, y2: h - bottom }));
  svg.append(el("svg:text", { class: "label", x: (left + w - right) / 2, y: h - 6, "text-anchor": "middle" }, xlabel), el("svg:text", { class: "label", transform: `translate(13 ${(top + h - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, ylabel));
  const path = (list) => list.map((p, i) => `${i ? "L" : "M"}${x.at(p.x).toFixed(1)},${y.at(p.y).toFixed(1)}`).join("");
  if (front) svg.append(el("svg:path", { d: path(front), fill: "none", stroke: "var(--soft)", "stroke-dasharray": "4 4" }));
  for (const s of series) {
    svg.append(el("svg:path", { d: path(s.points), fill: "none", stroke: colour(s.name), "stroke-width": 1.6, opacity: front ? 0.55 : 1 }));
    for (const p of s.points) {
      if (known(p.yl)) svg.append(el("svg:line", { x1: x.at(p.x), x2: x.at(p.x), y1: y.at(p.yl), y2: y.at(p.yh), stroke: colour(s.name), opacity: 0.6 }));
      if (known(p.xl)) svg.append(el("svg:line", { x1: x.at(p.xl), x2: x.at(p.xh), y1: y.at(p.y), y2: y.at(p.y), stroke: colour(s.name), opacity: 0.6 }));
      const text = `${s.name}, strength ${figures(p.strength)}: ${xlabel} ${figures(p.x)}, ${ylabel} ${figures(p.y)}${known(p.yl) ? ` [${figures(p.yl, 3)}, ${figures(p.yh, 3)}]` : ""}`;
      const ring = front && front.includes(p);
      svg.append(el("svg:path", { class: ring ? "mark front" : "mark", d: shape(s.name), transform: `translate(${x.at(p.x)} ${y.at(p.y)})${ring ? " scale(1.25)" : ""}`, fill: colour(s.name), stroke: ring ? "var(--ink)" : "var(--panel)", "stroke-width": ring ? 1.4 : 0.8, tabindex: 0, role: "img", "aria-label": text, "data-series": s.name, "data-strength": p.strength }, el("svg:title", {}, text)));
    }
  }
  return el("figure", {}, el("figcaption", {}, title), svg);
}
function legend(place, series) {
  place.replaceChildren(...names.filter((name) => series.has(name)).map((name) => el("span", {}, el("svg:svg", { viewBox: "-13 -7 26 14", "aria-hidden": "true" }, el("svg:path", { d: "M-12,0H12", stroke: colour(name), "stroke-width": 1.6 }), el("svg:path", { d: shape(name), fill: colour(name) })), name)));
}
function grouped(rows, point) {
  const made = new Map();
  for (const row of [...rows].sort((a, b) => (a.strength ?? 0) - (b.strength ?? 0))) {
    const p = point(row);
    if (p) made.set(seriesName(row), [...(made.get(seriesName(row)) || []), p]);
  }
  return [...made].map(([name, points]) => ({ name, points }));
}
function nondominated(points, xUp, yUp) {
  const better = (a, b, up) => (up ? a >= b : a <= b);
  const beats = (p, q) => better(p.x, q.x, xUp) && better(p.y, q.y, yUp) && (p.x !== q.x || p.y !== q.y);
  return points.filter((q) => !points.some((p) => beats(p, q))).sort((a, b) => a.x - b.x);
}
const axis = (c) => c.name + (c.higher === null ? (c.cost ? " ↓" : "") : c.higher ? " ↑" : " ↓");
const styles = () => unique(plotted.map((row) => row.dataset));
function panels(place, legendPlace, make) {
  const used = new Set(), figures = [];
  for (const dataset of styles()) {
    const series = make.series(plotted.filter((row) => row.dataset === dataset));
    if (!series.length) continue;
    series.forEach((s) => used.add(s.name));
    figures.push(make.figure(dataset, series));
  }
  legend(legendPlace, used);
  place.replaceChildren(...(figures.length ? figures : [el("p", {}, "No record has both numbers.")]));
}
const ofRow = (row, key, name) => ({ [name]: number(row, key), [`${name}l`]: (row.v[key] || [])[1], [`${name}h`]: (row.v[key] || [])[2] });
function curves() {
  const usable = data.columns.filter((c) => plotted.some((row) => known(row.strength) && known(number(row, c.key))));
  if (!usable.length) return $("curves-panels").append("No finished cell has numbers.");
  let key = (data.sweeps.map(metric).find((c) => usable.includes(c)) || usable[0]).key;
  const draw = () => panels($("curves-panels"), $("curves-legend"), {
    series: (rows) => grouped(rows, (row) => known(row.strength) && known(number(row, key)) && { x: row.strength, strength: row.strength, ...ofRow(row, key, "y") }),
    figure: (dataset, series) => plot(dataset, series, "strength", axis(metric(key))),
  });
  $("curves-controls").append(select("Metric", usable.map((c) => [c.key, c.key]), key, (value) => { key = value; draw(); }));
  draw();
}
function fronts() {
  const usable = data.columns.filter((c) => (c.cost || c.higher !== null) && plotted.some((row) => known(number(row, c.key))));
  const pairs = data.fronts.map(([label, a, b]) => [label, metric(a), metric(b)]).filter(([, a, b]) => usable.includes(a) && usable.includes(b));
  if (usable.length < 2) return $("fronts-panels").append("No finished cell has two numbers to weigh.");
  let [x, y] = pairs.length ? pairs[0].slice(1).map((c) => c.key) : [usable[0].key, usable[1].key];
  const buttons = pairs.map(([label, a, b]) => el("button", { type: "button", onclick: () => { [x, y] = [a.key, b.key]; draw(); } }, label));
  const choose = el("div", { class: "controls" });
  function draw() {
    pairs.forEach(([, a, b], i) => buttons[i].setAttribute("aria-pressed", String(a.key === x && b.key === y)));
    const list = usable.map((c) => [c.key, c.key]);
    choose.replaceChildren(select("Across", list, x, (value) => { x = value; draw(); }), select("Up", list, y, (value) => { y = value; draw(); }));
    const [cx, cy] = [metric(x), metric(y)];
    panels($("fronts-panels"), $("fronts-legend"), {
      series: (rows) => grouped(rows, (row) => known(number(row, x)) && known(number(row, y)) && { strength: row.strength, ...ofRow(row, x, "x"), ...ofRow(row, y, "y") }),
      figure: (dataset, series) => plot(dataset, series, axis(cx), axis(cy), nondominated(series.flatMap((s) => s.points), cx.higher === true, cy.higher === true)),
    });
  }
  $("fronts-controls").append(...buttons, choose);
  draw();
}

// --- galleries
const pictures = {};
function picture(g, r, c) {
  pictures[g] ??= JSON.parse($(`images-${g}`).textContent);
  const found = pictures[g][`${r} ${c}`];
  return found ? data.prefix + found : null;
}
const lazy = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (!entry.isIntersecting) return;
  const { g, r, c } = entry.target.dataset;
  entry.target.src = picture(g, r, c);
  lazy.unobserve(entry.target);
}), { rootMargin: "300px" });
const PARTS = [["first", "first"], ["random", "random"], ["median", "median"], ["worst", "worst"], ["own", "own worst"], ["all", "all"]];
const PAGE = 12;
const shown = { g: 0, part: "first", every: false, page: 0, side: 128 };
function rowName(gallery, row) {
  const twins = gallery.rows.filter((other) => other.method === row.method);
  return [row.method, `strength ${figures(row.strength)}`, unique(twins.map((o) => o.seed)).length > 1 ? `seed ${row.seed}` : null, unique(twins.map((o) => o.settings)).length > 1 ? row.settings : null].filter(Boolean).join(", ");
}
const shotName = (gallery, c) => `${gallery.prompts[gallery.shots[c][0]] ?? `prompt ${gallery.shots[c][0]}`} (seed ${gallery.shots[c][1]})`;
const valueOf = (gallery, r, c) => (known(gallery.rows[r].values[c]) ? `${gallery.metric} ${figures(gallery.rows[r].values[c], 3)}` : "");
function shot(gallery, r, c, named) {
  if (c === undefined || !gallery.rows[r].has[c]) return el("td", {}, el("span", { class: "blank" }, "no image"));
  const alt = `${rowName(gallery, gallery.rows[r])}: ${shotName(gallery, c)}`;
  const value = [named ? shotName(gallery, c) : "", valueOf(gallery, r, c)].filter(Boolean).join(": ");
  const label = value ? el("small", {}, value) : null;
  if (!picture(shown.g, r, c)) return el("td", {}, el("span", { class: "blank", title: alt }, "left out (page limit)"), label);
  const img = el("img", { alt, "data-g": shown.g, "data-r": r, "data-c": c, loading: "lazy" });
  lazy.observe(img);
  return el("td", {}, el("button", { type: "button", class: "shot", onclick: () => view(r, c) }, img), label);
}
function visible(gallery) {
  const rows = gallery.rows.map((_, r) => r).filter((r) => shown.every || gallery.rows[r].main);
  if (shown.part === "all") return [rows, gallery.shots.map((_, c) => c).slice(shown.page * PAGE, (shown.page + 1) * PAGE)];
  return [rows, gallery.picks[shown.part] || []];
}
function drawGallery() {
  const gallery = data.galleries[shown.g];
  const [rows, columns] = visible(gallery);
  const place = $("gallery");
  place.style.setProperty("--side", `${shown.side}px`);
  place.classList.toggle("pixels", gallery.pixels);
  $("training").classList.toggle("pixels", gallery.pixels);
  const own = shown.part === "own";
  const heads = own ? Array.from({ length: Math.max(0, ...rows.map((r) => gallery.rows[r].own.length)) }, (_, k) => `own worst ${k + 1}`) : columns.map((c) => shotName(gallery, c));
  const body = rows.map((r) => el("tr", {}, el("th", { scope: "row" }, rowName(gallery, gallery.rows[r])), ...(own ? gallery.rows[r].own : columns).map((c) => shot(gallery, r, c, own))));
  place.replaceChildren(el("thead", {}, el("tr", {}, el("td", {}), ...heads.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, ...body));
  const more = $("gallery-more");
  more.replaceChildren(heads.length ? "" : gallery.metric || ["first", "random", "all"].includes(shown.part) ? "No column meets this part of the rule." : "These rows have no per-image metric in common.");
  const pages = Math.ceil(gallery.shots.length / PAGE);
  if (shown.part === "all" && pages > 1) {
    const turn = (by) => el("button", { type: "button", disabled: shown.page + by < 0 || shown.page + by >= pages, onclick: () => { shown.page += by; drawGallery(); } }, by < 0 ? "Earlier" : "Later");
    more.replaceChildren(turn(-1), `columns ${shown.page * PAGE + 1} to ${Math.min((shown.page + 1) * PAGE, gallery.shots.length)} of ${gallery.shots.length}`, turn(1));
  }
}
function drawTraining() {
  const { images, reason } = data.galleries[shown.g].training;
  $("training").style.setProperty("--side", "128px");
  $("training").replaceChildren(...images.map((image) => el("figure", {}, el("img", { src: data.prefix + image.data, alt: `${image.label}: ${image.caption}` }), el("figcaption", {}, image.label))), reason ? el("p", { class: "note" }, `Training images: ${reason}.`) : "");
}
function galleries() {
  if (!data.galleries.length) return $("gallery-more").append("No finished cell has images here.");
  const buttons = PARTS.map(([key, text]) => el("button", { type: "button", "data-part": key, onclick: () => { shown.part = key; shown.page = 0; refresh(); } }, text));
  function refresh() {
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.part === shown.part)));
    drawTraining(); drawGallery();
  }
  const list = data.galleries.map((gallery, g) => [String(g), gallery.title]);
  $("galleries-controls").append(
    select("Dataset", list, "0", (value) => { shown.g = Number(value); shown.page = 0; refresh(); }),
    el("fieldset", { "aria-label": "Part of the rule" }, ...buttons),
    check("every row (all strengths and training seeds)", false, (on) => { shown.every = on; refresh(); }),
    select("Size", [["96", "small"], ["128", "medium"], ["224", "large"]], "128", (value) => { shown.side = Number(value); refresh(); }));
  refresh();
}

// --- viewer: one image, another row's at the same prompt and noise, and the training images
const viewed = { r: 0, c: 0, other: null };
function view(r, c) {
  Object.assign(viewed, { r, c });
  drawViewer();
  if (!$("viewer").open) $("viewer").showModal();
}
function bigFigure(src, alt, caption, here = false) {
  return el("figure", { class: here ? "here" : null }, src ? el("img", { src, alt }) : el("span", { class: "blank" }, "left out (page limit)"), el("figcaption", {}, caption));
}
function rowFigure(gallery, r, here) {
  const name = rowName(gallery, gallery.rows[r]);
  return bigFigure(picture(shown.g, r, viewed.c), `${name}: ${shotName(gallery, viewed.c)}`, [name, valueOf(gallery, r, viewed.c)].filter(Boolean).join(" · "), here);
}
function drawViewer() {
  const gallery = data.galleries[shown.g], row = gallery.rows[viewed.r];
  $("viewer-title").textContent = shotName(gallery, viewed.c);
  const others = gallery.rows.map((_, r) => r).filter((r) => r !== viewed.r && picture(shown.g, r, viewed.c));
  if (!others.includes(viewed.other)) viewed.other = null;
  $("viewer-images").classList.toggle("pixels", gallery.pixels);
  $("viewer-images").replaceChildren(rowFigure(gallery, viewed.r, true), ...(viewed.other === null ? [] : [rowFigure(gallery, viewed.other, false)]), ...gallery.training.images.map((image) => bigFigure(data.prefix + image.data, `${image.label}: ${image.caption}`, `${image.label}: ${image.caption}`)));
  const rows = [["", "nothing"], ...others.map((r) => [String(r), rowName(gallery, gallery.rows[r])])];
  const step = (label, dr, dc) => el("button", { type: "button", disabled: !moved(dr, dc), onclick: () => move(dr, dc) }, label);
  $("viewer-controls").replaceChildren(step("← prompt", 0, -1), step("prompt →", 0, 1), step("↑ row", -1, 0), step("↓ row", 1, 0), select("Beside it", rows, viewed.other === null ? "" : String(viewed.other), (value) => { viewed.other = value === "" ? null : Number(value); drawViewer(); }));
  $("viewer-text").textContent = `Cell ${row.cell}, training seed ${row.seed}; the file is ${row.folder}/${row.has[viewed.c]}. Arrow keys go to other prompts and rows.`;
}
function moved(dr, dc) {
  const gallery = data.galleries[shown.g];
  const there = (r, c) => r >= 0 && r < gallery.rows.length && c >= 0 && c < gallery.shots.length;
  let [r, c] = [viewed.r + dr, viewed.c + dc];
  while (there(r, c) && !picture(shown.g, r, c)) [r, c] = [r + dr, c + dc];
  return there(r, c) ? [r, c] : null;
}
function move(dr, dc) {
  const next = moved(dr, dc);
  if (next) view(...next);
}
$("viewer-close").addEventListener("click", () => $("viewer").close());
$("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
$("viewer").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!step || event.target.tagName === "SELECT") return;
  event.preventDefault();
  move(...step);
});

// --- cells
function copyable(text) {
  const button = el("button", { type: "button", onclick: async () => {
    try { await navigator.clipboard.writeText(text); button.textContent = "copied"; } catch { getSelection().selectAllChildren(button.previousSibling); button.textContent = "selected"; }
  } }, "copy");
  return el("div", {}, el("pre", { tabindex: 0 }, text), button);
}
function spark(values) {
  if (values.length < 2) return "";
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const d = values.map((v, i) => `${i ? "L" : "M"}${(i / (values.length - 1)) * 88 + 1},${20 - ((v - low) / (high - low || 1)) * 18}`).join("");
  return el("svg:svg", { class: "spark", viewBox: "0 0 90 22", role: "img", "aria-label": `training loss from ${figures(values[0], 3)} to ${figures(values[values.length - 1], 3)}` }, el("svg:path", { d }));
}
function facts(pairs) {
  const plain = (value) => (value !== null && typeof value === "object" ? Object.entries(value).map(([k, v]) => `${k} ${v}`).join(", ") : known(value) ? figures(value) : String(value));
  return el("dl", {}, ...Object.entries(pairs).filter(([, v]) => v !== null && v !== undefined).flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, plain(value))]));
}
function cellDetails(cell) {
  return el("div", {}, el("h3", {}, "Make it again"), cell.command ? copyable(cell.command) : "Its record is of an older version that kept fewer settings.", el("h3", {}, "Provenance"), facts({ ...cell.times, ...data.provenances[cell.provenance] }), el("h3", {}, "Cost"), facts(cell.cost), ...(cell.notes.length ? [el("h3", {}, "Notes"), el("ul", {}, ...cell.notes.map((note) => el("li", {}, note)))] : []));
}
function cells() {
  const cost = (key) => ({ title: key, small: "", numeric: true, value: (cell) => cell.cost[key] ?? null, cell: (cell) => figures(cell.cost[key], 3) });
  const columns = [
    { ...words("cell", "id", true), cell: (cell) => el("code", {}, cell.id) },
    { title: "status", small: "", value: (cell) => cell.status, cell: (cell) => el("span", { class: `status ${cell.status}` }, cell.status) },
    words("method", "method"), words("dataset", "dataset"), { ...words("seed", "seed"), numeric: true },
    { title: "strengths", small: "", value: (cell) => cell.strengths.length, cell: (cell) => cell.strengths.map((s) => figures(s)).join(", ") },
    cost("train_s"), cost("peak_gb"),
    { title: "loss", small: "", value: (cell) => cell.losses[cell.losses.length - 1] ?? null, cell: (cell) => spark(cell.losses) },
    { title: "started", small: "", value: (cell) => cell.times.started, cell: (cell) => (cell.times.started || "").slice(0, 16).replace("T", " ") },
  ];
  const made = table($("cells-table"), $("cells-more"), columns, data.cells, 100, cellDetails);
  $("cells-controls").append(search("Find", (text) => made.set({ keep: (cell) => text.toLowerCase().split(/\s+/).every((word) => `${cell.id} ${cell.status} ${cell.reason ?? ""}`.toLowerCase().includes(word)) })));
  made.draw();
}

// --- folded sections: a link to one opens it
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => { const folded = document.querySelector(`${link.getAttribute("href")} > details`); if (folded) folded.open = true; });

for (const draw of [results, curves, fronts, galleries, cells]) draw();
document.documentElement.dataset.ready = "yes";
