//! What an encoder computes on a CPU: products with packed weights, attention, layer norms, activations.
//!
//! Everything is one generic source over the widest vectors that the processor has (AVX-512, AVX2 with FMA, NEON, else
//! plain floats), found at run time, without `unsafe`. The functions run on the calling thread: a caller with several
//! texts gives each core its own.
//!
//! Weights are packed once, when a model is loaded, into panels as wide as the registers hold ([`Packed`]); a library
//! that takes them as they are stored packs them again at every call, which for the small matrices of sentence encoders
//! costs as much as the products. Everything is float32, but for products that are asked for in block fixed point
//! ([`Arithmetic`]), which on AVX2 take two thirds of the time.
//!
//! ```
//! use cpu_kernels::{Activation, Packed, linear};
//!
//! // Two outputs of three inputs, as checkpoints store it: a row per output.
//! let weight = Packed::new(&[1.0, 0.0, 0.0, 0.0, 2.0, 0.0], &[0.5, 0.0], 3);
//! let mut out = [0.0; 2];
//! linear(&[1.0, 2.0, 3.0], &weight, Activation::Identity, &mut out);
//! assert_eq!(out, [1.5, 4.0]);
//! ```

// Not a matter of taste: a function that is not inlined into its caller loses the caller's instruction set.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vectors found at run time")]

mod aligned;
mod attention;
#[cfg(target_arch = "x86_64")]
mod fixed;
mod math;
mod packed;
mod product;
mod rows;

pub use attention::{Attention, Relative, Scratch};
pub use math::Activation;
pub use packed::{Arithmetic, Packed, linear};
pub use rows::{Norm, dot, gate, softmax};

/// The vectors that the kernels run on here, for logs and benchmarks: `avx512`, `avx2`, `neon` or `scalar`.
#[must_use]
pub fn instruction_set() -> &'static str {
    struct Lanes;
    impl pulp::WithSimd for Lanes {
        type Output = usize;
        fn with_simd<S: pulp::Simd>(self, _simd: S) -> usize {
            S::F32_LANES
        }
    }
    match pulp::Arch::new().dispatch(Lanes) {
        16 => "avx512",
        8 => "avx2",
        4 => "neon",
        _ => "scalar",
    }
}
