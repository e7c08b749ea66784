//! `adapter_config.json` as peft writes it: which modules a LoRA adapter changes, and how much.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::utils::SysRegex;

use crate::LoadError;
use crate::files::read_json;

/// Keys that say nothing about the merged weights.
const NO_MATTER: [&str; 16] = [
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "task_type",
    "runtime_config",
    "qalora_group_size",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    // peft itself takes it back for the linear layers that these models are made of.
    "fan_in_fan_out",
    "peft_type",
];

/// One name or pattern, or a list of names.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Names {
    Pattern(String),
    List(Vec<String>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Layers {
    One(usize),
    Many(Vec<usize>),
}

/// Which biases an adapter brings along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Biases {
    #[default]
    None,
    All,
    LoraOnly,
}

#[derive(Debug, Deserialize)]
struct Raw {
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    target_modules: Names,
    exclude_modules: Option<Names>,
    modules_to_save: Option<Vec<String>>,
    layers_to_transform: Option<Layers>,
    layers_pattern: Option<Names>,
    rank_pattern: Option<BTreeMap<String, usize>>,
    alpha_pattern: Option<BTreeMap<String, f32>>,
    #[serde(default)]
    bias: Biases,
    init_lora_weights: Option<Value>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// An adapter's settings, checked: anything in the file that would change the weights and is not merged here is refused.
#[derive(Debug)]
pub(crate) struct AdapterConfig {
    pub(crate) path: PathBuf,
    raw: Raw,
}

impl AdapterConfig {
    pub(crate) fn from_dir(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("adapter_config.json");
        let file: Value = read_json(&path)?.ok_or_else(|| LoadError::Missing {
            path: path.clone(),
            next: "an adapter's folder has it beside adapter_model.safetensors, as peft writes both"
                .to_owned(),
        })?;
        let unsupported = |what, found: String, supported| LoadError::Unsupported {
            path: path.clone(),
            what,
            found,
            supported,
        };
        let kind = file.get("peft_type").and_then(Value::as_str).unwrap_or("none");
        if kind != "LORA" {
            return Err(unsupported("peft_type", kind.to_owned(), "LORA"));
        }
        let raw: Raw =
            serde_json::from_value(file).map_err(|source| LoadError::Json { path: path.clone(), source })?;
        let set = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Object(map) => !map.is_empty(),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        if let Some((key, value)) =
            raw.others.iter().find(|(key, value)| !NO_MATTER.contains(&key.as_str()) && set(value))
        {
            let supported = "r, lora_alpha, use_rslora, use_dora, target_modules, exclude_modules, \
                             modules_to_save, layers_to_transform, layers_pattern, rank_pattern, alpha_pattern, bias";
            return Err(unsupported("the adapter setting", format!("{key} = {value}"), supported));
        }
        // The others change the base model's weights before training, which are not those of this folder then.
        let init = raw.init_lora_weights.as_ref().and_then(Value::as_str).unwrap_or("true");
        if !["true", "gaussian", "eva", "orthogonal"].contains(&init) {
            let supported = "true, false, gaussian, eva, orthogonal (convert the adapter to a plain LoRA)";
            return Err(unsupported("init_lora_weights", init.to_owned(), supported));
        }
        let config = Self { path, raw };
        config.check_patterns()?;
        Ok(config)
    }

    /// Each pattern compiles and each rank is one.
    fn check_patterns(&self) -> Result<(), LoadError> {
        let Raw { r, target_modules, exclude_modules, rank_pattern, alpha_pattern, .. } = &self.raw;
        let patterns = [Some(target_modules), exclude_modules.as_ref()].into_iter().flatten();
        for names in patterns {
            if let Names::Pattern(pattern) = names {
                self.matches(pattern, "")?;
            }
        }
        let keys = rank_pattern.iter().flat_map(BTreeMap::keys);
        for key in keys.chain(alpha_pattern.iter().flat_map(BTreeMap::keys)) {
            self.matches(key, "")?;
        }
        match [*r].iter().chain(rank_pattern.iter().flat_map(BTreeMap::values)).find(|r| **r == 0) {
            Some(_) => Err(LoadError::config(&self.path, "a rank is 0: such an adapter changes nothing")),
            None => Ok(()),
        }
    }

