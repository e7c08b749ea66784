//! The real `huggingface_hub`: what it can download from the server, what it is refused, and the cache that both use.
//!
//! `HUB_PYTHON` names a Python that has it; `make hub-python` makes one. Without it these tests skip and say so.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use hub_fetch::{Request, Source};

use crate::world::{READER, STRANGER, World, assert_same, blobs, fetch, tiny};

/// What Python prints: the value of an expression, or the name of the exception.
const PRELUDE: &str = "\
import sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, scan_cache_dir
ours = ['*.safetensors', '*.json', '*.index.json']
try:
    print(eval(sys.argv[1]))
except Exception as error:
    print(type(error).__name__)
";

struct Python<'a> {
    program: PathBuf,
    world: &'a World,
}

impl<'a> Python<'a> {
    /// `None`, and why on the standard error, where there is no such Python.
    fn new(world: &'a World) -> Option<Self> {
        let Some(program) = std::env::var_os("HUB_PYTHON").filter(|program| !program.is_empty()) else {
            eprintln!(
                "skipped: HUB_PYTHON names no Python with huggingface_hub; `make hub-python` makes one"
            );
            return None;
        };
        let program = PathBuf::from(program);
        if !program.is_file() {
            eprintln!(
                "skipped: HUB_PYTHON is {}, which is not there; `make hub-python` makes it",
                program.display()
            );
            return None;
        }
        Some(Self { program, world })
    }

    fn command(&self, script: &str, argument: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["-c", script, argument])
            .envs(self.world.variables())
            .env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
        for name in ["HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
            command.env_remove(name);
        }
        command
    }

    fn eval(&self, expression: &str, more: &[(&str, &str)]) -> String {
        let mut command = self.command(PRELUDE, expression);
        let output = command.envs(more.iter().copied()).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{expression}: {}", String::from_utf8_lossy(&output.stderr));
        said.trim().to_owned()
    }
}

#[test]
fn what_python_gets_from_the_server() {
    let world = World::new();
    let Some(python) = Python::new(&world) else { return };
    let check = |expression: &str, more: &[(&str, &str)], expected: &str| {
        assert_eq!(python.eval(expression, more), expected, "{expression}");
    };
    // One file for itself, large and small, by branch, tag, commit and old name.
    let downloads = |model: &str, more: &str, token: Option<&str>, expected: &str| {
        let variables = token.map(|token| ("HF_TOKEN", token));
        let expression = format!("hf_hub_download('{model}', {more}).endswith('.json')");
        check(&expression, variables.as_slice(), expected);
    };
    downloads("acme/tiny", "'config.json'", None, "True");
    downloads("acme/tiny", "'1_Pooling/config.json'", None, "True");
    downloads("acme/tiny", "'config.json', revision='v2'", None, "True");
    downloads("acme/old", "'config.json'", None, "True");
    downloads("acme/tiny", "'nothing.json'", None, "RemoteEntryNotFoundError");
    downloads("acme/tiny", "'config.json', revision='v9'", None, "RevisionNotFoundError");
    downloads("acme/none", "'config.json'", None, "RepositoryNotFoundError");
    downloads("acme/secret", "'config.json'", None, "RepositoryNotFoundError");
    downloads("acme/secret", "'config.json'", Some(STRANGER), "RepositoryNotFoundError");
    downloads("acme/gated", "'config.json'", None, "GatedRepoError");
    downloads("acme/gated", "'config.json'", Some(STRANGER), "GatedRepoError");
    downloads("acme/secret", "'config.json'", Some(READER), "True");
    downloads("acme/gated", "'config.json'", Some(READER), "True");
    check("open(hf_hub_download('acme/tiny', 'model.safetensors'), 'rb').read(2).hex()", &[], &{
        hex::encode(&std::fs::read(world.models().join("acme/tiny/model.safetensors")).unwrap()[..2])
    });
    check("len(HfApi().model_info('acme/tiny', files_metadata=True).siblings)", &[], "9");
    let tree = "sorted(x.path for x in HfApi().list_repo_tree('acme/sharded', recursive=True))[:2]";
    check(tree, &[], "['config.json', 'model-00001-of-00002.safetensors']");
    check(
        "[x.path for x in HfApi().list_repo_tree('acme/tiny', '1_Pooling')]",
        &[],
        "['1_Pooling/config.json']",
    );
    check("'acme/tiny' in [x.id for x in HfApi().list_models()]", &[], "True");
    check("'acme/secret' in [x.id for x in HfApi().list_models()]", &[], "False");
    check("len(snapshot_download('acme/tiny', revision='v2')) > 0", &[], "True");
}

