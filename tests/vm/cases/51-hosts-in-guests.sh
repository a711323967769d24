# Three guests on one cable: the same refusal across kernels, and a cable that can be cut and healed.
# vm: guests=3 memory=640
. /vm/lib.sh
if [ "$NODE" = 3 ]; then
  manager_up
  step "manager init on node3" ctl manager init
fi
host barrier the-manager-is-up
if [ "$NODE" != 3 ]; then
  wait_for 20 ping -c 1 -W 1 node3
  block_up
  refused "not on this host's loopback.*mutual TLS" block_ctl block init node3
fi
host barrier they-were-refused
if [ "$NODE" = 1 ]; then
  host cut 1 3
  refused "node3" block_ctl block init node3
  wait_for 20 ping -c 1 -W 1 node2
  host heal
  wait_for 20 ping -c 1 -W 1 node3
  refused "mutual TLS" block_ctl block init node3
fi
host barrier the-cable-is-whole
[ "$NODE" != 3 ] || same "the members" "$(ctl service list -o name | wc -l)" 1
