//! The plan's names against the kernels that exist; `cuda/check.py` looks at what the compiler made of them.

use crate::emulator::{emulator, has_kernel};
use limbeck_losses::cuda::plan::{CLUSTERED, FAMILIES, OTHERS};

fn names() -> Vec<String> {
    let of = |families: &[&str], suffixes: &[&str]| -> Vec<String> {
        let pairs = families.iter().flat_map(|family| suffixes.iter().map(move |s| (family, s)));
        pairs.map(|(family, suffix)| format!("{family}_{suffix}")).collect()
    };
    let mut names = of(FAMILIES, &["any", "f32", "f16", "bf16"]);
    names.extend(of(CLUSTERED, &["f32_cluster", "f16_cluster", "bf16_cluster"]));
    names.extend(OTHERS.iter().map(|name| (*name).to_owned()));
    names
}

#[test]
fn every_kernel_that_a_plan_can_name_exists() {
    emulator();
    let missing: Vec<String> = names().into_iter().filter(|name| !has_kernel(name)).collect();
    assert_eq!(missing, Vec::<String>::new());
}
