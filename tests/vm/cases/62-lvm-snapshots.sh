# Snapshots, copies and putting back in pools of both LVM drivers, as users ask for them, with a block service that dies.
# vm: disks=1G,1G seconds=600
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool dm-snapshot

cluster_up
step "a thick pool" ctl pool create thick --driver lvm --device /dev/vda --wipe /dev/vda
step "a thin pool" ctl pool create thin --driver lvm-thin --device /dev/vdb --wipe /dev/vdb

# bytes DEVICE: what its first 8 MiB come to.
bytes() { dd if="$1" bs=1M count=8 iflag=direct status=none | md5sum; }
fresh() { dd if=/dev/urandom of="$1" bs=1M count=8 oflag=direct status=none; }

for pool in thick thin; do
  step "$pool: a volume" ctl volume create "v-$pool" --size 64MiB --pool $pool
  attach 0 "v-$pool"
  fresh /dev/nbd0
  then=$(bytes /dev/nbd0)
  step "$pool: a snapshot while it is attached" ctl snapshot create "v-$pool" "s-$pool"
  fresh /dev/nbd0
  now=$(bytes /dev/nbd0)
  step "$pool: a copy of the snapshot" ctl volume create "c-$pool" --from-snapshot "s-$pool"
  step "$pool: a copy of the volume while it is attached" ctl volume create "w-$pool" --from-volume "v-$pool"
  attach 1 "c-$pool"
  attach 2 "w-$pool"
  same "$pool: what the snapshot holds" "$(bytes /dev/nbd1)" "$then"
  same "$pool: what the copy of the volume holds" "$(bytes /dev/nbd2)" "$now"
  for number in 0 1 2; do detach $number; done

  killed block
  block_up
  wait_for 60 all_ready
  step "$pool: put back after the block service died" ctl volume revert "v-$pool" --to "s-$pool"
  attach 0 "v-$pool"
  same "$pool: what it held then" "$(bytes /dev/nbd0)" "$then"
  detach 0
  refused "s-$pool" ctl volume remove "v-$pool"
  step "$pool: all goes" ctl snapshot remove "s-$pool"
  for volume in v c w; do ctl volume remove "$volume-$pool"; done
  step "$pool: check" ctl check
  ctl pool remove $pool
done
ctl check
