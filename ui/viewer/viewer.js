// The body of a function of (element, props, watch), which gr.HTML calls once, when the viewer is on the page.
//
// props.value is what Python's `payload` made, or nothing yet; props.colours is the colour map. Everything a person
// typed is written by textContent or as a property, never as HTML.

const SCALE = 8; // canvas pixels per cell of the grid; the browser smooths the rest of the way
const find = (name) => element.querySelector("." + name);
const [frame, picture, heat, cellMark, scale, bar, peak, prompt, caption, note] =
  ["frame", "picture", "heat", "cell", "scale", "bar", "peak", "prompt", "caption", "note"].map(find);
const palette = shades(props.colours);

let data = null; // the payload with its maps decoded
let chips = []; // one button per word
let pinned = null; // the word that stays
let pointed = null; // the word under the pointer or the keyboard's focus
let painted = null; // the word whose map the canvas holds
let cell = null; // the place in the picture pointed at: { row, column }

// What the numbers say

function shades(colours) {
  const anchors = colours.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  const bytes = new Uint8ClampedArray(4 * 256);
  for (let level = 0; level < 256; level++) {
    const position = (level / 255) * (anchors.length - 1);
    const i = Math.min(Math.floor(position), anchors.length - 2);
    const channels = anchors[i].map((from, channel) => from + (position - i) * (anchors[i + 1][channel] - from));
    bytes.set([...channels, 255], 4 * level);
  }
  return new Uint32Array(bytes.buffer); // a pixel in one number, in whatever order this machine keeps its bytes
}

function decode(payload) {
  const [rows, columns] = payload.grid;
  return { ...payload, rows, columns, maps: Uint8Array.from(atob(payload.maps), (c) => c.charCodeAt(0)) };
}

function level(word, row, column) {
  return data.maps[(word * data.rows + row) * data.columns + column];
}

function share(word, { row, column }) {
  return (level(word, row, column) / 255) * data.peaks[word];
}

function percent(value) {
  return (100 * value).toFixed(value < 0.0995 ? 1 : 0) + "\u202f%";
}

function whereStrongest(word) {
  const size = data.rows * data.columns;
  const at = data.maps.subarray(word * size, (word + 1) * size).indexOf(255);
  const third = (i, of, names) => names[Math.min(2, Math.floor((3 * (i + 0.5)) / of))];
  const vertical = third(Math.floor(at / data.columns), data.rows, ["top", "", "bottom"]);
  const horizontal = third(at % data.columns, data.columns, ["left", "", "right"]);
  return [vertical, horizontal].filter(Boolean).join(" ") || "middle";
}

// Drawing

function paint(word) {
  heat.width = data.columns * SCALE;
  heat.height = data.rows * SCALE;
  const context = heat.getContext("2d");
  const image = context.createImageData(heat.width, heat.height);
  const pixels = new Uint32Array(image.data.buffer);
  // Between the centres of cells, as torch's bilinear interpolation does.
  const spread = (i, cells) => {
    const position = Math.min(Math.max((i + 0.5) / SCALE - 0.5, 0), cells - 1);
    const from = Math.floor(position);
    return [from, Math.min(from + 1, cells - 1), position - from];
  };
  const across = Array.from({ length: heat.width }, (_, x) => spread(x, data.columns));
  for (let y = 0, at = 0; y < heat.height; y++) {
    const [top, bottom, down] = spread(y, data.rows);
    for (const [left, right, along] of across) {
      const upper = level(word, top, left) * (1 - along) + level(word, top, right) * along;
      const lower = level(word, bottom, left) * (1 - along) + level(word, bottom, right) * along;
      pixels[at++] = palette[Math.round(upper * (1 - down) + lower * down)];
    }
  }
  context.putImageData(image, 0, 0);
}

function render() {
  const word = pointed ?? pinned;
  heat.hidden = word === null;
  scale.style.visibility = word === null ? "hidden" : "visible";
  if (word !== null && word !== painted) {
    paint(word);
    peak.textContent = percent(data.peaks[word]);
    painted = word;
  }
  cellMark.hidden = cell === null;
  if (cell) {
    cellMark.style.left = (100 * cell.column) / data.columns + "%";
    cellMark.style.top = (100 * cell.row) / data.rows + "%";
    cellMark.style.width = 100 / data.columns + "%";
    cellMark.style.height = 100 / data.rows + "%";
  }
  const shares = chips.map((_, i) => (cell ? share(i, cell) : 0));
  const most = Math.max(...shares, 1e-9);
  chips.forEach((chip, i) => {
    chip.setAttribute("aria-pressed", String(i === pinned));
    chip.classList.toggle("shown", i === word);
    chip.style.setProperty("--light", shares[i] / most);
    chip.lastChild.textContent = cell ? percent(shares[i]) : "";
  });
  caption.textContent = describe(word, shares);
}

