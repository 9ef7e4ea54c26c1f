"use strict";
// Colours, dashes and markers: each norm differs in all three, so that grey prints can be read.

const COLOURS = {
  light: ["#000000", "#0072B2", "#D55E00", "#009E73", "#AA4499", "#B87E00", "#3A8FC4"],
  dark: ["#FFFFFF", "#56B4E9", "#FF9554", "#2FCBA0", "#E59CC7", "#F0C24B", "#9FD3F5"],
};
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const MARKERS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "star", "x", "cross"];
// Luminance rises or falls all the way: the map of a grey print reads the same.
const SCALE = "Cividis";

function isDark() { return document.documentElement.dataset.theme === "dark"; }

function styleOf(norm) {
  const i = state.experiment.norms.indexOf(norm), colours = COLOURS[isDark() ? "dark" : "light"];
  return { colour: colours[i % colours.length], dash: DASHES[i % DASHES.length], marker: MARKERS[i % MARKERS.length] };
}

function faded(colour, alpha) {
  const n = parseInt(colour.slice(1), 16);
  return `rgba(${n >> 16},${(n >> 8) & 255},${n & 255},${alpha})`;
}

function ink() { return isDark() ? "#ececec" : "#1a1a1a"; }

function layout(own) {
  const line = isDark() ? "#43474d" : "#dcdcd8";
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  const base = {
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 12, color: ink() },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 60, r: 16, t: 48, b: 56 }, height: 380, hovermode: "closest",
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, colorway: COLOURS[isDark() ? "dark" : "light"],
  };
  const merged = { ...base, ...own };
  Object.keys(merged).filter((key) => /^[xy]axis/.test(key)).forEach((key) => {
    merged[key] = { ...axis, ...merged[key] };
    if (typeof merged[key].title === "string") merged[key].title = { text: merged[key].title };
  });
  ["xaxis", "yaxis"].forEach((key) => { if (!merged[key]) merged[key] = axis; });
  return merged;
}

// A line with its band as two traces.
function banded(x, low, middle, high, style, name, more = {}) {
  const shade = { x, line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: name, ...more };
  return [
    { ...shade, y: gaps(low) },
    { ...shade, y: gaps(high), fill: "tonexty", fillcolor: faded(style.colour, 0.18) },
    { x, y: gaps(middle), name, legendgroup: name, mode: "lines", line: { color: style.colour, dash: style.dash, width: 2 }, ...more },
  ];
}

// On a log axis, zeros (dead units) lie at the lower edge instead of nowhere.
function lifted(rows, isLog) {
  if (!isLog) return rows;
  const positive = rows.flat(2).filter((v) => finite(v) && v > 0);
  const top = Math.max(...positive), floor = Math.max(Math.min(...positive), top * 1e-6);
  return rows.map((row) => Array.from(row, (v) => (finite(v) ? Math.max(v, floor) : v)));
}

// Axes of n panels side by side that share the y axis.
function panels(n, own = {}) {
  const axes = {}, width = 1 / n, gap = n > 1 ? 0.025 : 0;
  for (let i = 0; i < n; i++) {
    const suffix = i ? String(i + 1) : "";
    axes[`xaxis${suffix}`] = { domain: [i * width + (i ? gap : 0), (i + 1) * width], anchor: `y${suffix}`, ...own.x };
    axes[`yaxis${suffix}`] = { anchor: `x${suffix}`, ...own.y, ...(i ? { matches: "y", showticklabels: false, title: "" } : {}) };
  }
  return axes;
}

function panelTitles(titles) {
  return titles.map((text, i) => ({ text, showarrow: false, xref: "paper", yref: "paper", x: (i + 0.5) / titles.length, y: 1.02, xanchor: "center", yanchor: "bottom", font: { size: 13 } }));
}

function suffix(i) { return i ? String(i + 1) : ""; }
