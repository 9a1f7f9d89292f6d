// The body of a function of (element, props, watch), which gr.HTML calls once, when the component is on the page.
//
// props.value is what Python's `payload` made, or nothing yet; props.colours is the colour map. Everything a person
// typed, and everything a model wrote, is written by textContent, never as HTML.

const find = (selector, within = element) => within.querySelector(selector);
const [note, body, layer, head, bar, peak, source, caption] =
  [".note", ".body", ".layer", ".head", ".bar", ".peak", ".source", ".caption"].map((selector) => find(selector));
const palette = shades(props.colours);
// A panel for each translation: what the model wrote, and what it was given to read beside it.
const panels = ["written", "reference"].map(panel);

let data = null; // the payload that is shown
let lines = []; // the source's chips, then each panel's: [place, button] each
let pinned = null; // the place that stays lit
let pointed = null; // the place under the pointer or the keyboard's focus
// A place is { panel, row, column }: a source token has a column only, a target token a panel and a row, a cell all.

// What the numbers say

function shades(colours) {
  const canvas = Object.assign(document.createElement("canvas"), { width: 256, height: 1 });
  const context = canvas.getContext("2d");
  const gradient = context.createLinearGradient(0, 0, 256, 0);
  colours.forEach((colour, i) => gradient.addColorStop(i / (colours.length - 1), colour));
  context.fillStyle = gradient;
  context.fillRect(0, 0, 256, 1);
  return context.getImageData(0, 0, 256, 1).data;
}

function decode(reading) {
  const bytes = Uint8Array.from(atob(reading.weights), (c) => c.charCodeAt(0));
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => (bytes[2 * i] + 256 * bytes[2 * i + 1]) / 65535);
}

/** The mean over the layers and heads that are chosen, (rows, columns) in one array. */
function mean({ reading, weights, rows, columns }) {
  const meant = (select, count) => (select.value === "" ? [...Array(count).keys()] : [Number(select.value)]);
  const [layers, heads] = [meant(layer, reading.layers), meant(head, reading.heads)];
  const size = rows * columns;
  const sum = new Float32Array(size);
  for (const l of layers) {
    for (const h of heads) {
      const from = (l * reading.heads + h) * size;
      for (let i = 0; i < size; i++) sum[i] += weights[from + i];
    }
  }
  return sum.map((value) => value / (layers.length * heads.length));
}

function share(panel, row, column) {
  return panels[panel].shares[row * panels[panel].columns + column];
}

/** The share that joins a token to what is pointed at, or null where that says nothing of the token. */
function between({ panel, row, column }, at) {
  if (row === undefined) {
    const meant = at?.row !== undefined && (at.column ?? column) === column;
    return meant ? share(at.panel, at.row, column) : null;
  }
  const meant = at?.column !== undefined && (at.row === undefined || (at.panel === panel && at.row === row));
  return meant ? share(panel, row, at.column) : null;
}

function surprising({ reading }, row) {
  return reading.likeliest[row][1] > reading.probabilities[row];
}

/** The geometric mean, the probability that so many tokens alike would have. */
function typical(probabilities) {
  return Math.exp(probabilities.reduce((sum, value) => sum + Math.log(value), 0) / probabilities.length);
}

function percent(value) {
  return (100 * value).toFixed(value < 0.0995 ? 1 : 0) + "\u202f%";
}

// The panels

function panel(name, place) {
  const box = find(`.reading.${name}`);
  const [average, line, columnNames, rowNames, field, canvas, mark, rather] =
    [".mean", ".target", ".columns", ".rows", ".field", "canvas", ".mark", ".rather"].map((part) => find(part, box));
  field.addEventListener("pointermove", (event) => pointWithPointer(place, event));
  field.addEventListener("pointerdown", (event) => pointWithPointer(place, event));
  field.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leaveField(place)); // a tap's stays
  field.addEventListener("keydown", (event) => pointWithKeys(place, event));
  field.addEventListener("blur", () => leaveField(place));
  return { box, average, line, columnNames, rowNames, field, canvas, mark, rather, reading: null };
}

