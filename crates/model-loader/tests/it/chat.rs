//! Chat templates in the styles of well-known models, against transformers' `apply_chat_template`; and hostile ones.

use std::fs;
use std::time::{Duration, Instant, UNIX_EPOCH};

use model_loader::{CausalLm, ChatMessage, ChatOptions, LmOptions, LoadError, Prompt};
use model_store::exit;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::lm::model;
use crate::support::{check_error, data, edit_json, message};

#[derive(Deserialize)]
struct Case {
    name: String,
    template: String,
    messages: Vec<ChatMessage>,
    options: Map<String, Value>,
    expected: Option<String>,
    error: Option<String>,
}

fn rendered(template: &Value, messages: &[ChatMessage], options: &ChatOptions) -> Result<String, LoadError> {
    let folder = model("lm-llama");
    edit_json(&folder.path().join("tokenizer_config.json"), &json!({ "chat_template": template }));
    match CausalLm::from_dir(folder.path(), &LmOptions::default())?.chat(messages, options)? {
        Prompt::Rendered(text) => Ok(text),
        other => panic!("{other:?}"),
    }
}

fn user(text: &str) -> [ChatMessage; 1] {
    [ChatMessage::new("user", text)]
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let cases: Vec<Case> =
        serde_json::from_slice(&fs::read(data("lm-chat").join("cases.json")).unwrap()).unwrap();
    assert!(cases.len() >= 13);
    for Case { name, template, messages, mut options, expected, error } in cases {
        let add_generation_prompt = options.remove("add_generation_prompt") == Some(Value::Bool(true));
        let tools = match options.remove("tools") {
            Some(Value::Array(tools)) => tools,
            _ => Vec::new(),
        };
        let options =
            ChatOptions { add_generation_prompt, tools, variables: options, ..ChatOptions::default() };
        match (rendered(&Value::from(template), &messages, &options), expected, error) {
            (Ok(found), Some(expected), None) => assert_eq!(found, expected, "{name}"),
            (Err(error), None, Some(expected)) => {
                check_error(&name, &error, exit::FAILURE, &["tokenizer_config.json", &expected]);
            }
            (found, ..) => panic!("{name}: {found:?}"),
        }
    }
}

#[test]
fn a_rendered_prompt_gets_no_second_beginning() {
    let folder = model("lm-llama");
    let template = "{{ bos_token }}<|user|>{{ messages[0].content }}<|assistant|>";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    edit_json(&folder.path().join("tokenizer_config.json"), &json!({ "chat_template": "another" }));
    let lm = CausalLm::from_dir(folder.path(), &LmOptions::default()).unwrap();
    let prompt = lm.chat(&user("Ships wait"), &ChatOptions::default()).unwrap();
    let tokens = lm.tokens(prompt).unwrap();
    let text = lm.tokens("Ships wait").unwrap();
    assert_eq!(tokens[..2], [0, 3]);
    assert_eq!(tokens[2..tokens.len() - 1], text[1..], "the tokens of the text are those it has alone");
    assert_eq!(tokens.last(), Some(&4));
}

#[test]
fn several_templates_and_the_time() {
    let several = json!([
        { "name": "default", "template": "plain {{ messages[0].content }}" },
        { "name": "tool_use", "template": "tools {{ tools | length }}" },
        { "name": "day", "template": "{{ strftime_now('%d %b %Y') }}" },
    ]);
    let check = |row: &str, options: &ChatOptions, expected: &str| {
        assert_eq!(rendered(&several, &user("x"), options).unwrap(), expected, "{row}");
    };
    let plain = ChatOptions::default();
    check("default", &plain, "plain x");
    check("with tools", &ChatOptions { tools: vec![json!({}), json!({})], ..plain.clone() }, "tools 2");
    let now = Some(UNIX_EPOCH + Duration::from_hours(478_332));
    let by_name = |name: &str| ChatOptions { template: Some(name.to_owned()), now, ..ChatOptions::default() };
    check("by name", &by_name("day"), "26 Jul 2024");
    let error = rendered(&several, &user("x"), &by_name("night")).unwrap_err();
    check_error("another name", &error, exit::CORRUPT, &["`night`", "default, tool_use, day"]);
}

#[test]
fn bad_templates_end_soon_with_an_error() {
    let check = |row: &str, template: &str, code: u8, parts: &[&str]| {
        let start = Instant::now();
        let error = rendered(&Value::from(template), &user("x"), &ChatOptions::default()).expect_err(row);
        check_error(row, &error, code, &[&["tokenizer_config.json"], parts].concat());
        assert!(start.elapsed() < Duration::from_mins(1), "{row}: {:?}", start.elapsed());
    };
    check("no template", "{% if %}", exit::CORRUPT, &["does not compile"]);
    check("it raises", "{{ raise_exception('Say more!') }}", exit::FAILURE, &["Say more!"]);
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
    check("it does not end", endless, exit::FAILURE, &["could not write"]);
    let doubling = "{% set ns = namespace(x='0123456789') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}\
                    {% endfor %}{{ ns.x }}";
    check("it grows", doubling, exit::FAILURE, &["could not write"]);
    check("another file", "{% include '/etc/passwd' %}", exit::FAILURE, &["could not write"]);
    let recursion = "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}";
    check("it calls itself", recursion, exit::FAILURE, &["could not write"]);
    check("nothing of nothing", "{{ messages[9].content }}", exit::FAILURE, &["could not write"]);
    check("too long", &"x".repeat((1 << 20) + 1), exit::CORRUPT, &["1048577 bytes"]);
    let error = rendered(&json!(7), &user("x"), &ChatOptions::default()).unwrap_err();
    check_error("no text", &error, exit::CORRUPT, &["tokenizer_config.json"]);

    let folder = model("lm-llama");
    let lm = CausalLm::from_dir(folder.path(), &LmOptions::default()).unwrap();
    assert!(!lm.has_chat_template());
    let error = lm.chat(&user("x"), &ChatOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    assert!(message(&error).contains("no chat template"), "{}", message(&error));
}
