//! Images: room, attempts, seals, volumes made of them, and their end.

use super::moves::site;
use super::*;
use crate::manager::check::{Findings, check_state};

fn digest(byte: u8) -> Digest {
    Digest::from_bytes([byte; 32])
}

impl World {
    fn wish(&mut self, name: &str, mib: u64, pool: Option<&str>) -> WantedImage {
        WantedImage {
            id: ImageId::from_bytes(self.id()),
            base: VolumeId::from_bytes(self.id()),
            name: name.parse().unwrap(),
            size: ByteSize::mib(mib),
            format: ImageFormat::Raw,
            pool: pool.map(str::to_owned),
            writer: None,
        }
    }

    fn import(&mut self, name: &str, mib: u64, pool: Option<&str>) -> Result<(Image, Volume), Refusal> {
        let wish = self.wish(name, mib, pool);
        self.write(|draft| import_image(draft, &somebody(), &wish))
    }

    fn seal(&mut self, name: &str, upload: u64, sha256: Digest) -> Result<Image, Refusal> {
        self.write(|draft| seal_image(draft, &somebody(), name, upload, sha256))
    }

    pub(super) fn image(&self, name: &str) -> Image {
        let id = resolve::<Image>(&self.view, name).unwrap();
        self.view.get::<Image>(id).unwrap().clone()
    }

    fn base(&self, image: &str, number: usize) -> Volume {
        self.view.get::<Volume>(self.image(image).status.bases[number]).unwrap().clone()
    }

    /// The block service did what was asked of a volume, or could not.
    fn done(&mut self, id: VolumeId, failure: Option<&str>) {
        let volume = self.view.get::<Volume>(id).unwrap().clone();
        let seen = match (failure, volume.meta.is_removed()) {
            (Some(_), _) => Observed::Unknown,
            (None, true) => Observed::Absent,
            (None, false) => Observed::Known(ServedVolume { size: volume.spec.size, exports: Vec::new() }),
        };
        let (generation, failure) = (volume.meta.generation, failure.map(str::to_owned));
        let report = [Report::Volume(VolumeReport { id, generation, volume: seen, progress: None, failure })];
        self.write(|draft| take_reports(draft, service_id(), session_id(), &report)).unwrap();
    }

    pub(super) fn whole(&mut self, name: &str, mib: u64, pool: Option<&str>) -> Image {
        let (image, base) = self.import(name, mib, pool).unwrap();
        self.done(base.meta.id, None);
        self.seal(name, image.spec.upload, digest(1)).unwrap();
        self.done(base.meta.id, None);
        self.image(name)
    }

    fn of_image(&mut self, name: &str, image: &str, mib: Option<u64>, pool: Option<&str>) -> Result<Volume, Refusal> {
        let (id, base) = (VolumeId::from_bytes(self.id()), VolumeId::from_bytes(self.id()));
        let origin = Some(Origin::Image { reference: image.into(), base });
        let wanted = WantedVolume { size: mib.map(ByteSize::mib), pool: pool.map(str::to_owned), origin };
        let name = name.parse().unwrap();
        self.write(|draft| create_volume(draft, &somebody(), id, &name, &wanted))
    }

    /// The pool turns out to lie where blocks cannot be shared.
    fn share_nothing(&mut self, pool: &Pool) {
        let capacity = PoolCapacity { capacity: ByteSize::mib(1000), ..PoolCapacity::default() };
        let (id, generation) = (pool.meta.id, pool.meta.generation);
        let report = [Report::Pool(PoolReport { id, generation, capacity: Observed::Known(capacity), failure: None })];
        self.write(|draft| take_reports(draft, service_id(), session_id(), &report)).unwrap();
    }
}

