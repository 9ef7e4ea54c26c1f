"use strict";
// Figures of layers: inputs, shift, gradients, attribution, landscape.

function shownCells(e) {
  return normsShown(e).map((norm) => ({ norm, lr: lrOf(e, norm) })).filter((cell) => cell.lr !== null).map((cell) => ({ ...cell, index: [state.setting, cell.norm, cell.lr] }));
}

function cellTitles(e, cells) { return cells.map((cell) => `${e.norms[cell.norm]}, lr ${e.lrLabels[cell.lr]}`); }

// Labels that a norm's networks have: those at which any number is there.
function present(rows) { return rows[0].length ? rows.map((row, i) => [i, row]).filter(([, row]) => Array.from(row).some(finite)).map(([i]) => i) : []; }

function siteAxis() { return { type: "category", tickangle: -60, tickfont: { size: 9 } }; }

function stepOf(dataset) { return nearest(dataset.labels.step, state.step); }

function drawInputs(e) {
  const cells = shownCells(e), { labels } = e.inputs, step = stepOf(e.inputs), name = figureOption("inputs");
  const traces = [], isLog = figureOption("inputsScale") === "log" && name === "std";
  const all = cells.map((cell) => matrix(e.inputs, name, cell.index, [step]).map((row) => Array.from(row)));
  const heights = all.map((rows) => lifted(rows, isLog));
  cells.forEach((cell, i) => {
    const rows = all[i], style = styleOf(e.norms[cell.norm]), keep = present(rows);
    const where = { xaxis: `x${suffix(i)}`, yaxis: `y${suffix(i)}`, showlegend: false };
    const sites = keep.map((s) => labels.site[s]), level = (k) => keep.map((s) => heights[i][s][k]);
    traces.push(...banded(sites, level(0), level(1), level(2), style, e.norms[cell.norm], where));
    Object.assign(traces[traces.length - 1], { mode: "lines+markers", marker: { size: 5, symbol: style.marker, color: style.colour }, customdata: keep.map((s) => Array.from(rows[s], (v) => digits(v))), hovertemplate: "%{x}<br>median unit %{customdata[1]}, 15 % %{customdata[0]}, 85 % %{customdata[2]}<extra></extra>" });
  });
  const scale = isLog ? { type: "log" } : {};
  const axes = panels(Math.max(1, cells.length), { x: { ...siteAxis(), title: `layer input, step ${labels.step[step]}` }, y: { title: name === "mean" ? "mean of a unit" : "standard deviation of a unit", ...scale } });
  return { traces, layout: { ...axes, annotations: panelTitles(cellTitles(e, cells)), height: 440, margin: { l: 60, r: 16, t: 30, b: 60 } } };
}

function drawTrace(e) {
  const cells = shownCells(e), { labels } = e.inputs, name = figureOption("inputs"), traces = [];
  const site = Math.max(0, labels.site.indexOf(figureOption("site")));
  const isLog = figureOption("inputsScale") === "log" && name === "std";
  cells.forEach((cell) => {
    const found = labels.step.map((_, t) => Array.from(matrix(e.inputs, name, cell.index, [t])[site]));
    if (!found.some((row) => finite(row[1]))) return;
    const levels = lifted(found, isLog);
    const title = `${e.norms[cell.norm]}, lr ${e.lrLabels[cell.lr]}`;
    traces.push(...banded(labels.step, levels.map((r) => r[0]), levels.map((r) => r[1]), levels.map((r) => r[2]), styleOf(e.norms[cell.norm]), title));
  });
  const scale = isLog ? { type: "log" } : {};
  return { traces, layout: { xaxis: { title: "step", range: [0, e.steps] }, yaxis: { title: `${name} at ${labels.site[site]}`, ...scale } } };
}

// Values that a log axis can show.
function drawable(values, more) { return gaps(values).map((v) => (more.type === "log" && v !== null && v <= 0 ? null : v)); }

function logged(rows) { return rows.map((row) => Array.from(row, (v) => (finite(v) && v > 0 ? Math.log10(v) : null))); }

// Only the rows and columns at which some panel has a number: shallow networks lack deep sites.
function trimmed(grids, x, y) {
  const numbers = (i, j) => grids.some((grid) => finite(grid.rows[i][j]));
  const rows = y.map((_, i) => i).filter((i) => x.some((_, j) => numbers(i, j)));
  const columns = x.map((_, j) => j).filter((j) => y.some((_, i) => numbers(i, j)));
  const kept = grids.map((grid) => ({ ...grid, rows: rows.map((i) => columns.map((j) => grid.rows[i][j])) }));
  return [kept, columns.map((j) => x[j]), rows.map((i) => y[i])];
}

function heatmaps(e, whole, allX, allY, axes, title, hover, more = {}) {
  const [grids, x, y] = trimmed(whole, allX, allY), logs = grids.map((grid) => logged(grid.rows)), known = logs.flat(2).filter((v) => v !== null);
  if (!known.length) return null;
  const low = Math.max(Math.min(...known), Math.max(...known) - 6), high = Math.max(...known);
  const traces = grids.map((grid, i) => ({ type: "heatmap", x, y, z: logs[i], customdata: grid.rows.map((row) => Array.from(row, (v) => digits(v))), hovertemplate: hover, colorscale: SCALE, zmin: low, zmax: high, xaxis: `x${suffix(i)}`, yaxis: `y${suffix(i)}`, showscale: i === grids.length - 1, colorbar: colourBar(title, low, high), name: grid.name, hoverongaps: false }));
  return { traces, layout: { ...panels(grids.length, axes), annotations: panelTitles(grids.map((grid) => grid.name)), height: 130 + 16 * Math.max(8, y.length), ...more } };
}

