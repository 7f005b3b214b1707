//! Built-in schedulers: continual-learning methods that steer the training of one student.
//!
//! None of them runs a model or keeps a generator: they file requests, and every draw comes from the event's key.

mod derpp;
mod er;
mod ewc;
mod importance;
mod lwf;
mod none;
#[cfg(test)]
mod penalty_tests;
mod replay;
mod si;
#[cfg(test)]
mod tests;

limbeck_sdk::export! {
    scheduler none::None,
    scheduler er::Er,
    scheduler lwf::Lwf,
    scheduler derpp::Derpp,
    scheduler ewc::Ewc,
    scheduler si::Si,
}
