#!/usr/bin/env bash
# Makes a clone ready: Debian packages, JavaScript packages with their own Node, the guest's kernel, the guest and the shim.
#
#   scripts/setup.sh demo   what the demonstration and the daemon need
#   scripts/setup.sh        that, and the peers and fuzzers of the tests
#   scripts/setup.sh kvm    that, and what the machine with KVM is made with
#   scripts/setup.sh bench  all of it, and what make bench measures beside; that may be missing
#   scripts/setup.sh steps  does nothing: prints the commands that lead from here to a daemon that can run
#
# Every part is checked first and made only when it is missing or older than what it is made from, so a second run does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

readonly package_list=scripts/setup/packages.txt

# missing_packages GROUP…: the listed packages that this host has neither as a package nor, where that will do, as a command.
missing_packages() {
  local group name unless _why installed
  # shellcheck disable=SC2046 # one argument for each package is what is wanted
  installed=$(dpkg-query -W -f='${Package} ${db:Status-Abbrev}\n' $(awk '/^[a-z]/ {print $2}' "$package_list") 2>/dev/null) || true
  while read -r group name unless _why; do
    case " $* " in *" $group "*) ;; *) continue ;; esac
    if [ "$unless" != - ] && command -v "$unless" >/dev/null; then continue; fi
    case $installed in *"$name ii"*) ;; *) printf '%s\n' "$name" ;; esac
  done < <(grep '^[a-z]' "$package_list")
}

install_packages() {
  local missing
  missing=$(missing_packages "$@" | paste -sd ' ')
  [ -n "$missing" ] || return 0
  say "missing Debian packages: $missing"
  if [ "$(id -u)" != 0 ]; then
    fail "they need root; run this and then the same command again: sudo apt-get install --no-install-recommends $missing"
  fi
  # A registry that starts to listen on this host is not what a test's peer is for.
  case " $missing " in *' docker-registry '*) keep_registry_asleep ;; esac
  apt_install "$missing" || {
    say 'refreshing the package lists and trying once more'
    apt-get update -qq || true
    apt_install "$missing" || fail "apt-get could not install: $missing
setup: its own words are above; mend what they name (a mirror that cannot be reached, a lock that another apt holds, a full disk), then run the same command again"
  }
  [ -z "$(missing_packages "$@")" ] || fail "apt-get installed something else than: $(missing_packages "$@" | paste -sd ' '); see what holds them back with: apt-cache policy"
}

apt_install() {
  # shellcheck disable=SC2086 # a list of names, from our own file
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 $1 </dev/null >&2
}

# Debian enables and starts the service of a package as it installs it, unless it is masked.
keep_registry_asleep() {
  if [ -d /run/systemd/system ]; then systemctl mask --quiet docker-registry.service || true; fi
}

# npm writes its own copy of the lock file last: older than ours, or absent, means that packages are missing or were cut short.
install_node_packages() {
  if [ node_modules/.package-lock.json -nt package-lock.json ] && [ -x node_modules/.bin/node ]; then return; fi
  say 'installing the JavaScript packages'
  npm ci --no-audit --no-fund --loglevel=error </dev/null >&2 || fail "'npm ci' failed; is the npm registry of this host's npm configuration reachable?"
  touch node_modules/.package-lock.json
  [ "$(node_modules/.bin/node -p 'process.versions.node.split(".")[0]')" = 24 ] || fail "node_modules/.bin/node is not Node 24"
}

cannot_build() {
  fail "the $1 could not be built; the compiler's own words are above. After a change of yours they name the line; in a clean clone, remove build/$1 and run this again"
}

build_native() {
  local version
  version=$(cat build/kernel/version)
  make -s -C guest OUT="$PWD/build/guest" KERNEL_MODULES="$PWD/build/kernel/modules/lib/modules/$version" all initrd rehearsal >&2 || cannot_build guest
  make -s -C shim OUT="$PWD/build/shim" all >&2 || cannot_build shim
}

print_steps() {
  local missing
  missing=$(missing_packages run build | paste -sd ' ')
  # Root's set-up installs them itself.
  if [ -n "$missing" ] && [ "$(id -u)" != 0 ]; then echo "sudo apt-get install --no-install-recommends $missing"; fi
  printf 'cd %q\nscripts/setup.sh demo\nbin/dormouse doctor\n' "$PWD"
}

main() {
  local -a groups
  case ${1:-all} in
    demo) groups=(run build) ;;
    all | bench) groups=(run build test) ;;
    kvm) groups=(run build test kvm) ;;
    steps) print_steps && return ;;
    *) fail "there is no set-up named '$1': say 'demo', 'kvm', 'bench' or 'steps', or nothing for all of it" ;;
  esac
  mkdir -p build
  exec 9>build/.setup-lock
  flock -n 9 || { say 'another set-up is at work here; waiting for it' && flock 9; }
  install_packages "${groups[@]}"
  if [ "${1:-all}" = bench ]; then (install_packages bench) || say 'going on without it'; fi
  install_node_packages
  case " ${groups[*]} " in *' test '*)
    scripts/setup/from-pypi.sh schemathesis test/fuzz
    scripts/setup/from-pypi.sh hypeman-python test/clients/hypeman-python.test.ts
    ;;
  esac
  scripts/setup/kernel.sh
  build_native
}

main "$@"