    pub(crate) fn dora(&self) -> bool {
        self.raw.use_dora
    }

    pub(crate) fn biases(&self) -> Biases {
        self.raw.bias
    }

    /// Whether a module such as `model.layers.0.self_attn.q_proj` has a low-rank change.
    pub(crate) fn targets(&self, module: &str) -> Result<bool, LoadError> {
        let Raw { target_modules, exclude_modules, .. } = &self.raw;
        let excluded = match exclude_modules {
            Some(Names::Pattern(pattern)) => !pattern.is_empty() && self.matches(pattern, module)?,
            Some(Names::List(names)) => names.iter().any(|name| ends_with(module, name)),
            None => false,
        };
        let within = |name: &String| format!(".{module}.").contains(&format!(".{name}."));
        let saved = self.raw.modules_to_save.iter().flatten().any(within);
        if excluded || saved {
            return Ok(false);
        }
        match target_modules {
            Names::Pattern(word) if word.eq_ignore_ascii_case("all-linear") => {
                Ok(module != "lm_head" && !module.ends_with("embed_tokens"))
            }
            Names::Pattern(pattern) => self.matches(pattern, module),
            Names::List(names) => {
                Ok(names.iter().any(|name| ends_with(module, name)) && self.transforms_layer_of(module)?)
            }
        }
    }

    /// Whether a module is replaced as a whole (`modules_to_save`), or is part of one that is. peft goes by the end of the
    /// name here: `norm` means `input_layernorm`, too.
    pub(crate) fn saves(&self, module: &str) -> bool {
        let ends = module.match_indices('.').map(|(end, _)| end).chain([module.len()]);
        let names = self.raw.modules_to_save.as_deref().unwrap_or_default();
        ends.into_iter().any(|end| names.iter().any(|name| module[..end].ends_with(name.as_str())))
    }

    fn transforms_layer_of(&self, module: &str) -> Result<bool, LoadError> {
        let wanted = match &self.raw.layers_to_transform {
            None => return Ok(true),
            Some(Layers::One(layer)) => std::slice::from_ref(layer),
            Some(Layers::Many(layers)) if layers.is_empty() => return Ok(true),
            Some(Layers::Many(layers)) => layers,
        };
        let patterns = match &self.raw.layers_pattern {
            None => &[],
            Some(Names::Pattern(pattern)) => std::slice::from_ref(pattern),
            Some(Names::List(patterns)) => patterns.as_slice(),
        };
        let parts: Vec<&str> = module.split('.').collect();
        for part in parts.windows(3) {
            let [list, index, _] = part else { continue };
            let Ok(index) = index.parse::<usize>() else { continue };
            let mut named = patterns.is_empty();
            for pattern in patterns {
                named |= self.matches(pattern, list)?;
            }
            if named {
                return Ok(wanted.contains(&index));
            }
        }
        Ok(false)
    }

    /// The rank of a module's change.
    pub(crate) fn rank(&self, module: &str) -> Result<usize, LoadError> {
        Ok(self.pattern(self.raw.rank_pattern.as_ref(), module)?.unwrap_or(self.raw.r))
    }

    /// What the product `B · A` of a module is multiplied with: `alpha / r`, or `alpha / √r` with rank-stabilised LoRA.
    pub(crate) fn scale(&self, module: &str) -> Result<f32, LoadError> {
        let alpha = self.pattern(self.raw.alpha_pattern.as_ref(), module)?.unwrap_or(self.raw.lora_alpha);
        let rank = self.rank(module)? as f32;
        Ok(if self.raw.use_rslora { alpha / rank.sqrt() } else { alpha / rank })
    }

