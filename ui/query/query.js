// With arithmetic.js the body of a function of (element, props, watch, trigger), which gr.HTML calls once, when the
// diagram is on the page.
//
// props.value comes from Python's `picture_payload` or `text_payload`, or is nothing yet. It holds the outputs of the
// layer's projections; products, softmax and output are computed here. Text that a person typed is written by
// textContent, never as HTML. props.colours is the colour map of heat maps.

const PLUS = [217, 98, 15]; // orange and blue differ for every kind of colour blindness; so do up and down
const MINUS = [59, 125, 216];
const CELL = 8; // canvas pixels per cell, the last one a gap; a bar goes up or down from the middle
const HEIGHT = 40;
const find = (name) => element.querySelector("." + name);
const [board, shot, drawing, warmth, spot, written, heads, tokens, terms, hide, message] = [
  "board", "shot", "drawing", "warmth", "spot", "written", "heads", "tokens", "terms", "hide", "message",
].map(find);
const askStrip = strip(find("asks .keys"), "q", null);
const outStrip = strip(find("gives .values"), "v", null);

let data = null; // the payload with its numbers decoded
let rows = []; // the elements of each token's row
let head = 0;
let place = { across: 0.5, down: 0.5 }; // in the picture, so that it is the same on another layer's grid
let token = 0; // the token of the translation that the decoder predicts
let pinned = null; // the token of the memory that a click keeps highlighted
let pointed = null; // the token of the memory under the pointer or the keyboard's focus
let component = null; // the component of q and k, or of v and out, under the pointer: { of: "q" or "v", at }
let masked = new Set(); // tokens that a person has masked, to see what a mask does
let error = null; // the error message of the last request
let found = null; // every number of the current query

// The choices

function ownVector(name, row) {
  return vector(data, name, head, row);
}

function quoted(t) {
  return `“${spelled(data.tokens[t])}”`;
}

function position() {
  if (data.written) return token;
  return row() * data.columns + column();
}

function row() {
  return Math.min(Math.floor(place.down * data.rows), data.rows - 1);
}

function column() {
  return Math.min(Math.floor(place.across * data.columns), data.columns - 1);
}

// Drawing

function paint(holder, numbers, most) {
  const canvas = holder.querySelector("canvas");
  canvas.width = numbers.length * CELL;
  canvas.height = HEIGHT;
  const context = canvas.getContext("2d");
  const gap = numbers.length > 64 ? 0 : 1;
  numbers.forEach((value, i) => {
    const part = Math.min(Math.abs(value) / most, 1);
    const colour = (value < 0 ? MINUS : PLUS).join(",");
    context.fillStyle = `rgba(${colour},${0.35 * part})`;
    context.fillRect(i * CELL, 0, CELL - gap, HEIGHT);
    context.fillStyle = `rgb(${colour})`;
    const tall = (part * HEIGHT) / 2;
    context.fillRect(i * CELL, value < 0 ? HEIGHT / 2 : HEIGHT / 2 - tall, CELL - gap, tall);
  });
}

function paintHead() {
  const part = (name, count) => data[name].subarray(head * count * data.E, (head + 1) * count * data.E);
  data.most = { q: largest(part("q", data.N)), k: largest(part("k", data.T)), v: largest(part("v", data.T)) };
  rows.forEach((row, t) => {
    paint(row.k, ownVector("k", t), data.most.k);
    paint(row.v, ownVector("v", t), data.most.v);
  });
  const { q, k, v } = data.most;
  find("legend").textContent = say("query.legend", { q: signed(q), k: signed(k), v: signed(v), heads: data.H });
}

function paintWarmth(t) {
  warmth.hidden = t === null || Boolean(data.written) || !found.readable[t];
  if (warmth.hidden) return;
  const key = [t, head, ...masked].join();
  if (data.warm === key) return; // the canvas shows it already
  data.warm = key;
  const shares = Array.from({ length: data.N }, (_, n) => follow(data, head, n, masked).weights[t]);
  const most = largest(shares);
  warmth.width = data.columns;
  warmth.height = data.rows;
  const context = warmth.getContext("2d");
  shares.forEach((share, n) => {
    context.fillStyle = props.colours[Math.round((share / most) * (props.colours.length - 1))];
    context.fillRect(n % data.columns, Math.floor(n / data.columns), 1, 1);
  });
  data.peak = most;
}

