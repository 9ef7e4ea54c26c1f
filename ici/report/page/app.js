"use strict";
// The page: what is selected, the controls, and drawing what is in view.

const records = JSON.parse(document.getElementById("data").textContent);
const state = { experiment: null, norms: new Set(), setting: 0, lr: "best", seed: "all", step: 0, options: {} };

const has = (name) => (e) => Boolean(e[name]), measured = (name) => (e) => Boolean(e.measured[name]);
const hasInputs = has("inputs");
const INPUT_OPTIONS = { inputs: [["std", "standard deviations"], ["mean", "means"]], inputsScale: [["log", "log scale"], ["linear", "linear scale"]] };
const FIGURES = [
  { id: "phase", title: "Phase diagram: where it trains", draw: drawPhase },
  { id: "curves", title: "Training loss, with spikes and divergences", draw: drawCurves, options: { curves: [["norms", "norms at the learning rate"], ["rates", "learning rates of the first norm"]], curvesScale: [["log", "log scale"], ["linear", "linear scale"]] } },
  { id: "sensitivity", title: "Sensitivity to the learning rate", draw: drawSensitivity },
  { id: "survival", title: "Time to the target", draw: drawSurvival, when: has("survival"), options: { survival: [["best", "each norm at its best rate"], ["all", "all learning rates pooled"]] } },
  { id: "inputs", title: "Layer inputs by depth, at a step", draw: drawInputs, when: hasInputs, options: INPUT_OPTIONS },
  { id: "trace", title: "Inputs of one layer over training", draw: drawTrace, when: hasInputs, options: (e) => ({ ...INPUT_OPTIONS, site: e.inputs.labels.site.map((s) => [s, s]).reverse() }) },
  { id: "shift", title: "Shift of layer inputs, site × step", draw: drawShift, when: has("shift"), options: { shift: [["initial", "since step 0"], ["previous", "since the measurement before"]] } },
  { id: "attribution", title: "Attribution: whose update shifts whose inputs", draw: drawAttribution, when: measured("attribution"), options: { attribution: [["attribution", "one block moves"], ["attribution_path", "path: blocks in order"]] } },
  { id: "gradientShift", title: "Gradient shift per layer", draw: drawGradientShift, when: measured("gradient_shift"), options: { gradientShift: [["relative", "relative"], ["l2", "L2"], ["cosine", "cosine"]] } },
  { id: "gradients", title: "Gradient norm by depth", draw: drawGradients, when: has("gradients") },
  { id: "growth", title: "Growth of gradients per layer", draw: drawGrowth, when: (e) => Boolean(e.gradients && e.gradients.variables.growth) },
  { id: "landscape", title: "Loss landscape along the gradient", draw: drawLandscape, when: measured("landscape"), options: { landscape: [["loss_along", "loss"], ["gradient_distance", "gradient predictiveness"], ["effective_smoothness", "effective smoothness"]] } },
  { id: "sharpness", title: "Sharpness", draw: drawSharpness, when: measured("sharpness"), options: { sharpness: [["sharpness_times_lr", "λ max × learning rate"], ["sharpness", "λ max"]] } },
  { id: "lossStep", title: "Relative loss step", draw: drawLossStep, when: measured("loss_step") },
  { id: "spikes", title: "Spike anatomy: which layer inputs moved first", draw: drawSpikes, table: spikeTable, options: { spikes: [["all", "all learning rates"], ["one", "the selected learning rate"]] } },
  { id: "runs", title: "Runs", table: runTable },
];

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
  return element;
}

function fill(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, text]) => make("option", text, { value })));
  select.value = chosen;
}

function normsShown(e) { return e.norms.map((_, i) => i).filter((i) => state.norms.has(i)); }

function optionsOf(figure) {
  // A figure that is not shown may ask for what the record does not hold.
  if (figure.when && !figure.when(state.experiment)) return {};
  return typeof figure.options === "function" ? figure.options(state.experiment) : figure.options || {};
}

function figureOption(name) {
  if (state.options[name] === undefined) {
    const figure = FIGURES.find((each) => name in optionsOf(each));
    state.options[name] = optionsOf(figure)[name][0][0];
  }
  return state.options[name];
}