#[test]
fn an_import_makes_room_for_a_hidden_base_and_its_seal_makes_the_image_ready() {
    let mut world = World::new();
    world.pool("p", 20);
    let (image, base) = world.import("i", 8, None).unwrap();
    assert_eq!((image.spec.upload, image.status.bases.clone()), (1, vec![base.meta.id]));
    world.assert_adds_up();
    world.done(base.meta.id, None);
    assert_eq!(world.image("i").status.phase, Phase::Pending, "nothing was written yet");
    world.seal("i", 1, digest(1)).unwrap();
    assert_eq!(world.seal("i", 1, digest(1)).unwrap().meta, world.image("i").meta, "a repetition changes nothing");
    assert!(world.seal("i", 1, digest(2)).is_err());
    // A late word on what was before the seal.
    let (id, generation) = (base.meta.id, base.meta.generation);
    let served = ServedVolume { size: base.spec.size, exports: Vec::new() };
    let late = [Report::Volume(VolumeReport {
        id,
        generation,
        volume: Observed::Known(served),
        progress: None,
        failure: None,
    })];
    world.write(|draft| take_reports(draft, service_id(), session_id(), &late)).unwrap();
    assert_eq!(world.image("i").status.phase, Phase::Pending);
    world.done(id, None);
    assert!(world.image("i").is_whole());
    world.assert_adds_up();
}

#[test]
fn contents_that_fit_onto_no_device_or_into_no_pool_are_refused() {
    let mut world = World::new();
    world.pool("p", 20);
    for bytes in [0, 1 << 63, u64::MAX] {
        let wish = WantedImage { size: ByteSize::bytes(bytes), ..world.wish("i", 1, None) };
        let refused = world.write(|draft| import_image(draft, &somebody(), &wish)).unwrap_err();
        assert!(refused.to_string().contains("fits onto no device"), "{refused}");
    }
    assert!(matches!(world.import("i", 1 << 30, None), Err(Refusal::NoRoomAnywhere { .. })));
    assert!(matches!(world.import("i", 21, Some("p")), Err(Refusal::NoRoom { .. })));
    assert!(world.view.images.is_empty() && world.view.volumes.is_empty());
    let wish = WantedImage { size: ByteSize::bytes(1000), ..world.wish("odd", 1, None) };
    let (_, base) = world.write(|draft| import_image(draft, &somebody(), &wish)).unwrap();
    assert_eq!(base.spec.size, ByteSize::bytes(1024));
}

#[test]
fn a_repeated_import_takes_over_and_the_one_before_is_told() {
    let mut world = World::new();
    world.pool("p", 20);
    let (first, base) = world.import("i", 8, None).unwrap();
    world.done(base.meta.id, None);
    let uploaded = Some(Uploaded { bytes: ByteSize::mib(4), sha256: digest(4) });
    world.write(|draft| record_upload(draft, "i", 1, uploaded)).unwrap();
    let beyond = Some(Uploaded { bytes: ByteSize::mib(9), sha256: digest(4) });
    assert!(world.write(|draft| record_upload(draft, "i", 1, beyond)).is_err());
    let (second, again) = world.import("i", 8, None).unwrap();
    assert_eq!((second.meta.id, again.meta.id), (first.meta.id, base.meta.id));
    assert_eq!((second.spec.upload, second.status.uploaded), (2, uploaded), "it goes on where the first one was");
    assert_ne!(again.spec.image, base.spec.image, "the first one is cut off");
    let refused = world.seal("i", 1, digest(1)).unwrap_err().to_string();
    assert!(refused.contains("another import of image 'i' has taken over"), "{refused}");
    assert!(world.write(|draft| record_upload(draft, "i", 1, None)).is_err());
    let refused = world.import("i", 9, None).unwrap_err().to_string();
    assert!(refused.contains("image remove i"), "{refused}");
    world.assert_adds_up();
}

#[test]
fn a_content_that_turned_out_wrong_is_imported_anew_from_its_start() {
    let mut world = World::new();
    world.pool("p", 20);
    let (_, base) = world.import("i", 8, None).unwrap();
    world
        .write(|draft| record_upload(draft, "i", 1, Some(Uploaded { bytes: ByteSize::mib(4), sha256: digest(4) })))
        .unwrap();
    world.seal("i", 1, digest(1)).unwrap();
    world.done(base.meta.id, Some("it differs"));
    let failed = world.image("i");
    assert_eq!((failed.status.phase, failed.status.message.as_deref()), (Phase::Failed, Some("it differs")));
    assert!(world.of_image("v", "i", None, None).unwrap_err().to_string().contains("not there as a whole"));
    let (again, _) = world.import("i", 8, None).unwrap();
    assert_eq!((again.spec.upload, again.spec.sha256, again.status.uploaded), (2, None, None));
    assert_eq!((again.status.phase, again.status.message), (Phase::Pending, None));
    world.seal("i", 2, digest(2)).unwrap();
    world.done(base.meta.id, None);
    assert!(world.image("i").is_whole());
    assert!(matches!(world.import("i", 8, None), Err(Refusal::NameTaken { .. })));
}

