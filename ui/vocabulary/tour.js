// A tour of the page in six steps, offered until it was taken or declined in this browser.

const TOURED = "unet-xattn.toured";
const STOPS = [
  ["textarea", "vocabulary.tour.prompt"],
  ["button.primary", "vocabulary.tour.generate"],
  [".attention-viewer .prompt", "vocabulary.tour.words"],
  [".attention-viewer .frame", "vocabulary.tour.picture"],
  [".attention-viewer .side", "vocabulary.tour.maps"],
  [".tab-container", "vocabulary.tour.tabs"],
];
let stopAt = -1; // the step of the tour, or -1

function wasToured() {
  try {
    return Boolean(localStorage.getItem(TOURED));
  } catch {
    return false; // the storage is closed to this page
  }
}

function goTo(next) {
  for (const part of document.querySelectorAll(".on-tour")) part.classList.remove("on-tour");
  stopAt = next < STOPS.length ? next : -1;
  box.hidden = stopAt < 0;
  if (stopAt < 0) return leaveTour();
  const [selector, key] = STOPS[stopAt];
  const part = document.querySelector(selector);
  part?.classList.add("on-tour");
  part?.scrollIntoView({ block: "nearest" });
  box.querySelector("p").textContent = `${stopAt + 1}/${STOPS.length} ${say(key)}`;
  const button = box.querySelector(".next");
  button.textContent = say(stopAt === STOPS.length - 1 ? "vocabulary.tour.end" : "vocabulary.tour.next");
  button.focus({ preventScroll: true });
}

function leaveTour() {
  for (const part of document.querySelectorAll(".on-tour")) part.classList.remove("on-tour");
  box.hidden = tour.hidden = true;
  try {
    localStorage.setItem(TOURED, "yes");
  } catch {
    return; // it will be offered again
  }
}
