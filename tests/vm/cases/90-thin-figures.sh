# What snapshots, copies and first writes cost on thin logical volumes, as volumes grow.
# vm: disks=8G seconds=900 bench
# The machine is emulated, many times slower than a real one: ratios tell, milliseconds do not.
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool

mkdir -p /var/tmp
SYMPHONY_BENCH_BINARY=$(command -v symphony) bench thin /dev/vda
