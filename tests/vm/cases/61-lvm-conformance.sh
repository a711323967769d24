# Both LVM drivers do what every backend must, and survive devices that are not as they were.
# vm: disks=512M,512M,512M,512M conformance seconds=1500 memory=1536
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool loop

export SYMPHONY_CONFORMANCE_DISKS=/dev/vda,/dev/vdb,/dev/vdc,/dev/vdd TMPDIR=/run/case
# The suite on both drivers, then what is LVM's alone. One process for all: it keeps its pools from test to test.
step "the suite and more" conformance --test-threads=2 --nocapture --skip kill_points backend:: snapshots:: lvm_volumes lvm_faults

