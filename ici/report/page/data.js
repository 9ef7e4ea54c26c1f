"use strict";
// Reading the packed arrays of one experiment. An index list goes along an array's dimensions.

function unpack(packed) {
  if (packed.values) return packed;
  const raw = atob(packed.data), n = raw.length / 3, bits = new Uint32Array(n);
  for (let i = 0, at = 0; i < n; i++, at += 3) {
    bits[i] = (raw.charCodeAt(at) * 16777216) + (raw.charCodeAt(at + 1) << 16) + (raw.charCodeAt(at + 2) << 8);
  }
  packed.values = new Float32Array(bits.buffer);
  packed.data = null;
  return packed;
}

// The part of an array at a prefix of indices, flat.
function part(packed, ...index) {
  const { shape, values } = unpack(packed);
  let start = 0, size = values.length;
  index.forEach((i, axis) => { size /= shape[axis]; start += i * size; });
  return values.subarray(start, start + size);
}

function valueAt(packed, ...index) { return part(packed, ...index)[0]; }

const finite = Number.isFinite;

function quantile(sorted, share) {
  if (!sorted.length) return NaN;
  const place = (sorted.length - 1) * share, low = Math.floor(place), high = Math.ceil(place);
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

// Median, least and greatest of the numbers that are finite, and how many there are.
function summary(values) {
  const known = Array.from(values).filter(finite).sort((a, b) => a - b);
  return { median: quantile(known, 0.5), low: known.length ? known[0] : NaN, high: known.length ? known[known.length - 1] : NaN, n: known.length };
}

function digits(value, n = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!finite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(n - 1) : String(Number(value.toPrecision(n)));
}

// Plotly draws gaps where a value is null.
function gaps(values) { return Array.from(values, (v) => (finite(v) ? v : null)); }

function nearest(steps, step) {
  let best = 0;
  steps.forEach((each, i) => { if (Math.abs(each - step) < Math.abs(steps[best] - step)) best = i; });
  return best;
}

// A variable of a dataset at some run indices, as rows over two of its dimensions.
function matrix(dataset, name, index, extra = []) {
  const variable = dataset.variables[name];
  const values = part(variable, ...index, ...extra);
  const columns = variable.shape[variable.shape.length - 1], rows = [];
  for (let i = 0; i < values.length; i += columns) rows.push(values.subarray(i, i + columns));
  return rows;
}
