//! Counter-based randomness from the key of a call: the only randomness a plugin may use.
//!
//! Nothing has to be saved, and a replayed call draws the same numbers. Streams are Philox 4x32-10.
//! Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

/// A stream of draws. Equal keys give equal draws on every machine.
#[derive(Clone, Debug)]
pub struct Random {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

/// A key for one use inside a call: two names never share draws, whatever the order in which they are asked for.
pub fn derive_key(key: [u64; 2], name: &str) -> [u64; 2] {
    let hash = |seed: u64| {
        name.bytes().fold(mix(seed ^ name.len() as u64), |h, byte| {
            mix(h ^ u64::from(byte).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        })
    };
    [mix(key[0] ^ hash(key[1])), mix(key[1] ^ hash(key[0].rotate_left(32)))]
}

/// The finaliser of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Random {
    /// The stream of a key.
    pub fn new(key: [u64; 2]) -> Self {
        Self {
            key: [key[0] as u32, (key[0] >> 32) as u32],
            counter: [0, 0, key[1] as u32, (key[1] >> 32) as u32],
            block: [0; 4],
            used: 4,
        }
    }

    /// The stream of one use inside a call, independent of all other names.
    pub fn named(key: [u64; 2], name: &str) -> Self {
        Self::new(derive_key(key, name))
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox(self.counter, self.key);
            let (low, carry) = self.counter[0].overflowing_add(1);
            self.counter[0] = low;
            self.counter[1] = self.counter[1].wrapping_add(u32::from(carry));
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n` without bias (Lemire 2019). 0 for `n` = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            let low = product as u64;
            if low >= n.wrapping_neg() % n.max(1) {
                return (product >> 64) as u64;
            }
        }
    }

    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// `count` different indices out of `0..n`, in random order; all of them if `count >= n`.
    pub fn sample(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        let count = count.min(n);
        for i in 0..count {
            let j = i + self.below((n - i) as u64) as usize;
            all.swap(i, j);
        }
        all.truncate(count);
        all
    }
}

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
    fn names_have_their_own_streams() {
        let first = |name| Random::named([1, 2], name).next_u64();
        assert_ne!(first("a"), first("b"));
        assert_ne!(first("a"), first(""));
        assert_eq!(first("a"), first("a"));
        assert_ne!(Random::named([1, 2], "a").next_u64(), Random::named([2, 1], "a").next_u64());
    }

    #[test]
    fn normal_draws_have_mean_zero_and_variance_one() {
        let mut random = Random::new([3, 4]);
        let draws: Vec<f64> = (0..100_000).map(|_| random.normal()).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 1e5;
        // Six standard errors: 6/sqrt(1e5) and 6*sqrt(2/1e5).
        assert!(mean.abs() < 0.019, "{mean}");
        assert!((variance - 1.0).abs() < 0.027, "{variance}");
    }

    #[test]
    fn a_sample_has_no_repeats_and_covers_every_index() {
        let mut random = Random::new([5, 6]);
        let mut hits = [0u32; 10];
        for _ in 0..10_000 {
            let sample = random.sample(10, 3);
            assert_eq!(sample.len(), 3);
            assert!(sample[0] != sample[1] && sample[1] != sample[2] && sample[0] != sample[2]);
            sample.iter().for_each(|i| hits[*i] += 1);
        }
        assert!(hits.iter().all(|h| (2_700..3_300).contains(h)), "{hits:?}");
        assert_eq!(random.sample(2, 9).len(), 2);
    }
}
