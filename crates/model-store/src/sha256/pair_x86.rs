//! Two SHA-256 streams at once on x86's SHA extensions.
//!
//! `sha256rnds2` has a latency of four cycles and can be issued every two, so one stream keeps half of the
//! unit busy. The rounds are those of FIPS 180-4, 6.2.2, four at a time, in the instructions' own order of the
//! state: `ABEF` and `CDGH`. See Intel's "SHA Extensions" white paper (2013) for what each one does.
#![expect(unsafe_code, reason = "loads and stores of vectors, and the call of what needs a CPU feature")]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_loadu_si128, _mm_set_epi64x,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
    _mm_storeu_si128,
};

use super::Block;

/// Proof that this machine has the instructions.
#[derive(Clone, Copy)]
pub(super) struct Pair(());

impl Pair {
    /// `None` on a machine without the instructions.
    pub(super) fn here() -> Option<Self> {
        let has = is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1");
        has.then_some(Self(()))
    }

    /// Takes as many blocks of each stream as both have.
    #[expect(clippy::unused_self, reason = "it is the proof that the call is sound")]
    pub(super) fn compress(self, a: &mut [u32; 8], a_blocks: &[Block], b: &mut [u32; 8], b_blocks: &[Block]) {
        debug_assert_eq!(a_blocks.len(), b_blocks.len(), "what one stream has more would be lost");
        // SAFETY: a `Pair` is made only where the features were detected.
        unsafe { compress(a, a_blocks, b, b_blocks) }
    }
}

/// FIPS 180-4, 4.2.2.
static ROUND_CONSTANTS: [[u32; 4]; 16] = [
    [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
    [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
    [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
    [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
    [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
    [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
    [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
    [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
    [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
    [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
    [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
    [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
    [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
    [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
    [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
    [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
];

/// Four rounds of each stream, and the four words of each schedule that are due sixteen rounds later.
macro_rules! four_rounds {
    ($group:literal, $a:ident, $b:ident) => {{
        let constants = load(&ROUND_CONSTANTS[$group]);
        let a_words = _mm_add_epi32($a.words[$group % 4], constants);
        let b_words = _mm_add_epi32($b.words[$group % 4], constants);
        $a.cdgh = _mm_sha256rnds2_epu32($a.cdgh, $a.abef, a_words);
        $b.cdgh = _mm_sha256rnds2_epu32($b.cdgh, $b.abef, b_words);
        if $group < 12 {
            $a.words[$group % 4] = next_words(&$a.words, $group);
        }
        $a.abef = _mm_sha256rnds2_epu32($a.abef, $a.cdgh, _mm_shuffle_epi32(a_words, 0x0e));
        if $group < 12 {
            $b.words[$group % 4] = next_words(&$b.words, $group);
        }
        $b.abef = _mm_sha256rnds2_epu32($b.abef, $b.cdgh, _mm_shuffle_epi32(b_words, 0x0e));
    }};
}

#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn compress(a_state: &mut [u32; 8], a_blocks: &[Block], b_state: &mut [u32; 8], b_blocks: &[Block]) {
    let (mut a, mut b) = (Stream::begin(a_state), Stream::begin(b_state));
    for (a_block, b_block) in a_blocks.iter().zip(b_blocks) {
        let (a_before, b_before) = (a, b);
        a.words = words_of(a_block);
        b.words = words_of(b_block);
        four_rounds!(0, a, b);
        four_rounds!(1, a, b);
        four_rounds!(2, a, b);
        four_rounds!(3, a, b);
        four_rounds!(4, a, b);
        four_rounds!(5, a, b);
        four_rounds!(6, a, b);
        four_rounds!(7, a, b);
        four_rounds!(8, a, b);
        four_rounds!(9, a, b);
        four_rounds!(10, a, b);
        four_rounds!(11, a, b);
        four_rounds!(12, a, b);
        four_rounds!(13, a, b);
        four_rounds!(14, a, b);
        four_rounds!(15, a, b);
        a.abef = _mm_add_epi32(a.abef, a_before.abef);
        a.cdgh = _mm_add_epi32(a.cdgh, a_before.cdgh);
        b.abef = _mm_add_epi32(b.abef, b_before.abef);
        b.cdgh = _mm_add_epi32(b.cdgh, b_before.cdgh);
    }
    a.end(a_state);
    b.end(b_state);
}

#[derive(Clone, Copy)]
struct Stream {
    abef: __m128i,
    cdgh: __m128i,
    /// The next sixteen words of the schedule, four by four, each at its group's number modulo four.
    words: [__m128i; 4],
}

impl Stream {
    #[inline]
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn begin(state: &[u32; 8]) -> Self {
        let [dcba, hgfe] = state.as_chunks().0 else { unreachable!("eight words are two by four") };
        let cdab = _mm_shuffle_epi32(load(dcba), 0xb1);
        let efgh = _mm_shuffle_epi32(load(hgfe), 0x1b);
        Self {
            abef: _mm_alignr_epi8(cdab, efgh, 8),
            cdgh: _mm_blend_epi16(efgh, cdab, 0xf0),
            words: [_mm_set_epi64x(0, 0); 4],
        }
    }

    #[inline]
    #[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
    fn end(self, state: &mut [u32; 8]) {
        let feba = _mm_shuffle_epi32(self.abef, 0x1b);
        let dchg = _mm_shuffle_epi32(self.cdgh, 0xb1);
        let [dcba, hgfe] = state.as_chunks_mut().0 else { unreachable!("eight words are two by four") };
        store(dcba, _mm_blend_epi16(feba, dchg, 0xf0));
        store(hgfe, _mm_alignr_epi8(dchg, feba, 8));
    }
}

/// The words of a block, which are big-endian.
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn words_of(block: &Block) -> [__m128i; 4] {
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let [a, b, c, d] = block.as_chunks::<16>().0 else { unreachable!("a block is four by sixteen bytes") };
    // No closures here: what takes them lacks the CPU features, and would not be inlined.
    [
        _mm_shuffle_epi8(load_bytes(a), swap),
        _mm_shuffle_epi8(load_bytes(b), swap),
        _mm_shuffle_epi8(load_bytes(c), swap),
        _mm_shuffle_epi8(load_bytes(d), swap),
    ]
}

/// The words that replace those of a group: W[t] = σ1(W[t-2]) + W[t-7] + σ0(W[t-15]) + W[t-16].
#[inline]
#[target_feature(enable = "sha,sse2,ssse3,sse4.1")]
fn next_words(words: &[__m128i; 4], group: usize) -> __m128i {
    let (oldest, older) = (words[group % 4], words[(group + 1) % 4]);
    let (newer, newest) = (words[(group + 2) % 4], words[(group + 3) % 4]);
    let without_last = _mm_add_epi32(_mm_sha256msg1_epu32(oldest, older), _mm_alignr_epi8(newest, newer, 4));
    _mm_sha256msg2_epu32(without_last, newest)
}

#[inline]
#[target_feature(enable = "sse2")]
fn load_bytes(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: sixteen bytes are read, at any alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn load(words: &[u32; 4]) -> __m128i {
    // SAFETY: sixteen bytes are read, at any alignment.
    unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn store(words: &mut [u32; 4], value: __m128i) {
    // SAFETY: sixteen bytes are written, at any alignment.
    unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), value) }
}
