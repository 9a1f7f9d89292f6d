// What the viewer shows. Text that a person typed is written by textContent or as a property, never as HTML.
//
// props.value is what Python sends (see `attention_viewer` and `ui.viewer.payload`), or nothing yet. The picture, its
// words, maps, verdict, downloads and link are one value, `data`, which is replaced as a whole: while another picture is
// being made there is none.

const find = (name) => element.querySelector("." + name);
const root = element.matches(".attention-viewer") ? element : find("attention-viewer");
const [frame, picture, heat, outline, cellMark, prompt, caption, note, warnings, bar, peak, scale, judging, verdict] =
  ["frame", "picture", "heat", "outline", "cell", "prompt", "caption", "note", "warnings", "bar", "peak", "scale",
    "judging", "verdict"].map(find);
const [closer, step, stepName, play, layer, head, reduce, scaling, drag, opacity, dominance, legend] =
  ["closer", "step", "step-name", "play", "layer", "head", "reduce", "scaling", "drag", "opacity", "dominance", "legend"]
    .map(find);
const [network, heads, headsWord, headsTable] = ["network", "heads", "heads-word", "heads-table"].map(find);
const [multiples, saving, progress, stop, forming, choices] =
  ["multiples", "saving", "progress", "stop", "forming", "choices"].map(find);

let data = null; // the payload of the shown picture; null while there is none
const siblings = new WeakMap(); // payload -> the payloads of its request
let before = null; // while a picture is being made: the payload that was shown before
let views = new Map(); // name -> decoded view, or a promise of it
let view = null; // the view that is shown
let targets = []; // words and tokens one can point at: { text, tokens, index, chip, tile, special }, words first
let words = []; // the targets that are words
let pinned = []; // targets whose maps stay on, in the order they were pinned
let pointed = null; // the target under the pointer or the keyboard's focus
let cell = null; // the place in the picture under the pointer: { row, column }
let region = null; // the marked part of the picture: points [x, y] from 0 to 1
let drawing = false; // whether a region is being marked
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
  if (!found || (frameShown() && found.peaks.length === 1)) return notify(say("viewer.gone"));
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
    return Math.max(...frames.map((i) => largestShare(view, i, one)));
  };
  return scaling.value === "all" ? Math.max(...words.map(peakOf), 1e-12) : peakOf(target);
}

// Drawing

