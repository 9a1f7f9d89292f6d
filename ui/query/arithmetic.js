// The arithmetic of attention, and the format of its numbers. Only query.js touches the page.

function decode(payload) {
  const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const [H, N, T, E, M] = payload.shape;
  const numbers = Object.fromEntries(["q", "k", "v", "memory"].map((name) => [name, floats(payload[name])]));
  const [rows, columns] = payload.grid ?? [1, N];
  return { ...payload, ...numbers, H, N, T, E, M, rows, columns };
}

// The q of a position, or the k or v of a token, in one head.
function vector(data, name, head, row) {
  const from = (head * (name === "q" ? data.N : data.T) + row) * data.E;
  return data[name].subarray(from, from + data.E);
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function softmax(scores) {
  const most = Math.max(...scores); // large e^x overflow; softmax depends on differences only
  const powers = scores.map((score) => Math.exp(score - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

// Computes the same as `Reading.query` in Python; `masked` are the tokens that a person has masked.
function follow(data, head, position, masked) {
  const tokens = data.tokens.map((_, t) => t);
  const q = vector(data, "q", head, position);
  const products = tokens.map((t) => dot(q, vector(data, "k", head, t)));
  const scaled = products.map((product) => product / Math.sqrt(data.E));
  const readable = tokens.map((t) => data.mask[t] && !masked.has(t));
  const weights = softmax(scaled.map((score, t) => (readable[t] ? score : -Infinity)));
  const out = new Float32Array(data.E);
  for (const t of tokens) vector(data, "v", head, t).forEach((value, e) => (out[e] += weights[t] * value));
  return { q, products, scaled, readable, weights, out };
}

// The most interesting position: the one where the second largest weight of a word is largest. The first and the last
// token mark the start and the end; they are not words.
function mostContested(data, head) {
  const secondLargest = (weights) => [...weights].sort((a, b) => b - a)[1] ?? 0;
  const words = (n) => follow(data, head, n, new Set()).weights.slice(1, -1);
  const shares = Array.from({ length: data.N }, (_, n) => secondLargest(words(n)));
  return shares.indexOf(Math.max(...shares));
}

function largest(numbers) {
  return numbers.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-12);
}

function signed(value, digits = 2) {
  return value.toFixed(digits).replace("-", "−").replace(/^−(0\.0+)$/, "$1");
}

function summand(value, i) {
  const text = signed(value);
  return i === 0 ? text : text.startsWith("−") ? "− " + text.slice(1) : "+ " + text;
}

function percent(value) {
  if (value > 0 && value < 0.0005) return "<0.1\u202f%";
  return (100 * value).toFixed(value < 0.0995 ? 1 : 0) + "\u202f%";
}

function scientific(value) {
  if (value >= 0.001 && value < 1e5) return value < 100 ? value.toPrecision(3) : value.toFixed(0);
  const [digits, power] = value.toExponential(2).split("e");
  const raised = power.replace("+", "").replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]);
  return `${digits}·10${raised}`;
}

function numbered(letter, e) {
  return letter + String(e + 1).replace(/\d/g, (digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]);
}

function spelled(token) {
  return token.replaceAll("▁", " ").trim() || "␣";
}
