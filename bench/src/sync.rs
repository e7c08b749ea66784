//! The row `sync`: a second version with one changed file of ten, through an S3 server, against `rclone`.

use std::cell::RefCell;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::input::{random_files, settle};
use crate::pairs::{Measured, timed};

/// So many files stay as they are, and one more changes.
const SAME_FILES: usize = 9;
const FILE_BYTES: u64 = 2 * 1024 * 1024 * 1024 / (SAME_FILES as u64 + 1);
const KEY: &str = "bench";
const SECRET: &str = "bench-secret";

/// s3s-fs over a folder; it ends with this value.
struct Server {
    process: Child,
    endpoint: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder.join("models"))?;
        std::fs::create_dir_all(folder.join("plain"))?;
        let at = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let process = Command::new("target/s3-server/bin/s3s-fs")
            .args(["--host", "127.0.0.1", "--port", &at.port().to_string()])
            .args(["--access-key", KEY, "--secret-key", SECRET])
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("target/s3-server/bin/s3s-fs is not there; `make s3-server` builds it")?;
        let server = Self { process, endpoint: format!("http://{at}") };
        for _ in 0..200 {
            if TcpStream::connect(at).is_ok() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("s3s-fs does not listen at {at}")
    }

    fn run(&self, program: &Path, arguments: &[&str], paths: &[&Path]) -> anyhow::Result<()> {
        let mut command = Command::new(program);
        command.args(arguments).args(paths).stdout(Stdio::null());
        command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
        command.env("AWS_ENDPOINT_URL", &self.endpoint).env("AWS_ALLOW_HTTP", "true");
        command.env("AWS_REGION", "us-east-1").env("MODEL_STORE_REMOTE", "s3://models/fleet");
        command.env("RCLONE_CONFIG_S_TYPE", "s3").env("RCLONE_CONFIG_S_PROVIDER", "Other");
        command.env("RCLONE_CONFIG_S_ENV_AUTH", "true").env("RCLONE_CONFIG_S_ENDPOINT", &self.endpoint);
        // There is no TLS here, and rclone 1.60 fails where one is named.
        command.env_remove("AWS_CA_BUNDLE");
        let status = command.status().with_context(|| format!("{command:?}"))?;
        ensure!(status.success(), "{command:?} failed: {status}");
        Ok(())
    }
}

/// The command, which must have been built in release mode.
fn model_store() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("model-store");
    ensure!(
        program.exists(),
        "{} is not there; `cargo build --release -p store-cli` builds it",
        program.display()
    );
    Ok(program)
}

/// Push and pull of the second version, until the receiver has it durable and checked. `rclone sync` goes to the
/// bucket and from there into a folder that has the first version, by checksums as ours.
pub(crate) fn measure(place: &Path) -> anyhow::Result<Measured> {
    let model_store = model_store()?;
    let folder = place.join("folder");
    random_files(&folder, SAME_FILES, FILE_BYTES)?;
    let changed = folder.join("changed");
    random_files(&changed, 1, FILE_BYTES)?;
    let (here, there, copy) = (place.join("here"), place.join("there"), place.join("copy"));
    for root in [&here, &there, &copy] {
        std::fs::create_dir_all(root)?;
    }
    let server = Server::start(&place.join("server"))?;
    let rclone = Path::new("rclone");
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the path is not UTF-8");
    let (here_text, there_text, folder_text) = (text(&here)?, text(&there)?, text(&folder)?);
    let ours = |arguments: &[&str]| server.run(&model_store, arguments, &[]);
    let publish =
        |version: &str| ours(&["--store", &here_text, "publish", "bench", version, "--from", &folder_text]);
    let sync = || -> anyhow::Result<()> {
        ours(&["--store", &here_text, "push", "bench"])?;
        ours(&["--store", &there_text, "pull", "bench"])
    };
    // The bucket's root: rclone asks whether a path in it is an object, which s3s-fs fails at where it is a folder.
    let plain = || -> anyhow::Result<()> {
        let options = ["sync", "--checksum", "--transfers", "8"];
        server.run(rclone, &options, &[&folder, Path::new("S:plain")])?;
        server.run(rclone, &options, &[Path::new("S:plain"), &copy])?;
        server.run(Path::new("sync"), &[], &[])
    };
    ours(&["remote", "init"])?;
    publish("v0")?;
    sync()?;
    plain()?;
    settle();
    // Nothing else talks over the loopback interface meanwhile.
    let moved = |work: &dyn Fn() -> anyhow::Result<()>, bytes: &RefCell<Vec<f64>>| {
        let before = loopback_bytes()?;
        let seconds = timed(work)?;
        bytes.borrow_mut().push((loopback_bytes()? - before) as f64);
        Ok(seconds)
    };
    let (ours_bytes, peer_bytes) = (RefCell::default(), RefCell::default());
    let measured = Measured::in_turn(
        |round| {
            random_files(&changed, 1, FILE_BYTES)?;
            publish(&format!("v{}", round + 1))?;
            settle();
            moved(&sync, &ours_bytes)
        },
        |_| {
            random_files(&changed, 1, FILE_BYTES)?;
            settle();
            moved(&plain, &peer_bytes)
        },
    )?;
    let (ours_bytes, peer_bytes) = (ours_bytes.into_inner(), peer_bytes.into_inner());
    Ok(Measured { bytes_of: "moved", ours_bytes, peer_bytes, ..measured })
}

/// The bytes that went over the loopback interface so far (`proc_pid_net_dev(5)`).
fn loopback_bytes() -> anyhow::Result<u64> {
    let table = std::fs::read_to_string("/proc/net/dev")?;
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    let received = line.and_then(|line| line.split_ascii_whitespace().next());
    Ok(received.context("/proc/net/dev has no loopback interface")?.parse()?)
}
