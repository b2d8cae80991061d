#!/usr/bin/env bash
# Builds the wheel, installs it alone in a fresh environment, and runs the main job from another folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$BIN/python" -m pip wheel --quiet --no-deps --wheel-dir "$folder" .
"$PYTHON" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet -c constraints.txt "$folder"/cxr_records-*.whl
cd "$folder"
# Strangers' packages of the names of our folders, and of our modules, in the folder where the command runs.
for name in pipelines trainers metadata progress; do
    mkdir $name && echo "raise SystemExit('the wrong $name')" >$name/__init__.py
done
venv/bin/cxr-records --version
venv/bin/python -m cxr_records --version
venv/bin/python -c 'import importlib.util as u; assert not u.find_spec("tensorflow"), "TensorFlow came with the core"'
if command -v "${CC:-cc}" >/dev/null; then
    decoder=$(venv/bin/python -c 'from cxr_records import png; print(png.decoder())')
    test "$decoder" = "isal and cxr_records" || { echo "PNG files are decoded by $decoder"; exit 1; }
fi
venv/bin/cxr-records demo --out demo --num-images 60 --workers 1 >log 2>&1 || { cat log; exit 1; }
tail -n 4 log
for name in report.css templates/base.html templates/report.html; do
    test -f venv/lib/python*/site-packages/cxr_records/trainers/evaluation/$name || { echo "no $name"; exit 1; }
done
said=$(venv/bin/cxr-records train demo/cxr14 --run run 2>&1) && exit 1
test "$said" = "Error: tensorflow is not installed; pip install '.[train]' in a clone" || { echo "$said"; exit 1; }
# Worker processes import the installed package, and nothing of the same name in the user's folder.
venv/bin/python - <<'PYTHON'
import cxr_records
from cxr_records.pipelines import engines

engines.SECONDS_WORTH_PROCESSES = 0
cxr_records.build("demo/nih/images", "demo/nih/Data_Entry_2017_v2020.csv", "out/two", workers=2)
PYTHON
venv/bin/cxr-records verify out/two --deep
echo "wheel: ok"
