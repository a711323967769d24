# Thin metadata that fill up before the data do: new copies are refused in time, and even at the very end nothing hangs.
# vm: disks=512M seconds=600
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool

cluster_up
# A copy that differs everywhere repeats all that it shares.
step "a small pool" ctl pool create tiny --driver lvm-thin --device /dev/vda --wipe /dev/vda
ctl pool set tiny --overcommit 100
ctl volume create base --size 400MiB --pool tiny
attach 0 base
step "300 MiB" dd if=/dev/zero of=/dev/nbd0 bs=1M count=300 oflag=direct status=none
level() { ctl pool get tiny -o json | jq -r .status.level; }
# differ DEVICE: one block in each eight mebibytes is another one.
differ() {
  python3 -c '
import os, sys
device = os.open(sys.argv[1], os.O_RDWR | os.O_SYNC)
for at in range(0, 300 << 20, 8 << 20):
    os.pwrite(device, b"x" * 4096, at)
' "$1"
}
number=0
until [ "$(level)" = full ]; do
  number=$((number + 1))
  [ $number -le 40 ] || die "the metadata do not fill up: $(ctl pool get tiny)"
  # Refused as soon as the last look at the pool says so.
  quietly ctl volume create "copy-$number" --from-volume base || break
  attach 1 "copy-$number"
  differ /dev/nbd1
  detach 1
done
echo "  full after $number copies"
wait_for 60 eval '[ "$(level)" = full ]'
refused 'all but full' ctl volume create no --from-volume base
ctl pool get tiny

# Whoever wants to see it break: then all is refused, nothing waits for ever, and what is there can be read.
step "told to go on to the last" ctl pool set tiny --warn-at 100% --refuse-at 100%
attach 1 copy-1
for number in $(seq 50 70); do
  ctl volume create "copy-$number" --from-volume base --timeout 20s >/dev/null 2>&1 || break
  attach 2 "copy-$number" || break
  timeout 60 bash -c "$(declare -f differ); differ /dev/nbd2" 2>/dev/null || { detach 2; break; }
  detach 2
done
wait_for 60 eval '! ctl pool get tiny -o json | jq -e ".status.phase == \"ready\""'
ctl pool get tiny -o json | jq -r .status.message
step "what is there can be read" dd if=/dev/nbd0 of=/dev/null bs=1M count=16 iflag=direct status=none
refused 'tiny' ctl volume create no --size 1MiB --pool tiny --timeout 20s
alive block
alive manager
detach 0
detach 1
