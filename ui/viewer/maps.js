// The body of a function of (element, props, server, trigger, watch), in four files; gr.HTML calls it once, when the
// viewer is on the page. This file computes with the maps.
//
// A view is one choice of layers and heads. Its frame 0 is the mean over all steps; frame i is step i, if the steps were
// recorded one by one. The values of a token's map are sent in 255ths of the map's peak.

function decodeView({ grid: [rows, columns], peaks, maps }) {
  const bytes = Uint8Array.from(atob(maps), (c) => c.charCodeAt(0));
  return { rows, columns, cells: rows * columns, peaks, bytes, sums: new Map() };
}

// The sum of some tokens' shares of the attention at each place.
function sharesOf(view, frame, tokens) {
  const name = frame + ":" + tokens;
  if (!view.sums.has(name)) {
    const { cells, peaks, bytes } = view;
    const sum = new Float32Array(cells);
    for (const token of tokens) {
      const [unit, at] = [peaks[frame][token] / 255, (frame * peaks[frame].length + token) * cells];
      for (let i = 0; i < cells; i++) sum[i] += unit * bytes[at + i];
    }
    view.sums.set(name, sum);
  }
  return view.sums.get(name);
}

const greatest = (values) => values.reduce((most, value) => Math.max(most, value), 1e-12);

// The index in `maps` of the largest map at each place; -1 where the other tokens together are larger than each map.
function dominantIn(view, maps) {
  const indices = new Int16Array(view.cells).fill(-1);
  for (let i = 0; i < view.cells; i++) {
    let most = 1 - maps.reduce((sum, map) => sum + map[i], 0);
    maps.forEach((map, m) => map[i] > most && ([most, indices[i]] = [map[i], m]));
  }
  return indices;
}

// How much of each cell lies inside a polygon of points [x, y] from 0 to 1, by testing FINE × FINE points of the cell.
function coverage(view, polygon) {
  const FINE = 8;
  const inside = new Float32Array(view.cells);
  for (let y = 0; y < view.rows * FINE; y++) {
    for (let x = 0; x < view.columns * FINE; x++) {
      const [px, py] = [(x + 0.5) / (view.columns * FINE), (y + 0.5) / (view.rows * FINE)];
      if (contains(polygon, px, py)) inside[Math.floor(y / FINE) * view.columns + Math.floor(x / FINE)] += 1;
    }
  }
  return inside;
}

function contains(polygon, x, y) {
  let within = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [[xi, yi], [xj, yj]] = [polygon[i], polygon[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) within = !within;
  }
  return within;
}

function meanInside(values, inside) {
  let [sum, weight] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    sum += values[i] * inside[i];
    weight += inside[i];
  }
  return sum / Math.max(weight, 1e-12);
}

function percent(value) {
  return (100 * value).toFixed(value < 0.0995 ? 1 : 0) + "\u202f%";
}

function whereStrongest(view, values) {
  const at = values.indexOf(greatest(values));
  const third = (i, of, names) => names[Math.min(2, Math.floor((3 * (i + 0.5)) / of))];
  const vertical = third(Math.floor(at / view.columns), view.rows, ["top", "", "bottom"]);
  const horizontal = third(at % view.columns, view.columns, ["left", "", "right"]);
  return [vertical, horizontal].filter(Boolean).join(" ") || "centre";
}
