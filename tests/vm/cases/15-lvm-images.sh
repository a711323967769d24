# Volumes are made of an image in pools of both LVM drivers, and shrink again.
# vm: disks=1G,1G seconds=600
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool dm-snapshot

cluster_up
step "a thick pool" ctl pool create thick --driver lvm --device /dev/vda --wipe /dev/vda
step "a thin pool" ctl pool create thin --driver lvm-thin --device /dev/vdb --wipe /dev/vdb
content=/run/case/content
dd if=/dev/urandom of=$content bs=1M count=8 status=none
truncate -s 24M $content
for pool in thick thin; do
  step "$pool: an image" ctl image import $content --name "i-$pool" --pool $pool
  step "$pool: a volume of it" ctl volume create "v-$pool" --image "i-$pool" --pool $pool --size 64MiB
  attach 0 "v-$pool"
  step "$pool: it holds the image" cmp -n $((24 << 20)) $content /dev/nbd0
  step "$pool: and zeros behind it" cmp -n $((40 << 20)) -i $((24 << 20)):0 /dev/nbd0 /dev/zero
  dd if=/dev/urandom of=/dev/nbd0 bs=1M count=64 oflag=direct status=none
  detach 0
  refused allow-shrink ctl volume resize "v-$pool" --size 30MiB
  step "$pool: it shrinks" ctl volume resize "v-$pool" --size 30MiB --allow-shrink
  step "$pool: and grows" ctl volume resize "v-$pool" --size 64MiB
  attach 0 "v-$pool"
  step "$pool: what was cut off has not come back" cmp -n $((34 << 20)) -i $((30 << 20)):0 /dev/nbd0 /dev/zero
  detach 0
  step "$pool: the image is as it was" ctl image export "i-$pool" /run/case/exported
  step "$pool: byte by byte" cmp $content /run/case/exported
  step "$pool: all goes" ctl volume remove "v-$pool"
  ctl image remove "i-$pool"
  ctl pool remove $pool
done
step "check" ctl check
