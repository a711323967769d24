# What users keep in their volumes, LVM's labels and a group of the pool's own name above all, is not the host's to scan.
# vm: disks=1G,1G seconds=480
. /vm/lib.sh
modprobe -a dm-mod dm-snapshot

# As on the user's own machine, where the names of groups are others'.
mkdir -p /run/inner
inner() { lvm "$1" --devices /dev/nbd0 --config 'devices { dir="/run/inner" scan=["/dev"] }' "${@:2}"; }

cluster_up
step "a pool" ctl pool create main --driver lvm --device /dev/vda --wipe /dev/vda
ctl volume create theirs --size 64MiB --pool main
group=$(lvm vgs --devices /dev/vda --noheadings -o vg_name | tr -d ' ')
attach 0 theirs
step "a user makes a group of the same name in a volume" quietly inner vgcreate --quiet "$group" /dev/nbd0
quietly inner lvcreate --quiet --activate n --zero n --wipesignatures n --extents 5 --name inside "$group"
detach 0

[ -n "$(lvm pvs --noheadings -o pv_name | tr -d ' ')" ] || die "the host's LVM sees nothing at all"
same "volumes in what the host's LVM sees" "$(lvm pvs --noheadings -o pv_name | grep -c mapper)" 0
step "the pool goes on" ctl volume create ours --size 16MiB --pool main
step "a snapshot of it" ctl snapshot create theirs shot --room 32MiB
step "another device" ctl pool extend main --device /dev/vdb --wipe /dev/vdb
step "more of it" ctl volume create more --size 800MiB --pool main
killed block
block_up
step "served again" settled
same "volumes in the pool" "$(ctl volume list -o name | wc -l)" 3

attach 0 theirs
same "what the user has" "$(inner lvs --noheadings -o lv_name "$group" | tr -d ' ')" inside
detach 0
step "and away with all of it" ctl snapshot remove shot
for volume in theirs ours more; do ctl volume remove $volume; done
ctl pool remove main
[ -z "$(lvm vgs --devices /dev/vda,/dev/vdb --noheadings 2>/dev/null)" ] || die "the pool left its group behind"
