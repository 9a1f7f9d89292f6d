// What concerns the whole page: the body of a function that Gradio calls once, after `ui/texts/errors.js`.

// Gradio's menus take the tabulator for typing, and stay open when the keyboard leaves them.
window.addEventListener("keydown", (event) => {
  if (event.key !== "Tab" || !event.target.matches?.("[role=combobox][aria-expanded=true]")) return;
  event.stopImmediatePropagation();
  event.target.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
}, true);

// Gradio writes its toasts in English, whatever language it writes elsewhere.
function sayToasts() {
  for (const part of document.querySelectorAll(":is(.toast-title, [data-testid=toast-text]):not([data-said])")) {
    part.dataset.said = "";
    const text = part.matches(".toast-title") ? part.firstChild : part; // behind the title Gradio counts the toasts
    text.textContent = sayError(text.textContent.trim());
    part.closest("[data-testid=toast-body]").querySelector("[data-testid=toast-close]").ariaLabel = sayError("Close");
  }
}
if (language !== "en") new MutationObserver(sayToasts).observe(document.body, { childList: true, subtree: true });
