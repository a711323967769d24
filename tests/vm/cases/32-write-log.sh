# Each FLUSH and FUA is on the medium when it is acknowledged: dm-log-writes replayed to the moment of every few promises.
# vm: disks=128M,768M memory=1024 seconds=400
. /vm/lib.sh
modprobe -a dm-mod dm-log-writes loop
export SIZE=$(blockdev --getsize64 /dev/vda)
dmsetup create logged --table "0 $(blockdev --getsz /dev/vda) log-writes /dev/vda /dev/vdb"
mkdir -p /mnt/pool /mnt/replayed /run/replay
mkfs.ext4 -q /dev/mapper/logged
mount /dev/mapper/logged /mnt/pool
cluster_up
ctl pool create logged --path /mnt/pool/pool
image_of() { ctl volume get "$1" -o json | jq -er '.meta.id'; }
for volume in flush fua; do ctl volume create $volume --size 8MiB; done
# Sparse files: what is promised is in the medium's journal too.
flush=$(image_of flush) fua=$(image_of fua)
attach 0 flush
attach 1 fua
same "forced unit access" "$(cat /sys/block/nbd1/queue/fua)" 1
/vm/write-log promise flush /dev/nbd0 logged 40 &
step "40 durable writes beside 40 flushed ones" /vm/write-log promise fua /dev/nbd1 logged 40
wait $! || die "the flushing writer failed"
detach 0
detach 1
killed block
killed manager
wait_for 20 umount /mnt/pool
dmsetup remove logged

# replayed KIND NUMBER FILE: the medium as it must have been at that promise, through the file system's own recovery.
replayed() {
  /vm/write-log replay /dev/vdb /run/replay/image "$1-$2"
  mount -o loop /run/replay/image /mnt/replayed
  /vm/write-log verify "/mnt/replayed/pool/volumes/$3.img" "$2"
  wait_for 20 umount /mnt/replayed
}
for number in 1 2 7 16 17 29 39 40; do
  step "flush $number" replayed flush $number "$flush"
  step "durable write $number" replayed fua $number "$fua"
done
# The check itself: what was promised later is not there before.
/vm/write-log replay /dev/vdb /run/replay/image flush-17
mount -o loop /run/replay/image /mnt/replayed
refused 'was promised' /vm/write-log verify "/mnt/replayed/pool/volumes/$flush.img" 40
wait_for 20 umount /mnt/replayed
