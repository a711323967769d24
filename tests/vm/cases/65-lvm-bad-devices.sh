# Devices in use, read-only, shrunk, gone, damaged or somebody else's fail their own pool with the reason; another pool's volume serves on.
# vm: disks=1G seconds=1200
. /vm/lib.sh
modprobe -a dm-mod loop sd_mod

without_udev='activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 }
devices { obtain_device_list_from_udev=0 external_device_info_source="none" use_devicesfile=0 }
global { event_activation=0 use_lvmpolld=0 }'
lvm_on() { local verb=$1; shift; quietly lvm "$verb" --config "$without_udev" --devices "$one,$two" "$@"; }

# disk NAME: the loop device over a sparse file of that name.
disk() { truncate -s 128M "/run/case/$1"; losetup --find --show --partscan "/run/case/$1"; }
sum() { dd if=/dev/nbd0 bs=1M count=8 iflag=direct status=none | md5sum; }
holds() { wait_for 60 attach 0 "$1"; same "what $1 holds" "$(sum)" "$2"; detach 0; }
# ails TEXT: the pool has failed and says TEXT, and nobody else notices.
ails() {
  wait_for 60 eval 'ctl pool get bad -o json | jq -e ".status.phase == \"failed\""'
  local why; why=$(ctl pool get bad -o json | jq -r .status.message)
  grep -qE "$1" <<<"$why" || die "the pool was to say '$1', but says: $why"
  echo "  as it should: $why"
  holds good "$good"
}
stopped() { killed block; lvm_on vgchange -a n "$group"; }
well_again() {
  killed block
  block_up
  step "$1" wait_for 60 all_ready
  wait_for 60 eval 'ctl pool get bad -o json | jq -e ".status.phase == \"ready\""'
  holds bad "$bad"
  holds good "$good"
  ctl check
}

cluster_up
step "a pool that nothing happens to" ctl pool create well --driver lvm --device /dev/vda
ctl volume create good --size 64MiB --pool well
one=$(disk one) two=$(disk two) third=$(disk third)

# What is in use, or cannot be written, is had by nobody.
printf '\200\0\0\0\203\0\0\0\0\010\0\0\0\200\0\0' | dd of="$third" bs=1 seek=446 conv=notrunc status=none
printf '\125\252' | dd of="$third" bs=1 seek=510 conv=notrunc,fsync status=none
blockdev --rereadpt "$third"
wait_for 10 test -b "${third}p1"
mkfs.ext4 -q "${third}p1"
mkdir -p /mnt/part
mount "${third}p1" /mnt/part
echo mine >/mnt/part/letter
for device in "$third" "${third}p1"; do
  refused 'mounted at /mnt/part' ctl pool create bad --driver lvm --device "$device" --wipe "$device"
  ctl pool remove bad
done
same "what is on the partition" "$(cat /mnt/part/letter)" mine
umount /mnt/part
blockdev --setro "$third"
refused 'read-only' ctl pool create bad --driver lvm --device "$third" --wipe "$third"
ctl pool remove bad

step "a pool on two disks" ctl pool create bad --driver lvm --device "$one" --device "$two"
ctl volume create bad --size 160MiB --pool bad
for volume in good bad; do
  attach 0 $volume
  dd if=/dev/urandom of=/dev/nbd0 bs=1M count=8 oflag=direct status=none
  eval "$volume=\$(sum)"
  detach 0
done
group=symphony-$(ctl pool get bad -o json | jq -er .meta.id)

stopped
truncate -s 100M /run/case/two
losetup --set-capacity "$two"
block_up
step "a device that shrank" ails 'shrunk'
killed block
truncate -s 128M /run/case/two
losetup --set-capacity "$two"
block_up
well_again "it has its size again"

stopped
losetup --detach "$two"
block_up
step "a physical volume is missing" ails 'missing'
killed block
losetup "$two" /run/case/two
block_up
well_again "it is there again"

stopped
for number in 1 2; do
  device=$([ $number = 1 ] && echo "$one" || echo "$two")
  dd if="$device" of="/run/case/head-$number" bs=1M count=1 status=none
  dd if=/dev/urandom of="$device" bs=4k seek=1 count=255 conv=notrunc,fsync status=none
done
block_up
step "LVM's metadata are damaged" ails 'none of its devices|damaged|missing'
killed block
for device in "$one" "$two"; do dd if=/dev/zero of="$device" bs=1M count=1 conv=notrunc,fsync status=none; done
lvm_on vgcreate "$group" "$one" "$two"
block_up
step "a foreign group of the same name" ails "nobody that symphony knows"
lvm_on vgs "$group"
killed block
dd if=/run/case/head-1 of="$one" bs=1M conv=notrunc,fsync status=none
dd if=/run/case/head-2 of="$two" bs=1M conv=notrunc,fsync status=none
block_up
well_again "its metadata are what they were"

stopped
half=$(cat /proc/sys/kernel/random/uuid)
lvm_on lvcreate --yes --wipesignatures n --zero n --size 8M --name "$half" --addtag "symphony.volume=$half" --addtag symphony.name=half \
  --addtag symphony.generation=1 --addtag symphony.size=8388608 --addtag symphony.state=making "$group"
block_up
well_again "a half-made volume from a crash is in nobody's way"
ctl volume remove bad
step "it goes" ctl pool remove bad

modprobe scsi_debug dev_size_mb=128
wait_for 10 eval 'removable=$(ls -d /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*)'
removable=${removable##*/}
wait_for 10 test -b "/dev/$removable"
step "a pool on a disk that can be pulled out" ctl pool create gone --driver lvm --device "/dev/$removable"
ctl volume create gone --size 64MiB --pool gone
attach 0 good
attach 1 gone
dd if=/dev/urandom of=/dev/nbd1 bs=1M count=8 oflag=direct status=none
echo 1 >"/sys/block/$removable/device/delete"
refused 'Input/output error' dd if=/dev/urandom of=/dev/nbd1 bs=1M count=8 oflag=direct,sync status=none
same "what good holds meanwhile" "$(sum)" "$good"
dd if=/dev/urandom of=/dev/nbd0 bs=1M count=8 oflag=direct,sync status=none
good=$(sum)
wait_for 60 eval 'ctl pool get gone -o json | jq -e ".status.message != null"'
echo "  the pool says: $(ctl pool get gone -o json | jq -r .status.message)"
detach 1
detach 0
killed block
wait_for 60 eval 'ctl service list -o json | jq -e "any(.status.state == \"down\")"'
step "what is gone for good is closed" ctl volume remove gone --lost --yes
ctl pool remove gone --lost --yes
dmsetup ls | awk '/gone|symphony/ {print $1}' | while read -r left; do dmsetup remove "$left"; done
modprobe -r scsi_debug
block_up
wait_for 60 all_ready
holds good "$good"
ctl volume remove good
step "all goes" ctl pool remove well
ctl check
