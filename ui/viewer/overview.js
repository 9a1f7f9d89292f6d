// Where the layers sit in the network, and one word in every layer and head.

// A drawing of the network: its layers in the order they run, deeper ones (of coarser grids) lower, as in a U.
function drawNetwork() {
  const rows = Object.values(data.layers).map(([count]) => count);
  const finest = Math.max(...rows);
  network.replaceChildren(...Object.entries(data.layers).map(([name, [count, columns]]) => {
    const box = document.createElement("button");
    box.type = "button";
    box.title = `${name} · ${count}×${columns}`;
    box.setAttribute("aria-label", box.title);
    box.setAttribute("aria-pressed", String(layer.value === name));
    box.style.setProperty("--depth", Math.log2(finest / count));
    box.addEventListener("click", () => openLarge(layer.value === name ? "" : name, head.value));
    return box;
  }));
}

function openLarge(name, number) {
  layer.value = name;
  head.value = number;
  choose();
  drawNetwork();
}

// The chosen word's map in each layer (a row) and head (a column), each in its own colour scale.
async function showHeads() {
  if (!heads.open || !data || !server?.heads || !data.key) return;
  const [at, word] = [data, words[Number(headsWord.value)] ?? words[0]];
  if (!word) return;
  const answer = await server.heads({ key: at.key, image: at.image, tokens: word.tokens });
  if (at !== data) return;
  if (answer.error) return notify(sayError(answer.error), true);
  headsTable.replaceChildren(...answer.layers.map(({ name, grid, maps }) => {
    const line = document.createElement("div");
    line.append(Object.assign(document.createElement("span"), { textContent: name }));
    line.append(...maps.map((map, number) => headTile(name, grid, map, number, answer.layers)));
    return line;
  }));
}

function headTile(name, grid, { peak, map }, number) {
  const tile = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
  const title = say("viewer.heads.tile", { layer: name, head: number + 1, share: percent(peak) });
  tile.title = title;
  tile.setAttribute("aria-label", title);
  const canvas = document.createElement("canvas");
  tile.append(canvas);
  const one = decodeView({ grid, peaks: [[peak]], tops: [[peak]], maps: map });
  paintMap(canvas, one, sharesOf(one, 0, [0]), Math.max(peak, 1e-12), Math.max(...grid));
  tile.addEventListener("click", () => openLarge(name, String(number)));
  return tile;
}

function setUpHeads() {
  heads.hidden = !data.key || !server?.heads || data.heads < 2 || !words.length;
  headsWord.replaceChildren(...words.map((word, i) => option(String(i), word.text)));
  headsTable.replaceChildren();
  drawNetwork();
  showHeads();
}
