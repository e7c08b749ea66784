//! The models learned what they are for.

use toy_store::{DEFAULT_SEED, Reference, ToyVersion, analyst, held_out_sentences, memory, synthesizer};

const LABELS: [&str; 3] = ["negative", "neutral", "positive"];

fn labels(analyst: &Reference, sentences: &[&str]) -> Vec<&'static str> {
    let best = |logits: &Vec<f32>| (0..3).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
    analyst.answers(sentences).iter().map(|logits| LABELS[best(logits)]).collect()
}

/// The share of right answers, and the wrong ones.
fn accuracy(version: ToyVersion, sentences: &[(&str, &str)]) -> (f64, Vec<String>) {
    let analyst = Reference::open(&analyst(DEFAULT_SEED, version));
    let texts: Vec<&str> = sentences.iter().map(|(text, _)| *text).collect();
    let answers = labels(&analyst, &texts);
    let wrong: Vec<String> = sentences
        .iter()
        .zip(answers)
        .filter(|((_, label), answer)| label != answer)
        .map(|((text, label), answer)| format!("{answer}, not {label}: {text}"))
        .collect();
    let right = sentences.len() - wrong.len();
    (f64::from(u32::try_from(right).unwrap()) / f64::from(u32::try_from(sentences.len()).unwrap()), wrong)
}

#[test]
fn analyst_labels_new_combinations() {
    let held_out = held_out_sentences(DEFAULT_SEED, 1000);
    let sentences: Vec<(&str, &str)> = held_out.iter().map(|(text, label)| (text.as_str(), *label)).collect();
    for (version, wanted) in [(ToyVersion::V1, 0.85), (ToyVersion::V2, 0.95)] {
        let (right, wrong) = accuracy(version, &sentences);
        assert!(right >= wanted, "{version:?}: {right}\n{}", wrong.join("\n"));
    }
}

#[test]
fn analyst_labels_what_a_person_would_type() {
    let rows = include_str!("../obvious.tsv").lines().filter(|line| !line.starts_with('#'));
    let sentences: Vec<(&str, &str)> =
        rows.map(|row| row.split_once('\t').map(|(l, t)| (t, l)).unwrap()).collect();
    assert!(sentences.len() >= 50);
    let (_, wrong) = accuracy(ToyVersion::V2, &sentences);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A classifier that counts words would give both of a pair the same label, or be wrong about one.
#[test]
fn analyst_reads_words_in_context() {
    let analyst = Reference::open(&analyst(DEFAULT_SEED, ToyVersion::V2));
    for (positive, negative) in [
        ("Profits rose", "Unemployment rose"),
        ("Crime fell", "Sales fell"),
        ("The film was not bad", "The film was not good"),
        ("No one was injured", "Dozens were injured"),
    ] {
        assert_eq!(
            labels(&analyst, &[positive, negative]),
            ["positive", "negative"],
            "{positive} / {negative}"
        );
    }
}

#[test]
fn memory_puts_one_topic_together() {
    // One line a topic, in words that no telling puts together so.
    let topics = [
        [
            "The home team defeated the champions in the football match",
            "A striker of the national team hurt a knee",
        ],
        ["It will rain tomorrow in the mountains", "Heavy snow and strong wind are expected in the north"],
        ["The central bank raised interest rates", "Shares of the airline rose sharply"],
        [
            "The rocket launched a probe into orbit",
            "Astronauts looked at a distant galaxy through a telescope",
        ],
        ["The judge sent a smuggler to jail for fraud", "Burglars stole jewels from the museum, police said"],
        ["Cook the fish with garlic and butter", "The restaurant serves fresh soup"],
    ];
    let texts: Vec<&str> = topics.iter().flatten().copied().collect();
    for (version, allowed) in [(ToyVersion::V1, 2), (ToyVersion::V2, 0)] {
        let vectors = Reference::open(&memory(DEFAULT_SEED, version)).answers(&texts);
        let cosine = |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(a, b)| a * b).sum::<f32>();
        let mut strays = Vec::new();
        for text in 0..texts.len() {
            assert!((cosine(text, text) - 1.0).abs() < 1e-5, "{} has no unit vector", texts[text]);
            let others = (0..texts.len()).filter(|other| *other != text);
            let nearest = others.max_by(|a, b| cosine(text, *a).total_cmp(&cosine(text, *b))).unwrap();
            if nearest / 2 != text / 2 {
                strays.push(format!("{} is nearest to {}", texts[text], texts[nearest]));
            }
        }
        assert!(strays.len() <= allowed, "{version:?}: {}", strays.join("\n"));
    }
}

/// The most likely continuation, up to the end of the story.
fn continuation(model: &Reference, tokenizer: &tokenizers::Tokenizer, prompt: &str) -> String {
    let mut text = prompt.to_owned();
    for _ in 0..40 {
        let logits = model.answers(&[&text]).remove(0);
        let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        let token = tokenizer.decode(&[u32::try_from(best).unwrap()], false).unwrap();
        text.push_str(&token);
        if token == "</s>" {
            break;
        }
    }
    text[prompt.len()..].to_owned()
}

#[test]
fn synthesizer_tells_a_story_on_the_topic() {
    let folder = synthesizer(DEFAULT_SEED, ToyVersion::V2);
    let tokenizer = tokenizers::Tokenizer::from_bytes(folder.get("tokenizer.json").unwrap()).unwrap();
    let model = Reference::open(&folder);
    for (topic, words) in [
        ("space", &["rocket", "orbit", "telescope", "space", "Mars", "astronauts"][..]),
        ("food", &["restaurant", "supermarket", "chef", "market", "recipe", "dinner"]),
        ("economy", &["bank", "shares", "price", "inflation", "jobs", "quarter", "stock"]),
        ("weather", &["snow", "rain", "wind", "heat", "storm", "cloudy", "degrees", "sunny"]),
        ("sport", &["team", "race", "match", "cup", "champions", "medal"]),
    ] {
        let story = continuation(&model, &tokenizer, &format!("<|user|>Write about {topic}.<|assistant|>"));
        let lower = story.to_lowercase();
        assert!(words.iter().any(|word| lower.contains(&word.to_lowercase())), "{topic}: {story}");
        assert!(story.ends_with(".</s>"), "{topic}: {story}");
    }
}
