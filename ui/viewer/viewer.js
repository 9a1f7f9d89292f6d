// What the viewer shows, and how it answers to a person. Text that a person typed is written by textContent or as a
// property, never as HTML.
//
// props.value is what Python sends (see `attention_viewer` and `ui.viewer.payload`), or nothing yet.

const find = (name) => element.querySelector("." + name);
const [frame, picture, heat, other, outline, cellMark, prompt, caption, note, bar, peak, scale, judging, verdict] =
  ["frame", "picture", "heat", "other", "outline", "cell", "prompt", "caption", "note", "bar", "peak", "scale",
    "judging", "verdict"].map(find);
const [controls, step, stepName, play, layer, head, reduce, scaling, drag, opacity, dominance] =
  ["controls", "step", "step-name", "play", "layer", "head", "reduce", "scaling", "drag", "opacity", "dominance"].map(find);
const [multiples, saving, past, history, compare, comparing, wipe] =
  ["multiples", "saving", "past", "history", "compare", "comparing", "wipe"].map(find);
const KEPT = 60; // pictures of this visit that the browser keeps

let data = null; // the picture's payload
let views = new Map(); // name -> decoded view, or a promise of it
let view = null; // the view that is shown
let targets = []; // words and tokens one can point at: { text, tokens, chip, tile, special }, words first
let words = []; // the targets that are words
let pinned = []; // targets whose maps stay on, in the order they were pinned
let pointed = null; // the target under the pointer or the keyboard's focus
let cell = null; // the place in the picture under the pointer: { row, column }
let region = null; // the marked part of the picture: points [x, y] from 0 to 1
let drawing = false; // whether a region is being marked
let visited = []; // pictures of this visit, newest first
let playing = null;
let stepsAsked = { name: "", answer: null }; // the latest request for what "Play" needs

// Which maps

const frameShown = () => Number(step.value);
const sharesOfTarget = (target, at = frameShown()) => sharesOf(view, at, target.tokens);

function viewName() {
  const calibrated = reduce.value === "calibrated" && !layer.value && !head.value;
  return (calibrated ? "calibrated" : "mean") + "|" + layer.value + "|" + head.value;
}

// Fetches a view that the browser does not have yet, and shows it unless something else was chosen meanwhile.
async function choose() {
  const [name, at] = [viewName(), data];
  reduce.disabled = !data.calibrated || Boolean(layer.value || head.value);
  const known = views.get(name);
  if (!known || known.then || (frameShown() && known.peaks.length === 1)) await fetchView(name);
  const found = views.get(name);
  if (at !== data || name !== viewName()) return;
  if (!found || (frameShown() && found.peaks.length === 1)) {
    return say("The server no longer keeps these maps: generate the picture again.");
  }
  view = found;
  render();
}

async function fetchView(name) {
  if (!server?.view || !data.key) return;
  const [at, into] = [data, views];
  const answer = await server.view({ key: at.key, image: at.image, name });
  if (!answer.error) into.set(name, decodeView(answer));
}

// Fetches what "Play" needs before anybody presses it.
async function fetchSteps() {
  const at = data;
  if (!server?.frames || !at.key || at.frames || !at.steps) return;
  // Gradio may deliver a picture twice: the second copy uses the answer to the first one's request.
  const name = at.key + "|" + at.image;
  if (stepsAsked.name !== name) stepsAsked = { name, answer: server.frames({ key: at.key, image: at.image }) };
  const answer = await stepsAsked.answer;
  if (answer.error) return;
  at.frames = answer.frames;
  views.set("mean||", decodeView(answer.view));
  if (at === data && viewName() === "mean||") choose();
}

function topOf(target) {
  // The scale of a single step ends at the word's peak over all steps, so that steps can be compared.
  const peakOf = (one) => {
    const frames = frameShown() ? view.peaks.map((_, i) => i).slice(1) : [0];
    return Math.max(...frames.map((i) => greatest(sharesOf(view, i, one.tokens))));
  };
  return scaling.value === "all" ? Math.max(...words.map(peakOf), 1e-12) : peakOf(target);
}

// Drawing

