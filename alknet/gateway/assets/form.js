// The form for an operation's input: a control for each simple field, JSON for the rest, or JSON for the whole.

import { el } from "./dom.js";
import { alternatives, bounds, fields, resolve, sample, words } from "./schema.js";

const LONG_TEXT = /^(content|text|body|message|script|description|query)$/;
const SCALARS = new Set(["string", "integer", "number", "boolean"]);

/** What is wrong with what somebody typed. */
export class FormMistake extends Error {
  constructor(message, control) {
    super(message);
    this.control = control;
  }
}

export class InputForm {
  constructor(operation, document) {
    this.document = document;
    this.schema = operation.requestBody?.content?.["application/json"]?.schema ?? {};
    this.secrets = new Set(operation["x-alknet"]?.secret_inputs ?? []);
    this.controls = fields(this.schema, document).map((field) => this.#control(field));
    this.isOpen = !this.controls.length && resolve(this.schema, document).additionalProperties !== false;
    this.json = el("textarea", {
      className: "code", rows: 8, spellcheck: false, "aria-label": "Input as JSON", id: "input-json",
    });
    this.asJson = this.isOpen;
    this.element = el("div", { className: "inputs" });
    this.oninput = () => {};
    this.element.addEventListener("input", () => this.oninput());
    this.set(this.#firstValue(operation));
  }

  /** The input as it stands; throws a FormMistake. */
  value() {
    if (this.asJson) return parse(this.json.value.trim() || "{}", this.json, "The input");
    const found = {};
    for (const control of this.controls) {
      const value = control.read();
      if (value !== undefined) found[control.name] = value;
    }
    return found;
  }

  /** Show this input. */
  set(value) {
    const known = new Set(this.controls.map((control) => control.name));
    const fits = value && typeof value === "object" && !Array.isArray(value)
      && Object.keys(value).every((name) => known.has(name));
    if (!fits && !this.isOpen) this.asJson = true;
    this.json.value = JSON.stringify(value, null, 2);
    if (fits) for (const control of this.controls) control.write(value[control.name]);
    this.#show();
  }

  /** Change between fields and JSON; what stands in one goes over to the other. Throws a FormMistake. */
  toggle() {
    const value = this.value();
    this.asJson = !this.asJson;
    this.set(value);
  }

  get canToggle() {
    return this.controls.length > 0;
  }

  #show() {
    if (this.asJson) this.element.replaceChildren(el("div", { className: "field" }, this.json));
    else if (this.controls.length) this.element.replaceChildren(...this.controls.map((control) => control.element));
    else this.element.replaceChildren(el("p", { className: "note" }, "It takes no input."));
    this.oninput();
  }

  #firstValue(operation) {
    const examples = operation.requestBody?.content?.["application/json"]?.examples;
    const first = examples && Object.values(examples)[0];
    if (first) return first.value;
    if (!this.controls.length && this.isOpen) return sample(this.schema, this.document);
    // Structures that must be there: something to begin with. What is simple is left to whoever fills it in.
    const structures = fields(this.schema, this.document)
      .map((field) => [field.name, field.required ? sample(field.schema, this.document) : null])
      .filter(([, value]) => value !== null && typeof value === "object");
    return Object.fromEntries(structures);
  }

  #control(field) {
    const { options } = alternatives(field.schema, this.document);
    const own = resolve(field.schema, this.document);
    const id = `input-${field.name}`;
    const made = this.#input(field, options, id);
    const limits = options.length === 1 ? bounds(options[0]) : "";
    const description = own.description ?? "";
    const note = el("p", { className: "note", id: `${id}-note` },
      [description, limits && `(${limits})`].filter(Boolean).join(" "));
    made.input.setAttribute("aria-describedby", note.id);
    made.input.id = id;
    if (field.required) made.input.required = true;
    const label = el("label", { for: id },
      el("span", { className: "name" }, field.name),
      field.required ? el("span", { className: "required" }, "required") : null,
      el("span", { className: "type" }, words(field.schema, this.document)));
    const element = el("div", { className: "field" }, label, made.box ?? made.input, note.textContent ? note : null);
    const read = () => {
      made.input.removeAttribute("aria-invalid");
      return made.read();
    };
    return { name: field.name, element, read, write: made.write };
  }

  #input(field, options, id) {
    const one = options.length === 1 ? options[0] : {};
    const standard = resolve(field.schema, this.document).default;
    const shown = standard === undefined || standard === null ? "" : JSON.stringify(standard);
    const values = one.const !== undefined ? [one.const] : one.enum;
    if (Array.isArray(values) || one.type === "boolean") return choice(field, values ?? [true, false], shown);
    const secret = this.secrets.has(field.name);
    const types = new Set(options.map((option) => option.type));
    const isScalar = types.size > 0 && [...types].every((type) => SCALARS.has(type));
    if (!isScalar || options.some((option) => option.enum || option.const !== undefined)) {
      return json(field, one, shown || JSON.stringify(sample(field.schema, this.document)), secret);
    }
    if (one.contentEncoding === "base64") return bytes(field, id);
    return text(field, types, secret, typeof standard === "string" ? standard : shown);
  }
}

