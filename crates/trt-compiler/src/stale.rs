//! Whether an agent's current version is what a build would give today.

use model_store::{AgentName, Current, ModelStore, VersionName};
use onnx_export::Precision;
use serde_json::{Map, Value, json};

use crate::calibrate::Method;
use crate::evidence::Provenance;
use crate::job::{KvCache, WeightForm};
use crate::profile::Profile;
use crate::target::Target;

/// What a build would give.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Where the model would come from.
    pub source: Provenance,
    /// What its products would compute in.
    pub precision: Precision,
    /// The shapes of its engine, where they are asked for.
    pub profile: Option<Profile>,
    /// Modules that would compute in fp32, by pattern.
    pub keep_fp32: Vec<String>,
    /// In which type the weights would lie that the graph points at.
    pub weights: WeightForm,
    /// Whether a language model's engine would have a cache.
    pub kv_cache: KvCache,
    /// SHA-256 of the calibration texts and how ranges would be found, for 8 bits.
    pub calibration: Option<(String, Method)>,
    /// The engine it would have, if any.
    pub engine: Option<EngineWanted>,
}

/// The engine that a build would give.
#[derive(Clone, Debug)]
pub struct EngineWanted {
    /// Exact version of the library that would build it.
    pub version: String,
    /// The GPU generations it would run on.
    pub targets: Vec<Target>,
}

/// How many versions back the origin of a model is looked for: each may have been built from the one before.
const MAX_STEPS: usize = 16;

/// Why a version is not what a build would give today; `None` if it is.
#[must_use]
pub fn staleness(store: &ModelStore, current: Option<&Current>, wish: &Wish) -> Option<String> {
    let Some(current) = current else { return Some("never built".to_owned()) };
    let metadata = &current.manifest().metadata;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let Some(precision) = text(metadata.get("precision")).filter(|_| metadata.contains_key("gate")) else {
        return Some("not checked by this command".to_owned());
    };
    let change = |what: &str, from: &str, to: &str| (from != to).then(|| format!("{what} {from} → {to}"));
    change("precision", &precision, wish.precision.as_str())
        .or_else(|| {
            let Provenance::Hub { commit, .. } = &wish.source else { return None };
            match origin(store, metadata) {
                Some(was) => change("commit", short(&was), short(commit)),
                None => Some(format!("not from the Hub; its model is at {} there", short(commit))),
            }
        })
        .or_else(|| engine(metadata, wish.engine.as_ref()?))
        .or_else(|| {
            let was = metadata.get("engine")?.get("profile")?.as_str()?;
            change("profile", was, &wish.profile?.to_string())
        })
        .or_else(|| {
            let is_lm = text(metadata.get("task")).as_deref() == Some("text-generation");
            let (was, is) = (
                metadata.get("kv_cache").and_then(Value::as_bool).unwrap_or(false),
                wish.kv_cache == KvCache::With,
            );
            let word = |it: bool| if it { "yes" } else { "no" };
            change("cache", word(was), word(is)).filter(|_| is_lm)
        })
        .or_else(|| {
            let kept = metadata.get("keep_fp32").cloned().unwrap_or_else(|| json!([]));
            (kept != json!(wish.keep_fp32)).then(|| "other modules in fp32".to_owned())
        })
        .or_else(|| {
            let was = metadata.get("materialised") == Some(&Value::Bool(true));
            let word = |it: bool| if it { "materialised" } else { "stored" };
            change("weights", word(was), word(wish.weights == WeightForm::Materialised))
        })
        .or_else(|| {
            // fp16 only looks for overflow on them.
            let (texts, method) = wish.calibration.as_ref().filter(|_| wish.precision.needs_calibration())?;
            let wanted = json!({ "texts_sha256": texts, "method": method });
            (metadata.get("calibration") != Some(&wanted)).then(|| "other calibration".to_owned())
        })
        .or_else(|| {
            let tool = text(metadata.get("tools").and_then(|tools| tools.get("trt-compiler")));
            change("trt-compiler", &tool.unwrap_or_default(), env!("CARGO_PKG_VERSION"))
        })
}

fn engine(metadata: &Map<String, Value>, wanted: &EngineWanted) -> Option<String> {
    let Some(engine) = metadata.get("engine").filter(|engine| engine.is_object()) else {
        return Some("has no engine".to_owned());
    };
    let version = engine.get("version").and_then(Value::as_str).unwrap_or_default();
    if version != wanted.version {
        return Some(format!("TensorRT-RTX {version} → {}", wanted.version));
    }
    let targets = serde_json::to_value(&wanted.targets).unwrap_or_default();
    (engine.get("targets") != Some(&targets)).then(|| "for other GPU generations".to_owned())
}

