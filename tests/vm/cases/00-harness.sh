# The guest is what the cases count on: Debian's kernel, no udev, empty disks, a host that answers.
# vm: disks=1G,1G
. /vm/lib.sh

grep -q . /proc/version && uname -r
[ ! -e /run/udev ] || die "there is a udev"
cmp -n 1048576 /dev/vda /dev/zero || die "the first disk is not empty"
host note seen yes
same "a note that the host keeps" "$(host recall seen)" yes
refused "nobody here understands" host nonsense
for module in nbd dm-thin-pool dm-flakey ext4 xfs btrfs; do step "modprobe $module" modprobe "$module"; done
step "symphony runs" symphony --version