function parse(text, control, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FormMistake(`${what} is no JSON: ${error.message}`, control);
  }
}

function choice(field, values, shown) {
  const input = el("select", {});
  if (!field.required) input.append(el("option", { value: "" }, shown ? `default: ${shown}` : "not set"));
  values.forEach((value, index) => {
    input.append(el("option", { value: String(index) }, typeof value === "string" ? value : JSON.stringify(value)));
  });
  return {
    input,
    read: () => (input.value === "" ? undefined : values[Number(input.value)]),
    write: (value) => {
      const index = values.findIndex((one) => one === value);
      input.value = index >= 0 ? String(index) : field.required ? "0" : "";
    },
  };
}

function json(field, schema, shown, secret) {
  const isLines = schema.type === "array" && schema.items?.type === "string" && !schema.items.enum && !secret;
  const input = el("textarea", {
    className: "code", rows: 3, spellcheck: false, placeholder: isLines ? "one per line" : `JSON, such as ${shown}`,
  });
  return {
    input,
    read: () => {
      if (isLines) {
        const lines = input.value.split("\n").filter((line) => line !== "");
        return lines.length || field.required ? lines : undefined;
      }
      if (!input.value.trim() && !field.required) return undefined;
      return parse(input.value.trim() || "null", input, field.name);
    },
    write: (value) => {
      if (value === undefined) input.value = "";
      else input.value = isLines ? value.join("\n") : JSON.stringify(value, null, 2);
    },
  };
}

function bytes(field, id) {
  const input = el("textarea", { className: "code", rows: 2, spellcheck: false, placeholder: "base64" });
  const file = el("input", { type: "file", "aria-label": `${field.name} from a file`, id: `${id}-file` });
  file.onchange = async () => {
    const [chosen] = file.files;
    if (!chosen) return;
    const reader = new FileReader();
    reader.onload = () => {
      input.value = reader.result.slice(reader.result.indexOf(",") + 1);
      input.dispatchEvent(new Event("input", { bubbles: true }));
    };
    reader.readAsDataURL(chosen);
  };
  return {
    input,
    box: el("div", { className: "stack" }, input, file),
    read: () => (input.value === "" && !field.required ? undefined : input.value.trim()),
    write: (value) => (input.value = value ?? ""),
  };
}

function text(field, types, secret, shown) {
  const isText = types.has("string");
  const isLong = isText && !secret && LONG_TEXT.test(field.name);
  const input = isLong
    ? el("textarea", { rows: 3, placeholder: shown })
    : el("input", {
        type: secret ? "password" : "text", placeholder: shown, autocomplete: "off", spellcheck: false,
        inputMode: isText ? "text" : types.has("number") ? "decimal" : "numeric",
      });
  const number = (typed) => {
    const value = Number(typed);
    return typed.trim() !== "" && Number.isFinite(value) ? value : undefined;
  };
  return {
    input,
    read: () => {
      const typed = input.value;
      if (typed === "" && !(field.required && isText)) {
        if (field.required) throw new FormMistake(`${field.name} is required`, input);
        return undefined;
      }
      const value = types.has("integer") || types.has("number") ? number(typed) : undefined;
      if (value !== undefined) return value;
      if (types.has("boolean") && (typed === "true" || typed === "false")) return typed === "true";
      if (isText) return typed;
      throw new FormMistake(`${field.name} should be a number`, input);
    },
    write: (value) => (input.value = value === undefined || value === null ? "" : String(value)),
  };
}
