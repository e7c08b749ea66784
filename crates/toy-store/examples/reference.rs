//! Asks a toy: `cargo run -p toy-store --example reference -- analyst "Profits rose sharply"` prints one JSON array a text.

use toy_store::{DEFAULT_SEED, Kind, Reference, ToyVersion, folder, roberta_classifier};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_default();
    let reference = match Kind::ALL.into_iter().find(|kind| kind.agent().as_str() == name) {
        Some(kind) => Reference::open(&folder(kind, DEFAULT_SEED, ToyVersion::V2)),
        None if name == "roberta" => Reference::open(&roberta_classifier()),
        None => anyhow::bail!("usage: reference analyst|memory|synthesizer|roberta TEXT…"),
    };
    let texts: Vec<String> = arguments.collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for answer in reference.answers(&texts) {
        let line = serde_json::to_string(&answer)?;
        std::io::Write::write_all(&mut std::io::stdout(), format!("{line}\n").as_bytes())?;
    }
    Ok(())
}
