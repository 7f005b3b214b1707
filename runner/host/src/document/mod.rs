//! YAML text to the document as written, with the place of every key and value.
