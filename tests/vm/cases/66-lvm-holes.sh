# Holes of thin volumes are told as they are: while others write, of snapshots' copies, after trims and crashes.
# vm: disks=1G seconds=600
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool
MIB=$((1 << 20))
map() { nbd-map "$STATE/block/nbd.sock" "$1"; }
# told VOLUME TEXT: what is told of it becomes TEXT: nobody waits for it to be found out, and a try that fails rests a minute.
told() { wait_for 180 eval "[ \"\$(map $1)\" = \"$2\" ]" || { map "$1"; return 1; }; }
held() { dmsetup status "$1" | awk '{print $7}'; }

cluster_up
step "a thin pool" ctl pool create thin --driver lvm-thin --device /dev/vda --wipe /dev/vda
ctl volume create one --size 64MiB --pool thin
pool=$(dmsetup ls | awk '/thin--pool-tpool/ {print $1}')

told one "0 $((64 * MIB)) hole"
same "what a write makes of it" "$(nbd-map "$STATE/block/nbd.sock" one write $((8 * MIB)) $MIB)" ok
told one "0 $((8 * MIB)) hole
$((8 * MIB)) $MIB data
$((9 * MIB)) $((55 * MIB)) hole"
step "nothing is held" same "the root that is held" "$(held "$pool")" -

# A snapshot and its copies share all of it, and a copy that is written to is no other's data.
ctl snapshot create one monday
ctl volume create copy --from-snapshot monday
told copy "0 $((8 * MIB)) hole
$((8 * MIB)) $MIB data
$((9 * MIB)) $((55 * MIB)) hole"
same "a write beside it" "$(nbd-map "$STATE/block/nbd.sock" copy write $((20 * MIB + 5)) 3)" ok
map copy | grep -q "^$((20 * MIB)) 65536 data" || die "what was written is no data: $(map copy)"
map one | grep -q "^$((9 * MIB)) $((55 * MIB)) hole" || die "another's write is its data: $(map one)"

# The kernel's client writes and trims while somebody asks all the time; every hole that is told is read, and is zeros.
attach 0 one
for round in 1 2 3; do
  (for at in $(seq 1 6); do
    dd if=/dev/urandom of=/dev/nbd0 bs=64k seek=$((RANDOM % 1024)) count=5 oflag=direct conv=notrunc status=none
    blkdiscard -o $((RANDOM % 32 * MIB)) -l $((2 * MIB)) /dev/nbd0
  done) &
  for _ in 1 2 3; do map one >/dev/null || die "round $round"; done
  wait $!
done
step "trimmed" blkdiscard /dev/nbd0
step "becomes a hole again" told one "0 $((64 * MIB)) hole"
detach 0

# A process that dies while it holds the metadata leaves that to the next one.
killed block
dmsetup message "$pool" 0 reserve_metadata_snap
[ "$(held "$pool")" != - ] || die "it is not held: $(dmsetup status "$pool")"
block_up
settled
step "let go of" wait_for 30 eval "[ \"\$(held $pool)\" = - ]"
told copy "0 $((8 * MIB)) hole
$((8 * MIB)) $MIB data
$((9 * MIB)) $((11 * MIB)) hole
$((20 * MIB)) 65536 data
$((20 * MIB + 65536)) $((44 * MIB - 65536)) hole"
# What somebody else holds is his, and all is data meanwhile.
dmsetup message "$pool" 0 reserve_metadata_snap
ctl volume create late --size 1MiB --pool thin
map late >/dev/null
wait_for 60 grep -q 'holes cannot be told' "$STATE/block.log"
same "what is told then" "$(map late)" "0 $MIB data"
[ "$(held "$pool")" != - ] || die "somebody else's hold was let go of"
dmsetup message "$pool" 0 release_metadata_snap
step "check" ctl check
