# A guest killed in mid-write: exports are back before a manager answers, fsck is clean, acknowledged bytes are there.
# vm: disks=1G,1G crashes
. /vm/lib.sh
STATE=/mnt/vda/state
SYMPHONY_SOCKET=$STATE/manager/control.sock
mkdir -p /mnt/vda /mnt/vdb /mnt/fs

if [ "$BOOT" = 1 ]; then
  mkfs.ext4 -q /dev/vda
  mkfs.xfs -q /dev/vdb
  mount /dev/vda /mnt/vda
  mount /dev/vdb /mnt/vdb
  cluster_up
  ctl pool create ext4 --path /mnt/vda/pool
  ctl pool create xfs --path /mnt/vdb/pool
  for pool in ext4 xfs; do
    ctl volume create "raw-$pool" --size 16MiB --pool $pool
    ctl volume create "fs-$pool" --size 64MiB --pool $pool
  done
  attach 0 raw-ext4
  attach 1 raw-xfs
  attach 2 fs-ext4
  mkfs.ext4 -q /dev/nbd2
  mount /dev/nbd2 /mnt/fs
  truncate -s 8M /mnt/fs/file
  witness flush /dev/nbd0 ext4 &
  witness fua /dev/nbd1 xfs &
  witness flush /mnt/fs/file fs &
  for key in ext4 xfs fs; do wait_for 120 acknowledged $key 10; done
  crash 500
fi

mount /dev/vda /mnt/vda
mount /dev/vdb /mnt/vdb
# No manager: the ledger alone says what is served.
block_up
! pgrep -f 'symphony manager' || die "a manager runs"
for volume in 0:raw-ext4 1:raw-xfs 2:fs-ext4 3:fs-xfs; do
  step "${volume#*:} is served without a manager" wait_for 30 attach "${volume%:*}" "${volume#*:}"
done
step "no acknowledged write is lost on ext4" witness verify /dev/nbd0 ext4
step "no acknowledged write is lost on xfs" witness verify /dev/nbd1 xfs
mount /dev/nbd2 /mnt/fs
step "none in a file system on a volume" witness verify /mnt/fs/file fs
umount /mnt/fs
step "fsck" quietly e2fsck -fn /dev/nbd2
for number in 0 1 2 3; do detach $number; done
manager_up
step "all of it agrees once a manager is back" settled
