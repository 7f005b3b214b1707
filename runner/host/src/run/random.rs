//! Counter-based randomness: every draw is a function of a key, so nothing has to be saved.
//!
//! Keys are mixed from what identifies a call (seed, stage, slot, step); streams are Philox 4x32-10.
//! Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

/// What a key is for; part of every key, so that two uses never share draws.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Purpose {
    /// Order of rows in an epoch.
    Order = 1,
    /// `activate` of an instance (initial weights).
    Activate = 2,
    /// A forward pass.
    Forward = 3,
    /// A backward pass.
    Backward = 4,
    /// A loss call.
    Loss = 5,
    /// A scheduler event.
    Event = 6,
    /// Parameters that the host owns for a loss.
    LossParam = 7,
    /// Subset of rows of a probe.
    Probe = 8,
    /// State of an instance.
    State = 9,
    /// Order of batches of like length.
    Bucket = 10,
    /// Order of the values of a row.
    Permute = 11,
}

/// Mixes `parts` into a key. Equal parts give equal keys on every machine.
pub fn key(purpose: Purpose, parts: &[u64]) -> [u64; 2] {
    let mut a = 0x243f_6a88_85a3_08d3 ^ purpose as u64;
    let mut b = 0x1319_8a2e_0370_7344 ^ parts.len() as u64;
    for part in parts {
        a = mix(a ^ *part);
        b = mix(b.wrapping_add(part.rotate_left(32)) ^ a);
    }
    [mix(a), mix(b)]
}

/// The finaliser of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A stream of draws.
#[derive(Clone, Debug)]
pub struct Random {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
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

    fn next_u32(&mut self) -> u32 {
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
    fn draws_are_uniform_and_a_shuffle_is_a_permutation() {
        let mut random = Random::new(key(Purpose::Order, &[7, 0]));
        let mean = (0..100_000).map(|_| random.uniform()).sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        let counts = (0..60_000).fold([0u32; 6], |mut c, _| {
            c[random.below(6) as usize] += 1;
            c
        });
        assert!(counts.iter().all(|c| (9_600..10_400).contains(c)), "{counts:?}");
        let mut items: Vec<u32> = (0..100).collect();
        random.shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn keys_of_different_purpose_or_parts_differ() {
        assert_ne!(key(Purpose::Order, &[1]), key(Purpose::Forward, &[1]));
        assert_ne!(key(Purpose::Order, &[1, 2]), key(Purpose::Order, &[2, 1]));
        assert_ne!(key(Purpose::Order, &[1]), key(Purpose::Order, &[1, 0]));
    }
}
