//! What every kind of model can do: be loaded from where it was found, and show that it works.

use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::resolve::{self, ResolveOptions, ResolvedModel};
use crate::{
    CausalLm, GenerateOptions, LmOptions, LoadError, LoadOptions, Prompt, SentenceEmbedder, TextClassifier,
};

/// What a self-test runs on.
pub(crate) const SELF_TEST_TEXT: &str = "Ships in the Suez Canal wait for the wind to fall.";

/// A kind of model, such as [`SentenceEmbedder`]: what [`shared`](crate::shared()) and
/// [`Reloading`](crate::Reloading) need to know of it.
pub trait Model: Sized + Send + Sync + 'static {
    /// How it is loaded. Its `Debug` text tells shared instances apart, so it must show every field.
    type Options: Clone + fmt::Debug + Default + Send + Sync + 'static;

    /// Whether it merges an adapter that the agent map, or the caller, names.
    const MERGES_ADAPTERS: bool = false;

    /// The folder of an adapter that the options name: it is looked for with the model.
    fn adapter(options: &Self::Options) -> Option<&Path> {
        let _ = options;
        None
    }

    /// Loads it from its folder.
    fn load_from(found: &ResolvedModel, options: &Self::Options) -> Result<Self, LoadError>;

    /// Runs it on a fixed input, and says what its users build on. An error is a result that makes no sense.
    fn self_test(&self) -> Result<Contract, LoadError>;
}

/// What the users of a model build on, such as the dimension of its vectors or its labels: facts by name. A version that
/// changes one of them does not take the place of another while that is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Contract(Vec<(&'static str, String)>);

/// A model and where it came from. It is used like the model itself, and keeps its version leased.
///
/// ```no_run
/// use model_loader::{Loaded, LoadOptions, ResolveOptions, SentenceEmbedder};
///
/// let loaded = Loaded::<SentenceEmbedder>::load("memory", &ResolveOptions::from_env(), &LoadOptions::default())?;
/// println!("{} by {}", loaded.embed(&["A sentence."])?[0].len(), loaded.resolved());
/// # Ok::<(), model_loader::LoadError>(())
/// ```
#[derive(Debug)]
pub struct Loaded<M> {
    tested: Arc<Tested<M>>,
    resolved: ResolvedModel,
}

/// A model and what its self-test gave: what agents that use the same files share.
#[derive(Debug)]
pub(crate) struct Tested<M> {
    model: M,
    contract: Contract,
}

/// The options of a search for a model that is loaded like this: an adapter that the loading names is searched for, too.
pub(crate) fn search_for<M: Model>(options: &ResolveOptions, load: &M::Options) -> ResolveOptions {
    let adapter_folder = M::adapter(load).map(Path::to_owned).or(options.adapter_folder.clone());
    ResolveOptions { adapter_folder, ..options.clone() }
}

impl Contract {
    /// A contract without facts: anything may change.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fact.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.push((name, value.to_string()));
        self
    }

    /// The facts, in the order in which they were added.
    pub fn facts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// What differs in another contract, for people; `None` where nothing does.
    #[must_use]
    pub fn changed_in(&self, other: &Self) -> Option<String> {
        if self == other {
            return None;
        }
        let value = |contract: &Self, name| {
            contract
                .facts()
                .find(|(fact, _)| *fact == name)
                .map_or("nothing".to_owned(), |(_, value)| value.to_owned())
        };
        let names = self.facts().map(|(name, _)| name);
        let added =
            other.facts().map(|(name, _)| name).filter(|name| self.facts().all(|(own, _)| own != *name));
        let changes = names.chain(added).filter_map(|name| {
            let (was, is) = (value(self, name), value(other, name));
            (was != is).then(|| format!("{name} was {was} and would be {is}"))
        });
        Some(changes.collect::<Vec<_>>().join("; "))
    }
}

impl<M: Model> Loaded<M> {
    /// Finds an agent's model, loads it and runs its self-test.
    pub fn load(agent: &str, options: &ResolveOptions, load: &M::Options) -> Result<Self, LoadError> {
        let options = search_for::<M>(options, load);
        let (loaded, _) = resolve::load_resolved(agent, &options, |found| Self::from_resolved(found, load))?;
        Ok(loaded)
    }

