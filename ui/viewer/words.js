// Words, their tokens, and the tokens that belong to no word.

function gap(text) {
  return Object.assign(document.createElement("span"), { className: "gap", textContent: text });
}

function wordChips(text, word) {
  const tokens = data.words[word];
  const made = [chip({ text, tokens, word: true, index: word })];
  if (tokens.length < 2) return made;
  const parts = document.createElement("span");
  parts.hidden = true;
  parts.append(...tokens.map((token) => chip({ text: data.tokens[token], tokens: [token], part: true })));
  const opener = Object.assign(document.createElement("button"), { type: "button", className: "opener", textContent: "⋯" });
  opener.setAttribute("aria-label", say("viewer.tokens", { word: text }));
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
  const unknown = target.word && data.unknown?.includes(target.text);
  button.classList.toggle("unknown", Boolean(unknown));
  if (unknown) button.title = say("viewer.unknown");
  const [label, number] = [document.createElement("span"), document.createElement("span")];
  label.textContent = target.text;
  number.className = "share";
  button.append(label, number);
  button.addEventListener("pointerenter", () => pointAtTarget(target));
  button.addEventListener("pointerleave", leaveTarget);
  // A tap focuses the chip too. Only the keyboard's focus shows a map, or a second tap could not hide it.
  button.addEventListener("focus", () => button.matches(":focus-visible") && pointAtTarget(target));
  button.addEventListener("blur", leaveTarget);
  button.addEventListener("click", () => (pin(target), target.word && togglePanel(target)));
  targets.push(Object.assign(target, { chip: button, name: Boolean(target.word) + ":" + target.tokens }));
  return button;
}

function tileOf(target) {
  const tile = document.createElement("button");
  tile.type = "button";
  tile.className = "tile";
  tile.title = say("viewer.tile.title");
  tile.append(document.createElement("canvas"), document.createElement("span"));
  tile.addEventListener("click", () => pin(target));
  tile.addEventListener("pointerenter", () => pointAtTarget(target));
  tile.addEventListener("pointerleave", leaveTarget);
  target.tile = tile;
  return tile;
}

function pointAtTarget(target) {
  if (!data) return;
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
