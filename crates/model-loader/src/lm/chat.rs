//! Chat templates: messages to the prompt that a model was trained on, as transformers' `apply_chat_template` writes it.
//!
//! A template is a program from a model folder: its size, its work and its memory have limits, and it reaches nothing but
//! the messages.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::LoadError;
use crate::files::{self, read_json};
use crate::lm::json;

/// The work of one rendering, which also bounds its memory to 64 bytes for each: 640 MB, or some millions of steps. The
/// largest templates take some thousands for a message.
const FUEL: u64 = 10_000_000;
/// The longest template; the longest real ones have 20 kB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// The name the template has in errors.
const NAME: &str = "chat_template";

/// A message of a conversation: a JSON object, with `role` and `content` at least.
///
/// ```
/// use model_loader::ChatMessage;
///
/// let message = ChatMessage::new("user", "Write about sport.").with("name", "Ada");
/// let same: ChatMessage =
///     serde_json::from_str(r#"{"role": "user", "content": "Write about sport.", "name": "Ada"}"#)?;
/// assert_eq!(message, same);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChatMessage {
    fields: Map<String, Json>,
}

impl ChatMessage {
    /// What a role (`system`, `user`, `assistant`, …) said.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("role".to_owned(), Json::String(role.into()));
        fields.insert("content".to_owned(), Json::String(content.into()));
        Self { fields }
    }

    /// Adds or replaces a field that the template knows, such as `tool_calls`.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<Json>) -> Self {
        self.fields.insert(key.into(), value.into());
        self
    }
}

/// What a template gets beside the messages.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatOptions {
    /// End with the beginning of the assistant's answer; without it the conversation is written as it was.
    pub add_generation_prompt: bool,
    /// Descriptions of functions the model may ask for, as JSON schemas.
    pub tools: Vec<Json>,
    /// Documents to answer from.
    pub documents: Vec<Json>,
    /// Other variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Json>,
    /// Which of several templates; without it `default`, or `tool_use` when there are tools and a template for them.
    pub template: Option<String>,
    /// The time that `strftime_now` tells, in UTC; `None` is now.
    pub now: Option<SystemTime>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            tools: Vec::new(),
            documents: Vec::new(),
            variables: Map::new(),
            template: None,
            now: None,
        }
    }
}

/// The chat template of a folder, compiled.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    names: Vec<String>,
    /// The special tokens, by the names that templates call them: `bos_token` and so on.
    tokens: Map<String, Json>,
}

/// More than any model has.
const MAX_TEMPLATES: usize = 64;

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Several(Vec<Named>),
}

/// The templates that transformers writes to a folder of their own, each named as its file.
fn additional(dir: &Path) -> Result<Vec<Named>, LoadError> {
    let folder = dir.join("additional_chat_templates");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LoadError::Read { path: folder, source }),
    };
    let mut named = Vec::new();
    for entry in entries.take(MAX_TEMPLATES) {
        let path = entry.map_err(LoadError::read(&folder))?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        let (Some(name), Some("jinja")) = (stem, path.extension().and_then(|end| end.to_str())) else {
            continue;
        };
        let Some(bytes) = files::read(&path)? else { continue };
        let template =
            String::from_utf8(bytes).map_err(|_| LoadError::config(&path, "the template is not UTF-8"))?;
        named.push(Named { name, template });
    }
    Ok(named)
}

impl ChatTemplate {
    /// The `chat_template.jinja` of a folder, else the `chat_template` of its `tokenizer_config.json`, with the special
    /// tokens of the latter.
    pub(crate) fn from_dir(dir: &Path) -> Result<Option<Self>, LoadError> {
        let settings = dir.join("tokenizer_config.json");
        let mut config: Map<String, Json> = read_json(&settings)?.unwrap_or_default();
        let file = dir.join("chat_template.jinja");
        let (path, templates) = match files::read(&file)? {
            Some(bytes) => {
                let text = String::from_utf8(bytes)
                    .map_err(|_| LoadError::config(&file, "the template is not UTF-8"))?;
                (file, Templates::One(text))
            }
            None => match config.remove(NAME) {
                None | Some(Json::Null) => return Ok(None),
                Some(value) => {
                    let templates = serde_json::from_value(value)
                        .map_err(|source| LoadError::Json { path: settings.clone(), source })?;
                    (settings, templates)
                }
            },
        };
        let mut templates = match templates {
            Templates::One(template) => vec![Named { name: "default".to_owned(), template }],
            Templates::Several(named) => named,
        };
        templates.extend(additional(dir)?);
        Self::new(path, templates, special_tokens(&config)).map(Some)
    }

