//! LVM in memory: it obeys the command lines that are built here and reports as the executable does. Logical volumes
//! are files; those of thick ones are full of other people's bytes when they are made.

use super::mapper::{Kernel, Listener};
use crate::backend::lvm::command::Call;
use crate::backend::lvm::{Lvm, LvmError};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

pub const EXTENT: u64 = 4 << 20;
/// Before the first extent.
const HEAD: u64 = 17 << 20;

#[derive(Clone, Debug, Default)]
pub struct Group {
    pub tags: BTreeSet<String>,
    pub lvs: BTreeMap<String, Volume>,
}

#[derive(Clone, Debug)]
pub struct Volume {
    pub segments: &'static str,
    pub extents: u64,
    /// Of a thin pool, in extents.
    pub metadata: u64,
    pub tags: BTreeSet<String>,
    pub active: bool,
    pub when_full: &'static str,
    /// Of a snapshot.
    pub origin: Option<String>,
    /// Of a classic snapshot: it had no room any more.
    pub overflowed: bool,
    /// Somebody else has its device open.
    pub held: bool,
    /// What was a snapshot is a volume, of which the kernel has not heard.
    pub stale: bool,
    /// Of a classic snapshot: how full its room is; of a thin pool: how full its data and its metadata are, if not as its
    /// volumes' files and a tenth of it say.
    pub percent: Option<f64>,
    pub metadata_percent: f64,
    pub ailment: &'static str,
}

impl Volume {
    pub fn plain(segments: &'static str, extents: u64) -> Self {
        let (tags, when_full) = (BTreeSet::new(), "queue");
        Self {
            segments,
            extents,
            metadata: 0,
            tags,
            active: true,
            when_full,
            origin: None,
            overflowed: false,
            held: false,
            stale: false,
            percent: None,
            metadata_percent: 10.0,
            ailment: "",
        }
    }

    pub fn is_classic(&self) -> bool {
        self.segments == "linear" && self.origin.is_some()
    }
}

#[derive(Debug, Default)]
pub struct State {
    /// The ids of physical volumes, and their groups.
    pub pvs: BTreeMap<PathBuf, (String, Option<String>)>,
    pub groups: BTreeMap<String, Group>,
    /// How many changes are still carried out, and whether the one behind them is carried out before it fails.
    pub fuse: Option<(usize, bool)>,
    pub shown: Vec<String>,
    /// Removed thick volumes, and whether they held nothing but zeros by then.
    pub emptied: BTreeMap<String, bool>,
    pub mapper: Kernel,
}

pub struct Model {
    pub dev: PathBuf,
    state: Mutex<State>,
    pub listener: Mutex<Option<Listener>>,
}

pub type Done = Result<(), String>;

/// A command line taken apart.
pub struct Words<'c> {
    options: Vec<(&'c str, &'c str)>,
    pub places: Vec<&'c str>,
}

impl<'c> Words<'c> {
    pub fn of(call: &'c Call) -> Self {
        const BARE: &[&str] = &[
            "--norestorefile",
            "--yes",
            "--nolocking",
            "--nosuffix",
            "--all",
            "--ignoreactivationskip",
            "--snapshot",
            "--splitsnapshot",
            "--force",
        ];
        let mut words = Self { options: Vec::new(), places: Vec::new() };
        let mut rest = call.arguments.iter().skip(1).map(String::as_str);
        while let Some(word) = rest.next() {
            match word {
                word if BARE.contains(&word) => words.options.push((word, "")),
                word if word.starts_with("--") => words.options.push((word, rest.next().expect("a value"))),
                word => words.places.push(word),
            }
        }
        words
    }

    fn all<'w>(&'w self, name: &'w str) -> impl Iterator<Item = &'c str> + 'w {
        self.options.iter().filter(move |(option, _)| *option == name).map(|(_, value)| *value)
    }

    pub fn get(&self, name: &str) -> Option<&'c str> {
        self.all(name).next()
    }

    fn bytes(&self, name: &str) -> u64 {
        let text = self.get(name).unwrap_or_else(|| panic!("{name} is missing")).trim_start_matches(['+', '-']);
        text.strip_suffix('b').unwrap_or(text).parse().expect("a number")
    }

    fn retag(&self, tags: &mut BTreeSet<String>) {
        tags.retain(|tag| !self.all("--deltag").any(|gone| gone == tag));
        tags.extend(self.all("--addtag").map(str::to_owned));
    }
}

