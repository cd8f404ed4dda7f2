#!/usr/bin/env bash
# How fast `talion serve` answers on this machine, for several sizes of batches and several numbers of clients:
# bench/serve/run.sh -o FOLDER [-s SECONDS] [-c CLIENTS] [-i IMAGES]
# See README.md beside this file.
set -euo pipefail

die() {
  echo "run.sh: $*" >&2
  exit 1
}

folder='' seconds=10 clients=1,4,16,64 images=1
while getopts 'o:s:c:i:' option; do
  case $option in
    o) folder=$OPTARG ;;
    s) seconds=$OPTARG ;;
    c) clients=$OPTARG ;;
    i) images=$OPTARG ;;
    *) die 'usage: bench/serve/run.sh -o FOLDER [-s SECONDS] [-c CLIENTS] [-i IMAGES]' ;;
  esac
done
[[ -n "$folder" ]] || die 'name a folder for the results with -o'
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/../.."

# Not with -p: a package alone may resolve to other features, and then libtorch's bindings are compiled again.
cargo build --release --workspace --bins --examples
programs=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd)

server='' place=$(mktemp -d)
finish() {
  if [[ -n "$server" ]]; then kill "$server" 2>/dev/null || true; fi
  rm -rf "$place"
}
trap finish EXIT

# Starts a server with these options, measures it, stops it: measure NAME OPTION...
measure() {
  local name=$1 address=''
  shift
  echo "== $name" >&2
  : >"$place/address"
  # it runs elsewhere, so that it finds no runs to list
  (cd "$place" && exec "$programs/talion" --json serve --port 0 --playground off "$@") \
    >"$place/address" 2>"$folder/$name.log" &
  server=$!
  for ((tries = 0; tries < 600; tries++)); do
    address=$(sed -n 's/.*"listening": *"\([^"]*\)".*/\1/p' "$place/address")
    [[ -z "$address" ]] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  [[ -n "$address" ]] || die "the server did not start; see $folder/$name.log"
  "$programs/examples/load" --address "$address" --pid "$server" --seconds "$seconds" --clients "$clients" \
    --images "$images" --out "$folder/$name.json"
  kill -TERM "$server"
  wait "$server" || die "the server ended with status $?; see $folder/$name.log"
  server=''
}

# what an earlier run left is not taken for a result of this one
rm -f "$folder"/batch-*-wait-*.json "$folder"/batch-*-wait-*.log
# a batch of one image waits for no other
measure batch-1-wait-0 --max-batch 1 --max-wait-ms 0
for batch in 8 32; do
  for patience in 0 2 5; do
    measure "batch-$batch-wait-$patience" --max-batch "$batch" --max-wait-ms "$patience"
  done
done

python3 - "$folder" "$seconds" "$images" <<'PYTHON'
"""Puts the measurements into one JSON file and one table."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

folder, seconds, images = pathlib.Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])


def said(*command):
    """What a program says; nothing if it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def processor(name):
    """A line of lscpu."""
    found = re.search(rf"^{re.escape(name)}:\s*(.+)$", said("lscpu"), re.MULTILINE)
    return found.group(1) if found else None


machine = {
    "processor": processor("Model name"),
    "processors": os.cpu_count(),
    "cores_per_socket": processor("Core(s) per socket"),
    "threads_per_core": processor("Thread(s) per core"),
    "sockets": processor("Socket(s)"),
    "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    "system": said("uname", "-sr"),
    "load_average": os.getloadavg(),
    "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
}
program = {
    "commit": said("git", "rev-parse", "HEAD"),
    "changed": bool(said("git", "status", "--porcelain", "--untracked-files=no")),
    "rustc": said("rustc", "--version"),
}


def settings(path):
    batch, wait = re.fullmatch(r"batch-(\d+)-wait-(\d+)", path.stem).groups()
    return int(batch), int(wait)


configurations = []
for path in sorted(folder.glob("batch-*-wait-*.json"), key=settings):
    batch, wait = settings(path)
    configurations.append({"max_batch": batch, "max_wait_ms": wait} | json.loads(path.read_text()))

result = {
    "date": time.strftime("%Y-%m-%d", time.gmtime()),
    "machine": machine,
    "program": program,
    "seconds": seconds,
    "images_per_request": images,
    "configurations": configurations,
}
(folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")


def figure(value):
    return "-" if value is None else f"{value:.1f}"


lines = [
    f"{machine['processor']}, {machine['processors']} processors ({machine['threads_per_core']} to a core), "
    f"{machine['memory_gib']} GiB, {machine['system']}. "
    f"Commit {program['commit'][:12]}{', with changes' if program['changed'] else ''}, {program['rustc']}. "
    f"{configurations[0]['model']}, {images} image(s) a request, {seconds:g} s each. "
    f"OMP_NUM_THREADS: {machine['omp_num_threads'] or 'not set'}. "
    "Clients and server share the processors.",
    "",
    "| max batch | max wait ms | clients | requests | 200 | 429 | other | lost | images/s "
    "| p50 ms | p90 ms | p99 ms | max ms | memory MiB |",
    "| " + "---: | " * 14,
]
for one in configurations:
    for row in one["measurements"]:
        latency = row["latency_ms"]
        memory = " to ".join("?" if kib is None else str(kib // 1024) for kib in row["memory_kib"])
        cells = [one["max_batch"], one["max_wait_ms"], row["clients"], row["requests"], row["answered"]]
        cells += [row["busy"], row["other"], row["lost"], figure(row["images_per_second"])]
        cells += [figure(latency[name]) for name in ("p50", "p90", "p99", "max")] + [memory]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
(folder / "table.md").write_text("\n".join(lines) + "\n")
PYTHON
cat "$folder/table.md"
