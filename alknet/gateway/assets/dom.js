// The one way in which this page makes elements. Text is only ever set as text, so that what operations say of
// themselves cannot become markup.

/**
 * Make an element. Properties are set as such (`onclick`, `value`), those with a dash or in ATTRIBUTES as attributes;
 * what is null or undefined is left out, among properties and children alike. Strings become text.
 */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || ATTRIBUTES.has(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== undefined && child !== null));
  return element;
}

const ATTRIBUTES = new Set(["for", "role", "list", "href"]);

/** A button that copies what `text` returns. */
export function copyButton(text, label = "Copy") {
  const button = el("button", { type: "button", className: "quiet small" }, label);
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Could not copy";
    }
    setTimeout(() => (button.textContent = label), 1500);
  };
  return button;
}
