//! The kernels' machine code, embedded when this library is built, and which image has which kernel.

/// A fat binary, aligned as the driver reads it.
#[repr(C, align(16))]
struct Aligned<const N: usize>([u8; N]);

/// One embedded fat binary.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// File it was made from.
    pub source: &'static str,
    /// The fat binary.
    pub bytes: &'static [u8],
}

macro_rules! image {
    ($source:literal) => {{
        const BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/", $source, ".fatbin"));
        static ALIGNED: Aligned<{ BYTES.len() }> = {
            let mut bytes = [0; BYTES.len()];
            bytes.copy_from_slice(BYTES);
            Aligned(bytes)
        };
        Image { source: $source, bytes: &ALIGNED.0 }
    }};
}

/// All of them. Those of sm_90 load on compute capability 9.0 alone, the others on 8.0 and later.
pub static IMAGES: [Image; 7] = [
    image!("dense_sm80"),
    image!("dense_sm90"),
    image!("single_sm80"),
    image!("pair"),
    image!("vector"),
    image!("single_sm90"),
    image!("linear"),
];

/// Index in [`IMAGES`] of the one with kernel `name`.
pub fn of_kernel(name: &str) -> usize {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let (single, cluster) = (starts(&["ce_", "sparse_"]), name.ends_with("_cluster"));
    if cluster {
        if single { 5 } else { 1 }
    } else if single {
        2
    } else if starts(&["logit_mse_", "hidden_mse_", "cosine_"]) {
        3
    } else if starts(&["vector_", "finish"]) {
        4
    } else if starts(&["linear_"]) {
        6
    } else {
        0
    }
}
