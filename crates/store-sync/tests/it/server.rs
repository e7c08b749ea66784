//! An S3 server that is not ours: s3s-fs, which `make s3-server` builds.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::child::{Task, Work};
use crate::world::{World, assert_sound, bytes, publish, publish_lively};

/// A server over a folder with one bucket; it ends with this value.
pub(crate) struct Server {
    process: Child,
    pub(crate) at: SocketAddr,
    dir: tempfile::TempDir,
}

const KEY: &str = "AKIDTEST1234";
const SECRET: &str = "kR8q-secret-of-the-test";

/// The remote in the bucket.
pub(crate) const REMOTE: &str = "s3://models/fleet";

impl Server {
    /// Starts one; `None` where it is not built, which is said.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&["--access-key", KEY, "--secret-key", SECRET])
    }

    /// One that takes requests of anybody, signed or not.
    pub(crate) fn start_open() -> Option<Self> {
        Self::start_with(&[])
    }

    fn start_with(keys: &[&str]) -> Option<Self> {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let program = std::env::var_os("S3_SERVER")
            .map_or_else(|| top.join("target/s3-server/bin/s3s-fs"), PathBuf::from);
        if !program.exists() {
            eprintln!("skipped: there is no {}; `make s3-server` builds it", program.display());
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("models")).unwrap();
        // The port is free until somebody else takes it in this moment; then the next one is tried.
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let process = Command::new(&program)
            .args(["--host", "127.0.0.1", "--port", &at.port().to_string()])
            .args(keys)
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self { process, at, dir };
        if server.is_up() { Some(server) } else { Self::start_with(keys) }
    }

    fn is_up(&mut self) -> bool {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            if TcpStream::connect(self.at).is_ok() {
                return true;
            }
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// The bytes of the blobs that it keeps.
    pub(crate) fn stored_bytes(&self) -> u64 {
        fn below(dir: &Path) -> u64 {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let size = |entry: std::fs::DirEntry| match entry.path() {
                path if path.is_dir() => below(&path),
                path => path.metadata().map_or(0, |meta| meta.len()),
            };
            entries.map(size).sum()
        }
        below(&self.dir.path().join("models/fleet/blobs"))
    }
}

/// What a host's environment says of a server, or of a proxy before it.
pub(crate) fn variables(at: SocketAddr) -> BTreeMap<String, String> {
    let rows = [
        ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ENDPOINT_URL", format!("http://{at}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
    ];
    rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_version_goes_through_a_real_server() {
    let Some(server) = Server::start() else { return };
    let world = World::bare();
    let variables = variables(server.at);
    let run = |root: &str, work: Work| Task::new(REMOTE, world.path().join(root), work).run(&variables);
    let unknown = run("here", Work::Pull("scout".to_owned()));
    assert_eq!(unknown.code(), Some(model_store::exit::NOT_FOUND), "{unknown:?}");
    let init = run("here", Work::Init).answer("init");
    let puts = &init["conditional_puts"];
    eprintln!("s3s-fs honours conditional puts: {puts}");
    assert_eq!(run("here", Work::Init).answer("again")["was_there"], true);
    assert_eq!(
        &run("here", Work::Init).answer("again")["conditional_puts"],
        puts,
        "the probe says the same twice"
    );

    let (here, there) = (world.host("here"), world.host("there"));
    publish_lively(&here, "scout/v1", 1);
    let pushed = run("here", Work::Push("scout/v1".to_owned())).answer("push");
    assert_eq!((&pushed["sent_bytes"], &pushed["moved"]), (&900_013.into(), &true.into()));
    assert_eq!(server.stored_bytes(), 900_013);
    let pulled = run("there", Work::Pull("scout".to_owned())).answer("pull");
    assert_eq!((&pulled["received_bytes"], &pulled["activated"]), (&900_013.into(), &true.into()));
    assert_sound("pulled", &there, "scout/v1");
    // Two parts and a bit.
    publish(&here, "scout/v3", &[("big", &bytes(3, 12_000_000))]);
    assert_eq!(run("here", Work::Push("scout/v3".to_owned())).answer("push")["sent_bytes"], 12_000_000);
    assert_eq!(run("there", Work::Pull("scout".to_owned())).answer("pull")["received_bytes"], 12_000_000);
    assert_sound("pulled", &there, "scout/v3");
    publish(&here, "scout/v2", &[("model.safetensors", &bytes(1, 700_000)), ("new", b"new")]);
    assert_eq!(run("here", Work::Push("scout/v2".to_owned())).answer("push")["sent_bytes"], 3);
    assert_eq!(run("there", Work::Pull("scout".to_owned())).answer("pull")["received_bytes"], 3);
    assert_sound("pulled", &there, "scout/v2");
    let verified = run("there", Work::Verify).answer("verify");
    assert_eq!(
        (&verified["findings"], &verified["read_bytes"]),
        (&serde_json::json!([]), &12_900_016_u64.into())
    );
}

#[test]
fn a_secret_is_in_no_message() {
    let Some(server) = Server::start() else { return };
    let world = World::bare();
    let mut variables = variables(server.at);
    variables.insert("AWS_SECRET_ACCESS_KEY".to_owned(), "not-the-right-secret".to_owned());
    let task = Task { retry_ms: 500, ..Task::new(REMOTE, world.path().join("here"), Work::Init) };
    let denied = task.run(&variables);
    assert_eq!(denied.code(), Some(model_store::exit::REMOTE), "{denied:?}");
    let said = format!("{}{}", denied.stdout, denied.stderr);
    for secret in ["not-the-right-secret", KEY, SECRET] {
        assert!(!said.contains(secret), "{said}");
    }
    // Credentials in a file instead.
    let file = world.path().join("credentials");
    std::fs::write(&file, format!("[fleet]\naws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n"))
        .unwrap();
    let mut variables = self::variables(server.at);
    variables.retain(|name, _| !name.ends_with("_KEY") && !name.ends_with("_KEY_ID"));
    variables.insert("AWS_SHARED_CREDENTIALS_FILE".to_owned(), file.to_str().unwrap().to_owned());
    variables.insert("AWS_PROFILE".to_owned(), "fleet".to_owned());
    task.run(&variables).answer("from a file");
    variables.insert("AWS_PROFILE".to_owned(), "nobody".to_owned());
    let denied = task.run(&variables);
    assert!(denied.stderr.contains("has no profile [nobody]"), "{denied:?}");
}
