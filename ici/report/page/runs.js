"use strict";
// Figures of whole runs: phase diagram, losses, learning rates, time to target, spikes.

function seedsShown(e) { return state.seed === "all" ? e.seeds.map((_, i) => i) : [Number(state.seed)]; }

// Position of the learning rate that a norm is shown at; null where it has no best one.
function lrOf(e, norm) { return state.lr === "best" ? e.bestLr[state.setting][norm] : Number(state.lr); }

function lrText(e, norm) { const i = lrOf(e, norm); return i === null ? "no stable rate" : `lr ${e.lrLabels[i]}`; }

function diverged(e, ...cell) { return part(e.runs.divergedAt, ...cell).filter(finite).length; }

function count(e, cell, outcome) {
  const code = e.outcomes.indexOf(outcome);
  return part(e.runs.outcome, ...cell).filter((each) => each === code).length;
}

function cellMark(e, cell) {
  const n = e.seeds.length, ended = diverged(e, ...cell), marks = [];
  if (ended) marks.push(`✕ ${ended}/${n}`);
  if (count(e, cell, "no progress")) marks.push("▬");
  if (part(e.runs.spikes, ...cell).some((spikes) => spikes > 0)) marks.push("▲");
  if (count(e, cell, "reached target") === n) marks.push("●");
  return marks.join(" ");
}

function drawPhase(e) {
  const shown = normsShown(e), rows = e.settings.length, traces = [], notes = [];
  const losses = shown.map((norm) => e.settings.map((_, s) => e.lrs.map((_, l) => summary(part(e.runs.finalLoss, s, norm, l)).median)));
  const known = losses.flat(2).filter((v) => finite(v) && v > 0);
  const low = Math.log10(Math.min(...known)), high = Math.log10(Math.max(...known));
  shown.forEach((norm, i) => {
    const z = losses[i].map((row) => row.map((v) => (finite(v) && v > 0 ? Math.log10(v) : null)));
    const text = e.settings.map((_, s) => e.lrs.map((_, l) => cellMark(e, [s, norm, l])));
    const hover = e.settings.map((name, s) => e.lrs.map((_, l) => {
      const at = [s, norm, l], loss = summary(part(e.runs.finalLoss, ...at)), score = summary(part(e.runs.score, ...at));
      return `${e.norms[norm]}, ${name}, lr ${e.lrLabels[l]}<br>final loss ${digits(loss.median)} (${loss.n} of ${e.seeds.length} seeds)`
        + `<br>validation ${e.score} ${digits(score.median)}<br>diverged ${diverged(e, ...at)}, spikes ${digits(part(e.runs.spikes, ...at).reduce((a, b) => a + (finite(b) ? b : 0), 0))}`;
    }));
    traces.push({ type: "heatmap", x: e.lrLabels, y: e.settings, z, xgap: 2, ygap: 2, colorscale: SCALE, zmin: low, zmax: high, text: hover, hovertemplate: "%{text}<extra></extra>", xaxis: `x${suffix(i)}`, yaxis: `y${suffix(i)}`, showscale: i === shown.length - 1, colorbar: colourBar("final loss", low, high), meta: { norm, pick: true }, name: e.norms[norm] });
    text.forEach((row, s) => row.forEach((mark, l) => {
      if (!mark) return;
      const bright = z[s][l] !== null && (z[s][l] - low) / (high - low || 1) > 0.5;
      notes.push({ x: l, y: s, xref: `x${suffix(i)}`, yref: `y${suffix(i)}`, text: mark, showarrow: false, font: { size: 11, color: z[s][l] === null ? ink() : bright ? "#000" : "#fff" } });
    }));
  });
  const axes = panels(shown.length, { x: { type: "category", title: "learning rate", tickangle: -60 }, y: { type: "category" } });
  return { traces, layout: { ...axes, height: Math.max(240, 160 + 30 * rows), annotations: [...panelTitles(shown.map((n) => e.norms[n])), ...notes], margin: { l: 90, r: 16, t: 36, b: 80 } } };
}

// A colour bar of logarithms with plain numbers.
function colourBar(title, low, high) {
  const ticks = [];
  for (let i = 0; i <= 4; i++) ticks.push(low + ((high - low) * i) / 4);
  return { title: { text: title, side: "right" }, thickness: 12, tickvals: ticks, ticktext: ticks.map((v) => digits(10 ** v, 2)) };
}

function curveOf(e, kind, setting, norm, lr, seeds, reduce) {
  const rows = seeds.map((seed) => part(e.curves[kind], setting, norm, lr, seed));
  return e.curves.steps.map((_, i) => reduce(rows.map((row) => row[i])));
}

