//! Word of what is going on, for whoever shows it.

use std::time::Duration;

use crate::snapshot::Source;

/// What a fetch is going to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The model, by the name it was asked for.
    pub model_id: String,
    /// What the Hub calls it now, where that is something else.
    pub renamed_to: Option<String>,
    /// The commit.
    pub commit: String,
    /// Every file of it that is wanted, sorted by path.
    pub files: Vec<PlanFile>,
    /// Who said that this is the commit.
    pub source: Source,
}

/// A file of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanFile {
    /// Where it is in the repository.
    pub path: String,
    /// Its length, if the server says it.
    pub size_bytes: Option<u64>,
    /// How much of it is here already.
    pub have_bytes: u64,
    /// Whether it is here whole.
    pub is_here: bool,
}

impl Plan {
    /// The files that are not here whole.
    pub fn missing(&self) -> impl Iterator<Item = &PlanFile> {
        self.files.iter().filter(|file| !file.is_here)
    }

    /// How much is to be downloaded, as far as sizes are known.
    #[must_use]
    pub fn missing_bytes(&self) -> u64 {
        // The sizes are a server's word, and may be anything.
        let missing = self.missing().map(|file| file.size_bytes.unwrap_or(0).saturating_sub(file.have_bytes));
        missing.fold(0, u64::saturating_add)
    }
}

/// Is told what a fetch does. It is called from several threads.
pub trait Progress: Sync {
    /// The commit is resolved, and this is what it takes.
    fn planned(&self, plan: &Plan) {
        let _ = plan;
    }

    /// A file's download begins, `have_bytes` of it being here already.
    fn started(&self, path: &str, size_bytes: Option<u64>, have_bytes: u64) {
        let _ = (path, size_bytes, have_bytes);
    }

    /// So many of a file's bytes are here now. The number falls where a file is begun again.
    fn advanced(&self, path: &str, have_bytes: u64) {
        let _ = (path, have_bytes);
    }

    /// A file is here, and is what it should be.
    fn finished(&self, path: &str) {
        let _ = path;
    }

    /// Something failed that may be over soon, and is tried again after a while.
    fn waiting(&self, what: &str, wait: Duration) {
        let _ = (what, wait);
    }
}

/// Tells nobody.
impl Progress for () {}
