#!/usr/bin/env bash
# Runs the RUN steps of a Dockerfile one by one in a fresh environment, with its folders in a temporary one:
# what can be known of an image without a Docker engine.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$PYTHON" -m venv "$folder/venv"
export PATH="$folder/venv/bin:$PATH"
mkdir "$folder/wheels"
cp constraints.txt "$folder/wheels"
git ls-files -z | xargs -0 cp --parents -t "$(mkdir "$folder/source" && echo "$folder/source")"
cd "$folder/source"
count=0
while IFS= read -r step; do
    bash -euo pipefail -c "${step//\/wheels/$folder/wheels}" >"$folder/log" 2>&1 || { echo "$step"; cat "$folder/log"; exit 1; }
    count=$((count + 1))
done < <(sed -e ':join' -e '/\\$/{N;s/\\\n//;b join' -e '}' "$1" | sed -n 's/^RUN //p')
test "$count" -ge 2 # a file without steps would pass unseen
cd /
cxr-records --version
echo "$1: $count steps ok"