function render() {
  if (!data || !view) return;
  const shown = pointed ? [pointed] : pinned;
  const maps = shown.map((target) => sharesOfTarget(target));
  const dominant = dominance.checked && !pointed;
  heat.hidden = !shown.length && !dominant;
  scale.style.visibility = shown.length === 1 && !dominant ? "visible" : "hidden";
  heat.classList.toggle("cells", dominant);
  heat.style.opacity = opacity.value / 100;
  if (dominant) {
    paintDominant(heat, view, dominantIn(view, words.map((word) => sharesOfTarget(word))), words.map((_, i) => hueOf(i)));
  } else if (shown.length > 1) {
    paintHues(heat, view, maps, shown.map(topOf), shown.map((_, i) => hueOf(i)));
  } else if (shown.length) {
    paintMap(heat, view, maps[0], topOf(shown[0]));
    peak.textContent = percent(topOf(shown[0]));
  }
  const marked = shares();
  const most = Math.max(...(marked ?? []), 1e-9);
  targets.forEach((target, i) => {
    const pin = pinned.indexOf(target);
    const hue = dominant ? words.indexOf(target) : pinned.length > 1 ? pin : -1;
    target.chip.setAttribute("aria-pressed", String(pin >= 0));
    target.chip.classList.toggle("shown", shown.includes(target));
    target.chip.classList.toggle("hued", hue >= 0);
    target.chip.style.setProperty("--hue", hue >= 0 ? hueOf(hue) : "transparent");
    target.chip.style.setProperty("--light", marked ? marked[i] / most : 0);
    target.chip.lastChild.textContent = marked ? percent(marked[i]) : "";
  });
  cellMark.hidden = !cell;
  if (cell) {
    cellMark.style.left = (100 * cell.column) / view.columns + "%";
    cellMark.style.top = (100 * cell.row) / view.rows + "%";
    cellMark.style.width = 100 / view.columns + "%";
    cellMark.style.height = 100 / view.rows + "%";
  }
  outline.firstElementChild.setAttribute("points", (region ?? []).map((point) => point.join(",")).join(" "));
  stepName.textContent = frameShown() ? `${frameShown()} of ${data.steps}` : "All (mean)";
  picture.src = (frameShown() && data.frames?.[frameShown() - 1]) || data.picture;
  caption.textContent = describe(shown, marked);
  paintMultiples();
}

function paintMultiples() {
  for (const target of words) {
    paintMap(target.tile.firstChild, view, sharesOfTarget(target), topOf(target), Math.max(view.rows, view.columns));
    target.tile.classList.toggle("shown", pinned.includes(target) || pointed === target);
    target.tile.lastChild.textContent = `${target.text} ${percent(greatest(sharesOfTarget(target)))}`;
  }
}

// Each target's share of the attention in the marked region or the place under the pointer; null where there is neither.
function shares() {
  if (cell) return targets.map((target) => sharesOfTarget(target)[cell.row * view.columns + cell.column]);
  if (!region || region.length < 3) return null;
  const inside = coverage(view, region);
  return targets.map((target) => meanInside(sharesOfTarget(target), inside));
}

function describe(shown, marked) {
  if (marked) {
    const order = words.map((_, i) => i).sort((a, b) => marked[b] - marked[a]);
    const best = order.slice(0, 3).map((i) => `${words[i].text} ${percent(marked[i])}`);
    const rest = 1 - words.reduce((sum, _, i) => sum + marked[i], 0);
    const where = cell ? `Row ${cell.row + 1}, column ${cell.column + 1} of ${view.rows}×${view.columns}` : "Marked region";
    return `${where}, share of the attention: ${[...best, `other tokens ${percent(Math.max(rest, 0))}`].join(", ")}.`;
  }
  const list = (some) => some.map((target) => target.text).join(", ");
  if (dominance.checked && !pointed) return `Each place has the colour of its dominant word: ${list(words)}.`;
  if (shown.length > 1) return `Pinned: ${list(shown)}.`;
  if (shown.length) {
    const map = sharesOfTarget(shown[0]);
    const colours = scaling.value === "all" ? "the largest value of all words" : "this word’s largest value";
    return `“${shown[0].text}” is strongest at the ${whereStrongest(view, map)}, with ${percent(greatest(map))} of the ` +
      `attention. The colours go from 0 to ${colours}.`;
  }
  if (!words.length) return "The prompt has no words to point at.";
  return "Point at a word to see where it landed, or at the picture to see which words drew it. Click a word to keep its " +
    "map; drag over the picture to mark a region.";
}

const say = (text) => ((note.textContent = text), note.classList.remove("error"));

// What Python sends

function receive(value) {
  note.textContent = value?.error ?? value?.note ?? "";
  note.classList.toggle("error", Boolean(value?.error));
  if (value?.error) return; // the last picture stays
  if (value?.frame) return preview(value.frame);
  if (!value) return show(null);
  if (!value.live) remember(value.pictures);
  show(value.pictures[0]);
}

function preview(source) {
  pause();
  heat.hidden = cellMark.hidden = true;
  picture.hidden = false;
  picture.src = source;
}

