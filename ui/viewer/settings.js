// The settings that a saved PNG holds, and the shortcuts of the whole page.

// The text that `ui.export.download` wrote under a name into a PNG (an iTXt chunk), or null.
function pngText(bytes, name) {
  const data = new DataView(bytes.buffer);
  const utf8 = new TextDecoder();
  for (let at = 8; at + 12 <= bytes.length; at += 12 + data.getUint32(at)) {
    if (utf8.decode(bytes.subarray(at + 4, at + 8)) !== "iTXt") continue;
    const chunk = bytes.subarray(at + 8, at + 8 + data.getUint32(at));
    const end = chunk.indexOf(0);
    if (utf8.decode(chunk.subarray(0, end)) !== name) continue;
    const language = chunk.indexOf(0, end + 3);
    return utf8.decode(chunk.subarray(chunk.indexOf(0, language + 1) + 1));
  }
  return null;
}

// A saved picture that is dropped on the tab is generated again with its settings.
async function takeFile(event) {
  const file = event.dataTransfer?.files[0];
  if (!file || !root.checkVisibility() || event.target.closest?.("[data-testid], input")) return;
  event.preventDefault();
  let settings = null;
  try {
    settings = JSON.parse(pngText(new Uint8Array(await file.arrayBuffer()), "settings"));
  } catch {
    settings = null; // not a PNG, or cut off
  }
  if (!settings) return notify(say("viewer.drop.none", { name: file.name }), true);
  trigger("redraw", settings);
}

function allowDrop(event) {
  if (root.checkVisibility()) event.preventDefault(); // else the browser would open the file
}

function drawWithKeys(event) {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && root.checkVisibility()) trigger("go");
}
