// One operation: what it does, who may call it, a form to call it with, and what it answered.

import { events, post } from "./call.js";
import { copyButton, el } from "./dom.js";
import { FormMistake, InputForm } from "./form.js";
import { pretty } from "./json.js";
import { alternatives, fields, resolve, words } from "./schema.js";
import { snippets } from "./snippets.js";

const MAX_ITEMS = 200;
const SURE_MS = 4000;

/**
 * The view of an operation: {element, close}. `closed` ends what runs. `token` gives the token when a call is made.
 */
export function operationView(path, operation, document, token) {
  const about = operation["x-alknet"];
  const streams = about.kind === "subscription";
  const form = new InputForm(operation, document);
  const running = { abort: null };
  const result = el("section", { className: "panel result", hidden: true, "aria-label": "Answer" });
  const status = el("p", { className: "visually-hidden", role: "status" });
  const mistake = el("p", { className: "mistake", role: "alert", hidden: true });
  const callButton = el("button", { type: "submit", className: about.destructive ? "danger" : "primary" });
  const stopButton = el("button", { type: "button", className: "quiet", hidden: true }, "Stop");
  const asJson = el("button", { type: "button", className: "quiet small", hidden: !form.canToggle });
  const label = streams ? "Subscribe" : "Call";
  let isSure = !about.destructive;
  let sureTimer = 0;

  const rest = () => {
    clearTimeout(sureTimer);
    isSure = !about.destructive;
    callButton.textContent = label;
    asJson.textContent = form.asJson ? "Fields" : "JSON";
  };
  const complain = (error) => {
    if (!(error instanceof FormMistake)) throw error;
    mistake.textContent = error.message;
    mistake.hidden = false;
    error.control?.setAttribute("aria-invalid", "true");
    error.control?.focus();
  };
  const code = codePanel(operation, form);
  form.oninput = () => {
    mistake.hidden = true;
    code.refresh();
  };
  asJson.onclick = () => {
    try {
      form.toggle();
    } catch (error) {
      complain(error);
    }
    rest();
  };
  stopButton.onclick = () => running.abort?.abort();
  callButton.onblur = rest;

  const submit = async (event) => {
    event.preventDefault();
    if (running.abort) return;
    let input;
    try {
      input = form.value();
    } catch (error) {
      complain(error);
      return;
    }
    mistake.hidden = true;
    if (!isSure) {
      isSure = true;
      callButton.textContent = "It may overwrite or remove: click again";
      callButton.focus();
      sureTimer = setTimeout(rest, SURE_MS);
      return;
    }
    rest();
    running.abort = new AbortController();
    callButton.disabled = true;
    stopButton.hidden = false;
    result.hidden = false;
    status.textContent = "Running";
    try {
      await run(path, input, { streams, result, status, token: token(), signal: running.abort.signal });
    } finally {
      running.abort = null;
      callButton.disabled = false;
      stopButton.hidden = true;
    }
  };

  const examples = Object.values(operation.requestBody?.content?.["application/json"]?.examples ?? {});
  const exampleButtons = examples.map((example, index) => el("button", {
    type: "button", className: "quiet small",
    onclick: () => {
      form.set(example.value);
      rest();
    },
  }, examples.length > 1 ? `Example ${index + 1}` : "Example"));
  rest();
  code.refresh();

  const element = el("article", { className: "operation" },
    el("a", { className: "back", href: "#" }, "All operations"),
    el("header", {},
      el("p", { className: "chips" }, chips(about)),
      el("h1", {}, breakable(about.name)),
      el("p", { className: "summary" }, operation.summary),
      operation.description ? el("p", { className: "description" }, operation.description) : null,
      el("p", { className: "access" }, access(about.access))),
    el("form", { className: "panel", noValidate: true, onsubmit: submit, "aria-label": label },
      el("div", { className: "panel-head" }, el("h2", {}, "Input"), el("div", { className: "row" }, exampleButtons, asJson)),
      form.element, mistake,
      el("div", { className: "row actions" }, callButton, stopButton)),
    status, result, code.element, answers(operation, document));
  return { element, close: () => running.abort?.abort() };
}