function render() {
  if (!data || !view) return;
  const shown = pointed ? [pointed] : pinned;
  const maps = shown.map((target) => sharesOfTarget(target));
  const dominant = dominance.checked && !pointed;
  const masked = dominant ? null : masksOf(shown);
  const outlined = Boolean(masked) || (shown.length > 1 && !dominant);
  heat.hidden = Boolean(boxing) || (!shown.length && !dominant);
  scale.style.visibility = shown.length === 1 && !dominant && !masked ? "visible" : "hidden";
  heat.classList.toggle("cells", dominant);
  heat.style.opacity = outlined ? 1 : opacity.value / 100;
  if (dominant) {
    if (changed(heat, "dominant", view, frameShown())) paintDominant(heat, view, dominantIn(view, words.map((word) => sharesOfTarget(word))), words.map((_, i) => hueOf(i)));
  } else if (masked) {
    if (changed(heat, "masked", masked, ...shown)) paintMasks(heat, masked, shown.map((_, i) => hueOf(i)));
  } else if (outlined) {
    if (changed(heat, "outlined", view, frameShown(), ...shown)) paintOutlines(heat, view, maps, shown.map((target, i) => Math.max(greatest(maps[i]), 1e-12)), shown.map((_, i) => hueOf(i)));
  } else if (shown.length) {
    if (changed(heat, "map", view, frameShown(), ...shown, topOf(shown[0]))) paintMap(heat, view, maps[0], topOf(shown[0]));
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
  legend.hidden = !dominant;
  if (dominant) legend.replaceChildren(...words.map(legendItem));
  renderMark();
  stepName.textContent = frameShown() ? say("viewer.step.of", { step: frameShown(), steps: data.steps }) : say("viewer.mean");
  picture.src = (frameShown() && data.frames?.[frameShown() - 1]) || data.picture;
  caption.textContent = describe(shown, marked);
  nameMask();
  paintMultiples();
}

// Whether a canvas shows something else than what is described: painting all maps of a large model takes longer than a
// pointer stays at one place.
function changed(canvas, ...what) {
  const same = canvas.shows && canvas.shows.every((one, i) => one === what[i]) && canvas.shows.length === what.length;
  canvas.shows = what;
  return !same;
}

function legendItem(word, i) {
  const item = Object.assign(document.createElement("li"), { textContent: word.text });
  item.style.setProperty("--hue", hueOf(i));
  return item;
}

function renderMark() {
  cellMark.hidden = !cell;
  if (cell) {
    cellMark.style.left = (100 * cell.column) / view.columns + "%";
    cellMark.style.top = (100 * cell.row) / view.rows + "%";
    cellMark.style.width = 100 / view.columns + "%";
    cellMark.style.height = 100 / view.rows + "%";
  }
  const points = (region ?? []).map((point) => point.join(",")).join(" ");
  for (const line of outline.children) line.setAttribute("points", points);
}

function paintMultiples() {
  for (const target of words) {
    const [tile, top] = [target.tile.firstChild, topOf(target)];
    if (changed(tile, view, frameShown(), top)) {
      paintMap(tile, view, sharesOfTarget(target), top, Math.max(view.rows, view.columns));
      target.tile.lastChild.textContent = `${target.text} ${percent(largestShare(view, frameShown(), target))}`;
    }
    target.tile.classList.toggle("shown", pinned.includes(target) || pointed === target);
  }
}

// Each target's share of the attention in the marked region or the place under the pointer; null where there is neither.
function shares() {
  if (cell) return targets.map((target) => sharesOfTarget(target)[cell.row * view.columns + cell.column]);
  if (!region || region.length < 3) return null;
  const inside = coverage(view, region);
  return targets.map((target) => meanInside(sharesOfTarget(target), inside));
}

const list = (texts) => texts.join(say("viewer.list"));

function describe(shown, marked) {
  if (marked) {
    const order = words.map((_, i) => i).sort((a, b) => marked[b] - marked[a]);
    const best = order.slice(0, 3).map((i) => `${words[i].text} ${percent(marked[i])}`);
    const rest = 1 - words.reduce((sum, _, i) => sum + marked[i], 0);
    const at = cell && { row: cell.row + 1, column: cell.column + 1, rows: view.rows, columns: view.columns };
    const other = say("viewer.other", { share: percent(Math.max(rest, 0)) });
    return say("viewer.shares", { where: at ? say("viewer.place", at) : say("viewer.region"), shares: list([...best, other]) });
  }
  const names = list(shown.map((target) => target.text));
  if (dominance.checked && !pointed) return say("viewer.owners");
  const masked = masksOf(shown);
  if (masked) return describeMasks(names, masked);
  if (areMaking() && shown.length) return say("viewer.outline.making");
  if (shown.length > 1) return say("viewer.pinned", { words: names });
  if (shown.length) {
    const place = placeOfMap(view, sharesOfTarget(shown[0]));
    const where = place ? say("viewer.at", { place: say("viewer.at." + place) }) : "";
    const share = percent(largestShare(view, frameShown(), shown[0]));
    return [say("viewer.word", { word: names, share, where }), say("viewer.word.scale." + scaling.value)].join(" ");
  }
  if (!words.length) return say("viewer.no words");
  return say(matchMedia("(hover: none)").matches ? "viewer.hint.touch" : "viewer.hint");
}

function notify(line, error = false) {
  note.textContent = line;
  note.classList.toggle("error", error);
}

// What Python sends

function receive(value) {
  if (!value) return show(null), notify(props.past ? say("viewer.blank") : "");
  if (value.drawing) return form(value.drawing);
  if (value.error) {
    if (before) show(before); // the last picture stays, whole
    return notify(sayError(value.error), true);
  }
  const { notes, warnings, live } = value;
  const pictures = value.pictures.map((one) => ({ ...one, notes, warnings, live })); // Gradio watches its own
  for (const payload of pictures) siblings.set(payload, pictures);
  if (!live) remember(pictures);
  show(pictures[0]);
}

// A picture that is being made: nothing of another picture stands beside it.
function form({ ticket, prompt: text, step: done, steps, frame: source }) {
  restPanel();
  if (data) before = data;
  if (data) for (const part of [prompt, caption, judging, multiples]) part.style.minHeight = part.getBoundingClientRect().height + "px";
  clear();
  root.classList.add("forming-now");
  note.hidden = true;
  forming.hidden = progress.hidden = false;
  stop.dataset.ticket = ticket ?? "";
  stop.hidden = !ticket; // a model that does not stop
  if (!done) stop.disabled = false;
  find("progress").querySelector("progress").value = done / steps;
  find("at").textContent = stop.disabled ? say("viewer.stopping") : done ? say("viewer.drawing", { step: done, steps }) : say("viewer.starting");
  prompt.replaceChildren(gap(text));
  picture.alt = say("viewer.alt.forming", { prompt: text });
  picture.hidden = !source;
  if (source) picture.src = source;
}

// Nothing is shown. What was there keeps its room, so that the page does not jump.
function clear() {
  pause();
  leaveBoxes();
  placePanel.hidden = differences.hidden = true;
  data = view = pointed = cell = region = null;
  [targets, words] = [[], []];
  views = new Map();
  heat.hidden = cellMark.hidden = picture.hidden = choices.hidden = true;
  renderMark();
  scale.style.visibility = "hidden";
  for (const part of [caption, verdict, warnings, prompt, choices, legend]) part.replaceChildren();
  for (const { firstChild: map, lastChild: name } of multiples.children) {
    map.getContext("2d").clearRect(0, 0, map.width, map.height);
    name.textContent = "\u00a0";
  }
  for (const button of [...saving.querySelectorAll("button"), ...masking.children, ...multiples.children]) button.disabled = true;
  compareWith(null);
}

function show(payload) {
  const kept = payload && payload.prompt === (data ?? before)?.prompt ? pinned.map((target) => target.name) : [];
  clear();
  root.classList.remove("forming-now");
  for (const part of [prompt, caption, judging, multiples]) part.style.minHeight = "";
  forming.hidden = progress.hidden = true;
  find("at").textContent = "";
  note.hidden = false;
  before = null;
  data = payload;
  notify(sayAll(data?.notes ?? []));
  multiples.hidden = closer.hidden = !data || Boolean(data.live);
  saving.hidden = !data?.key || !server?.save;
  find("going-on").hidden = saving.hidden || !props.past || props.reach?.length === 0;
  find("link").hidden = !data?.settings || Boolean(data.settings.stopped);
  if (!data) return;
  views = new Map(Object.entries(data.views).map(([name, one]) => [name, decodeView(one)]));
  view = views.get("mean||");
  for (const button of saving.querySelectorAll("button")) button.disabled = false;
  picture.hidden = false;
  picture.alt = say(data.settings ? "viewer.alt.drawn" : "viewer.alt.yours", { prompt: data.prompt });
  root.classList.toggle("photo", !data.pixels);
  root.style.setProperty("--shape", view.columns / view.rows);
  prompt.replaceChildren(...data.pieces.flatMap(([text, word]) => (word < 0 ? [gap(text)] : wordChips(text, word))));
  words = targets.filter((target) => target.word);
  targets = [...words, ...targets.filter((target) => !target.word)];
  specialChips();
  pinned = kept.map((name) => targets.find((target) => target.name === name)).filter(Boolean);
  multiples.replaceChildren(...words.map(tileOf));
  warnings.replaceChildren(...(data.warnings ?? []).map((message) => item(sayAll([message]))));
  setUpControls();
  setUpVerdict();
  setUpChoices();
  setUpHeads();
  setUpGoingOn();
  setUpMasks();
  showEdits();
  choose();
  fetchSteps();
  markShown();
}

function item(text, className = "") {
  return Object.assign(document.createElement("li"), { textContent: text, className });
}

function setUpControls() {
  const fill = (select, entries) => {
    const chosen = select.value;
    select.replaceChildren(option("", say("viewer.mean")), ...entries.map(([value, text]) => option(value, text)));
    select.value = entries.some(([value]) => value === chosen) ? chosen : "";
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

const SIGNS = { true: ["✓", "right"], false: ["✗", "wrong"], null: ["?", "unsure"] };

function setUpVerdict() {
  judging.hidden = !data.verdict?.length;
  verdict.replaceChildren(...(data.verdict ?? []).map(checkLine));
}

function checkLine({ says, ok }) {
  const [sign, kind] = SIGNS[ok];
  const line = item(`${sign} ${sayAll([says])}`, kind);
  if (ok === null) line.title = say("viewer.unsure");
  return line;
}

// Only a picture that its prompt and seed alone draw can be followed.
function setUpGoingOn() {
  const follow = find("going-on").querySelector("[data-event=follow]");
  follow.disabled = Boolean(data.edit || data.settings?.regions);
  follow.title = say(follow.disabled ? "viewer.follow.not" : "viewer.follow.title");
}

// The pictures of one request, to choose from.
function setUpChoices() {
  const pictures = siblings.get(data) ?? [];
  choices.hidden = pictures.length < 2;
  choices.replaceChildren(...(choices.hidden ? [] : pictures.map((payload, i) => {
    const button = thumbnail(payload, say("viewer.choice", { number: i + 1, seed: payload.settings.seed }));
    button.setAttribute("aria-pressed", String(payload === data));
    const checks = (payload.verdict ?? []).filter(({ ok }) => ok !== null);
    const line = document.createElement("span");
    const right = checks.filter(({ ok }) => ok).length;
    if (checks.length) line.textContent = say("viewer.choice.checks", { right, all: checks.length });
    button.append(line);
    button.addEventListener("click", () => show(payload));
    return button;
  })));
}

function thumbnail(payload, name) {
  const button = Object.assign(document.createElement("button"), { type: "button", payload });
  button.setAttribute("aria-label", name);
  button.title = name;
  button.append(Object.assign(document.createElement("img"), { src: payload.picture, alt: "" }));
  return button;
}