#[test]
fn a_volume_is_a_copy_beside_a_base_and_the_first_in_another_pool_brings_one_there() {
    let mut world = World::new();
    let (home, other) = (world.pool("home", 100), world.pool("other", 300));
    let image = world.whole("i", 8, Some("home"));
    let refused = world.of_image("v", "i", Some(7), None).unwrap_err().to_string();
    assert!(refused.contains("'i' holds 8MiB") && refused.contains("volume of 7MiB"), "{refused}");
    let near = world.of_image("near", "i", None, None).unwrap();
    assert!(near.is_in(home.meta.id), "where a base is, before where there is more room");
    assert_eq!(near.spec.source, Some(Source::Volume(image.status.bases[0])));
    let far = world.of_image("far", "i", Some(16), Some("other")).unwrap();
    let fetched = world.base("i", 1);
    assert_eq!((far.spec.source, far.spec.size), (Some(Source::Volume(fetched.meta.id)), ByteSize::mib(16)));
    assert!(fetched.is_in(other.meta.id));
    let supply = fetched.spec.image.as_ref().unwrap().supply().unwrap();
    assert_eq!((supply.volume, supply.pool, supply.sha256), (image.status.bases[0], home.meta.id, Some(digest(1))));
    let second = world.of_image("second", "i", None, Some("other")).unwrap();
    assert_eq!(second.spec.source, far.spec.source, "one base a pool");
    world.assert_adds_up();
    assert!(world.image("i").is_whole());
}

#[test]
fn where_blocks_cannot_be_shared_each_volume_is_filled_by_itself() {
    let mut world = World::new();
    world.pool("home", 100);
    let flat = world.pool("flat", 1000);
    world.share_nothing(&flat);
    let image = world.whole("i", 8, Some("home"));
    let volume = world.of_image("v", "i", None, Some("flat")).unwrap();
    assert_eq!(volume.spec.source, None);
    assert_eq!(volume.spec.image.as_ref().unwrap().supply().unwrap().volume, image.status.bases[0]);
    let refused = world.write(|draft| resize_volume(draft, &somebody(), "v", ByteSize::mib(9), false)).unwrap_err();
    assert!(refused.to_string().contains("still being filled"), "{refused}");
    let refused = world.write(|draft| remove_image(draft, &somebody(), "i")).unwrap_err().to_string();
    assert!(refused.contains("'v' are being made of image 'i'"), "{refused}");
    world.done(volume.meta.id, None);
    world.write(|draft| resize_volume(draft, &somebody(), "v", ByteSize::mib(9), false)).unwrap();
    world.write(|draft| remove_image(draft, &somebody(), "i")).unwrap();
    world.assert_adds_up();
}

#[test]
fn an_image_goes_with_its_last_base_and_its_volumes_stay() {
    let mut world = World::new();
    world.pool("home", 100);
    world.pool("other", 100);
    world.whole("i", 8, Some("home"));
    let far = world.of_image("far", "i", None, Some("other")).unwrap();
    let refused = world.write(|draft| remove_image(draft, &somebody(), "i")).unwrap_err().to_string();
    assert!(refused.contains("'far'"), "{refused}");
    let refused = world.write(|draft| remove_pool(draft, &somebody(), "home")).unwrap_err().to_string();
    assert!(refused.contains("images 'i'") && refused.contains("image remove"), "{refused}");
    let bases = world.image("i").status.bases;
    bases.iter().for_each(|base| world.done(*base, None));
    world.done(far.meta.id, None);
    assert!(world.write(|draft| remove_pool(draft, &somebody(), "other")).is_err(), "a volume is in it");
    world.write(|draft| remove_image(draft, &somebody(), "i")).unwrap();
    assert!(matches!(world.import("i", 8, None), Err(Refusal::Removing { .. })));
    assert!(matches!(world.of_image("v", "i", None, None), Err(Refusal::Removing { .. })));
    world.done(bases[1], None);
    assert_eq!(world.image("i").status.bases, [bases[0]]);
    world.done(bases[0], None);
    assert!(world.view.images.is_empty());
    assert_eq!(world.view.volumes.len(), 1, "the volume stays");
    world.assert_adds_up();
    world.import("i", 8, None).unwrap();
}

