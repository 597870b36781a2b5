"use strict";
const study = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const KEY = `study-${study.study}`;
const HARD = 128; // pictures below this many pixels keep hard pixels
let state = null; // {rater, session, order, answers: {trial: {choice, ms}}, at, started}
let asked = 0; // when the pair was shown

function shuffled(list, seed) { // mulberry32, so that an order can be told from its session
  const made = [...list];
  const random = () => { seed = (seed + 0x6d2b79f5) | 0; let t = Math.imul(seed ^ (seed >>> 15), 1 | seed); t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t; return ((t ^ (t >>> 14)) >>> 0) / 4294967296; };
  for (let i = made.length - 1; i > 0; i--) { const j = Math.floor(random() * (i + 1)); [made[i], made[j]] = [made[j], made[i]]; }
  return made;
}
function keep() { try { localStorage.setItem(KEY, JSON.stringify(state)); } catch { /* a browser without storage: no resuming */ } }
function kept() { try { return JSON.parse(localStorage.getItem(KEY)); } catch { return null; } }
function show(id) { for (const part of ["start", "ask", "end"]) $(part).hidden = part !== id; }
function put(img, name, alt) {
  img.onload = () => img.classList.toggle("pixels", img.naturalWidth < HARD);
  img.src = study.prefix + study.pictures[name];
  img.alt = alt;
}
function ask() {
  keep();
  if (state.at >= state.order.length) { show("end"); $("save").focus(); return; }
  const trial = study.trials[state.order[state.at]];
  show("ask");
  $("progress").textContent = `${state.at + 1} of ${state.order.length}`;
  $("bar").value = state.at;
  $("prompt").textContent = `“${trial.prompt}”`;
  $("example").replaceChildren(...trial.example.map((name, k) => {
    const figure = document.createElement("figure"), img = document.createElement("img"), caption = document.createElement("figcaption");
    put(img, name, `example ${k + 1}`);
    caption.textContent = trial.example.length === 2 ? ["plain", "example of the style"][k] : "example";
    figure.append(img, caption);
    return figure;
  }));
  put($("left-image"), trial.left, "left picture");
  put($("right-image"), trial.right, "right picture");
  const before = (state.answers[trial.id] || {}).choice;
  $("left").classList.toggle("chosen", before === "left");
  $("right").classList.toggle("chosen", before === "right");
  $("back").disabled = state.at === 0;
  if (document.activeElement) document.activeElement.blur();
  asked = performance.now();
}
function answer(choice) {
  const trial = study.trials[state.order[state.at]];
  const before = state.answers[trial.id];
  state.answers[trial.id] = { choice, ms: Math.round(performance.now() - asked) + (before ? before.ms : 0) };
  state.at += 1;
  ask();
}
function back() { if (state.at > 0) { state.at -= 1; ask(); } }
function begin() {
  const session = crypto.getRandomValues(new Uint32Array(1))[0];
  state = { rater: $("rater").value.trim() || `anonymous-${session.toString(16)}`, session, order: shuffled(study.trials.keys(), session), answers: {}, at: 0, started: new Date().toISOString() };
  ask();
}
function save() {
  const result = { format: study.format, study: study.study, rater: state.rater, session: state.session, started: state.started, ended: new Date().toISOString(), answers: state.order.map((k) => ({ trial: study.trials[k].id, ...state.answers[study.trials[k].id] })) };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result, null, 1)], { type: "application/json" }));
  link.download = `answers-${study.study}-${state.session.toString(16)}.json`;
  link.click();
}
$("begin").addEventListener("click", begin);
$("left").addEventListener("click", () => answer("left"));
$("right").addEventListener("click", () => answer("right"));
$("none").addEventListener("click", () => answer("none"));
$("back").addEventListener("click", back);
$("save").addEventListener("click", save);
document.addEventListener("keydown", (event) => {
  if ($("ask").hidden || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const act = { ArrowLeft: () => answer("left"), ArrowRight: () => answer("right"), ArrowDown: () => answer("none"), Backspace: back }[event.key];
  if (act) { event.preventDefault(); act(); }
});
const earlier = kept();
if (earlier && earlier.at > 0) {
  $("resume").hidden = false;
  $("resume").addEventListener("click", () => { state = earlier; ask(); });
}
