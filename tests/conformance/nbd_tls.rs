//! Our NBD server over TLS against qemu and libnbd, with certificates of a cluster's authority; and our client against
//! nbdkit. The lines here are those that the README shows.

use super::nbd::{SIZE, output, run, text};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use symphony::export::{Account, ExportTable, Grant, NbdServer, ServedExport, ServerConfig};
use symphony::io::{BlockIo, MemoryIo};
use symphony::model::ClusterId;
use symphony::nbd::{Client, Target, Tls, Uri};
use symphony::pki::{Authority, Bearer, Credentials, Keyring, Role, Side, SigningKey};
use symphony::runtime::{Clock, SystemClock};
use uuid::Uuid;

/// A server to whom everybody is a stranger, and a client's directory of credentials.
struct Bench {
    directory: tempfile::TempDir,
    authority: Authority,
    client: Uuid,
    table: Arc<ExportTable>,
    server: NbdServer,
    io: Arc<MemoryIo>,
}

fn issue(authority: &Authority, role: Role, id: Uuid) -> Credentials {
    let key = SigningKey::generate().expect("a key");
    let bearer = Bearer { cluster: authority.cluster(), role, id };
    let names = if role == Role::Block { vec!["127.0.0.1".into(), "localhost".into()] } else { vec![] };
    let day = Duration::from_secs(24 * 3600);
    let issued = authority.issue(&key.request().expect("a request"), &bearer, &names, SystemClock.wall(), day);
    Credentials::new(key, &issued.expect("a certificate").chain_pem, authority.trust()).expect("credentials")
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let name = "prod".parse().expect("a name");
        let authority = Authority::create(ClusterId::generate(), &name, SystemClock.wall()).expect("an authority");
        let io = Arc::new(MemoryIo::new(SIZE));
        let table = ExportTable::new();
        for name in ["disk", "other"] {
            let description = format!("volume {name}");
            let (id, io, account) = (uuid::Uuid::nil(), io.clone(), Account::new());
            let export = ServedExport { name: name.into(), id, description, io, read_only: false, account };
            table.publish(export).expect("a free name");
        }
        let client = Uuid::new_v4();
        let grant = Grant { client, client_name: "vm-host".into(), read_only: false, exclusive: true };
        table.admit("disk", grant).expect("room");
        let keyring = Keyring::new(issue(&authority, Role::Block, Uuid::new_v4()), Arc::new(SystemClock));
        let config = ServerConfig {
            tcp: Some(([127, 0, 0, 1], 0).into()),
            tls: Some(keyring.expect("a keyring")),
            local: Arc::new(|_| Err("for this test nobody is local".into())),
            ..ServerConfig::new()
        };
        let server = NbdServer::start(config, table.clone()).expect("a server");
        let bench = Self { directory, authority, client, table, server, io };
        bench.credentials("tls", Role::Data, client);
        bench
    }

    /// Writes credentials as `symphony ctl client create` hands them out.
    fn credentials(&self, name: &str, role: Role, id: Uuid) -> PathBuf {
        let directory = self.directory.path().join(name);
        std::fs::create_dir(&directory).expect("a directory");
        let side = if role == Role::Block { Side::Server } else { Side::Client };
        for (name, content) in issue(&self.authority, role, id).tool_files(side).expect("files") {
            std::fs::write(directory.join(name), content.as_bytes()).expect("a file");
            std::fs::set_permissions(directory.join(name), Permissions::from_mode(0o600)).expect("a mode");
        }
        directory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn port(&self) -> u16 {
        self.server.tcp_address().expect("a TCP address").port()
    }

    fn uri_with(&self, export: &str, directory: &str) -> String {
        format!("nbds://127.0.0.1:{}/{export}?tls-certificates={}", self.port(), text(&self.path(directory)))
    }

    fn uri(&self, export: &str) -> String {
        self.uri_with(export, "tls")
    }

    fn image(&self) -> (PathBuf, Vec<u8>) {
        let content: Vec<u8> =
            (0..SIZE).map(|at| if at >> 20 & 1 == 0 { (at / 4099 % 251) as u8 } else { 0 }).collect();
        let path = self.path("image.raw");
        std::fs::write(&path, &content).expect("an image");
        (path, content)
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        self.io.read(&mut bytes, 0).expect("a read");
        bytes
    }

    fn creds_object(&self) -> String {
        format!("tls-creds-x509,id=tls0,endpoint=client,dir={}", text(&self.path("tls")))
    }

    fn image_opts(&self, export: &str) -> String {
        format!("driver=nbd,host=127.0.0.1,port={},export={export},tls-creds=tls0", self.port())
    }
}

