//! Built-in schedulers: continual-learning methods that steer the training of one student.
//!
//! None of them runs a model or keeps a generator: they file requests, and every draw comes from the event's key.

mod agem;
mod derpp;
mod er;
mod ewc;
mod gdumb;
mod icarl;
mod importance;
mod joint;
mod lwf;
mod mas;
#[cfg(test)]
mod method_tests;
mod none;
#[cfg(test)]
mod penalty_tests;
mod ps_kd;
mod replay;
mod si;
#[cfg(test)]
mod tests;

/// Devices of a student that any of them steers: rows are read in CPU memory, parameters through the device's arithmetic.
const ANYWHERE: &[i32] = &[limbeck_sdk::abi::DL_CPU, limbeck_sdk::abi::DL_CUDA];

limbeck_sdk::export! {
    scheduler none::None,
    scheduler joint::Joint,
    scheduler er::Er,
    scheduler lwf::Lwf,
    scheduler derpp::Derpp,
    scheduler ewc::Ewc,
    scheduler si::Si,
    scheduler mas::Mas,
    scheduler agem::Agem,
    scheduler icarl::Icarl,
    scheduler gdumb::Gdumb,
    scheduler ps_kd::PsKd,
}