function tableOf(rows) {
  const table = make("table"), head = make("tr");
  rows[0].forEach((text) => head.append(make("th", String(text), { scope: "col" })));
  table.append(head);
  rows.slice(1).forEach((row) => {
    const line = make("tr");
    row.forEach((value) => line.append(value && value.code ? commandCell(value) : make("td", String(value), /^[−–\-]?[\d.]+(e.?\d+)?$/.test(String(value)) ? { class: "number" } : {})));
    table.append(line);
  });
  return table;
}

// A line for the shell, and where what it makes is there already.
function commandCell({ code, link }) {
  const cell = make("td");
  cell.append(make("code", code));
  if (link) cell.append(" ", make("a", "recorded", { href: encodeURI(link) }));
  return cell;
}

// The data of a drawn figure as rows, whatever its kind.
function numbersOf(traces) {
  const rows = [["series", "x", "y", "value"]];
  traces.filter((t) => t.hoverinfo !== "skip").forEach((t) => {
    if (t.type === "heatmap") t.z.forEach((line, i) => line.forEach((v, j) => v !== null && rows.push([t.name || "", t.x[j], t.y[i], t.customdata ? t.customdata[i][j] : digits(10 ** v)])));
    else t.x.forEach((x, i) => rows.push([t.name || "", typeof x === "number" ? digits(x, 5) : x, typeof t.y[i] === "number" ? digits(t.y[i], 4) : t.y[i] ?? "–", ""]));
  });
  return rows;
}

function build(figure) {
  const box = make("figure", "", { id: figure.id, "aria-label": figure.title }), options = make("div", "", { class: "options" });
  box.append(make("h2", figure.title), options);
  Object.entries(optionsOf(figure)).forEach(([name, choices]) => {
    const select = make("select", "", { "aria-label": `${figure.title}: ${name}`, "data-option": name });
    fill(select, choices, figureOption(name));
    select.addEventListener("change", () => { state.options[name] = select.value; syncOptions(); render(); });
    options.append(select, " ");
  });
  const plot = make("div", "", { class: "plot" }), caption = make("figcaption", state.experiment.captions[figure.id] || "");
  box.append(plot, caption);
  const numbers = make("details"), body = make("div", "", { class: "scroll", tabindex: "0" });
  numbers.append(make("summary", "numbers"), body);
  numbers.addEventListener("toggle", () => { if (numbers.open) fillNumbers(figure, body); });
  box.append(numbers);
  figure.box = box; figure.plot = plot; figure.numbers = numbers; figure.body = body; figure.seen = false; figure.stale = true;
  watcher.observe(box);
  return box;
}

function fillNumbers(figure, body) {
  const rows = figure.table ? figure.table(state.experiment) : numbersOf((figure.draw(state.experiment) || { traces: [] }).traces);
  body.replaceChildren(tableOf(rows.slice(0, 2001)));
  if (rows.length > 2001) body.append(make("p", `The first 2,000 of ${rows.length - 1} rows; ici export writes all.`, { class: "quiet" }));
}

function drawNow(figure) {
  figure.stale = false;
  if (figure.numbers.open || !figure.draw) { figure.numbers.open = true; fillNumbers(figure, figure.body); }
  if (!figure.draw) return;
  const drawn = normsShown(state.experiment).length ? figure.draw(state.experiment) : null;
  if (!drawn || !drawn.traces.length) {
    Plotly.purge(figure.plot);
    figure.plot.replaceChildren(make("p", normsShown(state.experiment).length ? "Nothing to show for this selection." : "No norm is selected.", { class: "empty" }));
    return;
  }
  if (!figure.plot.data) figure.plot.replaceChildren();
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"], toImageButtonOptions: { format: "svg", filename: figure.id } };
  Plotly.react(figure.plot, drawn.traces, layout(drawn.layout), config);
  if (!figure.plot.picking) {
    figure.plot.picking = true;
    figure.plot.on("plotly_click", (event) => pick(event.points[0]));
  }
}

