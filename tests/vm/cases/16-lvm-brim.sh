# A thin pool that grows to its ceiling and is filled to the brim: writers hear ENOSPC, and go on where there is room again.
# vm: disks=3G seconds=600
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool
pool() { ctl pool get brim -o json | jq -r "$1"; }
told() { ctl events -o json | grep -q "\"action\": \"$1\""; }

cluster_up
refused 'is for the driver lvm-thin' ctl pool create no --driver lvm --device /dev/vda --ceiling 2GiB
step "a pool with a ceiling" ctl pool create brim --driver lvm-thin --device /dev/vda --ceiling 1200MiB
same "how large it begins" "$(pool .status.size)" $((1 << 30))
same "what it can become" "$(pool .status.capacity)" $((1200 << 20))
step "promising more than it has" ctl pool set brim --overcommit 4
ctl volume create kept --size 8MiB --pool brim
ctl volume create greedy --size 2GiB --pool brim
ctl volume create late --size 64MiB --pool brim
attach 0 kept
attach 1 greedy
dd if=/dev/urandom of=/dev/nbd0 bs=1M count=8 oflag=direct status=none
before=$(md5sum </dev/nbd0)

step "write until it is extended" dd if=/dev/zero of=/dev/nbd1 bs=1M count=800 oflag=direct status=none
wait_for 60 eval '[ "$(pool .status.size)" -gt $((1 << 30)) ]'
step "which is told" told pool.autoextend
same "up to its ceiling" "$(pool .status.size)" $((1200 << 20))
# The kernel's client is told of it at once (28 is ENOSPC), and makes an I/O error of whatever it is told.
refused 'Input/output error|No space left on device' dd if=/dev/zero of=/dev/nbd1 bs=1M seek=800 oflag=direct status=none
dmesg | grep -q 'nbd1: Other side returned error (28)' || die "it was told of another error"
# Nothing waits in the page cache to be found without a place later: who writes hears of it, whole blocks or not.
refused 'No space left on device' eval 'head -c 4M /dev/urandom | ctl volume upload late -'
for part in "5 3" "4096 4096" "1000 100000"; do
  same "a write of late at $part" "$(nbd-map "$STATE/block/nbd.sock" late write $part)" 'No space left on device'
done
! dmesg | grep 'lost async page write' || die "something was lost that had been acknowledged"
wait_for 60 told pool.full
refused 'all but full' ctl volume create no --size 1MiB --pool brim
dd if=/dev/urandom of=/dev/nbd0 bs=1M count=8 oflag=direct status=none
[ "$(md5sum </dev/nbd0)" != "$before" ] || die "what has its space cannot be written"

refused 'do not shrink' ctl pool set brim --ceiling 1GiB
step "a higher ceiling makes room" ctl pool set brim --ceiling 2GiB
wait_for 60 eval '[ "$(pool .status.size)" -gt $((1300 << 20)) ]'
step "writes go on where there was none" dd if=/dev/zero of=/dev/nbd1 bs=1M count=8 seek=1300 oflag=direct status=none
step "no ceiling" ctl pool set brim --ceiling none
[ "$(pool .status.capacity)" -gt $((2900 << 20)) ] || die "it has not all of its device"
detach 0
detach 1
refused 'overwriting promises nothing' ctl volume remove kept --wipe
for volume in kept greedy late; do ctl volume remove $volume; done
ctl pool remove brim
step "check" ctl check
