# Thin metadata that fill up before the data do: new copies are refused in time, and even at the very end nothing hangs.
# vm: disks=1G seconds=900
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool

cluster_up
# A copy that differs everywhere repeats all that it shares.
step "a small pool" ctl pool create tiny --driver lvm-thin --device /dev/vda --wipe /dev/vda
ctl pool set tiny --overcommit 100
ctl volume create base --size 800MiB --pool tiny
attach 0 base
step "700 MiB" dd if=/dev/zero of=/dev/nbd0 bs=1M count=700 oflag=direct status=none
# For the time when nothing new is made any more.
copies=5
for number in $(seq $copies); do quietly ctl volume create "late-$number" --from-volume base; done
pool() { ctl pool get tiny -o json | jq -r "$1"; }
# differ DEVICE: one block in each eight mebibytes is another one.
differ() {
  python3 -c '
import os, sys
device = os.open(sys.argv[1], os.O_RDWR | os.O_SYNC)
for at in range(0, 700 << 20, 8 << 20):
    os.pwrite(device, b"x" * 4096, at)
' "$1"
}
number=0
until [ "$(pool .status.level)" = full ]; do
  number=$((number + 1))
  [ $number -le 20 ] || die "the metadata do not fill up: $(ctl pool get tiny)"
  # The last figure may be of a moment before the last copy was all different: then LVM is who refuses, and that is told.
  if ! said=$(ctl volume create "copy-$number" --from-volume base 2>&1); then
    grep -q 'metadata of the thin pool .* are all but full' <<<"$said" || die "$said"
    ctl volume remove "copy-$number"
    wait_for 60 eval '[ "$(pool .status.level)" = full ]'
    break
  fi
  before=$(pool .status.metadata.used)
  attach 1 "copy-$number"
  differ /dev/nbd1
  detach 1
  wait_for 60 eval '[ "$(pool .status.metadata.used)" != "$before" ]'
done
echo "  full after $number copies"
refused 'metadata of pool .tiny. are all but full' ctl volume create no --from-volume base
refused 'metadata of pool .tiny. are all but full' ctl snapshot create base no
ctl pool get tiny

# Whatever the rules say: LVM makes nothing new in such a pool.
step "told to go on to the last" ctl pool set tiny --warn-at 100% --refuse-at 100%
refused 'metadata of pool .tiny. are all but full' ctl volume create no --size 1MiB --pool tiny
# What is there goes on until nothing can be remembered any more; then writes fail, nothing waits for ever, and what is
# there can be read.
attach 1 copy-1
broken= number=0
while [ -z "$broken" ] && [ $number -lt $copies ]; do
  number=$((number + 1))
  attach 2 "late-$number" || break
  timeout 60 bash -c "$(declare -f differ); differ /dev/nbd2" 2>/dev/null || broken=yes
  detach 2
done
[ -n "$broken" ] || die "the metadata hold more than they can: $(ctl pool get tiny)"
echo "  no more after $number copies"
ctl pool get tiny
step "what is there can be read" dd if=/dev/nbd0 of=/dev/null bs=1M count=16 iflag=direct status=none
refused tiny ctl volume create no --size 1MiB --pool tiny --timeout 20s
alive block
alive manager
detach 0
detach 1
