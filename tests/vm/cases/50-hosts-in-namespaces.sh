# Three hosts as namespaces: without proof a manager refuses block services of other hosts, and says why.
. /vm/lib.sh
hosts_up 3
wait_for 10 on h2 ping -c 1 -W 1 10.88.0.3
running manager on h3 symphony manager run --config-dir "$STATE/manager"
wait_for 30 test -S "$SYMPHONY_SOCKET"
step "manager init on h3" ctl manager init
for number in 1 2; do
  running "block-$number" on "h$number" symphony block run --config-dir "$STATE/block-$number"
  wait_for 30 test -S "$STATE/block-$number/control.sock"
  reason="not on this host's loopback.*mutual TLS"
  refused "$reason" timeout 60 symphony ctl --socket "$STATE/block-$number/control.sock" block init 10.88.0.3
done
refused "$reason" on h1 timeout 60 symphony ctl --manager 10.88.0.3 volume list
same "the members" "$(ctl service list -o name | wc -l)" 1
