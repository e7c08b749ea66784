use model_store::{AgentName, PayloadPath, VersionName, exit};

fn check<T>(row: &str, value: &str, refused_for: Option<&str>)
where
    T: std::str::FromStr<Err = model_store::NameError> + serde::de::DeserializeOwned + std::fmt::Display,
{
    let parsed = value.parse::<T>();
    let json = serde_json::from_value::<T>(value.into());
    match refused_for {
        None => {
            assert_eq!(parsed.unwrap_or_else(|e| panic!("{row}: {e}")).to_string(), value, "{row}");
            assert_eq!(
                json.unwrap_or_else(|e| panic!("{row}: {e}")).to_string(),
                value,
                "{row}, through serde"
            );
        }
        Some(reason) => {
            let error = parsed.err().unwrap_or_else(|| panic!("{row}: {value:?} was accepted"));
            assert!(error.reason().contains(reason), "{row}: {error}");
            assert_eq!(error.value(), value, "{row}");
            assert_eq!(error.exit_code(), exit::USAGE, "{row}");
            assert!(json.is_err(), "{row}: {value:?} was accepted through serde");
        }
    }
}

#[test]
fn agent_and_version_names() {
    let (longest, too_long) = ("a".repeat(128), "a".repeat(129));
    let rows: &[(&str, &str, Option<&str>)] = &[
        ("plain", "analyst", None),
        ("every kind of character", "News-cleaner_2.0", None),
        ("a digit first", "7b", None),
        ("128 bytes", &longest, None),
        ("tmp elsewhere", "v1.tmp.2", None),
        ("129 bytes", &too_long, Some("longer than 128")),
        ("empty", "", Some("empty")),
        ("parent", "..", Some("begin with")),
        ("climbing", "../x", Some("begin with")),
        ("hidden", ".lock", Some("begin with")),
        ("an option", "-rf", Some("begin with")),
        ("a slash", "a/b", Some("only letters")),
        ("a space", "a b", Some("only letters")),
        ("a newline", "a\n", Some("only letters")),
        ("a NUL", "a\0", Some("only letters")),
        ("not ASCII", "größe", Some("only letters")),
        ("staging", "v1.tmp", Some(".tmp")),
        ("reserved versions", "versions", Some("reserved")),
        ("reserved current", "current", Some("reserved")),
        ("reserved refs", "refs", Some("reserved")),
    ];
    for (row, value, refused_for) in rows {
        check::<AgentName>(row, value, *refused_for);
        check::<VersionName>(row, value, *refused_for);
    }
}

#[test]
fn payload_paths() {
    let (long_component, long_path) = ("a".repeat(256), format!("{}a", "a/".repeat(512)));
    let rows: &[(&str, &str, Option<&str>)] = &[
        ("plain", "model.safetensors", None),
        ("nested", "engines/tensorrt-rtx-1.7.1/sm80+-fp16/model.engine", None),
        ("spaces and Unicode", "Größe 1/模型.bin", None),
        ("hidden", ".gitattributes", None),
        ("a nested manifest", "onnx/manifest.json", None),
        ("a dash inside", "a/-b", None),
        ("dots in a name", "a..b/...", None),
        ("the manifest", "manifest.json", Some("store's own")),
        ("empty", "", Some("empty")),
        ("absolute", "/etc/passwd", Some("absolute")),
        ("climbing", "../x", Some("'..'")),
        ("climbing inside", "a/../../x", Some("'..'")),
        ("here", "./x", Some("'.'")),
        ("doubled slash", "a//b", Some("empty component")),
        ("trailing slash", "a/", Some("empty component")),
        ("an option", "-rf", Some("'-'")),
        ("newline", "a\nb", Some("control")),
        ("escape", "a\u{1b}[31m", Some("control")),
        ("NUL", "a\0b", Some("control")),
        ("a C1 control", "a\u{85}b", Some("control")),
        ("backslash", "a\\b", Some("backslash")),
        ("a long component", &long_component, Some("255")),
        ("a long path", &long_path, Some("1024")),
    ];
    for (row, value, refused_for) in rows {
        check::<PayloadPath>(row, value, *refused_for);
    }
}