function fill(panel, place, reading) {
  Object.assign(panel, { reading, rows: reading?.tokens.length ?? 0, columns: data.source.length });
  panel.box.hidden = !reading;
  if (!reading) return [];
  panel.weights = decode(reading);
  panel.box.style.setProperty("--rows", panel.rows);
  panel.box.style.setProperty("--columns", panel.columns);
  panel.average.textContent = `on average ${percent(typical(reading.probabilities))} per token`;
  panel.columnNames.replaceChildren(...data.source.map((token, column) => name(token, { column })));
  panel.rowNames.replaceChildren(...reading.tokens.map((token, row) => {
    const made = name(token, { panel: place, row });
    made.append(span("probability", percent(reading.probabilities[row])));
    return made;
  }));
  panel.rather.replaceChildren(...reading.likeliest.map(([text, probability], row) =>
    span("instead", surprising(panel, row) ? `rather ${text} ${percent(probability)}` : "")));
  const line = reading.tokens.map((token, row) => [{ panel: place, row }, chip(token, { panel: place, row })]);
  line.forEach(([, button], row) => button.classList.toggle("surprising", surprising(panel, row)));
  panel.line.replaceChildren(...line.map(([, button]) => button));
  return line;
}

function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

function name([text, special], place) {
  const made = span(special ? "name special" : "name", "");
  made.append(span("text", text));
  made.addEventListener("pointerenter", () => point(place));
  made.addEventListener("pointerleave", () => leave(place));
  made.addEventListener("click", () => pin(place));
  return made;
}

function chip([text, special], place) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = special ? "chip special" : "chip";
  button.append(span("text", text), span("share", ""));
  button.addEventListener("pointerenter", () => point(place));
  button.addEventListener("pointerleave", () => leave(place));
  // A tap focuses the chip too; only the keyboard's focus lights others, or a second tap could not put them out.
  button.addEventListener("focus", () => button.matches(":focus-visible") && point(place));
  button.addEventListener("blur", () => leave(place));
  button.addEventListener("click", () => pin(place));
  return button;
}

// Drawing

function paint(panel, most) {
  const { canvas, rows, columns, shares } = panel;
  Object.assign(canvas, { width: columns, height: rows }); // a pixel a cell: the style makes it large
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  shares.forEach((value, i) => {
    const shade = 4 * Math.round((255 * value) / most);
    image.data.set(palette.subarray(shade, shade + 4), 4 * i);
  });
  context.putImageData(image, 0, 0);
}

/** After another translation, layer or head: the shares, their colours and the scale both matrices have in common. */
function redraw() {
  const read = panels.filter((panel) => panel.reading);
  for (const panel of read) panel.shares = mean(panel);
  const most = read.reduce((peak, panel) => panel.shares.reduce((a, b) => Math.max(a, b), peak), 1e-9);
  for (const panel of read) paint(panel, most);
  peak.textContent = percent(most);
  render();
}

/** After another pointing: what is lit, its numbers, and the sentence about it. */
function render() {
  const at = pointed ?? pinned;
  for (const line of lines) light(line, at);
  panels.forEach((panel, place) => outline(panel, (at?.panel ?? place) === place ? at : null));
  caption.textContent = data ? describe(at) : "";
}

function light(line, at) {
  const shares = line.map(([place]) => between(place, at));
  const most = Math.max(...shares, 1e-9);
  line.forEach(([place, button], i) => {
    button.setAttribute("aria-pressed", String(same(place, pinned)));
    button.classList.toggle("shown", within(place, at));
    button.style.setProperty("--light", (shares[i] ?? 0) / most);
    button.lastChild.textContent = shares[i] === null ? "" : percent(shares[i]);
  });
}

function outline({ mark, rowNames, columnNames, rows, columns }, at) {
  mark.hidden = !at;
  [...rowNames.children].forEach((name, i) => name.classList.toggle("on", i === at?.row));
  [...columnNames.children].forEach((name, i) => name.classList.toggle("on", i === at?.column));
  const extent = (i, cells) => (i === undefined ? [0, 100] : [(100 * i) / cells, 100 / cells]); // all where none is meant
  const [[top, height], [left, width]] = [extent(at?.row, rows), extent(at?.column, columns)];
  Object.assign(mark.style, { top: top + "%", height: height + "%", left: left + "%", width: width + "%" });
}

