// The same call for a shell and for a program. A token is never written into one: it would end up in a history.

/** [{label, text}] for an input, which may be undefined while it cannot be read. */
export function snippets(operation, input, isPublic) {
  const { name, kind } = operation["x-alknet"];
  const streams = kind === "subscription";
  const body = JSON.stringify(input ?? {});
  const peer = /^(localhost|127\.|\[::1\])/.test(location.host) ? "." : location.host;
  const curl = [
    `curl -sS${streams ? "N" : ""} ${quote(`${location.origin}/ops/${name}`)}`,
    isPublic ? null : `  -H "Authorization: Bearer $ALKNET_TOKEN"`,
    "  -H 'Content-Type: application/json'",
    `  -d ${quote(body)}`,
  ].filter((line) => line !== null).join(" \\\n");
  const shell = `alknet call ${streams ? "--stream " : ""}${quote(peer)} ${name}${body === "{}" ? "" : ` ${quote(body)}`}`;
  const value = body === "{}" ? "" : `, ${literal(input)}`;
  const ask = streams
    ? `        async with node.subscribe("${name}"${value}) as items:\n            async for item in items:\n                print(item)`
    : `        print(await node.call("${name}"${value}))`;
  const python = `import asyncio\n\nimport alknet\n\n\nasync def main() -> None:\n    async with alknet.connect(${literal(peer)}) as node:\n${ask}\n\n\nasyncio.run(main())`;
  return [
    { label: "curl", text: curl },
    { label: "alknet", text: shell },
    { label: "Python", text: python },
  ];
}

function quote(text) {
  return /^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A JSON value as Python writes it. */
function literal(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
