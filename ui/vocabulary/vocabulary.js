// The body of a function of (element, props, trigger, watch), which gr.HTML calls once.

const find = (name) => element.querySelector("." + name);
const [sentence, examples, surprise, opener, panel, search, groups, tour, box] =
  ["sentence", "examples", "surprise", "open", "panel", "search", "groups", "tour", "box"].map(find);

function show(value) {
  if (!value) return;
  sentence.textContent = sayAll([value.sentence]);
  examples.replaceChildren(...value.examples.map((text) => button(text, () => trigger("select", { prompt: text }))));
  surprise.hidden = !value.surprise;
  opener.hidden = !value.groups.length;
  if (opener.hidden) toggle(false);
  groups.replaceChildren(...value.groups.map(([heading, words]) => {
    const group = document.createElement("div");
    group.append(Object.assign(document.createElement("h2"), { textContent: say(heading) }));
    group.append(...words.map((word) => button(word, () => trigger("word", { word }))));
    return group;
  }));
  filter();
}

function button(text, press) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", press);
  return made;
}

function toggle(open) {
  panel.hidden = !open;
  opener.setAttribute("aria-expanded", String(open));
  if (open) search.focus();
}

function filter() {
  const asked = search.value.trim().toLowerCase();
  for (const group of groups.children) {
    const words = [...group.querySelectorAll("button")];
    for (const word of words) word.hidden = !word.textContent.toLowerCase().includes(asked);
    group.hidden = words.every((word) => word.hidden);
  }
}

search.placeholder = say("vocabulary.search");
search.addEventListener("input", filter);
opener.addEventListener("click", () => toggle(panel.hidden));
surprise.addEventListener("click", () => trigger("select", { surprise: true }));
tour.hidden = wasToured();
tour.addEventListener("click", () => goTo(0));
find("next").addEventListener("click", () => goTo(stopAt + 1));
find("leave").addEventListener("click", leaveTour);
box.addEventListener("keydown", (event) => event.key === "Escape" && leaveTour());
watch("value", () => show(props.value));
show(props.value);
