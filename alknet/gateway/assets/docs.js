// The page of this node's operations: who asks, which operations there are for them, and which one is shown.

import { send } from "./call.js";
import { el } from "./dom.js";
import { breakable, operationView } from "./operation.js";

const TOKEN_KEY = "alknet-token";
const part = (id) => document.getElementById(id);

const state = {
  /** The OpenAPI document, as this caller sees it. */
  document: null,
  /** The path and the operation of each, by operationId. */
  operations: new Map(),
  /** What is shown. */
  view: null,
};

// --- who asks --------------------------------------------------------------------------------------------------------

function token() {
  return sessionStorage.getItem(TOKEN_KEY);
}

async function load() {
  const who = part("who");
  let problem = "";
  try {
    const response = await send("/openapi.json", { token: token() });
    const found = await response.json();
    if (response.ok) state.document = found;
    else problem = found.detail ?? response.statusText;
  } catch (error) {
    problem = `The node cannot be reached: ${error.message}`;
  }
  if (problem) state.document = { info: { title: "alknet" }, paths: {}, components: { schemas: {} } };
  const caller = state.document["x-alknet"]?.caller ?? null;
  who.replaceChildren(...(problem ? ["Not signed in"] : caller === null
    ? ["Anonymous: only what is public"]
    : ["Signed in as ", el("strong", {}, caller)]));
  part("title").textContent = state.document.info.title;
  document.title = `${state.document.info.title}: operations`;
  part("token-error").textContent = problem;
  part("token-error").hidden = !problem;
  part("token-forget").hidden = !token();
  part("token").placeholder = token() ? "••••••••" : "alk_…";
  state.operations = new Map(Object.entries(state.document.paths).map(([path, item]) => [
    item.post.operationId, { path, operation: item.post },
  ]));
  list();
  route();
}

part("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = part("token").value.trim();
  if (!typed) return;
  sessionStorage.setItem(TOKEN_KEY, typed);
  part("token").value = "";
  load();
});

part("token-forget").addEventListener("click", () => {
  sessionStorage.removeItem(TOKEN_KEY);
  load();
});

// --- which operations ------------------------------------------------------------------------------------------------

function list() {
  const groups = new Map();
  for (const [id, { operation }] of state.operations) {
    const namespace = operation.tags[0];
    if (!groups.has(namespace)) groups.set(namespace, []);
    groups.get(namespace).push([id, operation]);
  }
  part("operations").replaceChildren(...[...groups].map(([namespace, members]) => el("section", {},
    el("h2", {}, namespace),
    el("ul", {}, members.map(([id, operation]) => entry(id, operation))))));
  filter();
}

function entry(id, operation) {
  const { name, kind, destructive, tags } = operation["x-alknet"];
  const item = el("li", {}, el("a", { href: `#${id}`, title: operation.summary },
    el("span", { className: `dot ${destructive ? "destructive" : kind}`, "aria-hidden": "true" }),
    el("span", { className: "name" }, breakable(name.slice(name.indexOf("/") + 1))),
    el("span", { className: "line" }, operation.summary),
    el("span", { className: "visually-hidden" }, `, ${kind}${destructive ? ", destructive" : ""}`)));
  item.dataset.text = [name, operation.summary, ...tags].join(" ").toLowerCase();
  return item;
}

function filter() {
  const wanted = part("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const section of part("operations").children) {
    let here = 0;
    for (const item of section.querySelectorAll("li")) {
      item.hidden = !wanted.every((word) => item.dataset.text.includes(word));
      here += !item.hidden;
    }
    section.hidden = !here;
    shown += here;
  }
  part("empty").hidden = shown > 0;
  part("empty").textContent = state.operations.size
    ? "No operation has these words." : "There is nothing that you may call. A token may change that.";
}

part("search").addEventListener("input", filter);
part("search").addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    event.target.value = "";
    filter();
  } else if (event.key === "Enter") {
    [...part("operations").querySelectorAll("li:not([hidden]) a")].at(0)?.click();
  }
});
document.addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    part("search").focus();
  }
});

// --- which one is shown ----------------------------------------------------------------------------------------------

function route() {
  const id = fragment();
  const found = state.operations.get(id);
  state.view?.close();
  state.view = found ? operationView(found.path, found.operation, state.document, token) : null;
  document.body.dataset.view = id ? "operation" : "list";
  part("main").replaceChildren(state.view?.element ?? (id ? missing(id) : overview()));
  for (const link of part("operations").querySelectorAll("a")) {
    const isShown = link.getAttribute("href") === `#${id}`;
    if (isShown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (id) window.scrollTo(0, 0);
}

/** What stands behind the # of the address; as it is where that is no text. */
function fragment() {
  const text = location.hash.slice(1);
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function missing(id) {
  return el("article", { className: "operation" },
    el("a", { className: "back", href: "#" }, "All operations"),
    el("h1", {}, id),
    el("p", { className: "summary" }, "There is no such operation that you may call. A token may change that."));
}

function overview() {
  const all = [...state.operations.values()].map(({ operation }) => operation["x-alknet"]);
  const row = (mark, meaning, counts) => el("div", { className: "kind" },
    el("dt", {}, el("span", { className: `dot ${mark}`, "aria-hidden": "true" }), mark,
      el("span", { className: "count" }, String(all.filter(counts).length))),
    el("dd", {}, meaning));
  const kind = (name, meaning) => row(name, meaning, (one) => one.kind === name && !one.destructive);
  const permits = token() ? "This is all that your token permits." : "Without a token this is what everybody may call.";
  return el("article", { className: "operation" },
    el("h1", { className: "plain" }, "What you may call here"),
    el("p", { className: "summary" },
      `Choose an operation, fill in its input, and call it. ${permits}`),
    el("dl", { className: "kinds" },
      kind("query", "reads and changes nothing"),
      kind("mutation", "changes something"),
      row("destructive", "may overwrite or remove; asks twice", (one) => one.destructive),
      kind("subscription", "goes on answering until you stop it")));
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment names an operation
  part("main").focus();
});

window.addEventListener("hashchange", () => {
  route();
  if (location.hash.length > 1) part("main").focus({ preventScroll: true });
});

part("download").addEventListener("click", () => {
  const text = JSON.stringify(state.document, null, 2);
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  el("a", { href: url, download: "openapi.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
});

load();
