//! Names of ports and parameters that depend on layers.
//!
//! One place, so that plugin ports and the oracle cannot disagree.

/// `student.hidden`, or `student.hidden.6` for layer 6.
pub fn layered(port: &str, layer: Option<u32>) -> String {
    layer.map_or_else(|| port.to_owned(), |layer| format!("{port}.{layer}"))
}

/// `proj.weight`, or `proj.1.weight` for the second pair of layers.
pub fn indexed(parameter: &str, pair: Option<usize>) -> String {
    match (pair, parameter.split_once('.')) {
        (None, _) => parameter.to_owned(),
        (Some(pair), Some((head, tail))) => format!("{head}.{pair}.{tail}"),
        (Some(pair), None) => format!("{parameter}.{pair}"),
    }
}
