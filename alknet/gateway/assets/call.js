// Calling the node: one answer, or the events of a subscription. Nothing is sent anywhere else.

/** fetch to this node, with the token if there is one. It follows no redirect, and sends and keeps no cookie. */
export function send(path, { token, ...options } = {}) {
  const headers = new Headers(options.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  return fetch(path, {
    ...options, headers, mode: "same-origin", credentials: "omit", cache: "no-store", redirect: "error",
  });
}

/** POST an input to an operation. */
export function post(path, input, { token, signal }) {
  const body = JSON.stringify(input);
  return send(path, { method: "POST", token, signal, body, headers: { "Content-Type": "application/json" } });
}

/**
 * The events of a `text/event-stream` (HTML standard, 9.2.6): {event, id, data}. Ends when the stream does.
 */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let current = { event: "message", id: "", data: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (current.data.length) yield { ...current, data: current.data.join("\n") };
          current = { event: "message", id: current.id, data: [] };
          continue;
        }
        const colon = line.indexOf(":");
        const name = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (name === "data") current.data.push(text);
        else if (name === "event") current.event = text;
        else if (name === "id") current.id = text;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
