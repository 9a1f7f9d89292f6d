// The body of a function of (element, props, watch), which gr.HTML calls once, when the component is on the page.
//
// props.value comes from Python's `payload`, or is nothing yet; props.colours is the colour map. All text of a person or
// a model is written by textContent, never as HTML.

const find = (selector, within = element) => within.querySelector(selector);
const [note, body, layer, head, bar, peak, source, caption] =
  [".note", ".body", ".layer", ".head", ".bar", ".peak", ".source", ".caption"].map((selector) => find(selector));
const palette = shades(props.colours);
// A panel for each translation: the model's own, and the reference that a person typed.
const panels = ["written", "reference"].map(panel);

let data = null; // the payload that is shown
let lines = []; // lines of [place, button]: the source's chips, then those of each panel
let pinned = null; // the place that a click keeps highlighted
let pointed = null; // the place under the pointer or the keyboard's focus
// A place is { panel, row, column }: a source token has only a column, a target token a panel and a row, a cell all three.

// The numbers

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

/** The mean over the chosen layers and heads, (rows, columns) in one array. */
function mean({ reading, weights, rows, columns }) {
  const selected = (select, count) => (select.value === "" ? [...Array(count).keys()] : [Number(select.value)]);
  const [layers, heads] = [selected(layer, reading.layers), selected(head, reading.heads)];
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

/** The attention between a token and the place under the pointer; null where the two do not belong together. */
function between({ panel, row, column }, at) {
  if (row === undefined) {
    const related = at?.row !== undefined && (at.column ?? column) === column;
    return related ? share(at.panel, at.row, column) : null;
  }
  const related = at?.column !== undefined && (at.row === undefined || (at.panel === panel && at.row === row));
  return related ? share(panel, row, at.column) : null;
}

function surprising({ reading }, row) {
  return reading.likeliest[row][1] > reading.probabilities[row];
}

/** The geometric mean: the probability of each token if all had the same. */
function geometricMean(probabilities) {
  return Math.exp(probabilities.reduce((sum, value) => sum + Math.log(value), 0) / probabilities.length);
}

function percent(value) {
  return (100 * value).toFixed(value < 0.0995 ? 1 : 0) + "\u202f%";
}

// The panels

function panel(name, place) {
  const box = find(`.reading.${name}`);
  const [average, line, columnNames, rowNames, field, canvas, mark, likelier] =
    [".mean", ".target", ".columns", ".rows", ".field", "canvas", ".mark", ".likelier"].map((part) => find(part, box));
  field.addEventListener("pointermove", (event) => pointWithPointer(place, event));
  field.addEventListener("pointerdown", (event) => pointWithPointer(place, event));
  field.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leaveField(place)); // a tap's answer stays
  field.addEventListener("keydown", (event) => pointWithKeys(place, event));
  field.addEventListener("blur", () => leaveField(place));
  return { box, average, line, columnNames, rowNames, field, canvas, mark, likelier, reading: null };
}

function fill(panel, place, reading) {
  Object.assign(panel, { reading, rows: reading?.tokens.length ?? 0, columns: data.source.length });
  panel.box.hidden = !reading;
  if (!reading) return [];
  panel.weights = decode(reading);
  panel.box.style.setProperty("--rows", panel.rows);
  panel.box.style.setProperty("--columns", panel.columns);
  panel.average.textContent = say("alignment.mean", { share: percent(geometricMean(reading.probabilities)) });
  panel.columnNames.replaceChildren(...data.source.map((token, column) => name(token, { column })));
  panel.rowNames.replaceChildren(...reading.tokens.map((token, row) => {
    const made = name(token, { panel: place, row });
    made.append(span("probability", percent(reading.probabilities[row])));
    return made;
  }));
  panel.likelier.replaceChildren(...reading.likeliest.map(([text, probability], row) =>
    span("instead", surprising(panel, row) ? say("alignment.likelier", { text, share: percent(probability) }) : "")));
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
  // A tap focuses the chip too. Only the keyboard's focus highlights others, or a second tap could not clear them.
  button.addEventListener("focus", () => button.matches(":focus-visible") && point(place));
  button.addEventListener("blur", () => leave(place));
  button.addEventListener("click", () => pin(place));
  return button;
}

// Drawing

