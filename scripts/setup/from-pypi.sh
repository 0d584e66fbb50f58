#!/usr/bin/env bash
# from-pypi.sh NAME TESTS: programs of the Python package index that tests need, in a place of their own: build/NAME/bin/python has them.
#
# Versions and digests stand in NAME.txt. `requirements` is written last and is a copy of that list, so a directory whose copy is
# the same is whole; any other is made anew. Nothing but TESTS needs it, which fail when it is not there: set-up goes on without it.
set -euo pipefail

readonly name=$1 tests=$2
readonly list=scripts/setup/$name.txt
readonly out=build/$name

say() { printf 'setup: %s\n' "$*" >&2; }

main() {
  if cmp -s "$list" "$out/requirements"; then exit 0; fi
  say "installing $name"
  rm -rf "$out"
  if python3 -m venv "$out" >&2 &&
    "$out/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes --only-binary :all: -r "$list" </dev/null >&2; then
    cp "$list" "$out/requirements.draft"
    mv "$out/requirements.draft" "$out/requirements"
  else
    say "$name could not be installed: is the Python package index of this host's pip configuration reachable? Going on without it: $tests will fail"
  fi
}

main
