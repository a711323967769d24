# Snapshots with a stated room in a thick pool: one that overflows is spoilt, says so, and harms nobody.
# vm: disks=1G,512M seconds=600
. /vm/lib.sh
modprobe -a dm-mod dm-snapshot
told() { ctl events -o json | grep -q "\"action\": \"$1\""; }
snapshot() { ctl snapshot get "$1" -o json | jq -r "$2"; }
md5() { dd if="$1" bs=1M count=64 iflag=direct status=none | md5sum; }

manager_up --metrics-listen 127.0.0.1:9100
block_up
ctl manager init
block_ctl block init 127.0.0.1
step "a thick pool" ctl pool create main --driver lvm --device /dev/vda
ctl pool create thin --driver lvm-thin --device /dev/vdb
ctl volume create db --size 64MiB --pool main
ctl volume create other --size 16MiB --pool main
ctl volume create t --size 16MiB --pool thin
refused 'driver lvm-thin.*only in pools of driver lvm' ctl snapshot create t s --room 20%
refused 'not between 1% and 100%' ctl snapshot create db s --room 101%
attach 0 db
attach 1 other
dd if=/dev/urandom of=/dev/nbd0 bs=1M count=64 oflag=direct status=none
dd if=/dev/urandom of=/dev/nbd1 bs=1M count=16 oflag=direct status=none
then=$(md5 /dev/nbd0)
step "a snapshot with little room" ctl snapshot create db small --room 15MiB
step "and one that can take it all" ctl snapshot create db whole --room 100%
same "its room, in whole extents" "$(snapshot small .status.room)" $((16 << 20))
taken() { lvm vgs --config 'devices { use_devicesfile=0 }' --devices /dev/vda --noheadings --nosuffix --units b \
  -o vg_free "symphony-$(ctl pool get main -o json | jq -r .meta.id)" | tr -d ' '; }
pool=$(ctl pool get main -o json)
same "what is left to promise and what LVM has left" \
  "$(jq '.status.capacity - .status.reserved' <<<"$pool")" "$(taken)"

step "change 13 MiB" dd if=/dev/urandom of=/dev/nbd0 bs=1M count=13 oflag=direct status=none
wait_for 60 told snapshot.high
snapshot small .status.fill
refused 'is snapshot|small' ctl volume resize db --size 128MiB
step "change 32 MiB" dd if=/dev/urandom of=/dev/nbd0 bs=1M count=32 oflag=direct status=none
wait_for 60 told snapshot.spoilt
same "it says so" "$(snapshot small .status.spoilt)" true
snapshot small .status.message
refused 'spoilt' ctl volume create no --from-snapshot small
wait_for 30 eval 'wget -qO- http://127.0.0.1:9100/metrics | grep -q "symphony_snapshot_spoilt{.*small.* 1"'
now=$(md5 /dev/nbd0)
step "a copy of the one with room" ctl volume create back --from-snapshot whole
attach 2 back
same "what it held then" "$(md5 /dev/nbd2)" "$then"
same "the volume is not harmed" "$(md5 /dev/nbd0)" "$now"
detach 2
killed block
block_up
wait_for 60 eval 'ctl volume get db -o json | jq -e ".status.phase == \"ready\""'
wait_for 60 eval '[ "$(snapshot small .status.spoilt)" = true ]'
step "the spoilt one goes" ctl snapshot remove small
step "and the other" ctl snapshot remove whole
for number in 0 1; do detach $number; done
ctl check
