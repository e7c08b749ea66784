//! `model-store sync`.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use model_store::{AgentName, ModelStore, exit};
use serde::Serialize;
use store_sync::{Observer, PullOptions, Remote, Step, SyncError, pause_between};

use crate::cli::Global;
use crate::commands::pull;
use crate::meter;
use crate::notify::Notify;
use crate::remotes::RemoteArgs;
use crate::{args, human, out};

/// How soon Ctrl-C is heard.
const LISTENS_EVERY: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  model-store sync --all --remote s3://models/fleet                    once
  model-store sync --agent scout --follow 30s --remote s3://models/fleet
  model-store sync --all --follow 1min --stage-only                    bring versions, activate none
  model-store sync --all --follow 30s --json | jq -r .version

As a service: Type=notify, WatchdogSec=5min; `model-store metrics` tells how far behind this host is.";

/// Keep in step with the fleet
///
/// Whenever the pointer of an agent moves at the remote, its version is pulled and made current. Only a new
/// serial moves anything, so what is activated here by hand stays until then; an old pointer that comes back
/// is refused and reported. One line for each thing that happens. Ends with Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// An agent, any number of times
    #[arg(long = "agent", value_name = "AGENT", required_unless_present = "all")]
    agents: Vec<AgentName>,
    /// Every agent of the remote, new ones too
    #[arg(long, conflicts_with = "agents")]
    all: bool,
    /// Go on and look again so often, a fifth more or less; longer after failures
    #[arg(long, value_name = "TIME", value_parser = interval)]
    follow: Option<Duration>,
    /// Bring versions and leave `current` where it is
    #[arg(long)]
    stage_only: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

fn interval(text: &str) -> Result<Duration, String> {
    match args::duration(text) {
        Ok(Duration::ZERO) => Err("there must be some time between two looks".to_owned()),
        other => other,
    }
}

/// What happened, as a script reads it.
#[derive(Serialize)]
struct Line<'a> {
    at: Timestamp,
    agent: &'a AgentName,
    seconds: f64,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What<'a> {
    Step(&'a Step),
    Failed { step: &'static str, error: String, code: u8, again_in_seconds: Option<f64> },
}

struct Follower<'a> {
    global: &'a Global,
    store: ModelStore,
    remote: Remote,
    options: PullOptions,
    notify: Arc<Notify>,
    /// What went wrong at the last look at each agent, so that it is said once.
    trouble: BTreeMap<AgentName, String>,
    /// Why the agents could not be listed, so that it is said once.
    missing: Option<String>,
}

/// Stops on request. It is asked all through a long download, which is no reason to be taken for dead.
struct Stop {
    stop: Arc<AtomicBool>,
    notify: Arc<Notify>,
}

impl Observer for Stop {
    fn is_stopped(&self) -> bool {
        self.notify.alive();
        self.stop.load(Ordering::Relaxed)
    }
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let stop = meter::stop_on_request()?;
    let notify = Arc::new(Notify::from_env());
    let observer = Stop { stop: stop.clone(), notify: notify.clone() };
    let remote = args.remote.connect()?.with_observer(Arc::new(observer));
    let mut follower = Follower {
        global,
        store: global.open()?,
        remote,
        options: PullOptions { stage_only: args.stage_only, reason: None },
        notify,
        trouble: BTreeMap::new(),
        missing: None,
    };
    let Some(every) = args.follow else {
        follower.remote.store_file()?;
        return follower.round(args, None);
    };
    follower.notify.ready();
    let mut failures = 0;
    while !stop.load(Ordering::Relaxed) {
        let code = follower.round(args, Some((every, failures)))?;
        failures = if code == exit::OK { 0 } else { failures + 1 };
        follower.notify.status(&follower.status());
        let (begun, pause) = (Instant::now(), pause_between(every, failures));
        while begun.elapsed() < pause && !stop.load(Ordering::Relaxed) {
            follower.notify.alive();
            std::thread::sleep(LISTENS_EVERY.min(pause));
        }
    }
    follower.notify.stopping();
    Ok(exit::OK)
}

