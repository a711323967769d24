# Power is lost under a loaded service: every write that a FLUSH or FUA acknowledged is there afterwards.
# vm: disks=1G,64M powerloss crashes
. /vm/lib.sh
STATE=/mnt/vda/state
SYMPHONY_SOCKET=$STATE/manager/control.sock
mkdir -p /mnt/vda /mnt/fs

if [ "$BOOT" = 1 ]; then
  mkfs.ext4 -q /dev/vda
  mount /dev/vda /mnt/vda
  cluster_up
  ctl pool create main --path /mnt/vda/pool
  for volume in flush fua; do ctl volume create $volume --size 16MiB; done
  ctl volume create fs --size 64MiB
  attach 0 flush
  attach 1 fua
  attach 2 fs
  mkfs.ext4 -q /dev/nbd2
  mount /dev/nbd2 /mnt/fs
  truncate -s 8M /mnt/fs/file
  sync -f /mnt/fs/file
  # What nobody flushes is to be lost: else this case could not fail.
  printf 'never flushed' | dd of=/dev/vdb bs=4k oflag=direct conv=sync status=none
  grep -q 'never flushed' <(head -c 4096 /dev/vdb) || die "the witness of lost writes was not written"
  witness flush /dev/nbd0 flush &
  witness fua /dev/nbd1 fua &
  witness flush /mnt/fs/file fs &
  for key in flush fua fs; do wait_for 120 acknowledged $key 10; done
  crash 500
fi

cmp -n 4096 /dev/vdb /dev/zero || die "an unflushed write survived: power was not lost"
echo "  an unflushed write is gone, so power was really lost"
mount /dev/vda /mnt/vda
block_up
for volume in 0:flush 1:fua 2:fs; do wait_for 30 attach "${volume%:*}" "${volume#*:}"; done
step "what FLUSH acknowledged" witness verify /dev/nbd0 flush
step "what FUA acknowledged" witness verify /dev/nbd1 fua
mount /dev/nbd2 /mnt/fs
step "what fsync acknowledged, in a file system" witness verify /mnt/fs/file fs
umount /mnt/fs
step "fsck" quietly e2fsck -fn /dev/nbd2
for number in 0 1 2; do detach $number; done
manager_up
step "all of it agrees" settled