    /// Loads a model that was found.
    pub(crate) fn from_resolved(found: &ResolvedModel, options: &M::Options) -> Result<Self, LoadError> {
        let model = M::load_from(found, options)?;
        let contract = model.self_test()?;
        if let (false, Some(adapter)) = (M::MERGES_ADAPTERS, found.adapter()) {
            let agent = found.agent();
            tracing::warn!(agent, %adapter, "an adapter is named, which this kind of model does not merge");
        }
        Ok(Self { tested: Arc::new(Tested { model, contract }), resolved: found.clone() })
    }
}

impl<M> Loaded<M> {
    /// A model that is loaded already, for another who found it.
    pub(crate) fn again(tested: Arc<Tested<M>>, found: &ResolvedModel) -> Self {
        Self { tested, resolved: found.clone() }
    }

    /// What others may share.
    pub(crate) fn tested(&self) -> &Arc<Tested<M>> {
        &self.tested
    }

    /// Where it came from.
    #[must_use]
    pub fn resolved(&self) -> &ResolvedModel {
        &self.resolved
    }

    /// What its self-test gave.
    #[must_use]
    pub fn contract(&self) -> &Contract {
        &self.tested.contract
    }
}

impl<M> Deref for Loaded<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.tested.model
    }
}

impl<M> AsRef<M> for Loaded<M> {
    fn as_ref(&self) -> &M {
        &self.tested.model
    }
}

impl Model for SentenceEmbedder {
    type Options = LoadOptions;

    fn load_from(found: &ResolvedModel, options: &LoadOptions) -> Result<Self, LoadError> {
        Self::from_dir_with(found.path(), options)
    }

    fn self_test(&self) -> Result<Contract, LoadError> {
        let vectors = self.embed(&[SELF_TEST_TEXT])?;
        let dimension = vectors.first().map_or(0, Vec::len);
        if dimension != self.dimension() {
            let reason =
                format!("a vector has {dimension} components where {} were promised", self.dimension());
            let config = self.config().map_or(self.tokenizer().path(), |config| &config.path);
            return Err(failed(config, reason));
        }
        Ok(Contract::new().with("dimension", dimension))
    }
}

impl Model for TextClassifier {
    type Options = LoadOptions;

    fn load_from(found: &ResolvedModel, options: &LoadOptions) -> Result<Self, LoadError> {
        Self::from_dir_with(found.path(), options)
    }

    fn self_test(&self) -> Result<Contract, LoadError> {
        let predictions = self.classify(&[SELF_TEST_TEXT])?;
        let scores = predictions.first().map_or(0, |prediction| prediction.scores.len());
        if scores != self.labels().len() {
            let reason = format!("a text has {scores} scores where there are {} labels", self.labels().len());
            return Err(failed(&self.config().path, reason));
        }
        Ok(Contract::new().with("labels", format_args!("{:?}", self.labels())))
    }
}

impl Model for CausalLm {
    type Options = LmOptions;

    const MERGES_ADAPTERS: bool = true;

    fn adapter(options: &LmOptions) -> Option<&Path> {
        options.adapter.as_deref()
    }

    /// With the adapter that was found with the model, and no other: what is merged is what [`ResolvedModel`] says.
    fn load_from(found: &ResolvedModel, options: &LmOptions) -> Result<Self, LoadError> {
        if let Some(folder) = options.adapter.as_deref().filter(|folder| !found.has_adapter_asked_for(folder))
        {
            return Err(LoadError::Asked(format!(
                "the adapter {} was not looked for with the model {}: name it in ResolveOptions::adapter_folder",
                folder.display(),
                found.short_name()
            )));
        }
        let adapter = found.adapter().map(|adapter| adapter.path().to_owned());
        Self::from_dir(found.path(), &LmOptions { adapter, ..options.clone() })
    }

    /// Any model may take another's place: a prompt is text, and so is what follows it.
    fn self_test(&self) -> Result<Contract, LoadError> {
        let options = GenerateOptions { max_new_tokens: 1, ..GenerateOptions::default() };
        self.generate(Prompt::from(SELF_TEST_TEXT), &options)?;
        Ok(Contract::new())
    }
}

fn failed(config: &Path, reason: String) -> LoadError {
    let model = config.parent().unwrap_or(config).display().to_string();
    LoadError::SelfTest { model, reason }
}
