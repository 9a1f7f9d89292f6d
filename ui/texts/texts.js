// After errors.js the first part of every component's script: the texts of the page, in the language of the browser.
// props.texts maps a language to its texts by key; an element with data-text, data-title or data-name gets its text from
// there.

function say(key, values = {}) {
  return props.texts[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]?.[language] ?? values[name]);
}

const sayAll = (messages) => messages.map(([key, values]) => say(key, values)).join(language === "zh" ? "" : " ");

for (const part of element.querySelectorAll("[data-text]")) part.textContent = say(part.dataset.text);
for (const part of element.querySelectorAll("[data-title]")) part.title = say(part.dataset.title);
for (const part of element.querySelectorAll("[data-name]")) part.setAttribute("aria-label", say(part.dataset.name));
