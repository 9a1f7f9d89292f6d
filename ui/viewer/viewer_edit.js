// Changing a word: the panel of a chip, the edits of the shown picture, and the picture before them.
//
// The edits are a text in the settings (`ui.edit_text`). A changed text is asked for like the settings of a link: what
// comes back is the edited picture with everything that belongs to it.

const [changes, editList, editHint, editChecks, panel, loudness, weight, replacement, replacementNote, differences] =
  ["changes", "edits", "edit-hint", "edit-checks", "word-panel", "loudness", "weight", "replacement", "replacement-note",
    "differences"].map(find);
const WEIGHTS = [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4]; // of the positions of the slider
const BY_WORD = ["replace", "reweight", "withhold", "paint", "pin", "within"]; // edits whose word has this name afterwards
let chosen = null; // the word whose panel is open
const madeFrom = new Map(); // address of an edited picture -> the edits that it was first made from
let refocus = null; // the control of the panel that had the focus when the picture began to change

const canEdit = () => Boolean(props.past && props.edits !== false && data?.settings && !data.settings.stopped);
const listOf = (payload) => payload?.edit?.listed ?? [];
const loud = (edit) => edit.kind === "reweight" || edit.kind === "withhold";

// The text of edits, as `ui.edit_text.read_changes` reads it.
function textOf({ kind, word, value }) {
  if (kind === "keep") return kind;
  return `${kind} ${word}` + (value === null || value === undefined ? "" : "=" + [value].flat().join(","));
}

// The shortest phrase of the prompt that ends with a word and that nothing before it has.
function phraseOf(target) {
  const text = data.pieces.map(([piece]) => piece);
  const end = data.pieces.findIndex(([, word]) => word === target.index);
  const words = (from) => text.slice(from, end + 1).join("");
  const before = text.slice(0, end).join("").toLowerCase();
  let from = end;
  while (from > 0 && (data.pieces[from][1] < 0 || before.includes(words(from).toLowerCase()))) from--;
  return words(from).trim();
}

// Where the edits of the shown picture begin that may still be changed: after the last one that is kept.
const fence = (list) => list.findLastIndex(({ kind }) => kind === "keep") + 1;

// A list of edits with one more. A later weight or place of a word takes the place of an earlier one; a word that
// replaces another takes over its edits.
function withEdit(list, edit) {
  const same = (one) => one.word === edit.word && (loud(one) ? loud(edit) : one.kind === edit.kind);
  const [kept, own] = [list.slice(0, fence(list)), list.slice(fence(list)).filter((one) => !same(one))];
  if (edit.kind === "reweight" && edit.value === 1) return [...kept, ...own];
  if (edit.kind === "remove") return [...kept, ...own.filter((one) => one.word !== edit.word || one.kind === "replace"), edit];
  if (edit.kind !== "replace") return [...kept, ...own, edit];
  const moved = own.map((one) => (one.word === edit.word && BY_WORD.includes(one.kind) ? { ...one, word: edit.value } : one));
  const earlier = moved.findIndex((one) => one.kind === "replace" && one.value === edit.word);
  if (earlier < 0) return [...kept, ...moved, edit];
  const back = moved[earlier].word === edit.value; // the word that was there at first
  moved.splice(earlier, 1, ...(back ? [] : [{ ...moved[earlier], value: edit.value }]));
  return [...kept, ...moved];
}

// The list without one of its edits; what was about a word that replaced another is about that one again.
function withoutEdit(list, at) {
  const { kind, word, value } = list[at];
  const rest = list.filter((_, i) => i !== at);
  return kind === "replace" ? rest.map((one) => (one.word === value ? { ...one, word } : one)) : rest;
}

// Shows the picture with these edits: one that this page has shown already, or a new one.
function drawEdited(list) {
  const settings = { ...data.settings, edits: list.map(textOf).join("; ") };
  if (!madeFrom.has(addressOf(settings))) madeFrom.set(addressOf(settings), listOf(data));
  const one = visited.find((other) => other.payload && addressOf(other.settings) === addressOf(settings));
  if (one) return revisit(one);
  trigger("redraw", settings);
}

// Makes an edit. The panel stays only where one may want to turn further.
function change(edit) {
  const list = withEdit(listOf(data), { value: null, ...edit });
  if (!loud(edit)) closePanels();
  drawEdited(list);
}

