# I/O errors under a pool: clients are told, a failed flush never succeeds later, and other pools go on.
# vm: disks=512M,512M
. /vm/lib.sh
modprobe -a dm-mod dm-flakey
sectors=$(blockdev --getsz /dev/vda)

# medium works|fails-writes|fails: what /dev/mapper/medium does from now on. Without lockfs, which would write to it.
medium() {
  case $1 in
    works) table="0 $sectors linear /dev/vda 0" ;;
    fails-writes) table="0 $sectors flakey /dev/vda 0 0 3600 1 error_writes" ;;
    fails) table="0 $sectors error" ;;
  esac
  dmsetup suspend --nolockfs medium
  dmsetup load medium --table "$table"
  dmsetup resume medium
}

dmsetup create medium --table "0 $sectors linear /dev/vda 0"
mkdir -p /mnt/bad /mnt/good
mkfs.ext4 -q /dev/mapper/medium
mkfs.ext4 -q /dev/vdb
mount -o errors=continue /dev/mapper/medium /mnt/bad
mount /dev/vdb /mnt/good
cluster_up
ctl pool create bad --path /mnt/bad/pool
ctl pool create good --path /mnt/good/pool
ctl volume create unlucky --size 16MiB --pool bad
ctl volume create other --size 16MiB --pool bad
ctl volume create lucky --size 16MiB --pool good
attach 0 unlucky
attach 1 lucky
attach 2 other
write() { dd if=/dev/urandom of="$1" bs=64k count=16 oflag=direct conv=notrunc status=none; }
flush() { python3 -c 'import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDWR))' "$1"; }
# Blocks that are allocated now need no journal later, and can only be read from the medium.
step "write and flush while all is well" write /dev/nbd0
flush /dev/nbd0
write /dev/nbd2
flush /dev/nbd2
before=$(head -c 1M /dev/nbd1 | md5sum)

medium fails-writes
# Around the page cache the write itself is refused; what the cache takes comes to light in the flush.
write /dev/nbd0 2>/dev/null || echo "  the write is refused at once"
refused 'Input/output error' flush /dev/nbd0
medium works
refused 'Input/output error' flush /dev/nbd0
write /dev/nbd0
refused 'Input/output error' flush /dev/nbd0
alive block
alive manager
step "another volume of another pool does not notice" write /dev/nbd1
step "and is flushed" flush /dev/nbd1
[ "$(head -c 1M /dev/nbd1 | md5sum)" != "$before" ] || die "the write to the other pool is not there"
# A new connection is no new beginning: what was promised to the old one is lost all the same.
detach 0
attach 0 unlucky
refused 'Input/output error' flush /dev/nbd0

# Nor is a new process: the loss is noted on the file until somebody has looked after it.
again() {
  for number in 0 1 2; do detach $number; done
  killed block
  block_up
  for volume in 0:unlucky 1:lucky 2:other; do wait_for 30 attach "${volume%:*}" "${volume#*:}"; done
}
again
refused 'Input/output error' flush /dev/nbd0
step "others are flushed after the restart" flush /dev/nbd1
file=/mnt/bad/pool/volumes/$(ctl volume get unlucky -o json | jq -er .meta.id).img
python3 -c 'import os, sys; os.removexattr(sys.argv[1], "user.symphony.lost-writes")' "$file"
again
write /dev/nbd0
step "with the note taken away flushes count again" flush /dev/nbd0

medium fails
echo 3 >/proc/sys/vm/drop_caches
refused 'Input/output error' dd if=/dev/nbd2 of=/dev/null bs=64k iflag=direct count=1
alive block
step "the other pool goes on under a dead medium" write /dev/nbd1
flush /dev/nbd1
step "and new volumes are made on it" ctl volume create late --size 1MiB --pool good
refused 'late-on-bad' ctl volume create late-on-bad --size 1MiB --pool bad --timeout 5s
alive block
alive manager
for number in 0 1 2; do detach $number; done
medium works
