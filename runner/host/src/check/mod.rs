//! Conformance checks of plugins, as data: id, clause of the contract, function.