function drawCurves(e) {
  const traces = [], seeds = seedsShown(e), byNorm = figureOption("curves") === "norms";
  const lines = byNorm
    ? normsShown(e).map((norm) => ({ norm, lr: lrOf(e, norm), name: `${e.norms[norm]}, ${lrText(e, norm)}`, style: styleOf(e.norms[norm]) })).filter((line) => line.lr !== null)
    : normsShown(e).slice(0, 1).flatMap((norm) => e.lrs.map((_, lr) => ({ norm, lr, name: `lr ${e.lrLabels[lr]}`, style: rateStyle(e, lr) })));
  lines.forEach(({ norm, lr, name, style }) => {
    const at = [state.setting, norm, lr];
    const all = e.curves.steps.map((_, i) => summary(seeds.map((seed) => part(e.curves.mean, ...at, seed)[i])));
    traces.push(...banded(e.curves.steps, all.map((s) => s.low), all.map((s) => s.median), all.map((s) => s.high), style, name));
    const peak = curveOf(e, "peak", ...at, seeds, (values) => Math.max(...values.filter(finite)));
    traces.push({ x: e.curves.steps, y: gaps(peak), mode: "lines", line: { width: 0.6, color: faded(style.colour, 0.7) }, hoverinfo: "skip", showlegend: false, legendgroup: name, name: `${name}, largest single loss` });
    const spikes = e.spikes.rows.filter((row) => row.run[0] === at[0] && row.run[1] === norm && row.run[2] === lr && seeds.includes(row.run[3]));
    if (spikes.length) traces.push({ x: spikes.map((row) => row.peak), y: spikes.map((row) => row.level + row.height), mode: "markers", marker: { symbol: "triangle-up", size: 9, color: style.colour, line: { color: ink(), width: 1 } }, name: `spikes, ${name}`, showlegend: false, legendgroup: name, text: spikes.map((row) => `seed ${e.seeds[row.run[3]]}, onset ${row.onset}, ${digits(row.height)} above ${digits(row.level)}`), hovertemplate: "%{text}<extra>spike</extra>" });
    const ends = seeds.map((seed) => [seed, valueAt(e.runs.divergedAt, ...at, seed)]).filter(([, step]) => finite(step));
    if (ends.length) {
      const heights = ends.map(([seed]) => { const row = part(e.curves.mean, ...at, seed); for (let i = row.length - 1; i >= 0; i--) if (finite(row[i])) return row[i]; return null; });
      const first = part(e.curves.mean, ...at, ends[0][0])[0];
      traces.push({ x: ends.map(([, step]) => step), y: heights.map((h) => h ?? (finite(first) ? first : 1)), mode: "markers", marker: { symbol: "x", size: 10, color: style.colour, line: { color: ink(), width: 1 } }, name: `diverged, ${name}`, showlegend: false, legendgroup: name, text: ends.map(([seed, step]) => `seed ${e.seeds[seed]} diverged at step ${step}`), hovertemplate: "%{text}<extra></extra>" });
    }
  });
  const title = byNorm ? "" : `norm ${e.norms[normsShown(e)[0]]}`;
  return { traces, layout: { title: { text: title, font: { size: 13 } }, xaxis: { title: "step", range: [0, e.steps] }, yaxis: { title: "training loss (nats)", type: figureOption("curvesScale") === "log" ? "log" : "linear" }, height: 420 } };
}



function rateStyle(e, lr) {
  const share = lr / Math.max(1, e.lrs.length - 1), light = isDark() ? 40 + 50 * share : 15 + 45 * share;
  const h = 230 - 190 * share, s = 0.65, l = light / 100, a = s * Math.min(l, 1 - l);
  const channel = (n) => { const k = (n + h / 30) % 12; return Math.round(255 * (l - a * Math.max(-1, Math.min(k - 3, 9 - k, 1)))).toString(16).padStart(2, "0"); };
  return { colour: `#${channel(0)}${channel(8)}${channel(4)}`, dash: DASHES[lr % DASHES.length], marker: MARKERS[lr % MARKERS.length] };
}

function drawSensitivity(e) {
  const traces = [], notes = [];
  normsShown(e).forEach((norm, i) => {
    const style = styleOf(e.norms[norm]);
    const all = e.lrs.map((_, lr) => summary(part(e.runs.finalLoss, state.setting, norm, lr)));
    traces.push({ x: e.lrs, y: gaps(all.map((s) => s.median)), error_y: { type: "data", symmetric: false, array: gaps(all.map((s) => s.high - s.median)), arrayminus: gaps(all.map((s) => s.median - s.low)), width: 3, thickness: 1 }, mode: "lines+markers", name: e.norms[norm], line: { color: style.colour, dash: style.dash }, marker: { symbol: style.marker, size: 8, color: style.colour }, customdata: all.map((s) => s.n), hovertemplate: `${e.norms[norm]}, lr %{x}<br>final loss %{y:.4g} (%{customdata} of ${e.seeds.length} seeds)<extra></extra>`, meta: { norm, pick: true } });
    e.lrs.forEach((lr, l) => {
      const n = diverged(e, state.setting, norm, l);
      if (n) notes.push({ x: Math.log10(lr), xref: "x", y: 1 - 0.05 * i, yref: "paper", text: `✕ ${e.norms[norm]} ${n}/${e.seeds.length}`, showarrow: false, font: { size: 10, color: style.colour } });
    });
  });
  return { traces, layout: { xaxis: { title: "learning rate", type: "log", tickvals: e.lrs, ticktext: e.lrLabels }, yaxis: { title: "final training loss (nats)", type: "log" }, annotations: notes, height: 400 } };
}