impl Follower<'_> {
    /// One look at every agent.
    fn round(&mut self, args: &Args, again: Option<(Duration, u32)>) -> anyhow::Result<u8> {
        let again = again.map(|(every, failures)| pause_between(every, failures + 1));
        // A folder that is gone, or a bucket that was emptied, lists nothing: that is not the same as no agents.
        let listed = |remote: &Remote| remote.store_file().and_then(|_| remote.agents());
        let agents = if args.all { listed(&self.remote) } else { Ok(args.agents.clone()) };
        let agents = match agents {
            Ok(agents) => {
                self.missing = None;
                agents
            }
            Err(SyncError::Stopped) if again.is_some() => return Ok(exit::OK),
            Err(e) if again.is_some() => {
                let error = human::with_causes(&e);
                if self.missing.as_ref() != Some(&error) {
                    out::warning(human::harmless(&error));
                    self.missing = Some(error);
                }
                return Ok(e.exit_code());
            }
            Err(e) => return Err(e.into()),
        };
        let mut code = exit::OK;
        for agent in agents {
            let begun = Instant::now();
            let step = self.remote.sync_agent(&self.store, &agent, &self.options);
            let seconds = begun.elapsed().as_secs_f64();
            self.notify.alive();
            match step {
                Ok(step) => {
                    let was_in_trouble = self.trouble.remove(&agent).is_some();
                    let is_news = matches!(step, Step::Followed(_)) || again.is_none() || was_in_trouble;
                    if is_news {
                        self.tell(&agent, seconds, What::Step(&step))?;
                    }
                }
                Err(SyncError::Stopped) if again.is_some() => return Ok(exit::OK),
                Err(SyncError::Stopped) => return Err(SyncError::Stopped.into()),
                Err(e) => {
                    code = human::worst([code, e.exit_code()].into_iter());
                    let error = human::with_causes(&e);
                    if self.trouble.insert(agent.clone(), error.clone()).as_ref() != Some(&error) {
                        let again_in_seconds = again.map(|pause| pause.as_secs_f64().round());
                        let failed =
                            What::Failed { step: "failed", error, code: e.exit_code(), again_in_seconds };
                        self.tell(&agent, seconds, failed)?;
                    }
                }
            }
        }
        Ok(code)
    }

    fn tell(&self, agent: &AgentName, seconds: f64, what: What<'_>) -> anyhow::Result<()> {
        let at = Timestamp::now();
        let at = at.round(jiff::Unit::Millisecond).unwrap_or(at);
        let mut out = out::stdout();
        if self.global.json {
            let line = serde_json::to_string(&Line { at, agent, seconds, what })?;
            writeln!(out, "{line}")?;
            return Ok(out.flush()?);
        }
        match what {
            What::Step(Step::Followed(pulled)) => {
                writeln!(out, "{at}  {}   {seconds:.1} s", pull::in_words(pulled))?;
                pull::warn(pulled);
            }
            What::Step(Step::InStep { serial }) => {
                writeln!(out, "{at}  {agent} is in step   serial {serial}")?;
            }
            What::Step(Step::Nothing) => writeln!(out, "{at}  {agent}: the fleet has no version yet")?,
            What::Failed { error, again_in_seconds, .. } => {
                let again =
                    again_in_seconds.map_or_else(String::new, |seconds| format!("; again in {seconds} s"));
                out::warning(format_args!("{at}  {agent}: {}{again}", human::harmless(&error)));
            }
        }
        Ok(out.flush()?)
    }

    fn status(&self) -> String {
        if let Some(error) = &self.missing {
            return error.clone();
        }
        match self.trouble.iter().next() {
            None => format!("in step with {}", self.remote.address()),
            Some((agent, error)) => format!("{agent}: {error}"),
        }
    }
}