function render() {
  found = follow(data, head, position(), masked);
  paint(askStrip, found.q, data.most.q);
  paint(outStrip, found.out, data.most.v);
  const shown = pointed ?? pinned;
  paintWarmth(shown);
  const most = Math.max(...found.weights);
  rows.forEach((row, t) => {
    row.line.classList.toggle("lit", t === shown);
    row.button.setAttribute("aria-pressed", String(t === pinned));
    row.product.textContent = signed(found.products[t]);
    row.scaled.textContent = found.readable[t] ? signed(found.scaled[t]) : "−∞";
    row.weight.textContent = percent(found.weights[t]);
    row.bar.style.setProperty("--part", found.weights[t]);
    row.v.style.setProperty("--part", found.weights[t] / most);
    const { of, at } = component ?? {};
    const factors = numbered("q", at) + numbered("k", at);
    row.keyTerm.textContent = of === "q" ? `${factors} ${signed(found.q[at] * ownVector("k", t)[at])}` : "";
    const part = of === "v" && signed(found.weights[t] * ownVector("v", t)[at]);
    row.valueTerm.textContent = part ? `·${numbered("v", at)} ${part}` : "";
  });
  const list = [...masked].map(quoted).join(", ");
  message.textContent = error ?? (list ? say("query.what if", { tokens: list }) : sayAll(data.notes ?? []));
  mark();
  renderAsker(shown);
  renderWorked(shown ?? found.weights.indexOf(most));
}

function mark() {
  const marked = { q: [askStrip, ...rows.map((row) => row.k)], v: [outStrip, ...rows.map((row) => row.v)] };
  for (const [of, strips] of Object.entries(marked)) {
    for (const holder of strips) {
      holder.classList.toggle("marked", component?.of === of);
      holder.style.setProperty("--at", component?.at ?? 0);
      holder.style.setProperty("--of", data.E);
    }
  }
  describeStrip(askStrip, "q", found.q);
  describeStrip(outStrip, "v", found.out);
}

function describeStrip(holder, of, numbers) {
  const at = component?.of === of ? component.at : 0;
  holder.setAttribute("aria-valuemin", 1);
  holder.setAttribute("aria-valuemax", data.E);
  holder.setAttribute("aria-valuenow", at + 1);
  holder.setAttribute("aria-valuetext", `component ${at + 1}: ${signed(numbers[at], 3)}`);
}

function renderAsker(shown) {
  const [r, c] = [row(), column()];
  spot.style.left = (100 * c) / data.columns + "%";
  spot.style.top = (100 * r) / data.rows + "%";
  spot.style.width = 100 / data.columns + "%";
  spot.style.height = 100 / data.rows + "%";
  [...heads.querySelectorAll("button")].forEach((button, i) => button.setAttribute("aria-pressed", String(i === head)));
  [...written.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === token)));
  const query = data.written
    ? say("query.where.text", { number: token + 1, all: data.N, token: spelled(data.written[token]) })
    : say("query.where.picture", { row: r + 1, column: c + 1, rows: data.rows, columns: data.columns });
  const bright = warmth.hidden ? "" : say("query.bright", { token: quoted(shown), share: percent(data.peak) });
  find("where").textContent = query + bright;
}

