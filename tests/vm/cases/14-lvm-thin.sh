# A pool of thin logical volumes carries the kernel's own NBD client, is extended while in use, and gives its space back.
# vm: disks=1G,1G seconds=480
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool

running dev symphony dev --config-dir "$STATE"
wait_for 30 grep -q 'symphony is ready' "$STATE/dev.log"
mkfs.ext4 -q /dev/vda
refused 'ext4.*--wipe' ctl pool create main --driver lvm-thin --device /dev/vda
ctl pool remove main
step "a pool on one disk" ctl pool create main --driver lvm-thin --device /dev/vda --wipe /dev/vda
before=$(ctl pool get main -o json | jq .status.capacity)
step "and on another" ctl pool extend main --device /dev/vdb --wipe /dev/vdb
[ "$(ctl pool get main -o json | jq .status.capacity)" != "$before" ] || die "it has not become larger: $before"
ctl device list
. /vm/kernel-client.sh
