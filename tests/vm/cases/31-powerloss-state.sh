# Power is lost twice in a loop of creations and removals: store, ledger and identity survive and agree.
# vm: disks=1G powerloss crashes seconds=400
. /vm/lib.sh
STATE=/mnt/vda/state
SYMPHONY_SOCKET=$STATE/manager/control.sock
mkdir -p /mnt/vda

members() { ctl service list -o name | sort | xargs | tr ' ' ,; }

# Volumes of this boot are v$BOOT-1, v$BOOT-2 …; three are there at any time: created, grown, removed.
churn() {
  local number=0
  while :; do
    number=$((number + 1))
    ctl volume create "v$BOOT-$number" --size 1MiB
    host note created $number
    ctl volume resize "v$BOOT-$number" --size 2MiB
    [ $number -gt 3 ] || continue
    ctl volume remove "v$BOOT-$((number - 3))"
    host note removed $((number - 3))
  done
}

# What was answered holds; the one command that was in flight may have been carried out or not.
inspect() {
  local before=$((BOOT - 1)) created removed present number
  created=$(host recall created) removed=$(host recall removed)
  present=" $(ctl volume list -o name | xargs) "
  echo "  answered: created 1 to $created, removed 1 to $removed; there are:$present"
  for number in $(seq $((removed + 2)) "$created"); do
    [[ $present == *" v$before-$number "* ]] || die "v$before-$number was created and is not there"
  done
  for number in $(seq "$removed"); do
    [[ $present != *" v$before-$number "* ]] || die "v$before-$number was removed and is there"
  done
  for number in $present; do ctl volume remove "$number"; done
}

[ "$BOOT" != 1 ] || mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt/vda
if [ "$BOOT" = 1 ]; then
  cluster_up
  ctl pool create main --path /mnt/vda/pool
  host note members "$(members)"
else
  manager_up
  block_up
  step "all of it agrees after power loss $((BOOT - 1))" settled
  same "the members" "$(members)" "$(host recall members)"
  inspect
fi
[ "$BOOT" -lt 3 ] || exit 0
host note created 0
host note removed 0
churn >/dev/null &
wait_for 120 acknowledged removed 2
crash 800
