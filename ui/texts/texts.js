// The first part of every component's script: the texts of the page, in the language of the browser. props.texts maps a
// language to its texts by key; an element with data-text, data-title or data-name gets its text from there.

const language = (document.documentElement.lang || navigator.language).startsWith("zh") ? "zh" : "en";

function say(key, values = {}) {
  return props.texts[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]?.[language] ?? values[name]);
}

// An error as Python sends it, in English and in one line, in the language of the page. `knownErrors` of the page's first
// script are the lines that are known, with their places, in both languages. What stands at a place may be such a line,
// or a name among them, itself.
function sayError(line) {
  if (language === "en") return line[0].toUpperCase() + line.slice(1);
  const [form, text] = errorForms().find(([known]) => known.test(line)) ?? [/^/, line];
  const parts = line.match(form).groups ?? {};
  return text.replace(/\{(\w+)\}/g, (place, name) => (parts[name] === undefined ? place : sayError(parts[name])));
}

const errorForms = () => (window.knownErrors ?? []).map((texts) => {
  const form = texts.en.replace(/[.*+?^$()|[\]\\]/g, "\\$&").replace(/\{(\w+)\}/g, "(?<$1>.+?)");
  return [new RegExp(`^${form}$`, "s"), texts[language]];
});

const sayAll = (messages) => messages.map(([key, values]) => say(key, values)).join(language === "zh" ? "" : " ");

for (const part of element.querySelectorAll("[data-text]")) part.textContent = say(part.dataset.text);
for (const part of element.querySelectorAll("[data-title]")) part.title = say(part.dataset.title);
for (const part of element.querySelectorAll("[data-name]")) part.setAttribute("aria-label", say(part.dataset.name));
