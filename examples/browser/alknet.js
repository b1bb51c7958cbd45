// The call protocol of alknet over a WebSocket, for browsers: calls, subscriptions and offered operations.
//
//     const session = await connect({ ticket: await ticketFor(token) });
//     const sum = await session.call("math/add", { a: 1, b: 2 });
//     for await (const line of session.subscribe("logs/follow")) show(line);
//     session.offer("ui/confirm", ({ question }) => window.confirm(question));
//
// One envelope {type, id, payload} per binary message, as JSON. See docs/reference/call-protocol.md.

const SUBPROTOCOL = "alknet.call.v1";
const VERSION = 1;
const CREDIT = 32; // items of a subscription that may be on their way at once
const HELLO_MS = 10_000;

/** How a call fails. `code` is one of the protocol's or one that the operation declares. */
export class CallError extends Error {
  constructor(code, message, { details, retryable = false, denialId } = {}) {
    super(message);
    this.name = "CallError";
    this.code = code;
    this.details = details;
    this.retryable = retryable;
    this.denialId = denialId;
  }

  static from({ code, message, details, retryable, denial_id }) {
    return new CallError(code, message, { details, retryable, denialId: denial_id });
  }
}

/** A ticket for one connection from this page within 30 seconds: a WebSocket cannot carry the token itself. */
export async function ticketFor(token) {
  const answer = await fetch("/ticket", { method: "POST", headers: { authorization: `Bearer ${token}` } });
  const body = await answer.json();
  if (!answer.ok) throw CallError.from(body);
  return body.ticket;
}

/** Connect to the node that served the page; without a ticket as nobody in particular. */
export async function connect({ ticket, operations = {} } = {}) {
  const url = new URL("/alknet/call", location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(url, ticket ? [SUBPROTOCOL, `alknet.ticket.${ticket}`] : [SUBPROTOCOL]);
  socket.binaryType = "arraybuffer";
  const { node, identity, limits } = await hello(socket);
  return new Session(socket, { node, identity, limits, operations });
}

/** Agree on the codec. Who this is, the ticket has said; that it is the right node, TLS and the page's origin have. */
function hello(socket) {
  return new Promise((resolve, reject) => {
    const fail = (error) => {
      clearTimeout(timer);
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
      reject(error);
    };
    const timer = setTimeout(() => fail(new CallError("TIMEOUT", "the node did not say hello")), HELLO_MS);
    let challenge = null;
    socket.onclose = () => fail(new CallError("UNAVAILABLE", "the node let nobody in", { retryable: true }));
    socket.onopen = () => {
      const nonce = btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(32))));
      const start = { versions: [VERSION], features: ["credit"], codecs: ["json"], nonce };
      socket.send(encode({ type: "hello.start", id: "hello", payload: { data: JSON.stringify(start) } }));
    };
    socket.onmessage = ({ data }) => {
      const { type, payload } = decode(data);
      const said = JSON.parse(payload.data);
      if (type === "hello.rejected") {
        fail(CallError.from(said));
      } else if (type === "hello.challenge" && said.version === VERSION && said.codec === "json") {
        challenge = said;
      } else if (type === "hello.accepted" && challenge !== null) {
        clearTimeout(timer);
        socket.onopen = socket.onmessage = socket.onclose = null;
        resolve({ node: challenge.node.id, identity: said.identity ?? null, limits: challenge.limits });
      } else {
        fail(new CallError("UNAVAILABLE", "the node speaks another protocol"));
      }
    };
  });
}

/** A connection that is open. `closed` is a promise of the reason why it has ended. */
export class Session {
  #socket;
  #prefix = `${crypto.getRandomValues(new Uint32Array(1))[0].toString(16)}.`; // the other side has ids of its own
  #count = 0;
  #outbound = new Map(); // id → what takes an item, the end, or an error
  #inbound = new Map(); // id → AbortController of a handler that runs
  #operations;
  #reason = "";