#[test]
fn nbdinfo_sees_what_is_granted_and_nothing_else() {
    let bench = Bench::new();
    let info: serde_json::Value =
        serde_json::from_str(&run("libnbd-bin", "nbdinfo", &["--json", &bench.uri("disk")])).expect("JSON");
    assert_eq!(info["TLS"], true);
    assert_eq!(info["exports"][0]["export-size"], SIZE);
    let listed: serde_json::Value =
        serde_json::from_str(&run("libnbd-bin", "nbdinfo", &["--list", "--json", &bench.uri("")])).expect("JSON");
    let names: Vec<_> =
        listed["exports"].as_array().expect("exports").iter().map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["disk"]);
    let plain = format!("nbd://127.0.0.1:{}/disk", bench.port());
    for uri in [bench.uri("other"), bench.uri("nothing"), plain] {
        assert!(!output("libnbd-bin", "nbdinfo", &[&uri]).status.success(), "{uri}");
    }
    for (directory, role, id) in [("manager", Role::Manager, bench.client), ("other", Role::Admin, Uuid::new_v4())] {
        bench.credentials(directory, role, id);
        let refused = output("libnbd-bin", "nbdinfo", &[&bench.uri_with("disk", directory)]);
        assert!(!refused.status.success(), "{directory}");
    }
}

#[test]
fn nbdcopy_copies_both_ways_over_tls() {
    let bench = Bench::new();
    let (image, content) = bench.image();
    run("libnbd-bin", "nbdcopy", &["--connections=4", "--flush", text(&image), &bench.uri("disk")]);
    assert!(bench.content() == content);
    let back = bench.path("back.raw");
    run("libnbd-bin", "nbdcopy", &["--connections=4", &bench.uri("disk"), text(&back)]);
    assert!(std::fs::read(&back).expect("the copy") == content);
}

#[test]
fn qemu_img_and_qemu_io_work_over_tls() {
    let bench = Bench::new();
    let (image, content) = bench.image();
    let (object, disk) = (bench.creds_object(), bench.image_opts("disk"));
    let img = |arguments: &[&str]| run("qemu-utils", "qemu-img", arguments);
    img(&["convert", "-n", "--object", &object, "-f", "raw", text(&image), "--target-image-opts", &disk]);
    assert!(bench.content() == content);
    let back = bench.path("back.raw");
    img(&["convert", "--object", &object, "--image-opts", &disk, "-O", "raw", text(&back)]);
    assert!(std::fs::read(&back).expect("the copy") == content);
    let io = ["--object", &object, "--image-opts", &disk, "-c", "write -P 0x5a 0 8M", "-c", "read -P 0x5a 0 8M"];
    let said = run("qemu-utils", "qemu-io", &io);
    assert!(!said.contains("failed"), "{said}");
    let refused =
        output("qemu-utils", "qemu-img", &["info", "--object", &object, "--image-opts", &bench.image_opts("other")]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("symphony ctl volume attach other --client NAME"), "{told}");
}

#[test]
fn after_a_fence_nbdcopy_is_refused() {
    let bench = Bench::new();
    let (image, _) = bench.image();
    run("libnbd-bin", "nbdcopy", &[text(&image), &bench.uri("disk")]);
    bench.table.fence("disk", bench.client);
    assert!(!output("libnbd-bin", "nbdcopy", &[text(&image), &bench.uri("disk")]).status.success());
}

#[test]
fn our_client_copies_by_the_same_uri() {
    let bench = Bench::new();
    let uri: Uri = bench.uri("disk").parse().expect("an URI");
    let mut client = Client::dial(&uri).expect("a client");
    client.write(0, &[7; 1 << 20], true).expect("a write");
    let mut seen = vec![0; 1 << 20];
    client.read(0, &mut seen).expect("a read");
    assert!(seen.iter().all(|byte| *byte == 7));
    client.disconnect().expect("a farewell");
    let nameless = Uri { tls: Some(Tls { certificates: None }), ..uri };
    let told = Client::dial(&nameless).expect_err("no credentials").to_string();
    assert!(told.contains("?tls-certificates="), "{told}");
}

#[test]
fn our_client_speaks_tls_with_nbdkit() {
    let bench = Bench::new();
    let server = bench.credentials("server", Role::Block, Uuid::new_v4());
    let (image, content) = bench.image();
    let (socket, pid) = (bench.path("kit.sock"), bench.path("pid"));
    let certificates = format!("--tls-certificates={}", text(&server));
    let arguments = ["--tls=require", &certificates, "-U", text(&socket), "-P", text(&pid), "file", text(&image)];
    run("nbdkit", "nbdkit", &arguments);
    let tls = Some(Tls { certificates: Some(bench.path("tls")) });
    let uri = Uri { target: Target::Unix { socket }, export: String::new(), tls };
    let outcome = std::panic::catch_unwind(|| {
        let mut client = Client::dial(&uri).expect("a client of nbdkit");
        let mut seen = vec![0; content.len()];
        client.read(0, &mut seen).expect("a read");
        assert!(seen == content);
        client.disconnect().expect("a farewell");
        let plain = Client::dial(&Uri { tls: None, ..uri.clone() }).expect_err("a refusal");
        assert!(plain.to_string().contains("demands TLS"), "{plain}");
    });
    let number = std::fs::read_to_string(&pid).expect("nbdkit's process id");
    run("procps", "kill", &[number.trim()]);
    assert!(outcome.is_ok());
}
