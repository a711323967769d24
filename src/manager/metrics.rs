//! What a manager tells monitoring: the state of the cluster as its view shows it.

use super::Stage;
use super::init::Manager;
use super::view::View;
use crate::model::{ByteSize, Fill, Pool, PoolMetadata, Service, Snapshot};
use crate::runtime::metrics::{Labels, Page};
use std::collections::BTreeMap;

/// Fills a page; a manager that is no member has little to say.
pub fn fill(manager: &Manager, page: &mut Page) {
    let stage = manager.stage();
    let member = matches!(stage, Stage::Member(_));
    page.gauge("manager_member", "1 if this manager is a member and serves", [(vec![], f64::from(u8::from(member)))]);
    let Stage::Member(member) = stage else { return };
    let view = member.view.read();
    let leads = view.leader.as_ref().is_some_and(|leader| *leader.value == member.service);
    page.gauge("manager_leader", "1 if this manager leads", [(vec![], f64::from(u8::from(leads)))]);
    let sessions = view.sessions.values().filter(|session| session.value.manager == member.service).count();
    page.gauge("manager_sessions", "Sessions that this manager holds", [(vec![], number(sessions))]);
    services(&view, page);
    objects(&view, page);
}

fn number(count: usize) -> f64 {
    count as f64
}

fn bytes(size: ByteSize) -> f64 {
    size.as_u64() as f64
}

fn tally(labels: impl Iterator<Item = Labels>) -> impl Iterator<Item = (Labels, f64)> {
    let mut counts: BTreeMap<Labels, usize> = BTreeMap::new();
    for labels in labels {
        *counts.entry(labels).or_default() += 1;
    }
    counts.into_iter().map(|(labels, count)| (labels, number(count)))
}

fn of_service(service: &Service) -> Labels {
    vec![
        ("service", service.meta.id.to_string()),
        ("host", service.status.host_name.clone()),
        ("type", service.spec.service_type.to_string()),
    ]
}

fn services(view: &View, page: &mut Page) {
    let services = || view.services.values().map(|service| &*service.value);
    let state = |service: &Service| {
        vec![("type", service.spec.service_type.to_string()), ("state", service.status.state.to_string())]
    };
    page.gauge("services", "Services by type and state", tally(services().map(state)));
    let expiry = services().filter(|service| !service.meta.is_removed()).filter_map(|service| {
        let certificate = service.status.certificate.as_ref()?;
        Some((of_service(service), seconds(certificate.expires_at.as_millis())))
    });
    page.gauge(
        "certificate_expiry_timestamp_seconds",
        "When a service's certificate expires, in seconds since 1970",
        expiry,
    );
    let roots = view.authority.as_ref().map(|held| held.value.trust());
    let expiry = roots
        .iter()
        .flat_map(|trust| trust.roots())
        .map(|root| (vec![("root", root.public_key().to_string())], seconds(root.expires_at().as_millis())));
    page.gauge(
        "root_certificate_expiry_timestamp_seconds",
        "When a root of the cluster expires, in seconds since 1970",
        expiry,
    );
    let clients = view.clients.values().map(|client| &*client.value).filter(|client| !client.meta.is_removed());
    let expiry = clients.map(|client| {
        let labels = vec![("client", client.meta.name.to_string()), ("role", client.spec.role.to_string())];
        (labels, seconds(client.status.certificate.expires_at.as_millis()))
    });
    page.gauge(
        "client_certificate_expiry_timestamp_seconds",
        "When a client's certificate expires, in seconds since 1970",
        expiry,
    );
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

fn objects(view: &View, page: &mut Page) {
    let volumes = view.volumes.values().map(|volume| vec![("phase", volume.value.status.phase.to_string())]);
    page.gauge("volumes", "Volumes by phase", tally(volumes));
    let snapshots = view.snapshots.values().map(|held| vec![("phase", held.value.status.phase.to_string())]);
    page.gauge("snapshots", "Snapshots by phase", tally(snapshots));
    rooms(view, page);
    let images = view.images.values().map(|held| vec![("phase", held.value.status.phase.to_string())]);
    page.gauge("images", "Images by phase", tally(images));
    let attachments = view.attachments.values().map(|held| vec![("phase", held.value.status.phase.to_string())]);
    page.gauge("attachments", "Attachments by phase", tally(attachments));
    let pools = || view.pools.values().map(|pool| &*pool.value);
    page.gauge("pools", "Pools by phase", tally(pools().map(|pool| vec![("phase", pool.status.phase.to_string())])));
    let labels = |pool: &Pool| vec![("pool", pool.meta.name.to_string()), ("service", pool.spec.service.to_string())];
    let sizes = |of: fn(&Pool) -> Option<ByteSize>| {
        pools().filter_map(move |pool| Some((labels(pool), bytes(of(pool)?)))).collect::<Vec<_>>()
    };
    page.gauge("pool_capacity_bytes", "What a pool can hold", sizes(|pool| pool.status.capacity));
    page.gauge(
        "pool_size_bytes",
        "How large a pool is now that is extended as it fills up",
        sizes(|pool| pool.status.size),
    );
    page.gauge("pool_used_bytes", "What a pool's volumes occupy", sizes(|pool| pool.status.used));
    let promisable = sizes(Pool::promisable);
    page.gauge("pool_promisable_bytes", "What of a pool may be promised in all", promisable);
    let metadata = |of: fn(PoolMetadata) -> ByteSize| {
        let used = pools().filter_map(move |pool| Some((labels(pool), bytes(of(pool.status.metadata?)))));
        used.collect::<Vec<_>>()
    };
    page.gauge("pool_metadata_capacity_bytes", "What a thin pool can remember", metadata(|it| it.capacity));
    page.gauge("pool_metadata_used_bytes", "What a thin pool remembers", metadata(|it| it.used));
    let levels = pools().map(|pool| (labels(pool), f64::from(pool.status.level as u8))).collect::<Vec<_>>();
    page.gauge("pool_level", "How full a pool is: 0 ok, 1 high, 2 full, which promises nothing new", levels);
    page.gauge("pool_reserved_bytes", "What a pool's volumes were promised", sizes(|pool| Some(pool.status.reserved)));
}

/// How full the room of those snapshots is that have room of their own.
fn rooms(view: &View, page: &mut Page) {
    let labels = |snapshot: &Snapshot| {
        vec![("snapshot", snapshot.meta.name.to_string()), ("volume", snapshot.spec.volume_name.to_string())]
    };
    let with_room: Vec<(&Snapshot, Fill)> =
        view.snapshots.values().filter_map(|held| Some((&*held.value, held.value.status.fill?))).collect();
    let sizes = |of: fn(&Fill) -> ByteSize| {
        with_room.iter().map(move |(snapshot, fill)| (labels(snapshot), bytes(of(fill)))).collect::<Vec<_>>()
    };
    page.gauge("snapshot_room_bytes", "What a snapshot has for changes of its volume", sizes(|fill| fill.room));
    page.gauge("snapshot_used_bytes", "What of a snapshot's room is used", sizes(|fill| fill.used));
    let spoilt =
        with_room.iter().map(|(it, _)| (labels(it), f64::from(u8::from(it.status.spoilt)))).collect::<Vec<_>>();
    page.gauge("snapshot_spoilt", "1 if more of its volume was changed than it had room for", spoilt);
}