function renderWorked(t) {
  const k = ownVector("k", t);
  const [product, scaled, share] = [signed(found.products[t]), signed(found.scaled[t]), percent(found.weights[t])];
  const powers = found.scaled.map((score, i) => (found.readable[i] ? Math.exp(score) : 0));
  const total = powers.reduce((a, b) => a + b, 0);
  const at = component?.of === "q" ? component.at : -1;
  find("worked-token").textContent = say("query.worked", { token: quoted(t) });
  hide.textContent = say(masked.has(t) ? "query.unmask" : "query.mask", { token: quoted(t) });
  hide.setAttribute("aria-pressed", String(masked.has(t)));
  hide.disabled = !data.mask[t] || (!masked.has(t) && powers.filter(Boolean).length === 1);
  hide.onclick = () => mask(t);
  const addends = Array.from(k, (value, e) => word(summand(found.q[e] * value, e), e === at ? "at" : ""));
  terms.replaceChildren(word("q·k ="), ...addends, word(`= ${product}`));
  const about = { product, scaled, share, E: data.E, T: data.T, power: scientific(powers[t]), total: scientific(total) };
  find("worked-softmax").textContent = say(found.readable[t] ? "query.softmax" : "query.masked", about);
  find("worked-out").textContent =
    component?.of === "v" ? workedOut(t, component.at) : say("query.enters", { share });
}

function workedOut(t, e) {
  const [weight, value] = [found.weights[t].toFixed(3), ownVector("v", t)[e]];
  const part = signed(found.weights[t] * value, 3);
  const all = signed(found.out[e], 3);
  return say("query.part", { weight, v: numbered("v", e), value: signed(value, 3), part, out: numbered("out", e), all });
}

function word(text, name = "") {
  const span = document.createElement("span");
  span.textContent = text;
  span.className = name;
  return span;
}

// The parts of a payload

function show(payload) {
  error = payload?.error ? sayError(payload.error) : null;
  message.classList.toggle("error", Boolean(error));
  message.textContent = error ?? say("query.loading");
  if (!payload || error) return; // the last query stays
  const before = data;
  data = decode(payload);
  pointed = component = null;
  head = before ? Math.min(head, data.H - 1) : (data.head ?? 0);
  if (before?.text !== data.text) {
    pinned = null;
    masked = new Set();
  }
  if (before?.text !== data.text || Boolean(before.written) !== Boolean(data.written)) begin();
  token = Math.min(token, data.N - 1);
  board.hidden = false;
  showAsker();
  showShapes();
  tokens.replaceChildren(...(rows = data.tokens.map(tokenRow)).map((row) => row.line));
  rows.forEach((row, t) => paint(row.memory, memoryOf(t), largest(data.memory)));
  paintHead();
  render();
}

function begin() {
  const n = mostContested(data, head);
  if (data.written) token = n;
  else place = middle(Math.floor(n / data.columns), n % data.columns);
}

function memoryOf(t) {
  return data.memory.subarray(t * data.M, (t + 1) * data.M);
}

function showAsker() {
  const isText = Boolean(data.written);
  shot.hidden = find("noisy").hidden = isText;
  written.hidden = !isText;
  if (isText) {
    written.replaceChildren(...data.written.map((text, n) => choice(spelled(text), () => (token = n))));
    find("glimpse-text").textContent = say("query.hidden.text");
  } else {
    drawing.src = data.picture;
    drawing.alt = say("query.alt", { prompt: data.text });
    find("noisy").src = data.seen;
    shot.style.setProperty("--shape", data.columns / data.rows);
    find("glimpse-text").textContent =
      say("query.hidden.picture", { step: data.step, steps: data.steps, noise: data.noise.toFixed(2) });
  }
  const choices = Array.from({ length: data.H }, (_, i) => choice(String(i + 1), () => chooseHead(i)));
  choices.forEach((button, i) => button.setAttribute("aria-label", say("query.head.number", { number: i + 1 })));
  heads.replaceChildren(word(say("query.head")), ...choices);
}

function showShapes() {
  const { H, T, E, M } = data;
  const projected = `${T}×${M} · ${M}×${E} → ${T}×${E}`;
  const shapes = {
    q: `1×${H * E} · ${H * E}×${E} → 1×${E}`, memory: `${T}×${M}`, k: projected, v: projected, out: `1×${E}`,
  };
  for (const [name, text] of Object.entries(shapes)) find(name + "-shape").textContent = text;
  find("root").textContent = E;
}

function choice(text, choose) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => {
    choose();
    render();
  });
  return button;
}

