// The body of a function of (element, props, watch), which gr.HTML calls once, when the album is on the page.
//
// props.value comes from Python's `page`, or is nothing yet; props.title and props.side are settings of the album. Text
// that a person typed is written by textContent or as a property, never as HTML.

const root = element.querySelector(".album");
root.style.setProperty("--side", props.side + "px");

function figure([source, text]) {
  const picture = Object.assign(document.createElement("img"), { src: source, alt: text });
  picture.onload = () => picture.classList.add(picture.naturalWidth < 256 ? "enlarged" : "reduced");
  const caption = Object.assign(document.createElement("figcaption"), { textContent: text, dir: "auto" });
  const shown = document.createElement("figure");
  shown.append(picture, ...(text ? [caption] : []));
  return shown;
}

function show() {
  const { pictures = [], step = null } = props.value ?? {};
  const title = say(props.title);
  root.querySelector(".title").textContent = step === null ? title : say("album.after", { title, step: step.toLocaleString("en") });
  root.querySelector(".pictures").replaceChildren(...pictures.map(figure));
  root.hidden = !pictures.length;
}

watch("value", show);
show();
