# A pool of thick logical volumes carries the kernel's own NBD client, over a unix socket and over TCP.
# vm: disks=1G,1G seconds=480
. /vm/lib.sh
modprobe -a dm-mod dm-snapshot

running dev symphony dev --config-dir "$STATE"
wait_for 30 grep -q 'symphony is ready' "$STATE/dev.log"
step "a pool on both disks" ctl pool create main --driver lvm --device /dev/vda --device /dev/vdb --wipe /dev/vda --wipe /dev/vdb
. /vm/kernel-client.sh
[ -z "$(lvm vgs --devices /dev/vda,/dev/vdb --noheadings 2>/dev/null)" ] || die "the pool left its group behind"
