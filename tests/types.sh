#!/usr/bin/env bash
# Checks the types of the package as it is installed: pipelines/ and trainers/ below cxr_records/.
set -euo pipefail
root=$PWD
tree=$root/.mypy_cache/tree
rm -rf "$tree" && mkdir -p "$tree/cxr_records"
ln -s "$root"/cxr_records/* "$root/pipelines" "$root/trainers" "$tree/cxr_records/"
cd "$tree"
"$root/$BIN/python" -m mypy --config-file "$root/setup.cfg" --cache-dir "$root/.mypy_cache" "$@" -p cxr_records