function show(payload) {
  pause();
  const before = data?.prompt;
  const kept = payload?.prompt === before ? pinned.map((target) => targets.indexOf(target)) : [];
  data = payload;
  views = new Map(Object.entries(data?.views ?? {}).map(([name, one]) => [name, decodeView(one)]));
  view = views.get("mean||") ?? null;
  pointed = cell = region = null;
  picture.hidden = !data;
  multiples.hidden = controls.hidden = !data || data.live;
  saving.hidden = !data?.key || !server?.save;
  find("link").hidden = !data?.settings;
  heat.hidden = cellMark.hidden = true;
  if (!data) return;
  picture.alt = (data.settings ? "The picture drawn for: " : "Your picture: ") + data.prompt;
  frame.style.setProperty("--shape", view.columns / view.rows);
  targets = [];
  prompt.replaceChildren(...data.pieces.flatMap(([text, word]) => (word < 0 ? [gap(text)] : wordChips(text, word))));
  words = targets.filter((target) => target.word);
  targets = [...words, ...targets.filter((target) => !target.word)];
  specialChips();
  pinned = kept.map((i) => targets[i]).filter(Boolean);
  multiples.replaceChildren(...words.map(tileOf));
  setUpControls();
  setUpVerdict();
  choose();
  fetchSteps();
  for (const button of history.children) button.setAttribute("aria-current", String(button.payload === data));
}

function setUpControls() {
  const fill = (select, entries) => {
    const before = select.value;
    select.replaceChildren(option("", "All (mean)"), ...entries.map(([value, text]) => option(value, text)));
    select.value = entries.some(([value]) => value === before) ? before : "";
  };
  fill(layer, Object.entries(data.layers).map(([name, [rows, columns]]) => [name, `${name} · ${rows}×${columns}`]));
  fill(head, Array.from({ length: data.heads }, (_, i) => [String(i), String(i + 1)]));
  head.parentElement.hidden = data.heads < 2;
  step.max = data.steps;
  step.value = 0;
  step.closest(".stepping").hidden = !data.steps;
  reduce.parentElement.hidden = !data.calibrated;
}

function option(value, text) {
  return Object.assign(document.createElement("option"), { value, textContent: text });
}

function setUpVerdict() {
  judging.hidden = !data.verdict;
  verdict.replaceChildren(...(data.verdict ?? []).map(([text, right]) => {
    const item = document.createElement("li");
    item.className = right ? "right" : "wrong";
    item.textContent = `${right ? "✓" : "✗"} ${text}`;
    return item;
  }));
}

// Words, their tokens, and the tokens that belong to no word

function gap(text) {
  return Object.assign(document.createElement("span"), { className: "gap", textContent: text });
}

function wordChips(text, word) {
  const tokens = data.words[word];
  const made = [chip({ text, tokens, word: true })];
  if (tokens.length < 2) return made;
  const parts = document.createElement("span");
  parts.hidden = true;
  parts.append(...tokens.map((token) => chip({ text: data.tokens[token], tokens: [token], part: true })));
  const opener = Object.assign(document.createElement("button"), { type: "button", className: "opener", textContent: "⋯" });
  opener.setAttribute("aria-label", `Tokens of ${text}`);
  opener.setAttribute("aria-expanded", "false");
  opener.addEventListener("click", () => {
    parts.hidden = !parts.hidden;
    opener.setAttribute("aria-expanded", String(!parts.hidden));
  });
  return [...made, opener, parts];
}

function specialChips() {
  const inWords = new Set(data.words.flat());
  const rest = data.tokens.map((text, i) => ({ text, tokens: [i], special: true })).filter((t) => !inWords.has(t.tokens[0]));
  const line = document.createElement("span");
  line.className = "specials";
  line.append(...rest.map(chip));
  prompt.append(line);
}

function chip(target) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "chip" + (target.special ? " special" : target.part ? " part" : "");
  const [label, number] = [document.createElement("span"), document.createElement("span")];
  label.textContent = target.text;
  number.className = "share";
  button.append(label, number);
  button.addEventListener("pointerenter", () => pointAtTarget(target));
  button.addEventListener("pointerleave", leaveTarget);
  // A tap focuses the chip too. Only the keyboard's focus shows a map, or a second tap could not hide it.
  button.addEventListener("focus", () => button.matches(":focus-visible") && pointAtTarget(target));
  button.addEventListener("blur", leaveTarget);
  button.addEventListener("click", () => pin(target));
  targets.push(Object.assign(target, { chip: button }));
  return button;
}

function tileOf(target) {
  const tile = document.createElement("button");
  tile.type = "button";
  tile.className = "tile";
  tile.append(document.createElement("canvas"), document.createElement("span"));
  tile.addEventListener("click", () => pin(target));
  tile.addEventListener("pointerenter", () => pointAtTarget(target));
  tile.addEventListener("pointerleave", leaveTarget);
  target.tile = tile;
  return tile;
}

function pointAtTarget(target) {
  [pointed, cell] = [target, null];
  render();
}

function leaveTarget() {
  pointed = null;
  render();
}

function pin(target) {
  pinned = pinned.includes(target) ? pinned.filter((one) => one !== target) : [...pinned, target];
  cell = region = null;
  render();
}
