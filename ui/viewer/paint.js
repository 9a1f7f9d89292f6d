// Draws maps on canvases.

const HUES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#8c564b", "#7f7f7f"];
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const hueOf = (i) => HUES[i % HUES.length];
const palette = shades(props.colours);

function shades(colours) {
  const anchors = colours.map(rgb);
  const bytes = new Uint8ClampedArray(4 * 256);
  for (let level = 0; level < 256; level++) {
    const position = (level / 255) * (anchors.length - 1);
    const i = Math.min(Math.floor(position), anchors.length - 2);
    const channels = anchors[i].map((from, channel) => from + (position - i) * (anchors[i + 1][channel] - from));
    bytes.set([...channels, 255], 4 * level);
  }
  return new Uint32Array(bytes.buffer); // one number per pixel, in this machine's byte order
}

// Between the centres of cells, as torch's bilinear interpolation does.
function spread(length, cells) {
  return Array.from({ length }, (_, i) => {
    const position = Math.min(Math.max(((i + 0.5) * cells) / length - 0.5, 0), cells - 1);
    const from = Math.floor(position);
    return [from, Math.min(from + 1, cells - 1), position - from];
  });
}

// Calls set(pixel, interpolated values) for every pixel of a canvas whose longer edge has `side` pixels.
function interpolate(canvas, view, maps, side, set) {
  const scale = side / Math.max(view.rows, view.columns);
  canvas.width = Math.round(view.columns * scale);
  canvas.height = Math.round(view.rows * scale);
  const [down, across] = [spread(canvas.height, view.rows), spread(canvas.width, view.columns)];
  const values = new Float32Array(maps.length);
  let pixel = 0;
  for (const [top, bottom, y] of down) {
    for (const [left, right, x] of across) {
      const [a, b] = [top * view.columns, bottom * view.columns];
      for (let m = 0; m < maps.length; m++) {
        const map = maps[m];
        const upper = map[a + left] * (1 - x) + map[a + right] * x;
        values[m] = upper * (1 - y) + (map[b + left] * (1 - x) + map[b + right] * x) * y;
      }
      set(pixel++, values);
    }
  }
}

function put(canvas, fill) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  fill(image.data);
  context.putImageData(image, 0, 0);
}

// One map in the colours of the scale, from 0 to `top`.
function paintMap(canvas, view, map, top, side = 128) {
  const levels = [];
  interpolate(canvas, view, [map], side, (pixel, [value]) => (levels[pixel] = Math.round((255 * value) / top)));
  put(canvas, (bytes) => new Uint32Array(bytes.buffer).set(levels.map((level) => palette[Math.min(level, 255)])));
}

// The outline of each map at half its top, in its hue between two dark lines. Outlines leave the picture as it is: filled
// maps in hues would give a red thing another colour.
function paintOutlines(canvas, view, maps, tops, hues, side = 512) {
  const inside = maps.map(() => new Uint8Array(side * side));
  interpolate(canvas, view, maps, side, (pixel, values) => {
    for (let m = 0; m < maps.length; m++) inside[m][pixel] = values[m] >= tops[m] / 2;
  });
  paintLines(canvas, inside, hues);
}

// The outlines of masks as `decodeMask` gives them.
function paintMasks(canvas, masks, hues, side = 512) {
  const { height, width } = masks[0];
  const scale = side / Math.max(height, width);
  [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
  const inside = masks.map(({ bits }) => {
    const enlarged = new Uint8Array(canvas.width * canvas.height);
    for (let y = 0, pixel = 0; y < canvas.height; y++) {
      const row = Math.floor(((y + 0.5) * height) / canvas.height) * width;
      for (let x = 0; x < canvas.width; x++) enlarged[pixel++] = bits[row + Math.floor(((x + 0.5) * width) / canvas.width)];
    }
    return enlarged;
  });
  paintLines(canvas, inside, hues);
}

function paintLines(canvas, inside, hues) {
  const { width, height } = canvas;
  put(canvas, (bytes) => {
    const paint = new Uint32Array(bytes.buffer);
    inside.forEach((within, m) => {
      const [red, green, blue] = rgb(hues[m]);
      const line = new Uint32Array(new Uint8ClampedArray([red, green, blue, 255, 20, 20, 24, 255]).buffer);
      for (let pixel = 0; pixel < width * height; pixel++) {
        const depth = within[pixel] ? depthOf(within, pixel, width, height) : 0;
        if (depth) paint[pixel] = line[depth === 1 || depth > 4 ? 1 : 0];
      }
    });
  });
}

// How many pixels a pixel inside an outline is from it, from 1 to LINE; 0 for those farther inside.
const LINE = 5;
function depthOf(within, pixel, width, height) {
  const [x, y] = [pixel % width, Math.floor(pixel / width)];
  for (let depth = 1; depth <= LINE; depth++) {
    for (const [dx, dy] of [[depth, 0], [-depth, 0], [0, depth], [0, -depth]]) {
      const [u, v] = [x + dx, y + dy];
      // The picture's edge closes an outline.
      if (u < 0 || v < 0 || u >= width || v >= height || !within[v * width + u]) return depth;
    }
  }
  return 0;
}

// Each cell in the hue of its dominant word; transparent where there is none.
function paintDominant(canvas, view, indices, hues) {
  canvas.width = view.columns;
  canvas.height = view.rows;
  put(canvas, (bytes) => indices.forEach((m, i) => m >= 0 && bytes.set([...rgb(hues[m]), 255], 4 * i)));
}
