// The shopping list: what is shown, and what each button asks of the node.

import { CallError, connect, ticketFor } from "./alknet.js";

const TOKEN = "alknet-token";
const LOGGED = 40; // lines of the log

const $ = (id) => document.getElementById(id);
let session = null;
let following = null; // AbortController of the subscription
let printing = null; // AbortController of the call
let asked = Promise.resolve(); // the question before: a yes must not answer two

// --- the connection --------------------------------------------------------------------------------------------------

async function open(token) {
  show("off", "connecting …");
  notice("");
  try {
    session = await connect({ ticket: await ticketFor(token), operations: { "ui/confirm": confirm } });
  } catch (error) {
    const isRefused = error instanceof CallError && error.code === "FORBIDDEN";
    if (isRefused) sessionStorage.removeItem(TOKEN);
    show("off", "not connected");
    if (isRefused || $("lost").hidden) signedOut();
    notice(isRefused ? "The node does not know this token." : `The node cannot be reached: ${error.message}`);
    return;
  }
  sessionStorage.setItem(TOKEN, token);
  show("on", `connected to ${session.node}`);
  $("identity").textContent = `You are ${session.identity}.`;
  for (const id of ["sign-in", "lost"]) $(id).hidden = true;
  for (const id of ["list", "wire", "who"]) $(id).hidden = false;
  follow();
  const reason = await session.closed;
  session = null;
  following?.abort();
  printing?.abort();
  if ($("confirm").open) $("confirm").close("no");
  for (const id of ["list", "who"]) $(id).hidden = true;
  show("off", "not connected");
  if (sessionStorage.getItem(TOKEN) === null) return signedOut();
  $("lost-reason").textContent = reason;
  $("lost").hidden = false;
}

function signedOut() {
  for (const id of ["list", "lost", "wire", "who"]) $(id).hidden = true;
  $("log").replaceChildren();
  $("sign-in").hidden = false;
  $("token").value = "";
  $("token").focus();
}

function signOut() {
  sessionStorage.removeItem(TOKEN);
  notice("");
  if (session === null) signedOut();
  else session.close();
}

// --- calls -----------------------------------------------------------------------------------------------------------

/** Call an operation and say how that went; undefined if it failed. */
async function call(name, input, options) {
  const line = log("call", name);
  const began = performance.now();
  notice("");
  try {
    const output = await session.call(name, input, options);
    line.done("ok", performance.now() - began);
    return output;
  } catch (error) {
    const isStopped = error.name === "AbortError";
    line.done(isStopped ? "stopped" : (error.code ?? "failed"), performance.now() - began);
    if (!isStopped && error.code !== "NOT_CONFIRMED") {
      const denial = error.denialId ? ` (${error.denialId})` : "";
      notice(`${error.message}${denial}`);
    }
    return undefined;
  }
}

async function print() {
  printing = new AbortController();
  $("stop").hidden = false;
  $("print").hidden = true;
  await call("list/print", {}, { signal: printing.signal });
  $("stop").hidden = true;
  $("print").hidden = false;
}

// --- a subscription --------------------------------------------------------------------------------------------------

async function follow() {
  const mine = (following = new AbortController());
  const line = log("subscribe", "list/watch");
  const began = performance.now();
  let count = 0;
  try {
    for await (const now of session.subscribe("list/watch", {}, { signal: mine.signal })) {
      count += 1;
      draw(now);
      live(true);
    }
    line.done(`${count} items, stopped`, performance.now() - began);
  } catch (error) {
    line.done(error.code ?? "failed", performance.now() - began);
    if (session !== null) notice(error.message);
  }
  if (following === mine) {
    following = null;
    live(false);
  }
}

// --- an operation that the page offers -------------------------------------------------------------------------------

/** The node asks; true for a yes. `signal` says that it does not want the answer any more. */
function confirm(input, how) {
  const answer = asked.then(() => ask(input, how));
  asked = answer.catch(() => {});
  return answer;
}

function ask({ question }, { signal }) {
  if (signal.aborted) return false;
  const line = log("offered", "ui/confirm");
  const began = performance.now();
  const dialog = $("confirm");
  $("question").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    signal.addEventListener("abort", () => dialog.close("no"), { once: true });
    dialog.addEventListener(
      "close",
      () => {
        const answer = dialog.returnValue === "yes";
        line.done(answer ? "yes" : "no", performance.now() - began);
        resolve(answer);
      },
      { once: true },
    );
  });
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function draw({ items, printing: job }) {
  const rows = items.map(({ id, text, done }) => {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: done });
    box.addEventListener("change", () => call("list/tick", { id, done: box.checked }));
    const label = document.createElement("label");
    label.append(box, Object.assign(document.createElement("span"), { textContent: text }));
    const row = document.createElement("li");
    row.append(label);
    return row;
  });
  $("items").replaceChildren(...rows);
  $("empty").hidden = items.length > 0;
  $("clear").disabled = $("print").disabled = items.length === 0;
  $("printing").textContent = {
    idle: "",
    printing: `Printing, ${job.lines} of ${items.length} lines`,
    finished: `Printed ${job.lines} lines`,
    stopped: `Printing stopped after ${job.lines} lines`,
  }[job.state];
}

function live(is) {
  $("live").textContent = is ? "live" : "not followed";
  $("live").dataset.state = is ? "on" : "off";
  $("follow").textContent = is ? "Stop following" : "Follow";
  $("follow").setAttribute("aria-pressed", String(is));
}

function show(state, text) {
  $("status").dataset.state = state;
  $("status").textContent = text;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = text === "";
}

function log(kind, name) {
  const row = document.createElement("li");
  const [what, which, how] = [kind, name, "…"].map((textContent) =>
    Object.assign(document.createElement("span"), { textContent }),
  );
  which.className = "name";
  row.dataset.kind = kind;
  row.append(what, which, how);
  $("log").prepend(row);
  while ($("log").children.length > LOGGED) $("log").lastChild.remove();
  return { done: (text, ms) => (how.textContent = `${text}, ${ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`}`) };
}

// --- the buttons -----------------------------------------------------------------------------------------------------

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  open($("token").value.trim());
});
$("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text !== "" && (await call("list/add", { text })) !== undefined) $("text").value = "";
});
$("follow").addEventListener("click", () => (following === null ? follow() : following.abort()));
$("print").addEventListener("click", print);
$("stop").addEventListener("click", () => printing?.abort());
$("clear").addEventListener("click", () => call("list/clear"));
$("again").addEventListener("click", () => open(sessionStorage.getItem(TOKEN)));
$("sign-out").addEventListener("click", signOut);
$("sign-out-lost").addEventListener("click", signOut);

const kept = sessionStorage.getItem(TOKEN);
if (kept !== null) open(kept);
