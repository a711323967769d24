//! Pools of devices: whose devices they are, and how they become more.

use super::*;

fn devices(paths: &[&str]) -> Devices {
    Devices { devices: paths.iter().map(std::path::PathBuf::from).collect(), ..Devices::default() }
}

fn create(world: &mut World, name: &str, driver: Driver) -> Result<Pool, Refusal> {
    let (id, name) = (PoolId::from_bytes(world.id()), name.parse().unwrap());
    world.write(|draft| create_pool(draft, &somebody(), id, &name, None, &driver, RuleChanges::default()))
}

fn extend(world: &mut World, name: &str, more: &[&str], cancel: &[&str]) -> Result<Pool, Refusal> {
    let cancel: Vec<_> = cancel.iter().map(std::path::PathBuf::from).collect();
    world.write(|draft| extend_pool(draft, &somebody(), name, &devices(more), &cancel))
}

#[test]
fn a_device_has_one_pool_whatever_its_driver() {
    let mut world = World::new();
    create(&mut world, "one", Driver::Lvm(devices(&["/dev/a", "/dev/b"]))).unwrap();
    let error = create(&mut world, "two", Driver::LvmThin(devices(&["/dev/c", "/dev/b"]))).unwrap_err().to_string();
    assert!(error.contains("/dev/b is a device of pool 'one'"), "{error}");
    create(&mut world, "two", Driver::LvmThin(devices(&["/dev/c"]))).unwrap();
    let error = extend(&mut world, "two", &["/dev/a"], &[]).unwrap_err().to_string();
    assert!(error.contains("pool 'one'"), "{error}");
    world.assert_adds_up();
}

#[test]
fn an_extension_is_a_new_generation_and_can_be_given_up() {
    let mut world = World::new();
    create(&mut world, "one", Driver::Lvm(devices(&["/dev/a"]))).unwrap();
    let pool = extend(&mut world, "one", &["/dev/b", "/dev/c"], &[]).unwrap();
    assert_eq!((pool.meta.generation, pool.status.phase), (Generation::FIRST.next(), Phase::Pending));
    assert_eq!(pool.spec.driver, Driver::Lvm(devices(&["/dev/a", "/dev/b", "/dev/c"])));
    let pool = extend(&mut world, "one", &["/dev/d"], &["/dev/b"]).unwrap();
    assert_eq!(pool.spec.driver, Driver::Lvm(devices(&["/dev/a", "/dev/c", "/dev/d"])));
    let pool = extend(&mut world, "one", &[], &["/dev/c", "/dev/d"]).unwrap();
    assert_eq!(pool.spec.driver, Driver::Lvm(devices(&["/dev/a"])));
    world.assert_adds_up();
}

#[test]
fn extensions_that_make_no_sense_are_refused_and_change_nothing() {
    let mut world = World::new();
    create(&mut world, "one", Driver::Lvm(devices(&["/dev/a"]))).unwrap();
    world.pool("files", 10);
    let before = world.view.revision;
    for (name, more, cancel, said) in [
        ("one", &[][..], &[][..], "needs a device"),
        ("one", &["b"], &[], "'b'"),
        ("one", &["/dev/b", "/dev/b"], &[], "twice"),
        ("one", &["/dev/a"], &[], "pool 'one'"),
        ("one", &[], &["/dev/b"], "/dev/b is none of the devices"),
        ("one", &[], &["/dev/a"], "needs a device"),
        ("files", &["/dev/b"], &[], "made of files"),
        ("nobody", &["/dev/b"], &[], "nobody"),
    ] {
        let error = extend(&mut world, name, more, cancel).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    world.write(|draft| remove_pool(draft, &somebody(), "one")).unwrap();
    assert!(matches!(extend(&mut world, "one", &["/dev/b"], &[]), Err(Refusal::Removing { .. })));
    assert!(world.view.revision > before);
}

#[test]
fn a_thick_volume_with_snapshots_keeps_its_size_and_says_why() {
    let mut world = World::new();
    let pool = create(&mut world, "thick", Driver::Lvm(devices(&["/dev/a"]))).unwrap();
    world.report_pool(&pool, Observed::Known(100));
    let volume = world.volume("v", 8, None).unwrap();
    world.make(&volume);
    world.snapshots(&[("v", "monday")]).unwrap();
    for mib in [4, 16] {
        let resize = |draft: &mut Draft<'_>| resize_volume(draft, &somebody(), "v", ByteSize::mib(mib), true);
        let refusal = world.write(resize).unwrap_err().to_string();
        assert!(refusal.contains("'monday'") && refusal.contains("driver lvm"), "{refusal}");
    }
    world.assert_adds_up();
}
