# A guest killed in mid-write with its volumes on LVM: exports are back before a manager answers, acknowledged bytes are there.
# vm: disks=512M,1G,1G crashes seconds=600
. /vm/lib.sh
STATE=/mnt/vda/state
SYMPHONY_SOCKET=$STATE/manager/control.sock
mkdir -p /mnt/vda /mnt/fs
modprobe -a dm-mod dm-thin-pool dm-snapshot

if [ "$BOOT" = 1 ]; then
  mkfs.ext4 -q /dev/vda
  mount /dev/vda /mnt/vda
  cluster_up
  ctl pool create thick --driver lvm --device /dev/vdb
  ctl pool create thin --driver lvm-thin --device /dev/vdc
  for pool in thick thin; do ctl volume create "raw-$pool" --size 16MiB --pool $pool; done
  ctl volume create fs --size 64MiB --pool thin
  ctl snapshot create raw-thick before
  attach 0 raw-thick
  attach 1 raw-thin
  attach 2 fs
  mkfs.ext4 -q /dev/nbd2
  mount /dev/nbd2 /mnt/fs
  truncate -s 8M /mnt/fs/file
  witness flush /dev/nbd0 thick &
  witness fua /dev/nbd1 thin &
  witness flush /mnt/fs/file fs &
  for key in thick thin fs; do wait_for 120 acknowledged $key 10; done
  crash 500
fi

mount /dev/vda /mnt/vda
# No manager: the ledger alone says what is served.
block_up
! pgrep -f 'symphony manager' || die "a manager runs"
for volume in 0:raw-thick 1:raw-thin 2:fs; do
  step "${volume#*:} is served without a manager" wait_for 180 attach "${volume%:*}" "${volume#*:}"
done
step "no acknowledged write is lost on a thick volume" witness verify /dev/nbd0 thick
step "no acknowledged write is lost on a thin volume" witness verify /dev/nbd1 thin
mount /dev/nbd2 /mnt/fs
step "none in a file system on a volume" witness verify /mnt/fs/file fs
umount /mnt/fs
step "fsck" quietly e2fsck -fn /dev/nbd2
for number in 0 1 2; do detach $number; done
manager_up
step "all of it agrees once a manager is back" settled
step "the snapshot of before is there" ctl volume create copy --from-snapshot before
