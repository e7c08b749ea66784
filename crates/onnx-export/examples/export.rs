//! Exports a model folder: `cargo run -p onnx-export --example export -- FOLDER [PRECISION] [sentence|classify|hidden] [portable|tensorrt]`
use onnx_export::*;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, d: &str| args.get(i).cloned().unwrap_or_else(|| d.to_owned());
    let head = match arg(2, "sentence").as_str() {
        "sentence" => Head::SentenceEmbedding(SentenceHead { pooling: vec![Pooling::Mean], normalize: true }),
        "classify" => Head::SequenceClassification,
        _ => Head::HiddenStates,
    };
    let start = std::time::Instant::now();
    let cp = Checkpoint::open(arg(0, "."))?;
    let mut o = ExportOptions::new(head, arg(1, "fp32").parse()?);
    if arg(3, "") == "emulated" { o.bf16 = Bf16::Emulated; }
    if arg(3, "tensorrt") == "portable" { o.lowering = Lowering::Portable; }
    let e = export(&cp, &o)?;
    std::fs::write(std::path::Path::new(&args[0]).join(arg(4, "model.onnx")), &e.onnx)?;
    println!("{:?}", start.elapsed());
    println!("{:#?}", e.report);
    Ok(())
}