// The panel of a word

function openPanel(target) {
  if (!canEdit()) return;
  closePanels();
  chosen = target;
  target.chip.after(panel); // so that it follows its word for the keyboard, too
  panel.hidden = false;
  find("panel-word").textContent = say("viewer.edit.word", { word: target.text });
  panel.setAttribute("aria-label", find("panel-word").textContent);
  replacement.value = replacementNote.textContent = "";
  const word = phraseOf(target);
  const last = listOf(data).findLast((one) => loud(one) && one.word === word);
  loudness.value = last ? positionOf(last.kind === "withhold" ? 0 : last.value) : positionOf(1);
  sayWeight();
  markOpen();
  putPanel(panel);
}

function closePanels() {
  leaveBoxes();
  for (const one of [panel, placePanel]) one.hidden = true;
  find("word-tools").hidden = false;
  find("word-box").hidden = true;
  prompt.after(panel);
  chosen = null;
  markOpen();
}

// A chip opens its panel and closes it.
function togglePanel(target) {
  if (target === chosen) return closePanels();
  if (pinned.includes(target)) openPanel(target);
}

// While a picture is made, an open panel waits for it in its place.
function restPanel() {
  if (panel.hidden) return;
  if (panel.contains(document.activeElement)) refocus = document.activeElement;
  prompt.after(panel);
  panel.inert = true;
}

function markOpen() {
  for (const target of words) if (canEdit()) target.chip.setAttribute("aria-expanded", String(target === chosen));
}

// Beside the picture, below the changes; below the words where there is no room beside it.
function putPanel(one) {
  const [main, side] = [find("main"), find("side")];
  const beside = side.offsetLeft > main.offsetLeft + main.offsetWidth / 2;
  one.style.left = (beside ? side : main).offsetLeft + "px";
  one.style.width = (beside ? side : main).offsetWidth + "px";
  one.style.top = (beside ? changes.offsetTop + changes.offsetHeight : prompt.offsetTop + prompt.offsetHeight) + "px";
}

const positionOf = (value) => WEIGHTS.filter((weight) => weight < value).length;

function sayWeight() {
  const value = WEIGHTS[loudness.value];
  weight.textContent = value ? "× " + value : say("viewer.edit.silent");
  loudness.setAttribute("aria-valuetext", weight.textContent);
}

let waiting = null; // for the slider to rest

function turn() {
  sayWeight();
  clearTimeout(waiting);
  const [target, at] = [chosen, data];
  waiting = setTimeout(() => {
    if (at !== data || target !== chosen) return;
    const value = WEIGHTS[loudness.value];
    const word = phraseOf(target);
    change(value ? { kind: "reweight", word, value } : { kind: "withhold", word });
  }, 400);
}

// Says of a replacement what the line below the prompt says of a prompt.
async function checkReplacement() {
  const text = replacement.value;
  replacementNote.replaceChildren();
  if (!text.trim()) return;
  const answer = await server.check_words({ text, model: data.settings.model });
  if (text !== replacement.value) return;
  replacementNote.replaceChildren(...(answer.error ? [sayError(answer.error)] : (answer.unknown ?? []).flatMap(unknownWord)));
}

function unknownWord({ text, instead }) {
  const made = [say("viewer.edit.unknown", { word: text }), " "];
  if (!instead) return made;
  const take = Object.assign(document.createElement("button"), { type: "button", textContent: say("viewer.edit.instead", { word: instead }) });
  take.addEventListener("click", () => {
    replacement.value = replacement.value.replace(text, instead);
    replacementNote.replaceChildren();
    replacement.focus();
  });
  return [...made, take, " "];
}

function replaceWord(event) {
  event.preventDefault();
  const [other, word] = [replacement.value.trim(), phraseOf(chosen)];
  if (!other) return replacement.focus();
  // Where a phrase is needed to find the word, the rest of the phrase stays.
  change({ kind: "replace", word, value: word.slice(0, word.length - chosen.text.length) + other });
}

