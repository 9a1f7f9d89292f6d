// The first script of the page, before Gradio reads the language of the browser: the one that was chosen on the page counts.
try {
  const chosen = localStorage.getItem("unet-xattn.language");
  if (chosen) Object.defineProperty(navigator, "language", { value: chosen, configurable: true });
} catch {
  // The storage is closed to this page: the browser's language stays.
}
