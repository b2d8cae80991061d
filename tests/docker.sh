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
# The first stage builds the wheel among the sources; the second has no sources, so it runs elsewhere.
where=$folder
count=0
while read -r word step; do
    case $word in
    FROM) where=$(test "$where" = "$folder" && echo "$folder/source" || echo "$folder") ;;
    RUN)
        (cd "$where" && bash -euo pipefail -c "${step//\/wheels/$folder/wheels}") >"$folder/log" 2>&1 ||
            { echo "$step"; cat "$folder/log"; exit 1; }
        count=$((count + 1))
        ;;
    esac
done < <(sed -e ':join' -e '/\\$/{N;s/\\\n//;b join' -e '}' "$1")
test "$count" -ge 2 # a file without steps would pass unseen
cd /
cxr-records --version
echo "$1: $count steps ok"