function paint(panel, most) {
  const { canvas, rows, columns, shares } = panel;
  Object.assign(canvas, { width: columns, height: rows }); // one pixel per cell; the style enlarges it
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  shares.forEach((value, i) => {
    const shade = 4 * Math.round((255 * value) / most);
    image.data.set(palette.subarray(shade, shade + 4), 4 * i);
  });
  context.putImageData(image, 0, 0);
}

/** Updates the shares, their colours and the scale of both matrices after another translation, layer or head. */
function redraw() {
  const read = panels.filter((panel) => panel.reading);
  for (const panel of read) panel.shares = mean(panel);
  const most = read.reduce((peak, panel) => panel.shares.reduce((a, b) => Math.max(a, b), peak), 1e-9);
  for (const panel of read) paint(panel, most);
  peak.textContent = percent(most);
  render();
}

/** Updates the highlighted tokens, their numbers and the caption after the pointer moved. */
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
  const extent = (i, cells) => (i === undefined ? [0, 100] : [(100 * i) / cells, 100 / cells]); // undefined: all of them
  const [[top, height], [left, width]] = [extent(at?.row, rows), extent(at?.column, columns)];
  Object.assign(mark.style, { top: top + "%", height: height + "%", left: left + "%", width: width + "%" });
}

function describe(at) {
  const quoted = ([text]) => say("alignment.quoted", { text });
  const best = (tokens, shareOf) => tokens.map((token, i) => [shareOf(i), token]).sort((a, b) => b[0] - a[0])
    .slice(0, 3).map(([value, token]) => `${quoted(token)} ${percent(value)}`).join(say("alignment.list"));
  if (!at) return say("alignment.hint");
  if (at.row === undefined) {
    const readers = panels.flatMap(({ reading }, place) =>
      reading ? [best(reading.tokens, (row) => share(place, row, at.column))] : []);
    const about = { token: quoted(data.source[at.column]), readers: readers.join(say("alignment.readers")) };
    return say("alignment.readings", about);
  }
  const panel = panels[at.panel];
  const token = quoted(panel.reading.tokens[at.row]);
  if (at.column !== undefined) {
    const about = { source: quoted(data.source[at.column]), share: percent(share(at.panel, at.row, at.column)) };
    return say("alignment.cell", { token, ...about, chosen: chosen() });
  }
  const [text, probability] = panel.reading.likeliest[at.row];
  const likelier = surprising(panel, at.row) ? say("alignment.rather", { text, share: percent(probability) }) : "";
  const about = { token, share: percent(panel.reading.probabilities[at.row]), likelier };
  return say("alignment.row", { ...about, best: best(data.source, (column) => share(at.panel, at.row, column)) });
}

function chosen() {
  const number = (select) => ({ number: Number(select.value) + 1 });
  return [
    layer.value === "" ? say("alignment.all layers") : say("alignment.one layer", number(layer)),
    head.value === "" ? say("alignment.all heads") : say("alignment.one head", number(head)),
  ].join(say("alignment.list"));
}

// Pointing

function same(a, b) {
  return Boolean(a && b) && a.panel === b.panel && a.row === b.row && a.column === b.column;
}

/** Whether a token is one of the (at most two) tokens of the place under the pointer. */
function within({ panel, row, column }, at) {
  return row === undefined ? at?.column === column : at?.panel === panel && at.row === row;
}

function point(at) {
  if (same(at, pointed) || at === pointed) return;
  pointed = at;
  render();
}

// The place that the pointer leaves may not be `pointed` any more: a tap elsewhere points first, then blurs the old chip.

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
  const current = select.value;
  const option = (name, value) => Object.assign(document.createElement("option"), { textContent: name, value });
  const each = Array.from({ length: count }, (_, i) => option(String(i + 1), String(i)));
  select.replaceChildren(option(say("alignment.all"), ""), ...each);
  select.value = current !== "" && Number(current) < count ? current : "";
}

function show(payload) {
  note.textContent = payload?.error ? sayError(payload.error) : sayAll(payload?.notes ?? []);
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

watch("value", () => show(props.value)); // fires for later values only; the first one has arrived already
layer.addEventListener("change", redraw);
head.addEventListener("change", redraw);
bar.style.background = `linear-gradient(to right, ${props.colours.join(", ")})`;
show(props.value);
