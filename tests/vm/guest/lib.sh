# What cases say things with: . /vm/lib.sh. Sourced under `set -eu`; every wait here is bounded.

# --- saying and waiting

now() { local up _; read -r up _ </proc/uptime; echo "${up/./}0"; }             # milliseconds

die() { echo "FAILED: $*" >&2; exit 1; }

# step TEXT COMMAND…: runs it and says how long it took; its failure is the case's.
step() {
  local text=$1 before code=0
  shift
  before=$(now)
  "$@" || code=$?
  printf '%6d ms  %s\n' $(($(now) - before)) "$text"
  [ $code = 0 ] || die "$text: '$*' ended with $code"
}

# quietly COMMAND…: shows what it prints only if it fails.
quietly() {
  local said code=0
  said=$("$@" 2>&1) || code=$?
  [ $code = 0 ] || echo "$said"
  return $code
}

# wait_for SECONDS COMMAND…: until it succeeds.
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "waited in vain for: $*"
    read -rt 0.05 <> <(:) || true
  done
}

# refused TEXT COMMAND…: fails, and says TEXT (a regular expression) while it does.
refused() {
  local text=$1 said
  shift
  if said=$("$@" 2>&1); then die "'$*' was to fail, but said: $said"; fi
  grep -qE "$text" <<<"$said" || die "'$*' was to fail with '$text', but said: $said"
  echo "  refused, as it should be: $(grep -E -m1 "$text" <<<"$said")"
}

same() { [ "$2" = "$3" ] || die "$1: '$2' is not '$3'"; }

# --- symphony, with its state below $STATE

STATE=${STATE:-/run/case}
export SYMPHONY_SOCKET=$STATE/manager/control.sock

ctl() { timeout 60 symphony ctl "$@"; }
block_ctl() { timeout 60 symphony ctl --socket "$STATE/block/control.sock" "$@"; }

# running NAME [on HOST] COMMAND…: starts a daemon with its log in $STATE/NAME.log and its process in $STATE/NAME.pid.
running() {
  local name=$1
  shift
  mkdir -p "$STATE"
  # A function would be a process of its own above the daemon's, and `killed` would kill that one.
  [ "$1" != on ] || set -- nsenter --net="/run/netns/$2" -- "${@:3}"
  "$@" >>"$STATE/$name.log" 2>&1 </dev/null &
  echo $! >"$STATE/$name.pid"
}

alive() { kill -0 "$(cat "$STATE/$1.pid")" || { tail -n 40 "$STATE/$1.log"; die "$1 is gone"; }; }

# killed NAME: SIGKILL, and gone when this returns.
killed() {
  kill -KILL "$(cat "$STATE/$1.pid")"
  wait "$(cat "$STATE/$1.pid")" 2>/dev/null || true
}

manager_up() {
  running manager symphony manager run --config-dir "$STATE/manager" "$@"
  wait_for 30 test -S "$SYMPHONY_SOCKET"
}

block_up() {
  running block symphony block run --config-dir "$STATE/block" "$@"
  wait_for 30 test -S "$STATE/block/control.sock"
}

# cluster_up: a manager and a block service in two processes, initialised and joined.
cluster_up() {
  manager_up
  block_up
  ctl manager init
  block_ctl block init 127.0.0.1
}

# settled: every service is back and the store, the manager's view and the devices agree.
settled() {
  wait_for 60 all_ready
  # A service that has just come back is ready a moment before it serves everything.
  (wait_for 60 ctl check) || true
  ctl check
}

all_ready() {
  ctl service list -o json | jq -e 'all(.status.state != "down")' &&
    ctl volume list -o json | jq -e 'all(.status.phase == "ready")' &&
    ctl check -o json | jq -e '.remarks | all(contains("could not be asked") | not)'
}

# --- the kernel's own NBD client; -timeout, because a request to a dead server would wait for ever without

# attach NUMBER VOLUME: /dev/nbdNUMBER is the volume, over the block service's unix socket.
attach() { connect "$1" -unix "$STATE/block/nbd.sock" -name "$2"; }

# attach_tcp NUMBER VOLUME [CONNECTIONS]: the same over TCP.
attach_tcp() { connect "$1" 127.0.0.1 10809 -name "$2" -connections "${3:-1}"; }

connect() {
  local device=/dev/nbd$1
  shift
  [ -b "$device" ] || modprobe nbd nbds_max=8
  nbd-client "$@" "$device" -timeout 10 >>"$STATE/nbd-client.log" 2>&1 || { tail -n 5 "$STATE/nbd-client.log"; return 1; }
  # It returns before the kernel knows the size.
  wait_for 30 sized "$device"
}

sized() { [ "$(blockdev --getsize64 "$1")" -gt 0 ]; }

detach() {
  nbd-client -d "/dev/nbd$1" >/dev/null
  wait_for 30 test ! -e "/sys/block/nbd$1/pid"
}

# --- several hosts as network namespaces of one guest: h1 … hN, 10.88.0.1 … N; this one is 10.88.0.254

hosts_up() {
  local number
  modprobe -a bridge veth
  ip link add cable type bridge
  ip link set cable up
  ip addr add 10.88.0.254/24 dev cable
  for number in $(seq "$1"); do
    ip netns add "h$number"
    ip link add "to-h$number" type veth peer name eth0 netns "h$number"
    ip link set "to-h$number" master cable up
    ip -n "h$number" link set lo up
    ip -n "h$number" addr add "10.88.0.$number/24" dev eth0
    ip -n "h$number" link set eth0 up
  done
}

# on HOST COMMAND…: there. Not `ip netns exec`, which would hide /sys/kernel behind a mount of its own.
on() { local host=$1; shift; nsenter --net="/run/netns/$host" -- "$@"; }

# --- guests that die; what was acknowledged before is noted by the host

# acknowledged KEY NUMBER: at least so many writes of the witness were.
acknowledged() { [ "$(host recall "$1")" -ge "$2" ] 2>/dev/null; }

# crash MILLISECONDS: the guest dies within them, at a moment of the host's choice, while all goes on. Never returns.
crash() {
  host crash "$1"
  sleep 60
  die "still alive"
}
