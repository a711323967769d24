# Volumes of a thick pool and rooms of snapshots are overwritten before they are given back; a disk that fails is named.
# vm: disks=1G seconds=900
. /vm/lib.sh
modprobe -a dm-mod dm-snapshot

cluster_up
step "a thick pool" ctl pool create main --driver lvm --device /dev/vda
ctl volume create back --size 64MiB --pool main
ctl volume create other --size 16MiB --pool main

# Found by looking at the disk itself.
# hide DEVICE: a secret, on it.
hide() {
  python3 -c '
import os, sys
device = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(device, b"a secret that nobody is to find" * 64, 5 << 20)
os.fsync(device)' "$1"
}
attach 0 back
hide /dev/nbd0
detach 0
# found: 1 if the secret is anywhere on the disk itself, else 0.
found() {
  sync
  echo 3 >/proc/sys/vm/drop_caches
  python3 -c '
import os
disk, tail, seen = os.open("/dev/vda", os.O_RDONLY), b"", False
while piece := os.read(disk, 1 << 20):
    seen |= b"a secret that nobody is to find" in tail + piece
    tail = piece[-64:]
print(int(seen))'
}
same "the secret is on the disk" "$(found)" 1
step "wiped and removed" ctl volume remove back --wipe
same "and is there no more" "$(found)" 0

# What was overwritten is in the rooms of snapshots, also of one that had room for no more; the volume is used meanwhile.
# over OFFSET COUNT: so many MiB of the volume are overwritten.
over() { dd if=/dev/zero of=/dev/nbd0 bs=1M seek="$1" count="$2" oflag=direct status=none; }
ctl volume create kept --size 16MiB --pool main
attach 0 kept
hide /dev/nbd0
ctl snapshot create kept monday --room 100%
ctl snapshot create kept tuesday --room 4MiB
ctl snapshot create kept wednesday --room 100%
over 5 1
over 0 16
same "the volume holds it no more" "$(grep -c 'a secret' /dev/nbd0)" 0
wait_for 60 eval '[ "$(ctl snapshot get tuesday -o json | jq .status.spoilt)" = true ]'
step "one room wiped" ctl snapshot remove monday --wipe
same "it is in the others" "$(found)" 1
step "another" ctl snapshot remove tuesday --wipe
same "it is in the last" "$(found)" 1
# As if LVM had been killed between its metadata and the kernel, for which it is a snapshot still.
group=symphony-$(ctl pool get main -o json | jq -r .meta.id)
last=s-$(ctl snapshot get wednesday -o json | jq -r .meta.id)
LVM_SYSTEM_DIR= quietly lvm lvconvert --config 'devices { use_devicesfile=0 } backup { backup=0 archive=0 }' --devices /dev/vda \
  --driverloaded n --yes --splitsnapshot "$group/$last"
mapped=$(sed 's/-/--/g' <<<"$group")-$(sed 's/-/--/g' <<<"$last")
same "the kernel takes it for a snapshot" "$(dmsetup table "$mapped" | cut -d ' ' -f 3)" snapshot
step "and the last" ctl snapshot remove wednesday --wipe
same "it is nowhere" "$(found)" 0
hide /dev/nbd0
same "the volume is as it was" "$(found)" 1
detach 0
step "no snapshot is left of it" ctl volume remove kept --wipe

# A disk that fails under it: stated, others go on, and there are two ways out.
node() { echo "symphony--$(ctl pool get main -o json | jq -r .meta.id | sed 's/-/--/g')-$(ctl volume get "$1" -o json | jq -r .meta.id | sed 's/-/--/g')"; }
length() { dmsetup table "$1" | awk '{ print $2 }'; }
broken() { dmsetup suspend --nolockfs "$1" && dmsetup load "$1" --table "0 $(length "$1") error" && dmsetup resume "$1"; }
ctl volume create bad --size 64MiB --pool main
bad=$(node bad)
good=$(dmsetup table "$bad")
broken "$bad"
refused 'wipe.*Input/output error' ctl volume remove bad --wipe --timeout 50s
attach 1 other
step "another volume goes on" dd if=/dev/urandom of=/dev/nbd1 bs=1M count=16 oflag=direct status=none
detach 1
same "it is being removed" "$(ctl volume get bad -o json | jq -r .status.phase)" removing
dmsetup suspend --nolockfs "$bad"; dmsetup load "$bad" --table "$good"; dmsetup resume "$bad"
wait_for 60 eval '! ctl volume get bad'
ctl volume create bad --size 64MiB --pool main
broken "$(node bad)"
refused 'wipe.*Input/output error' ctl volume remove bad --wipe --timeout 50s
step "given up" ctl volume remove bad --no-wipe
step "check" ctl check