function drawSurvival(e) {
  const kind = figureOption("survival"), traces = [], shown = normsShown(e);
  const curves = e.survival.filter((c) => c.kind === kind && c.setting === state.setting && shown.includes(c.norm));
  if (!curves.length) return null;
  curves.forEach((c) => {
    const style = styleOf(e.norms[c.norm]), rate = kind === "best" ? `, lr ${e.lrLabels[e.bestLr[c.setting][c.norm]]}` : "";
    const name = `${e.norms[c.norm]}${rate} (${c.met} of ${c.n} met it)`;
    traces.push(...banded(c.steps, unpack(c.low).values, unpack(c.survival).values, unpack(c.high).values, style, name, { line: { shape: "hv", width: 0 } }));
    traces[traces.length - 1].line = { shape: "hv", color: style.colour, dash: style.dash, width: 2 };
  });
  return { traces, layout: { xaxis: { title: "step", range: [0, e.steps] }, yaxis: { title: "share that has not met the target", range: [-0.02, 1.02] } } };
}

function spikesShown(e) {
  const norms = normsShown(e), seeds = seedsShown(e);
  return e.spikes.rows.filter(({ run }) => run[0] === state.setting && norms.includes(run[1]) && seeds.includes(run[3]) && (figureOption("spikes") === "all" || run[2] === lrOf(e, run[1])));
}

function spikeName(e, row) { return `${e.norms[row.run[1]]}, lr ${e.lrLabels[row.run[2]]}, seed ${e.seeds[row.run[3]]}`; }

function drawSpikes(e) {
  const rows = spikesShown(e);
  if (!rows.length) return null;
  const traces = normsShown(e).map((norm) => {
    const own = rows.filter((row) => row.run[1] === norm), style = styleOf(e.norms[norm]);
    return { x: own.map((row) => row.onset), y: own.map((row) => spikeName(e, row)), mode: "markers", name: e.norms[norm], marker: { symbol: "triangle-up", color: style.colour, size: own.map((row) => 8 + 4 * Math.log10(1 + Math.abs(row.height) / Math.max(Math.abs(row.level), 1e-9))), line: { color: ink(), width: 0.5 } },
      text: own.map((row) => `step ${row.onset}: ${digits(row.height)} above ${digits(row.level)}<br>${row.movers.length ? row.movers.map(([site, step, shift, ratio]) => `${site} at step ${step}: ${digits(shift)} σ, ${digits(ratio)} × usual`).join("<br>") : "no layer input left its range before"}`), hovertemplate: "%{y}<br>%{text}<extra></extra>" };
  }).filter((trace) => trace.x.length);
  const leads = rows.flatMap((row) => row.movers.slice(0, 1).map((mover) => ({ type: "line", x0: mover[1], x1: row.onset, y0: spikeName(e, row), y1: spikeName(e, row), line: { color: ink(), width: 1, dash: "dot" } })));
  const names = new Set(rows.map((row) => spikeName(e, row)));
  return { traces, layout: { xaxis: { title: "step (dotted: from the first mover to the onset)", range: [0, e.steps] }, yaxis: { type: "category", autorange: "reversed" }, shapes: leads.slice(0, 300), height: Math.max(260, 120 + 22 * names.size), margin: { l: 180, r: 16, t: 40, b: 56 } } };
}

function spikeTable(e) {
  return [["run", "onset", "peak loss", "level before", "steps to recover", "moved first", "every step of it"], ...spikesShown(e).slice(0, 200).map((row) => [
    spikeName(e, row), row.onset, digits(row.level + row.height), digits(row.level), row.end === null ? "never" : row.end - row.onset,
    row.movers.map(([site, step, shift, ratio]) => `${site} (${row.onset - step} steps before, ${digits(shift)} σ, ${digits(ratio)} ×)`).join("; ") || "none",
    { code: row.replay, link: row.recorded }])];
}

function runTable(e) {
  const head = ["norm", "lr", "seed", "outcome", "final loss", `validation ${e.score}`, "steps to target", "spikes", e.site ? `shift at ${e.site}, σ` : "shift"];
  const rows = [];
  normsShown(e).forEach((norm) => e.lrs.forEach((_, lr) => seedsShown(e).forEach((seed) => {
    const index = [state.setting, norm, lr, seed], value = (name) => (e.runs[name] ? digits(valueAt(e.runs[name], ...index), 4) : "–");
    rows.push([e.norms[norm], e.lrLabels[lr], e.seeds[seed], e.outcomes[valueAt(e.runs.outcome, ...index)], value("finalLoss"), value("score"), value("stepsToTarget"), value("spikes"), value("shift")]);
  })));
  return [head, ...rows];
}
