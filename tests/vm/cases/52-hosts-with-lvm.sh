# Three hosts as namespaces: a manager on one, block services with disks of their own on the others, and the user's whole flow.
# vm: disks=1G,1G seconds=600
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool dm-snapshot
hosts_up 3
wait_for 10 on h2 ping -c 1 -W 1 10.88.0.3
running manager on h3 symphony manager run --config-dir "$STATE/manager" --advertise-address 10.88.0.3
wait_for 30 test -S "$SYMPHONY_SOCKET"
step "manager init on h3" ctl manager init

# own NUMBER COMMAND…: of the block service of that host.
own() { local number=$1; shift; timeout 60 symphony ctl --socket "$STATE/block-$number/control.sock" "$@"; }
for number in 1 2; do
  running "block-$number" on "h$number" symphony block run --config-dir "$STATE/block-$number" \
    --advertise-address "10.88.0.$number"
  wait_for 30 test -S "$STATE/block-$number/control.sock"
  token=$(ctl manager token create -o json | jq -er .text)
  step "block init on h$number" own $number block init 10.88.0.3 --token "$token"
done
service() { own "$1" block status -o json | jq -er .service.id; }
wait_for 30 eval 'ctl service list -o json | jq -e "length == 3 and all(.status.state == \"ready\")"'
step "a thin pool on h1" ctl pool create one --driver lvm-thin --device /dev/vda --service "$(service 1)"
step "a thick pool on h2" ctl pool create two --driver lvm --device /dev/vdb --service "$(service 2)"

# From a fourth place, with a certificate: nothing else gets in.
step "a bundle for the operator" ctl manager client create ops --role admin --output-dir /run/case/ops
far() { timeout 60 symphony ctl --manager 10.88.0.3 --bundle /run/case/ops "$@"; }
step "what h1 has, from afar" far device list --service "$(service 1)"
content=/run/case/content
dd if=/dev/urandom of=$content bs=1M count=8 status=none
for pool in one two; do
  step "$pool: a volume" far volume create "v-$pool" --size 64MiB --pool $pool
  step "$pool: attached to the operator" far volume attach "v-$pool" --client ops
  step "$pool: uploaded from afar" far volume upload "v-$pool" $content
  step "$pool: a snapshot" far snapshot create "v-$pool" "s-$pool"
  head -c 8M /dev/zero >/run/case/zeros
  step "$pool: changed" far volume upload "v-$pool" /run/case/zeros
  step "$pool: a copy of the snapshot" far volume create "c-$pool" --from-snapshot "s-$pool"
  far volume attach "c-$pool" --client ops
  step "$pool: downloaded" far volume download "c-$pool" /run/case/back
  step "$pool: byte by byte" cmp -n $((8 << 20)) $content /run/case/back
  step "$pool: grows" far volume resize "c-$pool" --size 96MiB
done
step "an image, kept on h1" far image import $content --name noble --pool one
step "and a volume of it on h2" far volume create web --image noble --pool two
step "the manager dies" killed manager

running manager on h3 symphony manager run --config-dir "$STATE/manager" --advertise-address 10.88.0.3
wait_for 60 all_ready
killed block-2
running block-2 on h2 symphony block run --config-dir "$STATE/block-2" --advertise-address 10.88.0.2
# Its lease outlives it: that it is ready says nothing yet.
step "back after its block service died" wait_for 90 far volume download c-two /run/case/back
step "byte by byte" cmp -n $((8 << 20)) $content /run/case/back
refused 'still holds|holds' ctl manager remove "$(service 2)"
for pool in one two; do
  for volume in v c; do far volume detach "$volume-$pool" --client ops; done
  far volume remove "c-$pool"
  far snapshot remove "s-$pool"
done
step "removed" far volume remove v-one
step "wiped and removed" far volume remove v-two --wipe
far volume remove web
far image remove noble
step "check" ctl check
for pool in one two; do ctl pool remove $pool; done
step "out of the cluster" ctl manager remove "$(service 2)"
same "the members" "$(ctl service list -o json | jq '[.[] | select(.status.state != "removed")] | length')" 2
