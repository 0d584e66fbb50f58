#!/usr/bin/env bash
# Schemathesis, which reads our OpenAPI document and asks the daemon what it allows and does not allow: build/schemathesis/bin/python has it.
#
# Versions and digests stand in schemathesis.txt. `requirements` is written last and is a copy of that list, so a directory whose copy is
# the same is whole; any other is made anew. Nothing but one test needs it, which fails when it is not there: set-up goes on without it.
set -euo pipefail

readonly list=scripts/setup/schemathesis.txt
readonly out=build/schemathesis

say() { printf 'setup: %s\n' "$*" >&2; }

main() {
  if cmp -s "$list" "$out/requirements"; then exit 0; fi
  say 'installing schemathesis'
  rm -rf "$out"
  if python3 -m venv "$out" >&2 &&
    "$out/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --require-hashes --only-binary :all: -r "$list" </dev/null >&2; then
    cp "$list" "$out/requirements.draft"
    mv "$out/requirements.draft" "$out/requirements"
  else
    say "schemathesis could not be installed: is the Python package index of this host's pip configuration reachable? Going on without it: test/fuzz will fail"
  fi
}

main "$@"