#[test]
fn python_finds_what_was_fetched_here() {
    let world = World::new();
    let Some(python) = Python::new(&world) else { return };
    let snapshot = world.fetch(&tiny()).unwrap();
    let offline = [("HF_HUB_OFFLINE", "1")];
    world.server.set(&[]);
    for file in &snapshot.files {
        let here = snapshot.path.join(&file.path).display().to_string();
        for revision in ["main", &snapshot.commit] {
            let expression = format!("hf_hub_download('acme/tiny', '{}', revision='{revision}')", file.path);
            assert_eq!(python.eval(&expression, &offline), here);
        }
    }
    let folder = snapshot.path.display().to_string();
    let ours = "snapshot_download('acme/tiny', allow_patterns=ours, ignore_patterns=['onnx/*'])";
    assert_eq!(python.eval(ours, &offline), folder);
    assert_eq!(world.server.seen(), []);
    // Online it asks, and downloads nothing.
    assert_eq!(python.eval(ours, &[]), folder);
    assert!(
        world
            .server
            .seen()
            .iter()
            .all(|request| request.method == "HEAD" || request.path.starts_with("/api/"))
    );
    // And its own look at the cache finds everything in order.
    let scan = "(lambda scan: (len(scan.warnings), [(r.repo_id, len(r.revisions), r.nb_files) for r in scan.repos]))(scan_cache_dir())";
    assert_eq!(python.eval(scan, &[]), "(0, [('acme/tiny', 1, 5)])");
}

#[test]
fn what_python_downloaded_is_found_here() {
    let world = World::new();
    let Some(python) = Python::new(&world) else { return };
    let theirs = python.eval("snapshot_download('acme/tiny')", &[]);
    let before = blobs(&world.repository("acme/tiny"));
    world.server.set(&[]);
    let snapshot = fetch(&world.hub(&[("HF_HUB_OFFLINE", "1")]), &tiny()).unwrap();
    assert_eq!((&snapshot.source, snapshot.path.display().to_string()), (&Source::Offline, theirs));
    assert_same(&world, &snapshot, "acme/tiny");
    let pinned = world.fetch(&tiny().at(&snapshot.commit)).unwrap();
    assert_eq!(pinned.source, Source::Commit);
    assert_eq!(world.server.seen(), []);
    let online = world.fetch(&tiny()).unwrap();
    assert_eq!((online.downloaded_bytes, &online.path), (0, &snapshot.path));
    assert_eq!(blobs(&world.repository("acme/tiny")), before);

    // A part of it there, the rest from here.
    python.eval("hf_hub_download('acme/sharded', 'model-00001-of-00002.safetensors')", &[]);
    let rest = world.fetch(&Request::new("acme/sharded")).unwrap();
    assert_same(&world, &rest, "acme/sharded");
    assert_eq!(rest.files.iter().map(|file| file.size_bytes).sum::<u64>() - rest.downloaded_bytes, 1000);
}

/// Both lock the same file by the same call.
#[test]
fn python_and_we_wait_for_each_other() {
    let world = World::new();
    let Some(python) = Python::new(&world) else { return };
    let snapshot = world.fetch(&tiny()).unwrap();
    let blob = snapshot.path.join("config.json").canonicalize().unwrap();
    let name = blob.file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::remove_dir_all(world.repository("acme/tiny")).unwrap();
    let lock = world.cache().join(".locks/models--acme--tiny").join(format!("{name}.lock"));
    let script = "import sys\n\
        from huggingface_hub.utils import WeakFileLock\n\
        with WeakFileLock(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()\n";
    let mut holder = python
        .command(script, lock.to_str().unwrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "held");
    let hub = world.hub(&[]);
    let fetching = std::thread::spawn(move || fetch(&hub, &tiny()));
    std::thread::sleep(Duration::from_secs(1));
    assert!(!fetching.is_finished(), "the lock was not heeded");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert_same(&world, &fetching.join().unwrap().unwrap(), "acme/tiny");
}