// A cell of the phase diagram, or a point of the sensitivity, selects its runs everywhere.
function pick(point) {
  const { meta } = point.data, e = state.experiment;
  if (!meta || !meta.pick) return;
  const lr = e.lrLabels.indexOf(String(point.x)) >= 0 ? e.lrLabels.indexOf(String(point.x)) : e.lrs.indexOf(point.x);
  if (lr >= 0) state.lr = String(lr);
  if (e.settings.includes(point.y)) state.setting = e.settings.indexOf(point.y);
  state.norms.add(meta.norm);
  showControls();
  render();
}

const watcher = new IntersectionObserver((entries) => entries.forEach((entry) => {
  const figure = FIGURES.find((each) => each.box === entry.target);
  if (!figure) return;
  figure.seen = entry.isIntersecting;
  if (figure.seen && figure.stale) drawNow(figure);
}), { rootMargin: "300px" });

function render() {
  FIGURES.forEach((figure) => { if (figure.box && figure.box.isConnected) { figure.stale = true; if (figure.seen) drawNow(figure); } });
}

function syncOptions() {
  document.querySelectorAll("select[data-option]").forEach((select) => { select.value = state.options[select.dataset.option] ?? select.value; });
}

const element = (id) => document.getElementById(id);

function showControls() {
  const e = state.experiment;
  element("norms").replaceChildren(make("legend", "Norms"), ...e.norms.map((name, i) => {
    const label = make("label"), box = make("input", "", { type: "checkbox", value: i });
    box.checked = state.norms.has(i);
    box.addEventListener("change", () => { if (box.checked) state.norms.add(i); else state.norms.delete(i); render(); });
    label.append(box, ` ${name}`);
    return label;
  }));
  fill(element("setting"), e.settings.map((name, i) => [String(i), name]), String(state.setting));
  element("settingLabel").hidden = e.settings.length < 2;
  fill(element("lr"), [["best", "each norm's best"], ...e.lrLabels.map((label, i) => [String(i), label])], state.lr);
  fill(element("seed"), [["all", "all"], ...e.seeds.map((seed, i) => [String(i), seed])], state.seed);
  element("step").max = e.steps;
  element("step").step = Math.max(1, Math.round(e.steps / 100));
  element("step").value = state.step;
  element("stepShown").textContent = ` ${state.step}`;
}

function showExperiment(index) {
  const e = records.experiments[index];
  Object.assign(state, { experiment: e, norms: new Set(e.norms.map((_, i) => i).slice(0, 8)), setting: e.firstSetting, lr: e.firstLr === null ? "best" : String(e.firstLr), seed: "all", step: e.steps, options: {} });
  element("facts").textContent = `${e.path}. ${e.facts.join("; ")}.`;
  element("answers").replaceChildren(make("h2", "What the record says"), ...e.answers.flatMap((a) => [make("h3", a.question), ...a.sentences.map((text) => make("p", text))]));
  watcher.disconnect();
  showControls();
  element("figures").replaceChildren(...FIGURES.filter((f) => !f.when || f.when(e)).map(build));
}

function showComparisons() {
  const box = element("comparisons");
  box.hidden = !records.comparisons.length;
  records.comparisons.forEach((each) => {
    const scroll = make("div", "", { class: "scroll", tabindex: "0" });
    scroll.append(tableOf(each.rows));
    box.append(make("h2", each.title), scroll, make("p", each.caption, { class: "quiet" }));
  });
}

function setTheme() {
  const wanted = element("theme").value, dark = wanted === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : wanted === "dark";
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  if (state.experiment) render();
}

[["setting", (v) => { state.setting = Number(v); }], ["lr", (v) => { state.lr = v; }], ["seed", (v) => { state.seed = v; }]].forEach(([id, set]) => {
  element(id).addEventListener("change", (event) => { set(event.target.value); render(); });
});
element("step").addEventListener("input", (event) => { state.step = Number(event.target.value); element("stepShown").textContent = ` ${state.step}`; render(); });
element("controls").addEventListener("submit", (event) => event.preventDefault());
element("theme").addEventListener("change", setTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", setTheme);
fill(element("experiment"), records.experiments.map((e, i) => [String(i), e.name]), "0");
element("experiment").parentElement.hidden = records.experiments.length < 2;
element("experiment").addEventListener("change", (event) => showExperiment(Number(event.target.value)));
setTheme();
showExperiment(0);
showComparisons();
document.documentElement.dataset.ready = "yes";
