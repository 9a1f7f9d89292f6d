// The pictures of this browser: a list that survives a reload, their address, and comparing two of them.
//
// The storage of the browser holds each picture with its settings. Its maps are gone when the page was loaded again: then
// choosing it generates it again.

const KEPT = 60; // pictures that the browser keeps
const STORED = "unet-xattn.pictures";
const [past, history, compare, compared, other, divider] =
  ["past", "history", "compare", "compared", "other", "divider"].map(find);
let visited = []; // { picture, settings, payload }, newest first; payload is null after a reload

const addressOf = (settings) => "?" + new URLSearchParams(settings);

function recall() {
  if (!props.past) return;
  try {
    visited = JSON.parse(localStorage.getItem(STORED) ?? "[]").map((one) => ({ ...one, payload: null }));
  } catch {
    visited = []; // the storage is closed to this page, or holds something else
  }
  listPast();
}

function remember(pictures) {
  if (!props.past) return;
  const addresses = new Set(pictures.filter((one) => one.settings).map((one) => addressOf(one.settings)));
  const added = pictures.filter((one) => one.settings)
    .map((payload) => ({ picture: payload.picture, settings: payload.settings, payload }));
  visited = [...added, ...visited.filter((one) => !addresses.has(addressOf(one.settings)))].slice(0, KEPT);
  store();
  listPast();
}

function store() {
  const kept = visited.map(({ picture, settings }) => ({ picture, settings }));
  // A browser grants a page about 5 million characters: the oldest pictures go first.
  for (let count = kept.length; count >= 0; count = Math.floor(count / 2)) {
    try {
      return localStorage.setItem(STORED, JSON.stringify(kept.slice(0, count)));
    } catch {
      if (!count) return;
    }
  }
}

function listPast() {
  past.hidden = !visited.length;
  history.replaceChildren(...visited.map((one) => {
    const name = say(one.settings.edits ? "viewer.past.edited" : "viewer.past.item", one.settings);
    const button = thumbnail(one, name);
    button.addEventListener("click", () => (compare.checked ? compareWith(one) : revisit(one)));
    return button;
  }));
  markShown();
}

// Marks the shown picture in the list, and puts its link into the address bar.
function markShown() {
  if (!props.past) return;
  const address = data?.settings && !data.live && !data.settings.stopped ? addressOf(data.settings) : null;
  for (const button of history.children) {
    button.setAttribute("aria-current", String(Boolean(data?.settings) && addressOf(button.payload.settings) === addressOf(data.settings)));
  }
  if (!address || address === location.search) return;
  const first = !window.history.state?.drawn;
  window.history[first ? "replaceState" : "pushState"]({ ...window.history.state, drawn: true }, "", address);
}

function revisit(one) {
  if (!one.payload) return trigger("redraw", one.settings);
  show(one.payload);
  trigger("select", one.settings);
}

function goBack() {
  if (!props.past || !location.search || (data?.settings && location.search === addressOf(data.settings))) return;
  const one = visited.find(({ settings }) => addressOf(settings) === location.search);
  revisit(one ?? { settings: Object.fromEntries(new URLSearchParams(location.search)), payload: null });
}

function forget() {
  if (!data?.settings) return;
  visited = visited.filter(({ settings }) => addressOf(settings) !== addressOf(data.settings));
  store();
  listPast();
}

async function saveAll() {
  for (const { picture, settings, payload } of visited) {
    const answer = payload?.key ? await server.save({ key: payload.key, image: payload.image, kind: "png" }) : { error: "" };
    if (answer.error === undefined) download(answer);
    else downloadShown(picture, `${settings.prompt.slice(0, 60)}-seed${settings.seed}`);
  }
}

// A picture as the browser keeps it: a PNG, or, of large ones, a WEBP.
function downloadShown(picture, name) {
  const [, type, content] = picture.match(/^data:(.+);base64,(.*)$/);
  download({ name: `${name}.${type.split("/")[1]}`, type, content });
}

// Comparing: the other picture lies over the right side of the frame; the one before the edits, which has no settings of
// its own, over the left side.

function compareWith(one) {
  compared.hidden = !one;
  if (!one) return;
  const isBefore = !one.settings;
  compared.classList.toggle("is-before", isBefore);
  other.src = one.picture;
  other.alt = isBefore ? say("viewer.edit.before") : say("viewer.compare.other", { prompt: one.settings.prompt });
  const [shown, second] = isBefore
    ? [say("viewer.edit.before"), say("viewer.edit.after")]
    : [`${data?.prompt ?? ""} (${data?.settings?.seed ?? ""})`, `${one.settings.prompt} (${one.settings.seed})`];
  [find("left-name").textContent, find("right-name").textContent] = [shown, second];
  divideAt(isBefore ? data.edit.divide : 50);
}

function divideAt(percentage) {
  const at = Math.round(Math.min(Math.max(percentage, 0), 100));
  other.style.clipPath = compared.classList.contains("is-before") ? `inset(0 ${100 - at}% 0 0)` : `inset(0 0 0 ${at}%)`;
  divider.style.left = at + "%";
  divider.setAttribute("aria-valuenow", at);
}

function dragDivider(event) {
  event.stopPropagation(); // the frame would mark a region
  if (event.type === "pointerdown") divider.setPointerCapture(event.pointerId);
  if (divider.hasPointerCapture(event.pointerId)) divideAt(100 * placeOf(event)[0]);
}

function moveDivider(event) {
  const by = { ArrowLeft: -5, ArrowRight: 5 }[event.key];
  if (!by) return;
  event.stopPropagation();
  event.preventDefault();
  divideAt(Number(divider.getAttribute("aria-valuenow")) + by);
}
