// Boxes over the picture: where a word is painted, and words that are placed before there is a picture.
//
// A box is { sides: [left, top, right, bottom] in pixels of the picture, label, inputs }.

const [placePanel, places, boxMarks] = ["place-panel", "places", "boxes"].map(find);
let boxes = []; // those that are shown
let boxing = null; // while boxes are drawn: what to do when one is { add, done, leave }
let active = null; // the box that the keys move
let boxFrom = null; // where the pointer was pressed

function drawBoxes(shown, actions) {
  [boxes, boxing, active] = [shown, actions, shown.at(-1) ?? null];
  frame.classList.add("boxing");
  frame.setAttribute("aria-label", say("viewer.frame.box"));
  compareWith(null);
  [pointed, cell, region] = [null, null, null];
  render();
  markBoxes();
}

function leaveBoxes() {
  if (!boxing) return;
  [boxes, boxing, active, boxFrom] = [[], null, null, null];
  frame.classList.remove("boxing");
  frame.setAttribute("aria-label", say("viewer.frame"));
  markBoxes();
  if (!data) return;
  showBefore();
  render();
}

function markBoxes() {
  if (!data) return boxMarks.replaceChildren();
  const [height, width] = data.size;
  boxMarks.replaceChildren(...boxes.map((box) => {
    const mark = Object.assign(document.createElement("div"), { className: "box" });
    mark.append(Object.assign(document.createElement("span"), { textContent: box.label }));
    const [x0, y0, x1, y1] = box.sides;
    mark.classList.toggle("active", box === active);
    mark.style.left = (100 * x0) / width + "%";
    mark.style.top = (100 * y0) / height + "%";
    mark.style.width = (100 * (x1 - x0)) / width + "%";
    mark.style.height = (100 * (y1 - y0)) / height + "%";
    return mark;
  }));
}

function setSides(box, sides) {
  box.sides = sides;
  box.inputs?.forEach((input, i) => (input.value = sides[i]));
  markBoxes();
}

// Four fields for the sides of a box.
function sidesOf(box) {
  const [height, width] = data.size;
  box.inputs = ["left", "top", "right", "bottom"].map((side, i) => {
    const input = Object.assign(document.createElement("input"), { type: "number", min: 0, max: i % 2 ? height : width });
    input.value = box.sides[i];
    input.title = say("viewer.box." + side);
    input.setAttribute("aria-label", input.title);
    input.addEventListener("focus", () => ((active = box), markBoxes()));
    input.addEventListener("input", () => {
      if (input.value === "") return;
      setSides(box, box.sides.map((value, j) => (i === j ? Math.round(Number(input.value)) : value)));
    });
    return input;
  });
  return box.inputs;
}

// The box around the cells where a word has a good part of its largest share.
function placeOfWord(target) {
  const shares = sharesOfTarget(target);
  const least = 0.3 * greatest(shares);
  const inside = [...shares.keys()].filter((i) => shares[i] >= least);
  const [rows, columns] = [inside.map((i) => Math.floor(i / view.columns)), inside.map((i) => i % view.columns)];
  const [height, width] = data.size;
  const at = (value, cells, side) => Math.round((value / cells) * side);
  return [
    at(Math.min(...columns), view.columns, width), at(Math.min(...rows), view.rows, height),
    at(Math.max(...columns) + 1, view.columns, width), at(Math.max(...rows) + 1, view.rows, height),
  ];
}

// Drawing with the pointer

function boxBetween([ax, ay], [bx, by]) {
  const [height, width] = data.size;
  const [x0, y0] = [Math.floor(Math.min(ax, bx) * width), Math.floor(Math.min(ay, by) * height)];
  return [x0, y0, Math.max(Math.ceil(Math.max(ax, bx) * width), x0 + 1), Math.max(Math.ceil(Math.max(ay, by) * height), y0 + 1)];
}

function pressBox(event) {
  boxFrom = placeOf(event);
  frame.setPointerCapture(event.pointerId);
}

function dragBox(event) {
  if (!boxFrom) return;
  const [x0, y0, x1, y1] = boxBetween(boxFrom, placeOf(event));
  const points = boxOf([x0, y0], [x1, y1]).map(([x, y]) => [x / data.size[1], y / data.size[0]].join(",")).join(" ");
  for (const line of outline.children) line.setAttribute("points", points);
}