function paintWord() {
  find("word-tools").hidden = true;
  find("word-box").hidden = false;
  const word = phraseOf(chosen);
  const last = listOf(data).findLast((one) => one.kind === "paint" && one.word === word);
  const box = { sides: last?.value ?? placeOfWord(chosen), label: chosen.text };
  find("box-sides").replaceChildren(...sidesOf(box));
  find("paint-now").onclick = () => change({ kind: "paint", word, value: box.sides });
  drawBoxes([box], {
    done: () => change({ kind: "paint", word, value: box.sides }),
    add: (sides) => {
      setSides(box, sides);
      change({ kind: "paint", word, value: box.sides });
    },
    leave: () => openPanel(chosen),
  });
  frame.scrollIntoView({ block: "nearest" });
  frame.focus({ preventScroll: true });
}

// The edits of the shown picture

function showEdits() {
  changes.hidden = !props.past || props.edits === false;
  const [list, placed] = [listOf(data), placedIn(data)];
  editHint.hidden = Boolean(list.length || placed.length);
  editHint.textContent = say(data?.settings?.stopped ? "viewer.edit.hint.stopped" : "viewer.edit.hint");
  editList.replaceChildren(
    ...placed.map((one) => placedTag(one, placed, list)),
    ...list.map((edit, i) => editTag(edit, i, list)).filter(Boolean),
  );
  editChecks.replaceChildren(...(data?.edit?.checks ?? []).map(checkLine));
  find("undo").hidden = find("keep").hidden = find("differ").hidden = !list.length;
  find("keep").disabled = find("differ").disabled = !data?.edit?.before;
  find("place").disabled = !canEdit();
  showDifferences(false);
  showBefore();
  const again = chosen && words.find((one) => one.text === chosen.text && one.index === chosen.index);
  const control = refocus;
  [panel.inert, refocus] = [false, null];
  if (!again || !canEdit() || panel.hidden) return closePanels();
  openPanel(again);
  control?.focus();
}

function editTag(edit, i, list) {
  if (edit.kind === "keep") return null;
  const value = edit.kind === "reweight" ? "× " + edit.value : edit.value;
  const kind = edit.kind === "withhold" ? "reweight" : edit.kind;
  const line = item(say("viewer.tag." + kind, { word: edit.word, value: value ?? say("viewer.edit.silent") }));
  if (i < fence(list)) return Object.assign(line, { className: "kept", title: say("viewer.edit.kept") });
  return withOff(line, () => drawEdited(withoutEdit(listOf(data), i)));
}

// A phrase that the picture was drawn with in its place. It can be let go as long as no edit stands on it.
function placedTag(one, placed, list) {
  const line = item(say("viewer.tag.paint", { word: one.phrase }));
  if (list.length) return Object.assign(line, { className: "kept" });
  return withOff(line, () => askPlaced(placed.filter((other) => other !== one)));
}

function withOff(line, act) {
  const off = Object.assign(document.createElement("button"), { type: "button", textContent: "✕" });
  off.setAttribute("aria-label", say("viewer.edit.off", { edit: line.textContent }));
  off.addEventListener("click", act);
  line.append(off);
  return line;
}

function showBefore() {
  const source = data?.edit?.before;
  compareWith(source ? { picture: source, settings: null } : null);
}

function showDifferences(on) {
  find("differ").setAttribute("aria-pressed", String(on));
  differences.hidden = !on;
  if (!on) return;
  differences.src = data.edit.change;
  differences.alt = say("viewer.edit.differ.title");
}

loudness.addEventListener("input", turn);
replacement.addEventListener("input", () => checkReplacement());
find("replacing").addEventListener("submit", replaceWord);
find("remove").addEventListener("click", () => change({ kind: "remove", word: phraseOf(chosen) }));
find("paint").addEventListener("click", paintWord);
find("paint-not").addEventListener("click", () => openPanel(chosen));
find("undo").addEventListener("click", () => drawEdited(madeFrom.get(addressOf(data.settings)) ?? listOf(data).slice(0, -1)));
find("keep").addEventListener("click", () => drawEdited([...listOf(data), { kind: "keep" }]));
find("differ").addEventListener("click", () => showDifferences(differences.hidden));
for (const one of [panel, find("place-panel")]) {
  one.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const chip = chosen?.chip;
    closePanels();
    (chip ?? find("place")).focus();
  });
}
find("close").addEventListener("click", () => {
  const chip = chosen.chip;
  closePanels();
  chip.focus();
});
new ResizeObserver(() => [panel, find("place-panel")].forEach((one) => one.hidden || putPanel(one))).observe(root);
