// The body of a function of (element, props, server, trigger, watch), in several files; gr.HTML calls it once, when the
// viewer is on the page. This file computes with the maps.
//
// A view is one choice of layers and heads. Its frame 0 is the mean over all steps; frame i is step i, if the steps were
// recorded one by one. The values of a token's map are sent in 255ths of the map's peak. `tops` holds the largest value
// of each word at the picture's own size, which is the number that saved files show too.

function decodeView({ grid: [rows, columns], peaks, tops, maps }) {
  const bytes = Uint8Array.from(atob(maps), (c) => c.charCodeAt(0));
  return { rows, columns, cells: rows * columns, peaks, tops, bytes, sums: new Map() };
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

// The largest share that a word or token has at any place.
function largestShare(view, frame, target) {
  return target.word ? Math.max(view.tops[frame][target.index], 1e-12) : greatest(sharesOf(view, frame, target.tokens));
}

// The index in `maps` of the largest map at each place; -1 where the other tokens together are larger than each map.
function dominantIn(view, maps) {
  const indices = new Int16Array(view.cells).fill(-1);
  for (let i = 0; i < view.cells; i++) {
    let most = 1 - maps.reduce((sum, map) => sum + map[i], 0);
    maps.forEach((map, m) => map[i] > most && ([most, indices[i]] = [map[i], m]));
  }
  return indices;
}

// How much of each cell lies inside a polygon of points [x, y] from 0 to 1, by testing FINE × FINE points of the cell,
// fewer of the smaller cells of a fine grid.
function coverage(view, polygon) {
  const FINE = Math.min(Math.max(Math.floor(128 / Math.max(view.rows, view.columns)), 2), 8);
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

// A share with two digits, as saved files write it.
function percent(value) {
  return (value > 0.0995 ? Math.round(100 * value) : Number((100 * value).toPrecision(2))) + "\u202f%";
}

// In which part of the picture a map lies: the centre of mass of the cells with at least half of its peak. Null where
// these cells are spread so widely that their centre would say nothing.
function placeOfMap(view, values) {
  const half = greatest(values) / 2;
  let [mass, x, y, xx, yy] = [0, 0, 0, 0, 0];
  for (let i = 0; i < view.cells; i++) {
    if (values[i] < half) continue;
    const at = [((i % view.columns) + 0.5) / view.columns, (Math.floor(i / view.columns) + 0.5) / view.rows];
    mass += values[i];
    x += values[i] * at[0];
    y += values[i] * at[1];
    xx += values[i] * at[0] ** 2;
    yy += values[i] * at[1] ** 2;
  }
  [x, y] = [x / mass, y / mass];
  const spreadOfMass = Math.sqrt(Math.max(xx / mass - x * x + yy / mass - y * y, 0));
  if (spreadOfMass > WIDE) return null;
  const part = (value, low, high) => (value < 0.5 - MIDDLE ? low : value > 0.5 + MIDDLE ? high : "");
  return [part(y, "top", "bottom"), part(x, "left", "right")].filter(Boolean).join(" ") || "middle";
}

const WIDE = 0.2; // in sides of the picture: a disc of a quarter of the picture’s area has this spread
const MIDDLE = 0.1; // the middle is this far to each side of the centre
