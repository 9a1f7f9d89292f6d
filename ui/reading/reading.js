// The body of a function of (element, props, watch), which gr.HTML calls once. Typed text is written as text, not HTML.

const line = element.querySelector(".reading");

function show({ pieces, error }) {
  line.replaceChildren();
  if (error) return line.append(mark(error));
  if (pieces.length) line.append(...pieces.map(([text, unknown]) => (unknown ? mark(text) : text)));
  if (pieces.length) line.append(" (underlined: words unknown to this model)");
}

function mark(text) {
  return Object.assign(document.createElement("u"), { textContent: text });
}

const update = () => props.value && show(props.value);
watch("value", update);
update();
