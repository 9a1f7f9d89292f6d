// Pointing at the picture, playing the steps, saving, the pictures of this visit, and the event listeners.

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
  from = placeOf(event);
  region = null;
  movePointer(event);
}

function movePointer(event) {
  if (!view) return;
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

function release() {
  from = null;
  drawing = false;
}

function pointWithKeys(event) {
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
  cell = null;
  render();
}

// Steps

function toggle() {
  if (playing) return pause();
  play.textContent = "Pause";
  playing = setInterval(() => {
    step.value = frameShown() >= data.steps ? 1 : frameShown() + 1;
    choose();
  }, 250);
}

function pause() {
  clearInterval(playing);
  playing = null;
  play.textContent = "Play";
}

// Saving

async function save(kind, button) {
  button.disabled = true;
  const answer = await server.save({ key: data.key, image: data.image, kind });
  button.disabled = false;
  if (answer.error) return say(answer.error);
  const bytes = Uint8Array.from(atob(answer.content), (c) => c.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: answer.type }));
  link.download = answer.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Puts the link that generates this picture into the address bar, and into the clipboard where that is allowed.
async function shareLink() {
  const address = new URL(location.pathname, location.href);
  address.search = new URLSearchParams(data.settings);
  window.history.replaceState(null, "", address);
  try {
    await navigator.clipboard.writeText(address.href);
    say("Link copied. It is in the address bar too.");
  } catch {
    say("The link is in the address bar.");
  }
}

// Pictures of this visit are kept in this browser only.

function remember(pictures) {
  // Gradio delivers the same answer twice if it came before this script ran.
  const known = new Set(visited.map((one) => one.key + one.image));
  const added = pictures.filter((one) => one.key && one.settings && !known.has(one.key + one.image));
  visited = [...added, ...visited].slice(0, KEPT);
  past.hidden = visited.length < 2;
  history.replaceChildren(...visited.map((payload) => {
    const button = document.createElement("button");
    button.type = "button";
    button.payload = payload;
    button.setAttribute("aria-label", `${payload.prompt}, seed ${payload.settings.seed}`);
    const image = document.createElement("img");
    [image.src, image.alt] = [payload.picture, ""];
    button.append(image);
    button.addEventListener("click", () => (compare.checked ? compareWith(payload) : revisit(payload)));
    return button;
  }));
}

function revisit(payload) {
  compareWith(null);
  show(payload);
  trigger("select", payload.settings);
}

function compareWith(payload) {
  other.hidden = comparing.hidden = !payload;
  if (payload) other.src = payload.picture;
  other.alt = payload ? "Compared with: " + payload.prompt : "";
  moveWipe();
}

function moveWipe() {
  other.style.clipPath = `inset(0 0 0 ${wipe.value}%)`;
}

frame.addEventListener("pointermove", movePointer);
frame.addEventListener("pointerdown", press);
frame.addEventListener("pointerup", release);
frame.addEventListener("pointercancel", release);
frame.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leavePicture()); // the answer to a tap stays
frame.addEventListener("keydown", pointWithKeys);
frame.addEventListener("blur", leavePicture);
for (const control of [layer, head, reduce]) control.addEventListener("change", choose);
step.addEventListener("input", () => (pause(), choose()));
play.addEventListener("click", toggle);
for (const control of [scaling, opacity, dominance]) control.addEventListener("input", render);
for (const button of saving.querySelectorAll("[data-kind]")) {
  button.addEventListener("click", () => save(button.dataset.kind, button));
}
find("link").addEventListener("click", shareLink);
wipe.addEventListener("input", moveWipe);
compare.addEventListener("change", () => compare.checked || compareWith(null));
bar.style.background = `linear-gradient(to right, ${props.colours.join(", ")})`;

watch("value", () => receive(props.value)); // fires for later values only; the first one has arrived already
receive(props.value);