    fn pattern<T: Copy>(
        &self,
        patterns: Option<&BTreeMap<String, T>>,
        module: &str,
    ) -> Result<Option<T>, LoadError> {
        for (key, value) in patterns.into_iter().flatten() {
            if self.matches(&format!(r"(?:.*\.)?(?:{key})"), module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    /// Whether a regular expression matches the whole of a text.
    fn matches(&self, pattern: &str, text: &str) -> Result<bool, LoadError> {
        let regex = SysRegex::new(&format!(r"\A(?:{pattern})\z")).map_err(|error| {
            let reason = format!("`{pattern}` is not a regular expression ({error})");
            LoadError::config(&self.path, reason)
        })?;
        Ok(regex.find_iter(text).next().is_some())
    }
}

/// Whether a module is `name`, or its last parts are.
fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(changes: &Value) -> Result<AdapterConfig, LoadError> {
        let dir = tempfile::tempdir().map_err(LoadError::read("a temporary folder"))?;
        let mut file = json!({ "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"] });
        for (key, value) in changes.as_object().into_iter().flatten() {
            file[key] = value.clone();
        }
        let path = dir.path().join("adapter_config.json");
        std::fs::write(&path, file.to_string()).map_err(LoadError::read(&path))?;
        AdapterConfig::from_dir(dir.path())
    }

    #[test]
    fn modules_are_chosen_as_peft_chooses_them() -> Result<(), LoadError> {
        let modules = ["0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"];
        let mut modules: Vec<String> = modules.iter().map(|name| format!("model.layers.{name}")).collect();
        modules.extend(["model.embed_tokens".to_owned(), "lm_head".to_owned()]);
        let check = |row: &str, changes: Value, expected: [bool; 5]| {
            let config = config(&changes)?;
            let found = modules.iter().map(|module| config.targets(module)).collect::<Result<Vec<_>, _>>()?;
            assert_eq!(found, expected, "{row}");
            Ok::<_, LoadError>(())
        };
        check("a list", json!({}), [true, true, false, false, false])?;
        check("half a name", json!({ "target_modules": ["proj"] }), [false; 5])?;
        check(
            "a longer name",
            json!({ "target_modules": ["mlp.up_proj"] }),
            [false, false, true, false, false],
        )?;
        check("all linear", json!({ "target_modules": "all-linear" }), [true, true, true, false, false])?;
        let pattern = r".*\.1\..*_proj";
        check("a pattern", json!({ "target_modules": pattern }), [false, true, true, false, false])?;
        check("a layer", json!({ "layers_to_transform": 1 }), [false, true, false, false, false])?;
        let layers = json!({ "layers_to_transform": [0], "layers_pattern": ["h", "layers"] });
        check("layers by name", layers, [true, false, false, false, false])?;
        check("other layers", json!({ "layers_to_transform": [0], "layers_pattern": "h" }), [false; 5])?;
        check("excluded", json!({ "exclude_modules": r".*\.0\..*" }), [false, true, false, false, false])?;
        let saved = json!({ "target_modules": ["lm_head", "up_proj"], "modules_to_save": ["mlp", "norm"] });
        check("saved", saved.clone(), [false, false, false, false, true])?;
        let config = config(&saved)?;
        assert!(config.saves("model.layers.1.mlp.up_proj") && config.saves("model.layers.0.input_layernorm"));
        assert!(
            config.saves("model.norm")
                && !config.saves("lm_head")
                && !config.saves("model.layers.1.self_attn")
        );
        Ok(())
    }

    #[test]
    fn what_is_not_merged_is_refused_by_name() {
        let check = |row: &str, changes: Value, part: &str| {
            let error = config(&changes).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(part), "{row}: no `{part}` in: {error}");
        };
        check("another kind", json!({ "peft_type": "IA3" }), "peft_type `IA3`");
        check("a new setting", json!({ "use_magic": true }), "use_magic = true");
        check("a bias of its own", json!({ "lora_bias": true }), "lora_bias = true");
        check("pissa", json!({ "init_lora_weights": "pissa_niter_16" }), "`pissa_niter_16`");
        check("no pattern", json!({ "target_modules": "(" }), "not a regular expression");
        check("rank 0", json!({ "r": 0 }), "a rank is 0");
    }
}