// --- calling ---------------------------------------------------------------------------------------------------------

async function run(path, input, { streams, result, status, token, signal }) {
  const began = performance.now();
  const head = el("div", { className: "facts" });
  const body = el("div", { className: "answer" }, el("p", { className: "note" }, "Waiting for the answer …"));
  result.replaceChildren(el("div", { className: "panel-head" }, el("h2", {}, "Answer"), head), body);
  const took = () => `${Math.round(performance.now() - began)} ms`;
  try {
    const response = await post(path, input, { token, signal });
    if (streams && response.ok) {
      await follow(response, { head, body, status, took });
    } else {
      const text = await response.text();
      head.replaceChildren(...facts(response, took(), problem(response, text)), copyButton(() => text));
      body.replaceChildren(...told(problem(response, text)), text ? pretty(text) : el("p", { className: "note" }, "It is empty."));
      status.textContent = `${response.status} ${response.statusText}`;
    }
  } catch (error) {
    const stopped = signal.aborted;
    head.append(el("span", { className: `pill ${stopped ? "" : "bad"}` }, stopped ? "stopped" : "failed"));
    if (!streams || !body.querySelector(".items")) {
      body.replaceChildren(el("p", { className: stopped ? "note" : "mistake" },
        stopped ? "You stopped it." : `The node cannot be reached: ${error.message}`));
    }
    status.textContent = stopped ? "Stopped" : "Failed";
  }
}

async function follow(response, { head, body, status, took }) {
  const list = el("ol", { className: "items" });
  const count = el("span", { className: "fact" }, "0 items");
  const state = el("span", { className: "pill live" }, "live");
  head.replaceChildren(...facts(response, null, null), count, state);
  body.replaceChildren(list);
  status.textContent = "Subscribed";
  let items = 0;
  const end = (words, isBad) => {
    state.textContent = words;
    state.className = `pill ${isBad ? "bad" : "good"}`;
    head.append(el("span", { className: "fact" }, took()));
    status.textContent = `${words}, ${items} items`;
  };
  for await (const { event, id, data } of events(response.body)) {
    if (event === "completed") return end("completed", false);
    if (event === "error") {
      const found = parsed(data);
      list.after(...told(found), pretty(data));
      return end(found?.code ?? "error", true);
    }
    items += 1;
    count.textContent = items === 1 ? "1 item" : `${items} items`;
    list.prepend(el("li", {}, el("span", { className: "id" }, id), pretty(data)));
    if (list.childElementCount > MAX_ITEMS) list.lastElementChild.remove();
  }
  return end("lost", true);
}

function facts(response, took, found) {
  const requestId = response.headers.get("Alknet-Request-Id") ?? found?.request_id;
  return [
    el("span", { className: `pill ${response.ok ? "good" : "bad"}` }, `${response.status} ${response.statusText}`.trim()),
    took ? el("span", { className: "fact" }, took) : null,
    requestId ? el("span", { className: "fact" }, "request ", el("code", {}, requestId)) : null,
    found?.denial_id ? el("span", { className: "fact" }, "denial ", el("code", {}, found.denial_id)) : null,
  ].filter(Boolean);
}