function tokenRow(text, t) {
  const line = box("row", "row");
  const cell = (name, ...children) => {
    const made = box(name, name === "name" ? "rowheader" : "cell");
    made.append(...children);
    line.append(made);
    return made;
  };
  const button = choice(spelled(text), () => (pinned = pinned === t ? null : t));
  cell("name", button);
  const memory = strip(cell("memories"), "memory", t);
  const k = strip(cell("keys"), "q", t);
  const [product, scaled, weight] = [word("", "number"), word("", "number"), word("", "number")];
  const [keyTerm, valueTerm] = [word("", "term"), word("", "term")];
  const bar = word("", "bar");
  cell("product", product, keyTerm);
  cell("scaled", scaled);
  cell("weight", bar, weight, valueTerm);
  const v = strip(cell("values"), "v", t);
  v.classList.add("read");
  line.addEventListener("pointerenter", () => pointAtToken(t));
  line.addEventListener("pointerleave", () => pointAtToken(null));
  button.addEventListener("focus", () => button.matches(":focus-visible") && pointAtToken(t));
  button.addEventListener("blur", () => pointAtToken(null));
  return { line, button, memory, k, v, product, scaled, weight, bar, keyTerm, valueTerm };
}

function box(name, role) {
  const made = document.createElement("div");
  made.className = name;
  made.setAttribute("role", role);
  return made;
}

// A vector as a strip of bars; the strips of q and out take the keyboard's input for their columns.
function strip(parent, of, t) {
  const holder = document.createElement("div");
  holder.className = "strip";
  holder.append(document.createElement("canvas"));
  parent.append(holder);
  if (of === "memory") return holder;
  holder.addEventListener("pointermove", (event) => {
    const bounds = holder.getBoundingClientRect();
    pointAtComponent(of, Math.floor(((event.clientX - bounds.left) / bounds.width) * data.E));
  });
  holder.addEventListener("pointerleave", () => pointAtComponent(null));
  if (t !== null) return holder;
  holder.tabIndex = 0;
  holder.setAttribute("role", "slider");
  holder.setAttribute("aria-label", say(of === "q" ? "query.component.q" : "query.component.out"));
  holder.addEventListener("focus", () => holder.matches(":focus-visible") && pointAtComponent(of, component?.at ?? 0));
  holder.addEventListener("blur", () => pointAtComponent(null));
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!step) return;
    event.preventDefault(); // the page would scroll
    pointAtComponent(of, (component?.of === of ? component.at : 0) + step);
  });
  return holder;
}

// Pointing

function pointAtToken(t) {
  if (pointed === t) return;
  pointed = t;
  render();
}

function pointAtComponent(of, at = 0) {
  const next = of === null ? null : { of, at: Math.min(Math.max(at, 0), data.E - 1) };
  if (next?.of === component?.of && next?.at === component?.at) return;
  component = next;
  render();
}

function chooseHead(i) {
  head = i;
  paintHead();
}

function mask(t) {
  masked.has(t) ? masked.delete(t) : masked.add(t);
  render();
}

function middle(r, c) {
  const share = (i, cells) => (Math.min(Math.max(i, 0), cells - 1) + 0.5) / cells;
  return { across: share(c, data.columns), down: share(r, data.rows) };
}

function choosePlace(r, c) {
  place = middle(r, c);
  render();
}

function choosePlaceWithPointer(event) {
  if (event.type === "pointermove" && !event.buttons) return;
  const bounds = shot.getBoundingClientRect();
  choosePlace(
    Math.floor(((event.clientY - bounds.top) / bounds.height) * data.rows),
    Math.floor(((event.clientX - bounds.left) / bounds.width) * data.columns),
  );
}

function choosePlaceWithKeys(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault(); // the page would scroll
  choosePlace(row() + step[0], column() + step[1]);
}

shot.addEventListener("pointerdown", choosePlaceWithPointer);
shot.addEventListener("pointermove", choosePlaceWithPointer);
shot.addEventListener("keydown", choosePlaceWithKeys);

watch("value", () => show(props.value)); // fires for later values only; the first one has arrived already
show(props.value);
if (!props.value) trigger("opened");