  constructor(socket, { node, identity, limits, operations }) {
    this.node = node;
    this.identity = identity;
    this.limits = limits;
    this.#socket = socket;
    this.#operations = new Map(Object.entries(operations));
    this.closed = new Promise((resolve) => {
      socket.onclose = ({ reason }) => resolve(this.#ended(reason));
    });
    socket.onmessage = ({ data }) => this.#received(decode(data));
  }

  /** Call an operation; its output. `signal` (an AbortSignal) gives it up, and stops it on the node. */
  call(name, input = {}, { signal, timeoutMs } = {}) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const giveUp = () => {
        this.#abort(id);
        reject(signal.reason);
      };
      const done = (settle) => (value) => {
        signal?.removeEventListener("abort", giveUp);
        settle(value);
      };
      const id = this.#request(name, input, { timeoutMs }, { item: done(resolve), fail: done(reject) });
      signal?.addEventListener("abort", giveUp, { once: true });
    });
  }

  /** Subscribe to an operation: an async iterator. Leaving the loop stops the operation on the node. */
  async *subscribe(name, input = {}, { signal, credit = CREDIT } = {}) {
    if (signal?.aborted) return;
    const items = [];
    let end = null;
    let wake = () => {};
    const finish = (error) => {
      end ??= { error };
      wake();
    };
    const id = this.#request(name, input, { credit }, {
      item: (item) => {
        items.push(item);
        wake();
      },
      complete: () => finish(null),
      fail: finish,
    });
    const stop = () => {
      items.length = 0;
      finish(null);
    };
    signal?.addEventListener("abort", stop, { once: true });
    let taken = 0;
    try {
      while (true) {
        while (items.length === 0 && end === null) await new Promise((resolve) => (wake = resolve));
        if (items.length > 0) {
          // The node sends no more than it was allowed: what is read makes room, in portions.
          if (++taken * 2 >= credit) {
            this.#send("call.credit", id, { n: taken });
            taken = 0;
          }
          yield items.shift();
        } else if (end.error !== null) {
          throw end.error;
        } else {
          return;
        }
      }
    } finally {
      signal?.removeEventListener("abort", stop);
      this.#abort(id);
    }
  }

  /** Let the node call `handler(input, {signal})` while this connection lasts, for calls that came over it. */
  offer(name, handler) {
    this.#operations.set(name, handler);
  }

  close() {
    this.#socket.close(1000);
  }

  // --- what goes out ---------------------------------------------------------------------------------------------

  #request(name, input, { timeoutMs, credit }, taker) {
    if (this.#socket.readyState !== WebSocket.OPEN) throw lost(this.#reason);
    const id = this.#prefix + ++this.#count;
    this.#outbound.set(id, taker);
    this.#send("call.requested", id, { operationId: `/${name}`, input, timeout_ms: timeoutMs, credit });
    return id;
  }

  #abort(id) {
    if (this.#outbound.delete(id)) this.#send("call.aborted", id, {});
  }

  #send(type, id, payload) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(encode({ type, id, payload }));
  }

  // --- what comes in ---------------------------------------------------------------------------------------------

  #received({ type, id, payload }) {
    const taker = this.#outbound.get(id);
    if (type === "call.requested") {
      this.#serve(id, payload);
    } else if (type === "session.goaway") {
      this.#reason = payload.reason ?? "the node takes no new calls";
    } else if (type === "call.aborted" && this.#inbound.has(id)) {
      this.#inbound.get(id).abort();
    } else if (taker !== undefined && type === "call.responded") {
      if (taker.complete === undefined) this.#outbound.delete(id);
      taker.item(payload.output);
    } else if (taker !== undefined && type !== "call.credit") {
      this.#outbound.delete(id);
      if (type === "call.completed") taker.complete?.();
      else if (type === "call.error") taker.fail(CallError.from(payload));
      else if (type === "call.aborted") taker.fail(new CallError("UNAVAILABLE", "the node gave the call up"));
    }
  }

  async #serve(id, { operationId, input, credit }) {
    const name = operationId.replace(/^\//, "");
    const handler = this.#operations.get(name);
    const controller = new AbortController();
    this.#inbound.set(id, controller);
    try {
      if (handler === undefined) {
        throw new CallError("NOT_FOUND", `operation not found: ${name}`, { details: { operation: name } });
      }
      if (credit !== undefined) throw new CallError("INVALID_OPERATION_TYPE", `${name} is called, not subscribed to`);
      const output = await handler(input, { signal: controller.signal });
      if (!controller.signal.aborted) this.#send("call.responded", id, { output: output ?? null });
    } catch (error) {
      if (controller.signal.aborted) return; // nobody wants the answer
      const { code, message, details, retryable } =
        error instanceof CallError ? error : new CallError("INTERNAL", `${name} failed in the browser`);
      this.#send("call.error", id, { code, message, details, retryable });
      if (code === "INTERNAL") console.error(error);
    } finally {
      this.#inbound.delete(id);
    }
  }

  #ended(reason) {
    this.#reason = this.#reason || reason || "the connection was lost";
    const takers = [...this.#outbound.values()];
    this.#outbound.clear();
    for (const taker of takers) taker.fail(lost(this.#reason));
    for (const controller of this.#inbound.values()) controller.abort();
    return this.#reason;
  }
}

function lost(reason) {
  return new CallError("UNAVAILABLE", `the connection has ended: ${reason}`, { retryable: true });
}

function encode(envelope) {
  return new TextEncoder().encode(JSON.stringify(envelope));
}

function decode(data) {
  return JSON.parse(new TextDecoder().decode(data));
}
