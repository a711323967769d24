# A file pool on ext4 carries the kernel's own NBD client, over a unix socket and over TCP.
# vm: disks=1G,1G
. /vm/lib.sh

mkfs.ext4 -q /dev/vda
mkdir -p /mnt/pool
mount /dev/vda /mnt/pool
running dev symphony dev --config-dir "$STATE"
wait_for 30 grep -q 'symphony is ready' "$STATE/dev.log"
step "a pool on it" ctl pool create main --driver file --path /mnt/pool/main
. /vm/kernel-client.sh