function releaseBox(event) {
  if (!boxFrom) return;
  const sides = boxBetween(boxFrom, placeOf(event));
  boxFrom = null;
  for (const line of outline.children) line.setAttribute("points", "");
  if (sides[2] - sides[0] > 2 && sides[3] - sides[1] > 2) boxing.add(sides); // else it was a click
}

// Moving with the keys; with Shift the right and the lower side
function moveBox(event) {
  if (event.key === "Escape") return boxing.leave();
  if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) return boxing.done();
  const by = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
  if (!by || !active) return;
  event.preventDefault();
  const [height, width] = data.size;
  const within = (value, low, high) => Math.min(Math.max(value, low), high);
  let [x0, y0, x1, y1] = active.sides;
  if (event.shiftKey) return setSides(active, [x0, y0, within(x1 + by[0], x0 + 1, width), within(y1 + by[1], y0 + 1, height)]);
  const [dx, dy] = [within(by[0], -x0, width - x1), within(by[1], -y0, height - y1)];
  setSides(active, [x0 + dx, y0 + dy, x1 + dx, y1 + dy]);
}

// Placing words before the picture is drawn

// The phrases and boxes that a picture was drawn with.
function placedIn(payload) {
  return (payload?.settings?.regions ?? "").split(";").filter((part) => part.trim()).map((part) => {
    const [, phrase, sides] = part.match(/^(.*)=(.*)$/);
    return { phrase: phrase.trim(), sides: sides.split(",").map(Number) };
  });
}

function openPlaces() {
  closePanels();
  placePanel.hidden = false;
  places.replaceChildren();
  drawBoxes([], { add: addPlace, done: drawPlaced, leave: () => (closePanels(), find("place").focus()) });
  for (const { phrase, sides } of placedIn(data)) addPlace(sides, phrase);
  putPanel(placePanel);
  (places.querySelector("input") ?? find("place-add")).focus({ preventScroll: true });
}

function addPlace(sides, phrase = "") {
  const box = { sides, label: phrase };
  const line = document.createElement("li");
  const name = Object.assign(document.createElement("input"), { type: "text", value: phrase, className: "phrase" });
  name.setAttribute("aria-label", say("viewer.placing.phrase"));
  name.placeholder = say("viewer.placing.phrase");
  name.addEventListener("input", () => ((box.label = name.value), markBoxes()));
  name.addEventListener("focus", () => ((active = box), markBoxes()));
  name.addEventListener("keydown", (event) => event.key === "Enter" && drawPlaced());
  const off = Object.assign(document.createElement("button"), { type: "button", textContent: "✕" });
  off.setAttribute("aria-label", say("viewer.placing.off"));
  off.addEventListener("click", () => {
    boxes = boxes.filter((one) => one !== box);
    line.remove();
    markBoxes();
  });
  line.append(name, ...sidesOf(box), off);
  places.append(line);
  boxes = [...boxes, box];
  active = box;
  markBoxes();
  name.focus({ preventScroll: true });
}

// A box of a third of the picture, in a place of its own for each number of boxes.
function addByKey() {
  const [height, width] = data.size;
  const at = (i, side) => Math.round((side * (0.08 + 0.46 * (i % 2))));
  const [x, y] = [at(boxes.length, width), at(Math.floor(boxes.length / 2), height)];
  addPlace([x, y, x + Math.round(0.38 * width), y + Math.round(0.38 * height)]);
}

function drawPlaced() {
  const empty = [...places.querySelectorAll(".phrase")].find((name) => !name.value.trim());
  if (empty) return empty.focus();
  askPlaced(boxes.map(({ label, sides }) => ({ phrase: label.trim(), sides })));
}

function askPlaced(placed) {
  trigger("place", { regions: placed.map(({ phrase, sides }) => `${phrase}=${sides}`).join("; ") });
}

find("place").addEventListener("click", openPlaces);
find("place-close").addEventListener("click", () => (closePanels(), find("place").focus()));
find("place-add").addEventListener("click", addByKey);
find("place-go").addEventListener("click", drawPlaced);