#[test]
fn a_pool_takes_along_what_it_keeps_of_an_image_that_another_pool_keeps_too() {
    let mut world = World::new();
    let home = world.pool("home", 100);
    world.pool("other", 100);
    world.whole("i", 8, Some("home"));
    let far = world.of_image("far", "i", None, Some("other")).unwrap();
    let bases = world.image("i").status.bases;
    world.done(bases[1], None);
    world.done(far.meta.id, None);
    world.write(|draft| remove_pool(draft, &somebody(), "home")).unwrap();
    world.done(bases[0], None);
    assert_eq!(world.image("i").status.bases, [bases[1]]);
    assert!(world.image("i").is_whole());
    let gone = world.view.get::<Pool>(home.meta.id).unwrap().clone();
    world.report_pool(&gone, Observed::Absent);
    assert!(world.view.get::<Pool>(home.meta.id).is_none());
    world.assert_adds_up();
    let near = world.of_image("near", "i", None, None).unwrap();
    assert_eq!(near.spec.source, Some(Source::Volume(bases[1])));
}

#[test]
fn a_base_that_cannot_be_read_is_a_remark_and_an_image_that_nothing_keeps_any_more_has_failed() {
    let mut world = World::of_sites(2, 100);
    let base = world.whole("i", 8, Some("p1")).status.bases[0];
    world.done(base, Some("its device is gone"));
    assert!(world.image("i").is_whole(), "the device may come back");
    let mut findings = Findings::default();
    check_state(&world.view, &mut findings);
    assert_eq!(findings.faults, Vec::<String>::new());
    assert_eq!(findings.remarks, ["nothing that keeps image 'i' can be read now: its device is gone"]);
    world.reached(base);

    // Another one is on its way to the other service when this one is lost.
    world.of_image("v", "i", None, Some("p2")).unwrap();
    assert_eq!(world.image("i").status.bases.len(), 2);
    world.silence_site(1);
    while world.write(|draft| remove_service(draft, &somebody(), site(1), true)).unwrap().is_none() {}
    let lost = world.image("i");
    assert_eq!((lost.status.phase, lost.status.bases.len()), (Phase::Failed, 1));
    world.assert_sound();
}

#[test]
fn nobody_does_anything_to_what_keeps_an_image() {
    let mut world = World::new();
    world.pool("p", 100);
    let image = world.whole("i", 8, None);
    let base = image.status.bases[0].to_string();
    let name = world.base("i", 0).meta.name.to_string();
    for reference in [&base, &name] {
        let refusals = [
            world.write(|draft| remove_volume(draft, &somebody(), reference, None)).unwrap_err(),
            world.write(|draft| resize_volume(draft, &somebody(), reference, ByteSize::mib(9), false)).unwrap_err(),
            world.write(|draft| limit_volume(draft, &somebody(), reference, LimitChanges::default())).unwrap_err(),
        ];
        for refused in refusals {
            assert!(refused.to_string().contains("content of image 'i'"), "{refused}");
        }
        let copy = WantedVolume { size: None, pool: None, origin: Some(Origin::Volume(reference.clone())) };
        let (id, new) = (VolumeId::from_bytes(world.id()), "copy".parse().unwrap());
        assert!(world.write(|draft| create_volume(draft, &somebody(), id, &new, &copy)).is_err());
    }
    world.assert_adds_up();
}

#[test]
fn an_image_whose_only_base_is_lost_says_so_and_can_be_imported_again() {
    let mut world = World::new();
    world.pool("p", 2000);
    for number in 0..20 {
        world.whole(&format!("i{number}"), 8, None);
    }
    world.fall_silent();
    let mut rounds = 0;
    while world.write(|draft| remove_service(draft, &somebody(), service_id(), true)).unwrap().is_none() {
        world.assert_adds_up();
        rounds += 1;
        assert!(rounds < 10);
    }
    let lost = world.image("i0");
    assert_eq!((lost.status.phase, lost.status.bases.len()), (Phase::Failed, 0));
    assert!(lost.status.message.unwrap().contains("import it again"));
    world.write(|draft| remove_image(draft, &somebody(), "i0")).unwrap();
    assert_eq!(world.view.images.len(), 19);
    world.assert_adds_up();
}
