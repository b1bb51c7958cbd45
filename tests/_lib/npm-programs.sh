#!/bin/sh
# Install the MCP Inspector, and a Node.js that is new enough for it, under build/npm; a missing one is an error later,
# when the test that needs it fails, never a silent skip. npm is Debian's where there is no other.
set -eu
cd "$(dirname "$0")/../.."
inspector=2.12.0
[ "$(cat build/npm/installed 2>/dev/null)" = "$inspector" ] && exit 0
command -v npm >/dev/null || sh tests/_lib/stock-programs.sh npm
if ! command -v npm >/dev/null; then
    echo "not installed: npm (the tests that drive the MCP Inspector will fail)" >&2
    exit 0
fi
echo "installing the MCP Inspector ..."
mkdir -p build/npm
npm install --silent --no-fund --no-audit --prefix build/npm node@22 "@modelcontextprotocol/inspector@$inspector"
echo "$inspector" >build/npm/installed
