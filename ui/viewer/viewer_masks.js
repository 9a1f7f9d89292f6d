// The masks of words: their outlines over the picture, and masks to copy and to save. The server makes them when they are
// first asked for; a saved page holds them.

const [outlining, masking, maskOf, maskCopy, maskSave, maskAll] =
  ["outlining", "masking", "mask-of", "mask-copy", "mask-save", "mask-all"].map(find);
const made = new WeakMap(); // payload -> the masks of its words, or a promise of them

// The masks of some words, if outlines are wanted and these are there.
function masksOf(shown) {
  const known = outlining.checked && data ? made.get(data) : null;
  if (!known || known.then || !shown.length || !shown.every((target) => target.word)) return null;
  return shown.map((target) => known[target.index]);
}

const areMaking = () => outlining.checked && Boolean(made.get(data)?.then);

// Run lengths of COCO, down the columns and the first one outside -> { height, width, bits, area, segmentation }.
function decodeMask({ area, segmentation }) {
  const { size: [height, width], counts } = segmentation;
  const bits = new Uint8Array(height * width);
  let at = 0;
  counts.forEach((count, i) => {
    for (const end = at + count; at < end; at++) if (i % 2) bits[(at % height) * width + Math.floor(at / height)] = 1;
  });
  return { height, width, bits, area, segmentation };
}

async function fetchMasks() {
  const at = data;
  if (!at || (made.get(at) && !made.get(at).then)) return made.get(at);
  if (!made.has(at)) made.set(at, at.masks ? Promise.resolve(at) : server.masks({ key: at.key, image: at.image }));
  const answer = await made.get(at);
  if (answer.error) {
    made.delete(at);
    if (at === data) notify(sayError(answer.error), true);
    return null;
  }
  if (answer.masks) made.set(at, answer.masks.map(decodeMask));
  return made.get(at);
}

async function outlineWords() {
  const at = data;
  const there = fetchMasks();
  render(); // says that they are being made
  await there;
  if (at === data) render();
}

function describeMasks(names, masks) {
  const [{ area, height, width }] = masks;
  const which = masks.length > 1 ? say("viewer.masks", { words: names }) : say("viewer.mask.area", { word: names, share: percent(area / (height * width)) });
  return [which, say("viewer.mask.note")].join(" ");
}

// The word whose mask is copied or saved: the one that was pinned last.
const maskedWord = () => pinned.findLast((target) => target.word);

function nameMask() {
  const target = maskedWord();
  maskOf.textContent = target ? say("viewer.mask.of", { word: target.text }) : say("viewer.mask.none");
  for (const button of [maskCopy, maskSave]) button.disabled = !target;
}

function setUpMasks() {
  masking.hidden = !data.key || !server?.masks;
  outlining.parentElement.hidden = masking.hidden && !data.masks;
  maskAll.disabled = !words.length;
  if (outlining.checked && !outlining.parentElement.hidden) outlineWords();
}

// Copies the run lengths of a mask; where copying is not allowed, they are saved.
async function copyMask() {
  const target = maskedWord();
  const masks = await fetchMasks();
  if (!masks) return;
  const text = JSON.stringify(masks[target.index].segmentation);
  try {
    await navigator.clipboard.writeText(text);
    notify(say("viewer.mask.copied", { word: target.text }));
  } catch {
    download({ name: "mask.json", type: "application/json", content: btoa(text) });
    notify(say("viewer.mask.not copied"));
  }
}

outlining.addEventListener("change", () => data && (outlining.checked ? outlineWords() : render()));
maskCopy.addEventListener("click", copyMask);
maskSave.addEventListener("click", () => save("mask", maskSave, maskedWord().index));
maskAll.addEventListener("click", () => save("labels", maskAll));