function describe(at) {
  const quoted = ([text]) => `“${text}”`;
  const best = (tokens, shareOf) => tokens.map((token, i) => [shareOf(i), token]).sort((a, b) => b[0] - a[0])
    .slice(0, 3).map(([value, token]) => `${quoted(token)} ${percent(value)}`).join(", ");
  if (!at) return "Point at a token on either side, or at a matrix, to see what was read to write it.";
  if (at.row === undefined) {
    const readers = panels.flatMap(({ reading }, place) =>
      reading ? [best(reading.tokens, (row) => share(place, row, at.column))] : []);
    return `${quoted(data.source[at.column])} is read most for ${readers.join("; in yours for ")}.`;
  }
  const panel = panels[at.panel];
  const token = quoted(panel.reading.tokens[at.row]);
  if (at.column !== undefined) {
    return `For ${token} the model reads ${quoted(data.source[at.column])} with ` +
      `${percent(share(at.panel, at.row, at.column))} of its attention (${chosen()}).`;
  }
  const [text, probability] = panel.reading.likeliest[at.row];
  const rather = surprising(panel, at.row) ? `, and would rather write “${text}”, ${percent(probability)}` : "";
  return `For ${token} the model reads ${best(data.source, (column) => share(at.panel, at.row, column))}. ` +
    `It gives ${token} a probability of ${percent(panel.reading.probabilities[at.row])}${rather}.`;
}

function chosen() {
  const named = (select, what) => (select.value === "" ? `mean of all ${what}s` : `${what} ${Number(select.value) + 1}`);
  return `${named(layer, "layer")}, ${named(head, "head")}`;
}

// Pointing

function same(a, b) {
  return Boolean(a && b) && a.panel === b.panel && a.row === b.row && a.column === b.column;
}

/** Whether a token is one of the (at most two) that are pointed at. */
function within({ panel, row, column }, at) {
  return row === undefined ? at?.column === column : at?.panel === panel && at.row === row;
}

function point(at) {
  if (same(at, pointed) || at === pointed) return;
  pointed = at;
  render();
}

// What is left may not be what is pointed at any more: a tap elsewhere takes the focus from a chip after it has pointed.

function leave(place) {
  if (same(pointed, place)) point(null);
}

function leaveField(place) {
  if (pointed?.panel === place && pointed.column !== undefined) point(null);
}

function pin(at) {
  pinned = same(pinned, at) ? null : at;
  pointed = null;
  render();
}

function pointAtCell(place, row, column) {
  const inside = (i, cells) => Math.min(Math.max(i, 0), cells - 1);
  point({ panel: place, row: inside(row, panels[place].rows), column: inside(column, panels[place].columns) });
}

function pointWithPointer(place, event) {
  const { field, rows, columns } = panels[place];
  const box = field.getBoundingClientRect();
  const part = (from, at, size, cells) => Math.floor(((at - from) / size) * cells);
  pointAtCell(place, part(box.top, event.clientY, box.height, rows), part(box.left, event.clientX, box.width, columns));
}

function pointWithKeys(place, event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (event.key === "Escape") point(null);
  if (!step) return;
  event.preventDefault(); // the page would scroll
  if (pointed?.panel !== place || pointed.row === undefined) return pointAtCell(place, 0, 0);
  pointAtCell(place, pointed.row + step[0], pointed.column + step[1]);
}

// What Python sends

function offer(select, count) {
  const before = select.value;
  const option = (name, value) => Object.assign(document.createElement("option"), { textContent: name, value });
  const each = Array.from({ length: count }, (_, i) => option(String(i + 1), String(i)));
  select.replaceChildren(option(`All ${count} (mean)`, ""), ...each);
  select.value = before !== "" && Number(before) < count ? before : "";
}

function show(payload) {
  note.textContent = payload?.error ?? payload?.note ?? "";
  note.classList.toggle("error", Boolean(payload?.error));
  body.hidden = !payload || (Boolean(payload.error) && !data);
  if (!payload || payload.error) return; // the last translation stays
  data = payload;
  pinned = pointed = null;
  offer(layer, data.written.layers);
  offer(head, data.written.heads);
  const line = data.source.map((token, column) => [{ column }, chip(token, { column })]);
  source.replaceChildren(...line.map(([, button]) => button));
  lines = [line, fill(panels[0], 0, data.written), fill(panels[1], 1, data.reference)];
  redraw();
}

watch("value", () => show(props.value)); // fires for what Python sends later on; the first value is here already
layer.addEventListener("change", redraw);
head.addEventListener("change", redraw);
bar.style.background = `linear-gradient(to right, ${props.colours.join(", ")})`;
show(props.value);