function drawShift(e) {
  const cells = shownCells(e), name = figureOption("shift"), { labels } = e.shift, titles = cellTitles(e, cells);
  const grids = cells.map((cell, i) => {
    const bySteps = labels.step.map((_, t) => part(e.shift.variables[name], ...cell.index, t));
    return { name: titles[i], rows: labels.site.map((_, s) => bySteps.map((row) => row[s])) };
  });
  if (!grids.length) return null;
  return heatmaps(e, grids, labels.step, labels.site, { x: { title: "step" }, y: { type: "category", autorange: "reversed", tickfont: { size: 9 } } }, "shift, σ", "%{y}, step %{x}<br>shift %{customdata} σ<extra></extra>", { margin: { l: 120, r: 16, t: 30, b: 60 } });
}

function blockLines(e, dataset, name, axisTitle, more = {}) {
  const traces = [], step = stepOf(dataset), cells = shownCells(e);
  const all = cells.map((cell) => part(dataset.variables[name], ...cell.index, step));
  const keep = dataset.labels.block.map((_, i) => i).filter((i) => all.some((values) => finite(values[i])));
  cells.forEach((cell, c) => {
    const values = keep.map((i) => all[c][i]), style = styleOf(e.norms[cell.norm]);
    if (!values.some(finite)) return;
    traces.push({ x: keep.map((i) => dataset.labels.block[i]), y: drawable(values, more), mode: "lines+markers", name: `${e.norms[cell.norm]}, lr ${e.lrLabels[cell.lr]}`, connectgaps: true, line: { color: style.colour, dash: style.dash }, marker: { symbol: style.marker, size: 7, color: style.colour } });
  });
  return { traces, layout: { xaxis: { ...siteAxis(), title: `block, step ${dataset.labels.step[step]}` }, yaxis: { title: axisTitle, ...more }, height: 420 } };
}

function drawGradients(e) { return blockLines(e, e.gradients, "gradient_norm", "gradient norm", { type: "log" }); }

function overSteps(e, dataset, name, axisTitle, more = {}) {
  const traces = [];
  shownCells(e).forEach((cell) => {
    const values = part(dataset.variables[name], ...cell.index), style = styleOf(e.norms[cell.norm]);
    if (!Array.from(values).some(finite)) return;
    traces.push({ x: dataset.labels.step, y: drawable(values, more), mode: "lines+markers", name: `${e.norms[cell.norm]}, lr ${e.lrLabels[cell.lr]}`, line: { color: style.colour, dash: style.dash }, marker: { symbol: style.marker, size: 6, color: style.colour } });
  });
  return { traces, layout: { xaxis: { title: "step", range: [0, e.steps] }, yaxis: { title: axisTitle, ...more } } };
}

function drawGrowth(e) {
  const figure = overSteps(e, e.gradients, "growth", "growth per layer towards the input", { type: "log" });
  figure.layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: ink(), width: 1, dash: "dot" } }];
  return figure;
}

function drawGradientShift(e) {
  const [name, title, scale] = { l2: ["gradient_shift", "‖G − G′‖", { type: "log" }], relative: ["gradient_shift_relative", "‖G − G′‖ / ‖G‖", { type: "log" }], cosine: ["gradient_shift_cosine", "cos(G, G′)", {}] }[figureOption("gradientShift")];
  return blockLines(e, e.measured.gradient_shift, name, title, scale);
}

function drawAttribution(e) {
  const dataset = e.measured.attribution, { labels } = dataset, step = stepOf(dataset), cells = shownCells(e), titles = cellTitles(e, cells);
  const grids = cells.map((cell, i) => ({ name: titles[i], rows: matrix(dataset, figureOption("attribution"), cell.index, [step]) }));
  if (!grids.length) return null;
  const figure = heatmaps(e, grids, labels.site, labels.block, { x: { ...siteAxis(), title: `layer input, step ${labels.step[step]}` }, y: { type: "category", autorange: "reversed", tickfont: { size: 9 } } }, "shift, σ", "update of %{y}<br>shifts the input of %{x}<br>by %{customdata} σ<extra></extra>", { margin: { l: 120, r: 16, t: 30, b: 100 } });
  if (figure) figure.layout.height += 100;
  return figure;
}

function drawLandscape(e) {
  const dataset = e.measured.landscape, kind = figureOption("landscape"), traces = [];
  if (kind === "effective_smoothness") return overSteps(e, dataset, kind, "effective β-smoothness", { type: "log" });
  shownCells(e).forEach((cell) => {
    const rows = matrix(dataset, kind, cell.index), all = rows.map((row) => summary(row)), style = styleOf(e.norms[cell.norm]);
    if (!all.some((s) => finite(s.median))) return;
    traces.push(...banded(dataset.labels.step, all.map((s) => s.low), all.map((s) => s.median), all.map((s) => s.high), style, `${e.norms[cell.norm]}, lr ${e.lrLabels[cell.lr]}`));
  });
  return { traces, layout: { xaxis: { title: "step", range: [0, e.steps] }, yaxis: { title: kind === "loss_along" ? "loss along the gradient" : "distance between gradients", type: "log" } } };
}

function drawSharpness(e) {
  const figure = overSteps(e, e.measured.sharpness, figureOption("sharpness"), figureOption("sharpness") === "sharpness" ? "λ max" : "λ max × lr", { type: "log" });
  if (figureOption("sharpness") !== "sharpness") figure.layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 2, y1: 2, line: { color: ink(), width: 1, dash: "dot" } }];
  return figure;
}

function drawLossStep(e) {
  const figure = overSteps(e, e.measured.loss_step, "relative_loss_step", "loss after an update / before, same batch");
  figure.layout.shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: ink(), width: 1, dash: "dot" } }];
  return figure;
}
