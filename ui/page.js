() => {
  // What concerns the whole page; Gradio calls it once.

  // Gradio's menus take the tabulator for typing, and stay open when the keyboard leaves them.
  window.addEventListener("keydown", (event) => {
    if (event.key !== "Tab" || !event.target.matches?.("[role=combobox][aria-expanded=true]")) return;
    event.stopImmediatePropagation();
    event.target.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  }, true);
};