impl Model {
    pub fn new(dev: &Path) -> Self {
        Self { dev: dev.to_owned(), state: Mutex::default(), listener: Mutex::default() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn node(&self, group: &str, name: &str) -> PathBuf {
        self.dev.join(group).join(name)
    }

    fn extents_of(device: &Path) -> u64 {
        (fs::metadata(device).map_or(0, |facts| facts.len()).saturating_sub(HEAD)) / EXTENT
    }

    fn total(state: &State, group: &str) -> u64 {
        let of_group = |(_, (_, owner)): &(&PathBuf, &(String, Option<String>))| owner.as_deref() == Some(group);
        state.pvs.iter().filter(of_group).map(|(device, _)| Self::extents_of(device)).sum()
    }

    fn free(state: &State, group: &str) -> u64 {
        let used = |lv: &Volume| match lv.segments {
            "thin" => 0,
            // With its spare.
            "thin-pool" => lv.extents + 2 * lv.metadata,
            _ => lv.extents,
        };
        let taken: u64 = state.groups[group].lvs.values().map(used).sum();
        // Devices that are gone take their extents with them.
        Self::total(state, group).saturating_sub(taken)
    }

    /// Writes what says on the device that it is a physical volume, and of which group.
    fn label(device: &Path, uuid: &str, group: Option<&str>) {
        let mut label = [&b"LABELONE"[..], &[0; 12], &32u32.to_le_bytes(), b"LVM2 001"].concat();
        label.extend(uuid.bytes().filter(|byte| *byte != b'-'));
        for number in [1u64 << 30, HEAD, 0, 0, 0, 4096, 16 << 20, 0, 0] {
            label.extend_from_slice(&number.to_le_bytes());
        }
        let mut area = [&[0; 4][..], b" LVM2 x[5A%r0N*>", &[0; 20]].concat();
        for number in [512, if group.is_some() { 99u64 } else { 0 }] {
            area.extend_from_slice(&number.to_le_bytes());
        }
        let text = format!("{} {{\n", group.unwrap_or("none"));
        let file = File::options().write(true).open(device).unwrap();
        for (at, bytes) in [(512, label.as_slice()), (4096, &area), (4096 + 512, text.as_bytes())] {
            file.write_all_at(bytes, at).unwrap();
        }
    }

    fn carry_out(&self, state: &mut State, call: &Call) -> Done {
        let words = Words::of(call);
        let visible: Vec<PathBuf> = words.get("--devices").unwrap().split(',').map(PathBuf::from).collect();
        for group in words.places.iter().map(|place| place.split('/').next().unwrap()) {
            let missing = state.pvs.iter().any(|(device, (_, owner))| {
                owner.as_deref() == Some(group) && (!visible.contains(device) || !device.exists())
            });
            if missing {
                return Err(format!("Cannot change VG {group} while PVs are missing."));
            }
        }
        match call.verb() {
            "pvcreate" => {
                let device = PathBuf::from(words.places[0]);
                if state.pvs.contains_key(&device) || !visible.contains(&device) {
                    return Err(format!("{} cannot be initialised", device.display()));
                }
                let uuid = words.get("--uuid").unwrap().to_owned();
                Self::label(&device, &uuid, None);
                state.pvs.insert(device, (uuid, None));
            }
            "vgcreate" | "vgextend" => self.gather(state, &words, call.verb() == "vgcreate")?,
            "vgchange" => words.retag(&mut state.groups.get_mut(words.places[0]).ok_or("no such group")?.tags),
            "vgremove" => {
                let name = words.places[0];
                if !state.groups.get(name).ok_or("no such group")?.lvs.is_empty() {
                    return Err(format!("Volume group {name} still contains logical volumes"));
                }
                state.groups.remove(name);
                for (device, (uuid, owner)) in &mut state.pvs {
                    if owner.take_if(|owner| owner == name).is_some() {
                        Self::label(device, uuid, None);
                    }
                }
            }
            "lvcreate" if words.get("--snapshot").is_some() => self.share(state, &words)?,
            "lvcreate" => self.create(state, &words)?,
            "lvrename" => self.rename(state, &words)?,
            "lvconvert" => self.split(state, &words)?,
            "lvchange" if words.get("--activate").is_some() => self.switch(state, &words)?,
            "lvchange" | "lvextend" | "lvreduce" | "lvremove" => self.alter(state, &words, call.verb())?,
            verb => panic!("{verb} is not modelled"),
        }
        Ok(())
    }

    fn gather(&self, state: &mut State, words: &Words, new: bool) -> Done {
        let (name, devices) = words.places.split_first().unwrap();
        if new == state.groups.contains_key(*name) {
            return Err(format!("the group {name} is there, or is not"));
        }
        for device in devices {
            let (uuid, owner) = state.pvs.get_mut(Path::new(device)).ok_or("not a physical volume")?;
            if owner.replace((*name).to_owned()).is_some() {
                return Err(format!("{device} is in a group"));
            }
            Self::label(Path::new(device), uuid, Some(name));
        }
        words.retag(&mut state.groups.entry((*name).to_owned()).or_default().tags);
        Ok(())
    }

    fn create(&self, state: &mut State, words: &Words) -> Done {
        let (group, name) = (words.places[0], words.get("--name").unwrap());
        let segments = ["linear", "thin", "thin-pool"].into_iter().find(|it| words.get("--type") == Some(it)).unwrap();
        let extents = match segments {
            "thin" => words.bytes("--virtualsize").div_ceil(EXTENT),
            _ => words.bytes("--extents"),
        };
        let metadata = if segments == "thin-pool" { words.bytes("--poolmetadatasize") / EXTENT } else { 0 };
        let free = Self::free(state, group);
        let lvs = &mut state.groups.get_mut(group).ok_or("no such group")?.lvs;
        if lvs.contains_key(name) {
            return Err(format!("Logical Volume {name} already exists"));
        }
        if segments != "thin" && extents + 2 * metadata > free {
            return Err("insufficient free space".to_owned());
        }
        let mut lv = Volume { metadata, ..Volume::plain(segments, extents) };
        words.retag(&mut lv.tags);
        if segments != "thin-pool" {
            self.lengthen(group, name, &lv);
        }
        lvs.insert(name.to_owned(), lv);
        Ok(())
    }

    /// A snapshot: what its origin holds now, and stays what it is.
    fn share(&self, state: &mut State, words: &Words) -> Done {
        let ((group, origin), name) = (words.places[0].split_once('/').unwrap(), words.get("--name").unwrap());
        let free = Self::free(state, group);
        let lvs = &mut state.groups.get_mut(group).ok_or("no such group")?.lvs;
        let of = lvs.get(origin).ok_or("no such origin")?.clone();
        if lvs.contains_key(name) {
            return Err(format!("Logical Volume {name} already exists"));
        }
        let mut lv = Volume { active: of.segments == "linear", origin: Some(origin.to_owned()), ..of.clone() };
        lv.tags.clear();
        words.retag(&mut lv.tags);
        if of.segments == "linear" {
            assert!(of.active && !of.is_classic(), "a classic snapshot is of a volume that is active");
            lv.extents = words.bytes("--extents");
            if lv.extents > free {
                return Err("insufficient free space".to_owned());
            }
        } else {
            assert_eq!(words.get("--setactivationskip"), Some("y"));
        }
        fs::copy(self.node(group, origin), self.node(group, name)).unwrap();
        lvs.insert(name.to_owned(), lv);
        Ok(())
    }

    fn rename(&self, state: &mut State, words: &Words) -> Done {
        let [group, from, to] = words.places.as_slice() else { return Err("three names are needed".to_owned()) };
        let lvs = &mut state.groups.get_mut(*group).ok_or("no such group")?.lvs;
        if lvs.contains_key(*to) {
            return Err(format!("Logical Volume {to} already exists"));
        }
        let lv = lvs.remove(*from).ok_or("no such volume")?;
        lvs.insert((*to).to_owned(), lv);
        fs::rename(self.node(group, from), self.node(group, to)).unwrap();
        Ok(())
    }

    fn alter(&self, state: &mut State, words: &Words, verb: &str) -> Done {
        let (group, name) = words.places[0].split_once('/').unwrap();
        let free = Self::free(state, group);
        let lvs = &mut state.groups.get_mut(group).ok_or("no such group")?.lvs;
        if verb == "lvremove" {
            let lv = lvs.get(name).ok_or("no such volume")?;
            if lv.segments == "thin-pool" && lvs.values().any(|other| other.segments == "thin") {
                return Err("the pool has volumes".to_owned());
            }
            let depends = |other: &Volume| other.is_classic() && other.origin.as_deref() == Some(name);
            assert!(!lvs.values().any(depends), "{name} would take its classic snapshots with it");
            if lv.segments == "linear" {
                let zeros = !lv.stale && fs::read(self.node(group, name)).unwrap().iter().all(|byte| *byte == 0);
                state.emptied.insert(name.to_owned(), zeros);
            }
            if lv.segments != "thin-pool" {
                fs::remove_file(self.node(group, name)).unwrap();
            }
            lvs.remove(name);
            // What was made of it in a thin pool has no origin any more.
            lvs.values_mut().for_each(|lv| drop(lv.origin.take_if(|origin| origin == name)));
            return Ok(());
        }
        let grows_beside = lvs.values().any(|lv| lv.is_classic() && lv.origin.as_deref() == Some(name));
        if verb == "lvextend" && grows_beside {
            return Err("Snapshot origin volumes can be resized only while inactive: try lvchange -an.".to_owned());
        }
        let lv = lvs.get_mut(name).ok_or("no such volume")?;
        if verb == "lvextend" {
            if words.get("--poolmetadatasize").is_some() {
                let old = lv.metadata;
                lv.metadata += words.bytes("--poolmetadatasize") / EXTENT;
                lv.metadata_percent *= old as f64 / lv.metadata as f64;
                return Ok(());
            }
            let more = words.bytes("--extents");
            if lv.segments != "thin" && more > free {
                return Err("insufficient free space".to_owned());
            }
            lv.percent = lv.percent.map(|percent| percent * lv.extents as f64 / (lv.extents + more) as f64);
            lv.extents += more;
            if lv.segments != "thin-pool" {
                let lv = lv.clone();
                self.lengthen(group, name, &lv);
            }
            return Ok(());
        }
        if verb == "lvreduce" {
            assert!(!grows_beside, "LVM would ask back");
            lv.extents -= words.bytes("--extents");
            let lv = lv.clone();
            self.lengthen(group, name, &lv);
            return Ok(());
        }
        words.retag(&mut lv.tags);
        if words.get("--errorwhenfull").is_some() {
            lv.when_full = "error";
        }
        Ok(())
    }

    fn report(&self, state: &State, visible: &[PathBuf]) -> Value {
        let seen = |device: &Path| visible.iter().any(|it| it == device) && device.exists();
        let list = |tags: &BTreeSet<String>| tags.iter().cloned().collect::<Vec<_>>().join(",");
        let mut sections = Vec::new();
        for (name, group) in &state.groups {
            let mine: Vec<(&PathBuf, &String)> = state
                .pvs
                .iter()
                .filter(|(_, (_, owner))| owner.as_ref() == Some(name))
                .map(|(device, (uuid, _))| (device, uuid))
                .collect();
            if !mine.iter().any(|(device, _)| seen(device)) {
                continue;
            }
            let missing = mine.iter().filter(|(device, _)| !seen(device)).count();
            let pvs: Vec<Value> = mine.iter().map(|(device, uuid)| pv_row(device, uuid, name, seen(device))).collect();
            let lvs: Vec<Value> =
                group.lvs.iter().map(|(lv, volume)| self.lv_row(name, lv, volume, &list(&volume.tags))).collect();
            let segments: Vec<Value> = group.lvs.iter().map(|(lv, volume)| seg_row(name, lv, volume)).collect();
            let total = Self::total(state, name) * EXTENT;
            sections.push(json!({ "vg": [{
                "vg_name": name, "vg_uuid": name, "vg_size": total.to_string(),
                "vg_free": (Self::free(state, name) * EXTENT).to_string(), "vg_extent_size": EXTENT.to_string(),
                "vg_missing_pv_count": missing.to_string(), "vg_tags": list(&group.tags),
            }], "pv": pvs, "lv": lvs, "seg": segments }));
        }
        let spare = state.pvs.iter().filter(|(device, (_, owner))| owner.is_none() && seen(device));
        let spare: Vec<Value> = spare.map(|(device, (uuid, _))| pv_row(device, uuid, "", true)).collect();
        sections.push(json!({ "pv": spare }));
        json!({ "report": sections })
    }

    fn lv_row(&self, group: &str, name: &str, lv: &Volume, tags: &str) -> Value {
        let is_pool = lv.segments == "thin-pool";
        let used: u64 = match is_pool {
            true => fs::read_dir(self.dev.join(group))
                .map_or(0, |files| files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()),
            false => 0,
        };
        let percent = |used: u64| format!("{:.2}", (100.0 * used as f64 / (lv.extents * EXTENT) as f64).min(100.0));
        json!({
            "lv_name": name, "vg_name": group, "lv_size": (lv.extents * EXTENT).to_string(),
            "lv_metadata_size": if is_pool { (lv.metadata * EXTENT).to_string() } else { String::new() },
            "pool_lv": if lv.segments == "thin" { "thin-pool" } else { "" },
            "origin": lv.origin.clone().unwrap_or_default(),
            "lv_snapshot_invalid": if lv.overflowed && lv.active { "snapshot invalid" } else { "unknown" },
            "data_percent": match lv.active {
                true if lv.overflowed => "100.00".to_owned(),
                true if is_pool || lv.is_classic() => lv.percent.map_or_else(|| percent(used), |it| format!("{it:.2}")),
                _ => String::new(),
            },
            "metadata_percent": if is_pool && lv.active { format!("{:.2}", lv.metadata_percent) } else { String::new() },
            "lv_when_full": if is_pool { lv.when_full } else { "" }, "lv_health_status": lv.ailment,
            "lv_active": if lv.active { "active" } else { "" }, "lv_tags": tags,
        })
    }
}

fn seg_row(group: &str, name: &str, lv: &Volume) -> Value {
    let chunk = if lv.segments == "thin-pool" { "65536" } else { "0" };
    json!({ "lv_name": name, "vg_name": group, "segtype": lv.segments, "chunk_size": chunk })
}

fn pv_row(device: &Path, uuid: &str, group: &str, seen: bool) -> Value {
    let size = fs::metadata(device).map_or(0, |facts| facts.len());
    json!({
        "pv_name": if seen { device.to_str().unwrap() } else { "[unknown]" }, "pv_uuid": uuid, "vg_name": group,
        "pv_size": (size.saturating_sub(HEAD) / EXTENT * EXTENT).to_string(), "dev_size": size.to_string(),
        "pv_missing": if seen { "" } else { "missing" }, "pv_mda_count": if seen { "1" } else { "0" },
    })
}

impl Lvm for Model {
    fn call(&self, call: &Call) -> Result<Vec<u8>, LvmError> {
        let failed = |complaint: String| LvmError::Failed { call: call.shown(), end: "exit code 5".into(), complaint };
        let mut state = self.state();
        // Whoever overwrites a label has overwritten it for LVM too.
        state.pvs.retain(|device, _| {
            let mut label = [0; 8];
            let read = File::open(device).and_then(|file| file.read_exact_at(&mut label, 512));
            read.is_err() || &label == b"LABELONE"
        });
        if call.looks {
            state.mapper.looks += 1;
            let words = Words::of(call);
            let visible: Vec<PathBuf> = words.get("--devices").unwrap().split(',').map(PathBuf::from).collect();
            return Ok(self.report(&state, &visible).to_string().into_bytes());
        }
        if let Some(listener) = &*self.listener.lock().unwrap() {
            listener(call);
        }
        state.shown.push(call.shown());
        match &mut state.fuse {
            Some((0, after)) => {
                let after = *after;
                state.fuse = None;
                if after {
                    self.carry_out(&mut state, call).map_err(failed)?;
                    self.cut_short(&mut state, call);
                }
                return Err(failed("killed".to_owned()));
            }
            Some((left, _)) => *left -= 1,
            None => {}
        }
        self.carry_out(&mut state, call).map_err(failed).map(|()| Vec::new())
    }
}