    /// One template that is not in a file of its own.
    pub(crate) fn single(
        path: PathBuf,
        template: &str,
        tokens: Map<String, Json>,
    ) -> Result<Self, LoadError> {
        let template = Named { name: "default".to_owned(), template: template.to_owned() };
        Self::new(path, vec![template], tokens)
    }

    fn new(path: PathBuf, templates: Vec<Named>, tokens: Map<String, Json>) -> Result<Self, LoadError> {
        let mut environment = environment();
        let mut names = Vec::new();
        for Named { name, template } in templates {
            if template.len() > MAX_TEMPLATE_BYTES {
                let reason =
                    format!("the chat template has {} bytes of at most {MAX_TEMPLATE_BYTES}", template.len());
                return Err(LoadError::config(&path, reason));
            }
            let failed = |source| LoadError::Template { path: path.clone(), source: Box::new(source) };
            environment.add_template_owned(name.clone(), without_generation(&template)).map_err(failed)?;
            names.push(name);
        }
        Ok(Self { path, environment, names, tokens })
    }

    /// The prompt of a conversation.
    pub(crate) fn render(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
    ) -> Result<String, LoadError> {
        let failed = |source| LoadError::Chat { path: self.path.clone(), source: Box::new(source) };
        let has = |name: &str| self.names.iter().any(|known| known == name);
        let name = match &options.template {
            Some(name) => name,
            None if !options.tools.is_empty() && has("tool_use") => "tool_use",
            None => "default",
        };
        if !has(name) {
            let reason = format!("it has no template `{name}`; it has {}", self.names.join(", "));
            return Err(LoadError::config(&self.path, reason));
        }
        let list = |items: &[Json]| match items {
            [] => Value::from(()),
            items => items.iter().map(json::to_template).collect(),
        };
        let now = options.now.unwrap_or_else(SystemTime::now);
        let strftime = Value::from_function(move |format: &str| strftime(now, format));
        let message = |message: &ChatMessage| json::map_to_template(&message.fields);
        let own = [
            ("messages", messages.iter().map(message).collect::<Value>()),
            ("tools", list(&options.tools)),
            ("documents", list(&options.documents)),
            ("add_generation_prompt", Value::from(options.add_generation_prompt)),
            ("strftime_now", strftime),
        ];
        let given = self.tokens.iter().chain(&options.variables);
        let variables = given.map(|(key, value)| (key.clone(), json::to_template(value)));
        let context =
            Value::from_pairs(own.map(|(key, value)| (key.to_owned(), value)).into_iter().chain(variables));
        self.environment.get_template(name).and_then(|template| template.render(context)).map_err(failed)
    }
}

/// As transformers sets Jinja up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap_or_default(),
    );
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_filter("tojson", json::tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
}

fn strftime(now: SystemTime, format: &str) -> Result<String, Error> {
    let failed = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let now = Timestamp::try_from(now).map_err(failed)?.to_zoned(TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now).map_err(failed)
}

/// `{% generation %}` marks the assistant's words for training; it writes nothing.
fn without_generation(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inside, after) = tag.split_at(end);
        match inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => out.push_str(&inside.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&inside.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(inside),
        }
        rest = after;
    }
    out + rest
}

/// The entries of `tokenizer_config.json` that are special tokens, as texts.
fn special_tokens(config: &Map<String, Json>) -> Map<String, Json> {
    let text = |value: &Json| match value {
        Json::String(text) => Some(text.clone()),
        other => other.get("content").and_then(Json::as_str).map(str::to_owned),
    };
    let token = |(key, value): (&String, &Json)| {
        let text = text(value).filter(|_| key.ends_with("_token"))?;
        Some((key.clone(), Json::String(text)))
    };
    config.iter().filter_map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_write_nothing() {
        let check = |template: &str, expected: &str| assert_eq!(without_generation(template), expected);
        check("a{%- generation -%}b{% endgeneration %}c", "a{%- if true -%}b{% endif %}c");
        check(
            "{% if generation %}x{% endif %}{{ generation }}",
            "{% if generation %}x{% endif %}{{ generation }}",
        );
        check("{% generation", "{% generation");
    }
}