/// The commit that a version's model came from, through the versions that it was built from.
fn origin(store: &ModelStore, metadata: &Map<String, Value>) -> Option<String> {
    let mut metadata = metadata.clone();
    for _ in 0..MAX_STEPS {
        let source = metadata.get("source")?;
        let text = |key: &str| source.get(key)?.as_str();
        match text("kind")? {
            "hub" => return text("commit").map(str::to_owned),
            "store" => {
                let agent: AgentName = text("agent")?.parse().ok()?;
                let version: VersionName = text("version")?.parse().ok()?;
                metadata.clone_from(&store.get_version(&agent, &version).ok()??.manifest().metadata);
            }
            _ => return None,
        }
    }
    None
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use model_store::FinalizeOptions;

    fn publish(store: &ModelStore, version: &str, metadata: &Value) -> Current {
        let agent = "analyst".parse().unwrap();
        let staging = store.stage_new(&agent, &version.parse().unwrap()).unwrap();
        staging.write(&"config.json".parse().unwrap(), version.as_bytes()).unwrap();
        let metadata = metadata.as_object().cloned().unwrap();
        staging.finalize(FinalizeOptions { metadata, ..FinalizeOptions::default() }).unwrap();
        store.require_current(&agent).unwrap()
    }

    #[test]
    fn each_change_is_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let store = ModelStore::create(folder.path()).unwrap();
        let hub = |commit: &str| Provenance::Hub {
            model_id: "org/name".to_owned(),
            revision: "main".to_owned(),
            commit: commit.repeat(40),
        };
        let own = Provenance::Folder { path: "/models".to_owned() };
        let wanted = EngineWanted { version: "1.7.1.116".to_owned(), targets: Target::DEFAULT.to_vec() };
        let wish = |source: &Provenance, precision| Wish {
            source: source.clone(),
            precision,
            profile: None,
            keep_fp32: Vec::new(),
            weights: WeightForm::Stored,
            kv_cache: KvCache::With,
            calibration: None,
            engine: Some(wanted.clone()),
        };
        let targets = serde_json::to_value(Target::DEFAULT).unwrap();
        let built = json!({
            "source": { "kind": "hub", "model_id": "org/name", "revision": "main", "commit": "a".repeat(40) },
            "precision": "fp16",
            "gate": {},
            "engine": { "flavour": "tensorrt-rtx", "version": "1.7.1.116", "targets": targets },
            "tools": { "trt-compiler": env!("CARGO_PKG_VERSION") },
        });
        let changed = |path: &str, value: Value| {
            let mut built = built.clone();
            *built.pointer_mut(path).unwrap() = value;
            built
        };
        let with = |key: &str, value: Value| {
            let mut built = built.clone();
            built[key] = value;
            built
        };
        let from_store = json!({ "kind": "store", "agent": "analyst", "version": "v1", "checksum": "x" });
        let rows = [
            ("v1", built.clone(), hub("a"), Precision::Fp16, None),
            ("v2", built.clone(), hub("a"), Precision::Int8, Some("precision fp16 → int8")),
            ("v3", built.clone(), hub("b"), Precision::Fp16, Some("commit aaaaaaaaaaaa → bbbbbbbbbbbb")),
            ("v4", built.clone(), own.clone(), Precision::Fp16, None),
            ("v5", changed("/source", from_store.clone()), hub("a"), Precision::Fp16, None),
            ("v6", changed("/source", from_store), hub("c"), Precision::Fp16, Some("commit aaaaaaaaaaaa")),
            (
                "v7",
                changed("/source/kind", json!("folder")),
                hub("a"),
                Precision::Fp16,
                Some("not from the Hub"),
            ),
            ("v8", changed("/engine", Value::Null), own.clone(), Precision::Fp16, Some("has no engine")),
            (
                "v9",
                changed("/engine/version", json!("1.6")),
                own.clone(),
                Precision::Fp16,
                Some("TensorRT-RTX 1.6"),
            ),
            (
                "v10",
                changed("/engine/targets", json!([89])),
                own.clone(),
                Precision::Fp16,
                Some("GPU generations"),
            ),
            (
                "v11",
                changed("/tools/trt-compiler", json!("0.0.1")),
                own.clone(),
                Precision::Fp16,
                Some("trt-compiler 0.0.1"),
            ),
            (
                "v11a",
                with("task", json!("text-generation")),
                own.clone(),
                Precision::Fp16,
                Some("cache no → yes"),
            ),
            (
                "v11b",
                with("materialised", json!(true)),
                own.clone(),
                Precision::Fp16,
                Some("weights materialised → stored"),
            ),
            ("v12", json!({}), own.clone(), Precision::Fp16, Some("not checked by this command")),
        ];
        for (version, metadata, source, precision, expected) in rows {
            let current = publish(&store, version, &metadata);
            let found = staleness(&store, Some(&current), &wish(&source, precision));
            match expected {
                None => assert_eq!(found, None, "{version}"),
                Some(part) => assert!(found.as_deref().unwrap().contains(part), "{version}: {found:?}"),
            }
        }
        assert_eq!(staleness(&store, None, &wish(&own, Precision::Fp16)).as_deref(), Some("never built"));
    }
}
