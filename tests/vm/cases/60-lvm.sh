# What the LVM drivers rely on: no udev, a list of allowed devices, JSON in bytes, a thin pool full to the brim and back.
# vm: disks=512M,512M
. /vm/lib.sh
modprobe -a dm-mod dm-thin-pool

both=/dev/vda,/dev/vdb
# Everything a host without udev needs, said on the command line: no file of the host is relied on.
without_udev='activation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 }
devices { obtain_device_list_from_udev=0 external_device_info_source="none" multipath_component_detection=0 use_devicesfile=0 }
global { event_activation=0 use_lvmpolld=0 }'

# lvm DEVICES VERB ARGUMENT…
lvm_on() {
  local devices=$1 verb=$2
  shift 2
  lvm "$verb" --config "$without_udev" --devices "$devices" "$@"
}

# report DEVICES pvs|vgs|lvs FIELDS [SELECTION…]: prints JSON, with sizes in bytes.
report() {
  local devices=$1 verb=$2 fields=$3
  shift 3
  lvm_on "$devices" "$verb" --reportformat json --units b --nosuffix --options "$fields" "$@"
}

# shown TITLE COMMAND…: a report into the log, for the fixtures of parsers.
shown() { echo "--- $1"; shift; "$@"; echo "---"; }
field() { jq -r ".report[0].$1[0].$2"; }

PV=pv_name,pv_uuid,vg_name,pv_size,pv_free,pv_attr,pv_missing,pv_tags
VG=vg_name,vg_uuid,vg_attr,vg_size,vg_free,vg_extent_size,vg_missing_pv_count,pv_count,lv_count,vg_tags
LV=lv_name,lv_uuid,vg_name,lv_attr,segtype,lv_size,lv_metadata_size,pool_lv,origin,data_percent,metadata_percent
LV=$LV,lv_when_full,lv_health_status,lv_active,lv_path,lv_tags,discards,chunk_size

step "vgcreate" lvm_on $both vgcreate --quiet --addtag symphony.cluster=c1 one /dev/vda /dev/vdb

# Nodes: either of the two settings is enough; without them lvcreate fails and takes back what it made.
unset DM_DISABLE_UDEV
refused 'not found: device not cleared' lvm lvcreate -y --devices $both --size 16M --name left one
refused 'Failed to find logical volume' lvm lvs --devices $both one/left
step "lvcreate by DM_DISABLE_UDEV" env DM_DISABLE_UDEV=1 lvm lvcreate --quiet -y --devices $both --size 16M --name env one
step "lvcreate by --config" lvm_on $both lvcreate --quiet -y --size 16M --name config --addtag symphony.volume=v1 one
[ -b /dev/one/env ] && [ -b /dev/one/config ] || die "LVM made no nodes"
export DM_DISABLE_UDEV=1

# Devices: what is not on the list does not exist, and so a name can be taken twice.
shown "pvs of a VG with a missing PV" report /dev/vda pvs $PV
shown "vgs of a VG with a missing PV" report /dev/vda vgs $VG
shown "lvs of a VG with a missing PV" report /dev/vda lvs $LV
same "missing PVs" "$(report /dev/vda vgs $VG | field vg vg_missing_pv_count)" 1
same "PVs that one sees" "$(report /dev/vda pvs $PV | jq -c '[.report[0].pv[].pv_name] | sort')" '["/dev/vda","[unknown]"]'
refused 'Cannot change VG one while PVs are missing' lvm_on /dev/vda lvcreate -y --size 16M --name no one
shown "pvs of a VG that is whole" report $both pvs $PV
shown "vgs of a VG that is whole" report $both vgs $VG
shown "lvs of plain volumes" report $both lvs $LV
same "a size" "$(report $both lvs lv_size --select lv_name=env | field lv lv_size)" $((16 << 20))

# A thin pool that refuses instead of waiting, filled to the brim.
step "lvcreate thin pool" lvm_on $both lvcreate --quiet -y --type thin-pool --name pool --size 64M --chunksize 64k \
  --poolmetadatasize 4M --poolmetadataspare n --discards passdown --zero y one
step "a full pool is to refuse" lvm_on $both lvchange --quiet --errorwhenfull y one/pool
step "lvcreate thin volume, larger than the pool" lvm_on $both lvcreate --quiet -y --type thin --virtualsize 128M \
  --name thin --thinpool pool --addtag symphony.volume=v2 one
step "thin snapshot" lvm_on $both lvcreate --quiet -y --snapshot --name snap --setactivationskip n one/thin
shown "lvs of a thin pool" report $both lvs $LV --all
refused 'No space left on device' dd if=/dev/zero of=/dev/one/thin bs=1M oflag=direct status=none
shown "lvs of a thin pool that is full" report $both lvs $LV --select lv_name=pool
shown "dmsetup status of a thin pool that is full" dmsetup status one-pool-tpool
same "percent" "$(report $both lvs data_percent --select lv_name=pool | field lv data_percent)" 100.00
refused 'No space left on device' dd if=/dev/zero of=/dev/one/thin bs=64k count=1 seek=1600 oflag=direct status=none
step "what has its space can be written" dd if=/dev/zero of=/dev/one/thin bs=1M count=32 oflag=direct status=none
step "extend the pool" lvm_on $both lvextend --quiet --size +32M one/pool
step "write where there was no room" dd if=/dev/zero of=/dev/one/thin bs=64k count=1 seek=1600 oflag=direct status=none
step "discard gives the space back" blkdiscard --length 64M /dev/one/thin
shown "lvs after extending and discarding" report $both lvs $LV --select 'lv_name=pool || lv_name=thin'
awk -v percent="$(report $both lvs data_percent --select lv_name=pool | field lv data_percent)" 'BEGIN { exit !(percent < 10) }' ||
  die "discard gave nothing back"
shown "lvs of what is not there" bash -c '! lvm lvs --devices $0 --reportformat json one/nothing 2>&1' $both
step "vgremove" lvm_on $both vgremove --quiet --force --yes one

# The same name twice, each seen by whoever is shown its device.
lvm_on /dev/vda vgcreate --quiet twin /dev/vda
lvm_on /dev/vdb vgcreate --quiet twin /dev/vdb
shown "vgs with two of a name" report $both vgs $VG
refused 'Multiple VGs found with the same name' lvm_on $both lvcreate -y --size 16M --name no twin
step "lvcreate in one of two of a name" lvm_on /dev/vda lvcreate --quiet -y --size 16M --name yes twin
lvm_on /dev/vda vgremove --quiet --force --yes twin
lvm_on /dev/vdb vgremove --quiet --force --yes twin