function describe(word, shares) {
  const name = (i) => chips[i].firstChild.textContent;
  if (!data) return "";
  if (cell) {
    const order = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a]);
    const best = order.slice(0, 3).map((i) => `${name(i)} ${percent(shares[i])}`);
    const rest = 1 - shares.reduce((sum, value) => sum + value, 0);
    return `Row ${cell.row + 1}, column ${cell.column + 1} of ${data.rows}×${data.columns}, share of the attention: ` +
      `${[...best, `no word ${percent(Math.max(rest, 0))}`].join(", ")}.`;
  }
  if (word !== null) {
    return `“${name(word)}” is strongest at the ${whereStrongest(word)}, with ${percent(data.peaks[word])} of the ` +
      "attention. Colours run from none to this word’s own peak.";
  }
  if (!chips.length) return "The prompt has no words to point at.";
  return "Point at a word to see where it landed, or at the picture to see which words drew it.";
}

function show(payload) {
  note.textContent = payload?.error ?? payload?.note ?? "";
  note.classList.toggle("error", Boolean(payload?.error));
  if (payload?.error) return; // the last picture stays
  const before = data?.prompt;
  data = payload ? decode(payload) : null;
  pointed = painted = cell = null;
  if (data?.prompt !== before) pinned = null; // the same prompt with another seed keeps its pin
  picture.hidden = !data;
  if (data) {
    picture.src = data.picture;
    picture.alt = "The picture drawn for: " + data.prompt;
    frame.style.setProperty("--shape", data.columns / data.rows);
  }
  chips = [];
  prompt.replaceChildren(...(data?.pieces ?? []).map(([text, word]) => (word < 0 ? gap(text) : chip(text, word))));
  render();
}

function gap(text) {
  const span = document.createElement("span");
  span.className = "gap";
  span.textContent = text;
  return span;
}

function chip(text, word) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "chip";
  const [label, number] = [document.createElement("span"), document.createElement("span")];
  label.textContent = text;
  number.className = "share";
  button.append(label, number);
  button.addEventListener("pointerenter", () => pointAtWord(word));
  button.addEventListener("pointerleave", leaveWord);
  // A tap focuses the chip too; only the keyboard's focus shows a map, or a second tap could not put it away.
  button.addEventListener("focus", () => button.matches(":focus-visible") && pointAtWord(word));
  button.addEventListener("blur", leaveWord);
  button.addEventListener("click", () => pin(word));
  chips[word] = button;
  return button;
}

// Pointing at a word

function pointAtWord(word) {
  pointed = word;
  cell = null;
  render();
}

function leaveWord() {
  pointed = null;
  render();
}

function pin(word) {
  pinned = pinned === word ? null : word;
  cell = null;
  render();
}

// Pointing at the picture

function pointAt(row, column) {
  const within = (i, cells) => Math.min(Math.max(i, 0), cells - 1);
  const next = { row: within(row, data.rows), column: within(column, data.columns) };
  if (next.row === cell?.row && next.column === cell?.column) return;
  cell = next;
  render();
}

function pointWithPointer(event) {
  if (!data) return;
  const box = frame.getBoundingClientRect();
  pointAt(
    Math.floor(((event.clientY - box.top) / box.height) * data.rows),
    Math.floor(((event.clientX - box.left) / box.width) * data.columns),
  );
}

function pointWithKeys(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (event.key === "Escape") leavePicture();
  if (!step || !data) return;
  event.preventDefault(); // the page would scroll
  const from = cell ?? { row: Math.floor(data.rows / 2), column: Math.floor(data.columns / 2) };
  pointAt(from.row + step[0], from.column + step[1]);
}

function leavePicture() {
  cell = null;
  render();
}

frame.addEventListener("pointermove", pointWithPointer);
frame.addEventListener("pointerdown", pointWithPointer);
frame.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leavePicture()); // a tap's answer stays
frame.addEventListener("keydown", pointWithKeys);
frame.addEventListener("blur", leavePicture);
bar.style.background = `linear-gradient(to right, ${props.colours.join(", ")})`;

watch("value", () => show(props.value)); // fires for what Python sends later on; the first value is here already
show(props.value);
