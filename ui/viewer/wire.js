// Pointing at the picture, playing the steps, saving, and the event listeners.

// The picture

function placeOf(event) {
  const box = frame.getBoundingClientRect();
  const within = (value) => Math.min(Math.max(value, 0), 1);
  return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
}

function pointAt(row, column) {
  const within = (i, cells) => Math.min(Math.max(i, 0), cells - 1);
  const next = { row: within(row, view.rows), column: within(column, view.columns) };
  if (next.row === cell?.row && next.column === cell?.column) return;
  cell = next;
  render();
}

const boxOf = ([x0, y0], [x1, y1]) => [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];

let from = null; // where the pointer was pressed

function press(event) {
  if (!view) return;
  if (boxing) return pressBox(event);
  from = placeOf(event);
  region = null;
  movePointer(event);
}

function movePointer(event) {
  if (!view) return;
  if (boxing) return dragBox(event);
  const place = placeOf(event);
  const far = from && Math.hypot(place[0] - from[0], place[1] - from[1]) > 0.03;
  if (from && (far || drawing)) {
    if (!drawing) frame.setPointerCapture(event.pointerId);
    drawing = true;
    cell = null;
    region = drag.value === "box" ? boxOf(from, place) : [...(region ?? [from]), place];
    render();
  } else if (!region) {
    pointAt(Math.floor(place[1] * view.rows), Math.floor(place[0] * view.columns));
  }
}

function release(event) {
  if (boxing) return releaseBox(event);
  from = null;
  drawing = false;
}

function pointWithKeys(event) {
  if (boxing) return moveBox(event);
  const by = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (event.key === "Escape") return leavePicture(), (region = null), render();
  if (!by || !view) return;
  event.preventDefault(); // the page would scroll
  const start = cell ?? { row: Math.floor(view.rows / 2), column: Math.floor(view.columns / 2) };
  if (!event.shiftKey) {
    region = null;
    return pointAt(start.row + by[0], start.column + by[1]);
  }
  // A box of full cells grows from the place under the pointer.
  const corner = (row, column) => [column / view.columns, row / view.rows];
  const [, , [x1, y1]] = region ?? boxOf(corner(start.row, start.column), corner(start.row + 1, start.column + 1));
  const [x0, y0] = region?.[0] ?? corner(start.row, start.column);
  region = boxOf([x0, y0], [Math.min(x1 + by[1] / view.columns, 1), Math.min(y1 + by[0] / view.rows, 1)]);
  cell = null;
  render();
}

function leavePicture() {
  if (boxing) return;
  cell = null;
  render();
}

// Steps

function toggle() {
  if (playing) return pause();
  play.textContent = say("viewer.pause");
  playing = setInterval(() => {
    step.value = frameShown() >= data.steps ? 1 : frameShown() + 1;
    choose();
  }, 250);
}

function pause() {
  clearInterval(playing);
  playing = null;
  play.textContent = say("viewer.play");
}

function stopDrawing() {
  stop.disabled = true;
  find("at").textContent = say("viewer.stopping");
  server.stop({ ticket: stop.dataset.ticket });
}

// Gradio finds the names of the events in this script.
function goOn(event) {
  const about = { key: data.key, image: data.image, prompt: data.prompt, seed: data.settings.seed };
  if (event === "follow") trigger("follow", about);
  if (event === "translate") trigger("translate", about);
  if (event === "attribute") trigger("attribute", about);
}

// Saving

async function save(kind, button, word = null) {
  const [at, line] = [data, note.textContent];
  button.disabled = true;
  if (kind === "gif") notify(say("viewer.save.making"));
  const answer = await server.save({ key: at.key, image: at.image, kind, word });
  if (at === data) {
    button.disabled = false;
    notify(answer.error ? sayError(answer.error) : line, Boolean(answer.error));
  }
  if (!answer.error) download(answer);
}

function download({ name, type, content }) {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Copies the link that generates this picture where that is allowed. It is in the address bar already.
async function shareLink() {
  try {
    await navigator.clipboard.writeText(new URL(addressOf(data.settings), location.href).href);
    notify(say("viewer.link.copied"));
  } catch {
    notify(say("viewer.link.shown"));
  }
}

frame.addEventListener("pointermove", movePointer);
frame.addEventListener("pointerdown", press);
frame.addEventListener("pointerup", release);
frame.addEventListener("pointercancel", release);
frame.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leavePicture()); // the answer to a tap stays
frame.addEventListener("keydown", pointWithKeys);
frame.addEventListener("blur", leavePicture);
for (const control of [layer, head, reduce]) control.addEventListener("change", () => data && (choose(), drawNetwork()));
heads.addEventListener("toggle", showHeads);
headsWord.addEventListener("change", showHeads);
step.addEventListener("input", () => (pause(), choose()));
play.addEventListener("click", toggle);
for (const control of [scaling, opacity, dominance]) control.addEventListener("input", render);
for (const button of saving.querySelectorAll("[data-kind]")) {
  button.addEventListener("click", () => save(button.dataset.kind, button));
}
for (const button of find("going-on").children) {
  button.hidden = Boolean(props.reach) && !props.reach.includes(button.dataset.event);
  button.addEventListener("click", () => goOn(button.dataset.event));
}
find("link").addEventListener("click", shareLink);
stop.addEventListener("click", stopDrawing);
for (const kind of ["pointerdown", "pointermove", "pointerup"]) divider.addEventListener(kind, dragDivider);
divider.addEventListener("keydown", moveDivider);
compare.addEventListener("change", () => compare.checked || showBefore());
find("save-all").addEventListener("click", saveAll);
find("forget").addEventListener("click", forget);
window.addEventListener("popstate", goBack);
if (props.past) {
  window.addEventListener("dragover", allowDrop);
  window.addEventListener("drop", takeFile);
  window.addEventListener("keydown", drawWithKeys);
}
bar.style.background = `linear-gradient(to right, ${props.colours.join(", ")})`;

if (props.heading) {
  find("heading").hidden = false;
  find("heading").firstChild.textContent = props.heading.prompt;
  find("about").textContent = sayAll([props.heading.about]);
}
recall();
watch("value", () => receive(props.value)); // fires for later values only; the first one has arrived already
receive(props.value);
