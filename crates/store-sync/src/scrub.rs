//! Text of servers and libraries, without what may be secret in it.

/// Variables whose values are nobody's business.
const SECRETS: [&str; 10] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_TOKEN",
];
/// What is shorter is no secret, and would be found in any text.
const SHORTEST: usize = 6;

/// Takes queries and passwords out of addresses, and the values of secret variables out of everything.
pub(crate) fn scrub(text: &str) -> String {
    let secrets = SECRETS.iter().filter_map(|name| std::env::var(name).ok());
    scrub_with(text, &secrets.collect::<Vec<_>>())
}

fn scrub_with(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| secret.len() >= SHORTEST) {
        text = text.replace(secret.as_str(), "…");
    }
    let words = text.split_inclusive(char::is_whitespace).map(without_query);
    words.collect()
}

fn without_query(word: &str) -> String {
    let Some(at) = word.find("://") else { return word.to_owned() };
    let (scheme, rest) = word.split_at(at + 3);
    let end = rest.find(|c: char| c.is_whitespace() || "()\"'<>,".contains(c)).unwrap_or(rest.len());
    let (url, after) = rest.split_at(end);
    let authority_end = url.find(['/', '?']).unwrap_or(url.len());
    let url = match url[..authority_end].rfind('@') {
        Some(at) => format!("…{}", &url[at..]),
        None => url.to_owned(),
    };
    let url = match url.find('?') {
        Some(at) => format!("{}?…", &url[..at]),
        None => url,
    };
    format!("{scheme}{url}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_survives() {
        let secrets = ["wJalrXUtnFEMI".to_owned(), "short".to_owned()];
        let rows = [
            ("plain text", "plain text"),
            ("GET https://a.b/c?sig=xyz failed", "GET https://a.b/c?… failed"),
            ("(https://a.b/c?sig=xyz): no", "(https://a.b/c?…): no"),
            ("s3://k:p@bucket/x", "s3://…@bucket/x"),
            ("s3://k:p@bucket", "s3://…@bucket"),
            ("https://a.b/x@y", "https://a.b/x@y"),
            ("key wJalrXUtnFEMI was", "key … was"),
            ("short", "short"),
        ];
        for (text, expected) in rows {
            assert_eq!(scrub_with(text, &secrets), expected, "{text}");
        }
    }
}
