// JSON text made readable from the text itself: numbers stay what the node wrote, however many digits they have.

import { el } from "./dom.js";

const TOKEN = /("(?:[^"\\]|\\.)*")|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(true|false|null)|([{}[\],:])|(\s+)|([^])/g;
const MAX_SHOWN = 200_000;

/** The text, indented, as an element. */
export function pretty(text) {
  const element = el("pre", { className: "json", tabIndex: 0 });
  if (text.length > MAX_SHOWN) {
    element.append(text.slice(0, MAX_SHOWN), el("span", { className: "note" }, "\n… cut here; copy it to see all of it"));
    return element;
  }
  element.append(...parts(text));
  return element;
}

function parts(text) {
  const found = [];
  const tokens = [...text.matchAll(TOKEN)].filter((token) => token[5] === undefined);
  let depth = 0;
  const line = () => `\n${"  ".repeat(depth)}`;
  tokens.forEach((token, index) => {
    const [whole, string, number, word, mark] = token;
    const next = tokens[index + 1]?.[0];
    if (string !== undefined) {
      found.push(el("span", { className: next === ":" ? "key" : "string" }, whole));
    } else if (number !== undefined || word !== undefined) {
      found.push(el("span", { className: number === undefined ? "word" : "number" }, whole));
    } else if (mark === "{" || mark === "[") {
      depth += 1;
      found.push(whole, next === "}" || next === "]" ? "" : line());
    } else if (mark === "}" || mark === "]") {
      depth -= 1;
      const before = tokens[index - 1]?.[0];
      found.push(before === "{" || before === "[" ? "" : line(), whole);
    } else if (mark === ",") {
      found.push(whole, line());
    } else {
      found.push(mark === ":" ? ": " : whole);
    }
  });
  return found;
}
