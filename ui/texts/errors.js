// Errors as Python, Gradio and other libraries write them, in English and in one line -> the language of the page.
// `knownErrors` of the page's first script are the lines that are known, with their places, in both languages. What
// stands at a place may be such a line, or a name among them, itself.

const language = (document.documentElement.lang || navigator.language).startsWith("zh") ? "zh" : "en";

function sayError(line) {
  if (!line || language === "en") return line && line[0].toUpperCase() + line.slice(1);
  return inChinese(line) ?? inChinese("a library reports: " + line) ?? line;
}

// A known line in Chinese; undefined for another. Errors at the place "findings" are separated by semicolons.
function inChinese(line) {
  const [form, text] = errorForms().find(([known]) => known.test(line)) ?? [];
  if (!form) return undefined;
  const parts = line.match(form).groups ?? {};
  return text.replace(/\{(\w+)\}/g, (place, name) => {
    if (parts[name] === undefined) return place;
    if (name !== "findings") return inChinese(parts[name]) ?? parts[name];
    return parts[name].split("; ").map((part) => inChinese(part) ?? inChinese("error: " + part) ?? part).join("；");
  });
}

let forms;
const errorForms = () => forms ??= (window.knownErrors ?? []).map((texts) => {
  const form = texts.en.replace(/[.*+?^$()|[\]\\]/g, "\\$&").replace(/\{(\w+)\}/g, "(?<$1>.+?)");
  return [new RegExp(`^${form}$`, "s"), texts[language]];
});
