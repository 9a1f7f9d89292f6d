// The body of a function of (element, props, trigger, watch), which gr.HTML calls once. Typed text is written as text, not
// HTML.

const line = element.querySelector(".reading");

function show({ prompt, unknown, error }) {
  line.replaceChildren();
  if (error) return line.append(mark(sayError(error)));
  if (!unknown.length) return;
  line.append(say("reading.unknown"), " ", ...unknown.flatMap((word) => [mark(word.text), ...offers(word, prompt), " "]));
}

function offers({ start, end, instead, model }, prompt) {
  // Characters are counted as Python counts them, by code points.
  const letters = [...prompt];
  const taken = instead && [...letters.slice(0, start), instead, ...letters.slice(end)].join("");
  return [
    instead && button(say("reading.instead", { word: instead }), { prompt: taken }),
    model && button(say("reading.model", { model }), { model }),
  ].filter(Boolean);
}

function button(text, taken) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", () => trigger(taken.model ? "model" : "select", taken));
  return made;
}

function mark(text) {
  return Object.assign(document.createElement("u"), { textContent: text });
}

const update = () => props.value && show(props.value);
watch("value", update);
update();
