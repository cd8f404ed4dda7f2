# Shared by the scripts of this folder, which source it.
# shellcheck shell=bash

# One cache a user. Everything in it has a versioned name and can be deleted at any time.
# shellcheck disable=SC2034  # read by the scripts
cache=${TALION_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/talion}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

need_python() {
  command -v python3 >/dev/null || die "python3 is needed to $1. Install python3 and pip."
}

need_pip() {
  need_python "$1"
  local pip major minor
  pip=$(python3 -m pip --version 2>/dev/null) || die "pip is needed to $1. Install python3-pip."
  pip=${pip#pip }
  major=${pip%%.*} minor=${pip#*.}
  minor=${minor%%[!0-9]*}
  # older ones refuse to choose among several platform tags
  ((major > 20 || (major == 20 && minor >= 3))) ||
    die "pip 20.3 or newer is needed to $1; this is ${pip%% *}. Try: python3 -m pip install --user --upgrade pip"
}

# `pip download` whatever the user's configuration says about virtual environments. It installs nothing, so it also
# works where the system's Python is "externally managed".
pip_download() {
  PIP_REQUIRE_VIRTUALENV=0 python3 -m pip download --disable-pip-version-check --no-cache-dir --no-deps \
    --only-binary=:all: --require-hashes "$@" >&2
}

# Holds an exclusive lock on file $1 until this script and all that it started have ended: the system drops it even
# after a kill -9, and a download that outlives its killed script still keeps the next run waiting.
# Python's flock, because macOS has no flock command.
lock() {
  exec 9>>"$1"
  python3 - "${0##*/}" <<'PY' || die "cannot lock $1"
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print(f"{sys.argv[1]}: another run is at work; waiting for it ...", file=sys.stderr, flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
PY
}
unlock() { exec 9>&-; }
