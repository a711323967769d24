# Pools of both LVM drivers on two hosts outlive their store, and one of them the loss of its service: every byte is found again.
# vm: disks=1G,1G seconds=900
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool dm-snapshot
hosts_up 3
wait_for 10 on h2 ping -c 1 -W 1 10.88.0.3

own() { local number=$1; shift; timeout 60 symphony ctl --socket "$STATE/block-$number/control.sock" "$@"; }
id_of() { own "$1" block status -o json | jq -er .service.id; }
manager_on_h3() {
  running manager on h3 symphony manager run --config-dir "$STATE/manager" --advertise-address 10.88.0.3
  wait_for 30 test -S "$SYMPHONY_SOCKET"
}
block_on() {
  running "block-$1" on "h$1" symphony block run --config-dir "$STATE/block-$1" --advertise-address "10.88.0.$1"
  wait_for 30 test -S "$STATE/block-$1/control.sock"
}
# joins NUMBER FLAG…: with a token, as whoever is on another host needs one.
joins() {
  local number=$1 token
  shift
  token=$(ctl manager token create -o json | jq -er .text)
  own "$number" block init 10.88.0.3 --token "$token" "$@"
}
# open NUMBER VOLUME: /dev/nbdNUMBER is the volume, as programs on its own host have it.
open() { connect "$1" -unix "$STATE/block-$1/nbd.sock" -name "$2"; }
sum() { dd if="/dev/nbd$1" bs=1M count=8 iflag=direct status=none | md5sum; }
fresh() { dd if=/dev/urandom of="/dev/nbd$1" bs=1M count=8 oflag=direct status=none; }
name_of() { [ "$1" = 1 ] && echo thin || echo thick; }
pool_id() { ctl pool get "$(name_of "$1")" -o json | jq -er .meta.id; }

manager_on_h3
step "manager init" ctl manager init
for number in 1 2; do block_on $number; step "h$number joins" joins $number; done
wait_for 30 eval 'ctl service list -o json | jq -e "length == 3 and all(.status.state == \"ready\")"'
step "a thin pool on h1" ctl pool create thin --driver lvm-thin --device /dev/vda --service "$(id_of 1)"
step "a thick pool on h2" ctl pool create thick --driver lvm --device /dev/vdb --service "$(id_of 2)"
declare -A then now group
for number in 1 2; do
  pool=$(name_of $number)
  step "$pool: a volume" ctl volume create "v-$pool" --size 64MiB --pool "$pool"
  open $number "v-$pool"
  fresh $number
  then[$number]=$(sum $number)
  step "$pool: a snapshot" ctl snapshot create "v-$pool" "s-$pool"
  fresh $number
  now[$number]=$(sum $number)
  group[$number]=$(pool_id $number)
done
cluster=$(ctl manager status -o json | jq -er .cluster.id)

killed manager
rm "$STATE/manager/store.redb"
manager_on_h3
wait_for 30 eval 'ctl manager status -o json | jq -e ".state == \"stranded\""'
refused 'holds no cluster' ctl volume list
step "a new cluster of what is on the disks" ctl manager recover
[ "$(ctl manager status -o json | jq -er .cluster.id)" != "$cluster" ] || die "it is the old cluster"
for number in 1 2; do
  same "h$number serves without any cluster" "$(sum $number)" "${now[$number]}"
  step "h$number changes hands" joins $number --recover
  same "h$number serves meanwhile" "$(sum $number)" "${now[$number]}"
done
recovered() { ctl manager recover --status -o json | jq -e '.pools == 2 and .volumes == 2 and .snapshots == 2'; }
wait_for 90 recovered
step "the cluster is settled" settled
step "the recovery ends" ctl manager recover --finish
for number in 1 2; do
  pool=$(name_of $number)
  same "$pool: the same pool" "$(pool_id $number)" "${group[$number]}"
  same "$pool: what clients had open goes on" "$(sum $number)" "${now[$number]}"
  detach $number
  killed block-$number
  block_on $number
done
step "all is back after the block services died" settled
for number in 1 2; do
  pool=$(name_of $number)
  open $number "v-$pool"
  same "$pool: every byte" "$(sum $number)" "${now[$number]}"
  detach $number
  step "$pool: a copy of the snapshot" ctl volume create "c-$pool" --from-snapshot "s-$pool"
  open $number "c-$pool"
  same "$pool: what it held then" "$(sum $number)" "${then[$number]}"
  detach $number
  step "$pool: it grows" ctl volume resize "c-$pool" --size 96MiB
done

# A host is given up, and comes back: first the thick one, then the thin one.
for number in 2 1; do
  pool=$(name_of $number) old=$(id_of $number)
  killed block-$number
  wait_for 60 eval 'ctl service get "$old" -o json | jq -e ".status.state == \"down\""'
  step "$pool: given up for lost" ctl manager remove "$old" --lost --yes
  step "check" ctl check
  block_on $number
  # It says that it is nobody before it has looked who it is, so that alone tells nothing.
  wait_for 60 eval 'ls "$STATE/block-$number"/identity.removed*'
  wait_for 60 eval 'own $number block status -o json | jq -e ".state == \"uninitialised\""'
  step "$pool: its host joins anew" joins $number
  [ "$(id_of $number)" != "$old" ] || die "it is the old service"
  orphan() { ctl orphans list -o json | jq -er --arg name "$1" '.[] | select(.name == $name) | .id'; }
  wait_for 60 orphan "$pool"
  same "$pool: the same pool" "$(orphan "$pool")" "${group[$number]}"
  volume=$(orphan "v-$pool") copy=$(orphan "c-$pool")
  refused 'is an orphan, too' ctl orphans adopt "$volume"
  step "$pool: adopted" ctl orphans adopt "${group[$number]}"
  step "$pool: its volume and the snapshot, too" ctl orphans adopt "$volume"
  open $number "v-$pool"
  same "$pool: every byte" "$(sum $number)" "${now[$number]}"
  detach $number
  step "$pool: the copy is destroyed" ctl orphans purge "$copy" --yes
  same "$pool: nothing is left over" "$(ctl orphans list -o json | jq length)" 0
  step "$pool: put back" ctl volume revert "v-$pool" --to "s-$pool"
  open $number "v-$pool"
  same "$pool: what it held then" "$(sum $number)" "${then[$number]}"
  detach $number
  step "check" ctl check
done
for number in 1 2; do
  pool=$(name_of $number)
  ctl snapshot remove "s-$pool"
  ctl volume remove "v-$pool"
  step "$pool: gone" ctl pool remove "$pool"
done
step "check" ctl check
[ -z "$(lvm vgs --devices /dev/vda,/dev/vdb --noheadings 2>/dev/null)" ] || die "a pool left its group behind"
