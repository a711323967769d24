//! The cluster in one thread and on one clock: managers over one store, block services with their disks, and links between
//! them that break, all of it decided by a seed. What is simulated is the product's own: planners on drafts of views, both
//! ends of sessions, and reconcile; what drives them is modelled on `manager::writer`, `manager::dispatcher` and
//! `block::agent`.
//!
//! After every step the invariants of the crate's front page are looked at: data are destroyed only by their tombstone, no
//! device goes back to an older generation, what was made once is never made anew, nobody stops serving what is assigned,
//! copies, snapshots and volumes of images have the bytes that they are of and volumes are put back once, a volume that
//! moves keeps its bytes and is served in one place at the most, nobody is let in who was detached, nothing new comes to a
//! host that is being emptied, what is on a host that was given up stays there, promises and names add up; and once
//! everything is healed, everything comes to rest as it was asked for.
//!
//! `SYMPHONY_SIMULATION_SEEDS` says how many worlds live, `SYMPHONY_SIMULATION_SEED` which is the first.
//!
//! Known limits: of snapshots no sets, and what is fetched from another host arrives; stores never fail, they are only seen
//! late.

mod disk;
mod host;
mod image;
mod judge;
mod manager;
mod moving;
mod operator;
mod store;
mod world;

use crate::model::*;
use disk::Violation;
use judge::Deeds;
use std::time::Instant;
use world::World;

/// Worlds that live in every run of the tests.
const SEEDS: u64 = 60;
/// Worlds in which a planted bug must show.
const PLANTED_SEEDS: u64 = 300;

/// A bug that is put in, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    Nothing,
    /// Services take any assignment, whatever its generation, and managers admit them with an old view.
    AnyGeneration,
    /// Services forget what was made once.
    ForgetMade,
    /// Services take a change that does not follow the one before.
    SkipGap,
    /// Managers admit services with a view that is older than what these hold.
    AdmitBehind,
    /// Services destroy what is not assigned any more, and managers admit them with an old view.
    DestroyDropped,
    /// The store does not look at conditions.
    BlindStore,
    /// Copies of snapshots have what their volumes hold now.
    CopyLive,
    /// Services take snapshots again that they have.
    TakeAnew,
    /// Services put a volume back each time that they make it as it should be.
    PutBackAgain,
    /// Services say that a client is out, and let it in.
    KeepGrants,
    /// Services that are no members any more clear their disks.
    WipeWhenRemoved,
    /// Services take any bytes for those that an image was sealed with.
    SealUnseen,
    /// Services fill volumes of images with something else.
    FillAnything,
    /// Managers place volumes on services that are being drained.
    PlaceAnywhere,
    /// Services let clients go on with what is being moved.
    ServeLeaving,
    /// Services fill copies of what is moved with something else.
    FetchAnything,
}

/// A block service that has joined.
fn record(id: ServiceId, place: usize) -> Service {
    let host = format!("host-{place}");
    Service {
        meta: Meta::new(id, host.parse().expect("a name"), Timestamp::EPOCH),
        spec: ServiceSpec { service_type: ServiceType::Block, labels: Default::default(), draining: None },
        status: ServiceStatus {
            state: ServiceState::Joined,
            since: Timestamp::EPOCH,
            host_name: host,
            addresses: Addresses::default(),
            version: "0".into(),
            manager: None,
            certificate: None,
        },
    }
}