function problem(response, text) {
  return response.headers.get("Content-Type")?.startsWith("application/problem+json") ? parsed(text) : null;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** What went wrong, for people. */
function told(found) {
  if (!found || typeof found.detail !== "string") return [];
  const places = Array.isArray(found.details) ? found.details.filter((one) => Array.isArray(one?.path)) : [];
  return [
    el("p", { className: "mistake" }, found.detail),
    places.length > 1
      ? el("ul", { className: "places" }, places.map((one) => el("li", {}, el("code", {}, one.path.join(".")), ` ${one.message}`)))
      : null,
  ].filter(Boolean);
}

// --- what it says of itself ------------------------------------------------------------------------------------------

function chips(about) {
  return [
    el("span", { className: `chip ${about.kind}` }, about.kind),
    about.destructive ? el("span", { className: "chip destructive" }, "destructive") : null,
    about.idempotent && about.kind === "mutation" ? el("span", { className: "chip" }, "idempotent") : null,
    about.version !== "1" ? el("span", { className: "chip" }, `version ${about.version}`) : null,
    about.tags.map((tag) => el("span", { className: "chip tag" }, tag)),
  ].flat();
}

function access(asked) {
  if (asked.public) return "Anybody may call it.";
  const scope = (name) => el("code", {}, name);
  const parts = asked.required_scopes.flatMap((name, index) => [index ? " and " : "", scope(name)]);
  const any = (asked.required_scopes_any ?? []).flatMap((name, index) => [index ? " or " : "", scope(name)]);
  if (any.length) parts.push(parts.length ? ", and one of " : "", ...any);
  const words = parts.length ? ["Needs the scope ", ...parts] : ["Every peer may call it"];
  if (asked.resource_type) words.push(`, and the right to ${asked.resource_action ?? "use"} the ${asked.resource_type}`);
  return [...words, "."];
}

function answers(operation, document) {
  const ok = operation.responses["200"].content;
  const schema = ok["application/json"]?.schema ?? ok["text/event-stream"]?.["x-alknet-item"] ?? {};
  const rows = fields(alternatives(schema, document).options[0] ?? {}, document);
  const streams = "text/event-stream" in ok;
  const declared = Object.entries(operation.responses).flatMap(([status, response]) => errors(status, response, document));
  return el("section", { className: "panel" },
    el("div", { className: "panel-head" }, el("h2", {}, streams ? "Each item" : "Output"),
      el("span", { className: "type" }, words(schema, document))),
    rows.length ? table(["Field", "Type", "Meaning"], rows.map((row) => [
      el("code", {}, row.name), el("span", { className: "type" }, words(row.schema, document)),
      row.schema.description ?? "",
    ])) : null,
    declared.length ? el("h2", {}, "Its errors") : null,
    declared.length ? table(["Status", "Code", "Meaning"], declared) : null);
}

function errors(status, response, document) {
  const schema = response.content?.["application/problem+json"]?.schema;
  if (!schema) return [];
  return (schema.anyOf ?? schema.oneOf ?? [schema])
    .map((one) => resolve(one, document))
    .filter((one) => one.properties?.code?.const)
    .map((one) => [status, el("code", {}, one.properties.code.const), one.description ?? ""]);
}

function table(headings, rows) {
  const last = headings.length - 1;
  if (rows.every((row) => row[last] === "")) return table(headings.slice(0, last), rows.map((row) => row.slice(0, last)));
  return el("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": headings.join(", ") },
    el("table", {},
      el("thead", {}, el("tr", {}, headings.map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell)))))));
}

/** A name that may be broken after each slash. */
export function breakable(name) {
  return name.split(/(?<=\/)/).flatMap((part) => [part, el("wbr")]);
}

// --- the same call elsewhere ----------------------------------------------------------------------------------------

function codePanel(operation, form) {
  const about = operation["x-alknet"];
  const shown = el("pre", { className: "code", tabIndex: 0 });
  const tabs = el("div", { className: "tabs", role: "group", "aria-label": "Written for" });
  let chosen = 0;
  let found = [];
  const refresh = () => {
    let input;
    try {
      input = masked(form.value(), about.secret_inputs);
    } catch {
      input = {};
    }
    found = snippets(operation, input, about.access.public);
    shown.textContent = found[chosen].text;
    if (!tabs.childElementCount) {
      tabs.append(...found.map(({ label }, index) => el("button", {
        type: "button", className: "tab", "aria-pressed": String(index === chosen),
        onclick: (event) => {
          chosen = index;
          for (const tab of tabs.children) tab.setAttribute("aria-pressed", String(tab === event.currentTarget));
          refresh();
        },
      }, label)));
    }
  };
  return {
    refresh,
    element: el("section", { className: "panel", "aria-label": "As code" },
      el("div", { className: "panel-head" }, tabs, copyButton(() => found[chosen].text)), shown),
  };
}

function masked(input, secrets) {
  if (!input || typeof input !== "object" || Array.isArray(input)) return input;
  return Object.fromEntries(Object.entries(input).map(([name, value]) => [name, secrets.includes(name) ? "SECRET" : value]));
}
