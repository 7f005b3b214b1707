//! Counter-based randomness: every draw is a function of a key and a position, so nothing has to be saved.
//!
//! Philox 4x32-10. Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
//! Invariant: equal key and position give equal bits on every machine and for every number of threads.

use rayon::prelude::*;

/// Blocks that are drawn at a time.
pub(crate) const LANES: usize = 16;

/// Draws of one purpose (a parameter's initial values, one dropout of one call).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    key: [u32; 2],
    high: [u32; 2],
}

impl Stream {
    /// The draws of `purpose` under a call's key.
    pub(crate) fn new(key: [u64; 2], purpose: u64) -> Self {
        let a = mix(key[0] ^ mix(purpose));
        let b = mix(key[1].wrapping_add(a));
        Self { key: [a as u32, (a >> 32) as u32], high: [b as u32, (b >> 32) as u32] }
    }

    /// The key of the blocks, and the upper half of their counter.
    #[cfg(any(test, feature = "cuda"))]
    pub(crate) fn words(self) -> ([u32; 2], [u32; 2]) {
        (self.key, self.high)
    }

    /// The draws of a name under a call's key (FNV-1a of the name is the purpose).
    pub(crate) fn named(key: [u64; 2], name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self::new(key, hash)
    }

    /// Four draws of 32 bits: those at positions `4 * index ..= 4 * index + 3`.
    #[inline]
    pub(crate) fn block(self, index: u64) -> [u32; 4] {
        philox([index as u32, (index >> 32) as u32, self.high[0], self.high[1]], self.key)
    }

    /// The draws of [`LANES`] blocks, as [`Stream::block`] gives them; to be inlined into a kernel of wide registers.
    #[inline(always)]
    pub(crate) fn blocks(self, first: u64) -> [u32; 4 * LANES] {
        let index = |lane: usize| first.wrapping_add(lane as u64);
        let mut a: [u32; LANES] = std::array::from_fn(|lane| index(lane) as u32);
        let mut b: [u32; LANES] = std::array::from_fn(|lane| (index(lane) >> 32) as u32);
        let (mut c, mut d) = ([self.high[0]; LANES], [self.high[1]; LANES]);
        let mut k = self.key;
        for _ in 0..10 {
            for (((a, b), c), d) in a.iter_mut().zip(&mut b).zip(&mut c).zip(&mut d) {
                let p0 = u64::from(*a) * 0xD251_1F53;
                let p1 = u64::from(*c) * 0xCD9E_8D57;
                *a = (p1 >> 32) as u32 ^ *b ^ k[0];
                *b = p1 as u32;
                *c = (p0 >> 32) as u32 ^ *d ^ k[1];
                *d = p0 as u32;
            }
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        let mut draws = [0; 4 * LANES];
        let lanes = a.iter().zip(&b).zip(&c).zip(&d);
        for (draws, (((&a, &b), &c), &d)) in draws.chunks_exact_mut(4).zip(lanes) {
            draws.copy_from_slice(&[a, b, c, d]);
        }
        draws
    }

    /// `count` numbers, uniform in `[0, 1)`, 53 bits each.
    pub(crate) fn uniform(self, count: usize) -> Vec<f64> {
        self.pairs(count, |[a, b, c, d]| [unit(a, b), unit(c, d)])
    }

    /// `count` standard normal numbers (Box and Muller 1958, both of a pair).
    pub(crate) fn normal(self, count: usize) -> Vec<f64> {
        self.pairs(count, |[a, b, c, d]| {
            let radius = (-2.0 * (1.0 - unit(a, b)).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * unit(c, d)).sin_cos();
            [radius * cos, radius * sin]
        })
    }

    /// Two numbers a block, on all threads: a table of words has tens of millions.
    fn pairs(self, count: usize, pair: impl Fn([u32; 4]) -> [f64; 2] + Sync) -> Vec<f64> {
        const PART: usize = 1 << 14;
        let mut numbers = vec![0.0; count];
        numbers.par_chunks_mut(2 * PART).enumerate().for_each(|(part, numbers)| {
            for (i, to) in numbers.chunks_mut(2).enumerate() {
                let pair = pair(self.block((part * PART + i) as u64));
                to.copy_from_slice(&pair[..to.len()]);
            }
        });
        numbers
    }
}

fn unit(low: u32, high: u32) -> f64 {
    let bits = u64::from(low) | u64::from(high) << 32;
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The finalizer of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[inline]
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xD251_1F53;
        let p1 = u64::from(c[2]) * 0xCD9E_8D57;
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn blocks_drawn_together_equal_blocks_drawn_alone() {
        let stream = Stream::new([1, 2], 3);
        // The middle one carries into the second word of the counter.
        for first in [0, u64::from(u32::MAX) - 7, 1 << 40] {
            let alone: Vec<u32> =
                (0..LANES as u64).flat_map(|lane| stream.block(first + lane)).collect();
            assert_eq!(stream.blocks(first).as_slice(), alone);
        }
    }

    #[test]
    fn draws_have_the_moments_of_their_distribution() {
        let n = 200_000;
        let stream = Stream::new([1, 2], 3);
        let mean = stream.uniform(n).iter().sum::<f64>() / n as f64;
        let square = stream.uniform(n).iter().map(|u| u * u).sum::<f64>() / n as f64;
        // Four standard errors: sqrt(1/12/n) = 6.5e-4, sqrt(4/45/n) = 6.7e-4.
        assert!((mean - 0.5).abs() < 2.6e-3 && (square - 1.0 / 3.0).abs() < 2.7e-3);
        let mean = stream.normal(n).iter().sum::<f64>() / n as f64;
        let square = stream.normal(n).iter().map(|u| u * u).sum::<f64>() / n as f64;
        assert!(mean.abs() < 9e-3 && (square - 1.0).abs() < 1.3e-2, "{mean} {square}");
    }

    #[test]
    fn streams_of_other_names_keys_and_purposes_differ() {
        let first = Stream::named([1, 2], "a").block(0);
        assert_eq!(first, Stream::named([1, 2], "a").block(0));
        assert_ne!(first, Stream::named([1, 2], "b").block(0));
        assert_ne!(first, Stream::named([1, 3], "a").block(0));
        assert_ne!(first, Stream::named([2, 2], "a").block(0));
        assert_ne!(Stream::new([1, 2], 0).block(0), Stream::new([1, 2], 1).block(0));
    }
}
