// What a JSON Schema of the document means, in words and for a form.

const MAX_DEPTH = 6;

/** A schema with its `$ref` followed. */
export function resolve(schema, document) {
  let found = schema;
  for (let hops = 0; hops < 10 && found && typeof found.$ref === "string"; hops++) {
    const name = found.$ref.replace("#/components/schemas/", "");
    const { $ref, ...beside } = found;
    found = { ...document.components.schemas[name], ...beside, "x-name": name };
  }
  return found && typeof found === "object" ? found : {};
}

/** The schemas of which one must fit, and whether null does as well. */
export function alternatives(schema, document, depth = 0) {
  const one = resolve(schema, document);
  const several = one.anyOf ?? one.oneOf;
  if (Array.isArray(several) && depth < MAX_DEPTH) {
    const parts = several.map((part) => alternatives(part, document, depth + 1));
    return { options: parts.flatMap((part) => part.options), nullable: parts.some((part) => part.nullable) };
  }
  const types = Array.isArray(one.type) ? one.type : [one.type];
  if (types.includes("null") || one.const === null) {
    const rest = types.filter((type) => type !== "null" && type !== undefined);
    return { options: rest.map((type) => ({ ...one, type })), nullable: true };
  }
  return { options: types.length > 1 ? types.map((type) => ({ ...one, type })) : [one], nullable: false };
}

/** A schema in a word or two. */
export function words(schema, document, depth = 0) {
  if (depth > MAX_DEPTH) return "…";
  const { options, nullable } = alternatives(schema, document);
  const said = options.map((option) => word(option, document, depth));
  if (nullable) said.push("null");
  return [...new Set(said)].join(" or ") || "anything";
}

function word(schema, document, depth) {
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (Array.isArray(schema.enum)) return schema.enum.slice(0, 12).map((value) => JSON.stringify(value)).join(" | ");
  if (schema.contentEncoding === "base64") return "bytes (base64)";
  if (schema.type === "array") {
    if (Array.isArray(schema.prefixItems)) {
      return `[${schema.prefixItems.map((item) => words(item, document, depth + 1)).join(", ")}]`;
    }
    return `list of ${words(schema.items, document, depth + 1)}`;
  }
  if (schema.type === "object" || schema.properties) {
    if (schema["x-name"]) return schema["x-name"].replace(/\.(Input|Output|Item)$/, "");
    const values = schema.additionalProperties;
    return values && typeof values === "object" ? `map of ${words(values, document, depth + 1)}` : "object";
  }
  return schema.format ? `${schema.type} (${schema.format})` : (schema.type ?? "anything");
}

/** What a value may not be besides of its type: "at least 1, at most 10". */
export function bounds(schema) {
  const said = [];
  const say = (key, text) => schema[key] !== undefined && said.push(`${text} ${schema[key]}`);
  say("minimum", "at least");
  say("exclusiveMinimum", "more than");
  say("maximum", "at most");
  say("exclusiveMaximum", "less than");
  say("multipleOf", "a multiple of");
  if (schema.minLength > 0) said.push(`${schema.minLength} or more characters`);
  if (schema.maxLength !== undefined) said.push(`at most ${schema.maxLength} characters`);
  if (schema.minItems > 0) said.push(`${schema.minItems} or more items`);
  if (schema.maxItems !== undefined) said.push(`at most ${schema.maxItems} items`);
  if (schema.pattern !== undefined) said.push(`matches ${schema.pattern}`);
  return said.join(", ");
}

/** The fields of an object, in order: {name, schema, required}. */
export function fields(schema, document) {
  const one = resolve(schema, document);
  const required = new Set(Array.isArray(one.required) ? one.required : []);
  return Object.entries(one.properties ?? {}).map(([name, field]) => ({ name, schema: field, required: required.has(name) }));
}

/** A value that has the right shape, to start from. */
export function sample(schema, document, depth = 0) {
  const one = alternatives(schema, document).options[0] ?? {};
  if (one.default !== undefined) return one.default;
  if (one.const !== undefined) return one.const;
  if (Array.isArray(one.enum)) return one.enum[0];
  if (one.type === "object" || one.properties) {
    if (depth >= MAX_DEPTH) return {};
    const wanted = fields(one, document).filter((field) => field.required);
    return Object.fromEntries(wanted.map((field) => [field.name, sample(field.schema, document, depth + 1)]));
  }
  if (one.type === "array") {
    if (Array.isArray(one.prefixItems)) return one.prefixItems.map((item) => sample(item, document, depth + 1));
    return depth < MAX_DEPTH && one.minItems > 0 ? [sample(one.items, document, depth + 1)] : [];
  }
  if (one.type === "integer" || one.type === "number") return Math.max(0, one.minimum ?? 0);
  if (one.type === "boolean") return false;
  return one.type === "string" ? "" : null;
}