fn live(seed: u64, planted: Planted) -> Result<(), Violation> {
    World::new(seed, planted).live()
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn no_world_breaks_an_invariant_and_all_come_to_rest() {
    let first = from_environment("SYMPHONY_SIMULATION_SEED").unwrap_or(0);
    let count = from_environment("SYMPHONY_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let began = Instant::now();
    for seed in first..first + count {
        if let Err(violation) = live(seed, Planted::Nothing) {
            panic!("SYMPHONY_SIMULATION_SEED={seed} SYMPHONY_SIMULATION_SEEDS=1: {violation}");
        }
    }
    let pace = count as f64 * 60.0 / began.elapsed().as_secs_f64();
    println!("{count} worlds lived, {pace:.0} a minute");
}

#[test]
fn a_seed_has_one_world() {
    let end = |seed| {
        let mut world = World::new(seed, Planted::Nothing);
        let lived = world.live();
        (lived, world.story())
    };
    assert_eq!(end(5), end(5));
    assert_ne!(end(5).1, end(6).1);
}

#[test]
fn a_world_is_full_of_deeds() {
    const WORLDS: usize = 60;
    let mut all = Deeds::default();
    for seed in 0..WORLDS as u64 {
        let mut world = World::new(seed, Planted::Nothing);
        world.live().expect("no violation");
        let Deeds { commits, sessions, buried, lost, written, changed, .. } = world.deeds();
        let Deeds { taken, copied, put_back, detached, drained, given_up, images, moved, .. } = world.deeds();
        all.commits += commits;
        all.sessions += sessions;
        all.buried += buried;
        all.lost += lost;
        all.written += written;
        all.changed += changed;
        all.taken += taken;
        all.copied += copied;
        all.put_back += put_back;
        all.detached += detached;
        all.drained += drained;
        all.given_up += given_up;
        all.images += images;
        all.moved += moved;
    }
    let enough = all.commits > 50 * WORLDS
        && all.sessions > 4 * WORLDS
        && all.buried > WORLDS
        && all.lost > 0
        && all.written > WORLDS
        && all.changed > WORLDS
        && all.taken > WORLDS / 2
        && all.copied > WORLDS / 8
        && all.put_back > 0
        && all.detached > WORLDS / 8
        && all.drained > 0
        && all.given_up > 0
        && all.images > 0
        && all.moved > WORLDS / 5;
    assert!(enough, "{all:?}");
}

/// The first violation that a planted bug leads to.
fn found(planted: Planted) -> Violation {
    let violation = (0..PLANTED_SEEDS).find_map(|seed| live(seed, planted).err());
    violation.unwrap_or_else(|| panic!("{planted:?} is not found"))
}

/// Whether a planted bug leads to a violation of these words, in some world.
fn is_found_as(planted: Planted, words: &str) -> bool {
    (0..PLANTED_SEEDS).filter_map(|seed| live(seed, planted).err()).any(|violation| violation.contains(words))
}

#[test]
fn a_service_that_ignores_generations_is_found_going_back_on_a_disk() {
    assert!(is_found_as(Planted::AnyGeneration, "goes back from"));
}

#[test]
fn a_service_that_forgets_what_was_made_is_found_making_it_anew() {
    assert!(is_found_as(Planted::ForgetMade, "made anew"));
}

#[test]
fn a_service_that_skips_a_gap_in_its_assignments_is_found_without_rest() {
    let violation = found(Planted::SkipGap);
    assert!(violation.contains("does not come to rest"), "{violation}");
}

#[test]
fn a_manager_that_admits_with_an_old_view_is_found_taking_volumes_away() {
    assert!(is_found_as(Planted::AdmitBehind, "stops serving it"));
}

#[test]
fn a_service_that_destroys_what_is_not_assigned_is_found_without_a_tombstone() {
    assert!(is_found_as(Planted::DestroyDropped, "without a tombstone"));
}

#[test]
fn a_store_that_ignores_conditions_is_found_by_what_does_not_add_up() {
    let violation = found(Planted::BlindStore);
    assert!(!violation.contains("come to rest"), "{violation}");
}

#[test]
fn a_copy_with_other_bytes_than_its_snapshot_is_found() {
    assert!(is_found_as(Planted::CopyLive, "other bytes"));
}

#[test]
fn a_snapshot_that_is_taken_again_is_found() {
    assert!(is_found_as(Planted::TakeAnew, "taken anew"));
}

#[test]
fn a_volume_that_is_put_back_again_is_found() {
    assert!(is_found_as(Planted::PutBackAgain, "put back twice"));
}

#[test]
fn a_client_that_is_out_by_word_alone_is_found() {
    assert!(is_found_as(Planted::KeepGrants, "which was ended"));
}

#[test]
fn a_host_that_is_wiped_since_it_was_given_up_is_found() {
    assert!(is_found_as(Planted::WipeWhenRemoved, "and is destroyed"));
}

#[test]
fn a_volume_that_comes_to_a_host_that_is_being_emptied_is_found() {
    assert!(is_found_as(Planted::PlaceAnywhere, "is being drained"));
}

#[test]
fn an_image_of_other_bytes_than_its_seal_is_found() {
    assert!(is_found_as(Planted::SealUnseen, "its base has other bytes"));
}

#[test]
fn a_volume_of_other_bytes_than_its_image_is_found() {
    assert!(is_found_as(Planted::FillAnything, "and has other bytes than that:"));
}

#[test]
fn a_volume_that_is_written_to_while_it_is_copied_is_found() {
    assert!(is_found_as(Planted::ServeLeaving, "has moved, and has"));
}

#[test]
fn a_copy_of_other_bytes_than_the_volume_that_moves_is_found() {
    assert!(is_found_as(Planted::FetchAnything, "has moved, and has"));
}
