#!/bin/sh
# Make build/src/alknet: the installed layout as symbolic links, for type checkers that do not see the package map.
set -eu
cd "$(dirname "$0")/../.."
rm -rf build/src
mkdir -p build/src/alknet
for entry in alknet/*; do
    ln -s "../../../$entry" "build/src/alknet/$(basename "$entry")"
done
for folder in alpn call config ssh vault; do
    ln -s "../../../$folder" "build/src/alknet/$folder"
done
