# The way of a volume in the pool `main` under the kernel's own client, whatever file system the pool is on.
# Sourced by cases that have made the pool.

step "two volumes" ctl volume create unix --size 96MiB --pool main
ctl volume create tcp --size 96MiB --pool main
mkdir -p /mnt/unix /mnt/tcp

step "attach over the unix socket" attach 0 unix
step "attach over TCP, two connections" attach_tcp 1 tcp 2
same "size that the kernel sees" "$(blockdev --getsize64 /dev/nbd0)" $((96 << 20))
same "write cache that the kernel sees" "$(cat /sys/block/nbd0/queue/write_cache)" "write back"
same "forced unit access" "$(cat /sys/block/nbd0/queue/fua)" 1
[ "$(cat /sys/block/nbd0/queue/discard_max_bytes)" -gt 0 ] || die "the kernel sees no discard"

for volume in unix:0 tcp:1; do
  name=${volume%:*} device=/dev/nbd${volume#*:}
  step "$name: mkfs" mkfs.ext4 -q "$device"
  mount "$device" "/mnt/$name"
  head -c 24M /dev/urandom >"/mnt/$name/bytes"
  step "$name: sync 24 MiB" sync -f "/mnt/$name/bytes"
  (cd "/mnt/$name" && md5sum bytes >sum && rm -f gone && head -c 8M /dev/zero >gone && sync gone && rm gone)
  step "$name: fstrim" fstrim "/mnt/$name"
  step "$name: unmount" umount "/mnt/$name"
  step "$name: fsck" quietly e2fsck -fn "$device"
  detach "${volume#*:}"
done

# What one client wrote another reads, over the other transport.
attach_tcp 0 unix
attach 1 tcp
for name in unix tcp; do
  device=/dev/nbd$([ $name = unix ] && echo 0 || echo 1)
  mount -o ro "$device" "/mnt/$name"
  (cd "/mnt/$name" && md5sum --quiet -c sum) || die "$name came back with other bytes"
  umount "/mnt/$name"
done

# A client sees a new size when it connects again; the file system then grows into it while mounted.
step "resize while attached" ctl volume resize unix --size 160MiB
same "size under a connected kernel" "$(blockdev --getsize64 /dev/nbd0)" $((96 << 20))
dd if=/dev/nbd0 of=/dev/null bs=1M count=8 iflag=direct status=none
detach 0
attach 0 unix
same "size after connecting again" "$(blockdev --getsize64 /dev/nbd0)" $((160 << 20))
mount /dev/nbd0 /mnt/unix
step "grow the file system online" quietly resize2fs /dev/nbd0
(cd /mnt/unix && md5sum --quiet -c sum) || die "growing changed bytes"
umount /mnt/unix
step "fsck of what has grown" quietly e2fsck -fn /dev/nbd0
detach 0
detach 1
step "check" ctl check
ctl volume remove unix
ctl volume remove tcp
ctl pool remove main
ctl check
