//! Diagnostic codes of this phase; explained in `runner/docs/errors.md`.

pub(crate) const UNKNOWN_KEY: &str = "LMB0101";
pub(crate) const MISSING_KEY: &str = "LMB0102";
pub(crate) const WRONG_TYPE: &str = "LMB0103";
pub(crate) const OUT_OF_RANGE: &str = "LMB0105";
pub(crate) const NOT_A_CHOICE: &str = "LMB0106";
pub(crate) const SETTING_REFUSED: &str = "LMB0118";

pub(crate) const LAYER: &str = "LMB0204";
pub(crate) const VOCABULARY: &str = "LMB0211";
pub(crate) const SINGLE: &str = "LMB0223";
pub(crate) const NO_SUCH_SOURCE: &str = "LMB0230";
pub(crate) const UNBOUND_PORT: &str = "LMB0231";
pub(crate) const NO_SUCH_PORT: &str = "LMB0232";
pub(crate) const SHAPES_DIFFER: &str = "LMB0233";
pub(crate) const TYPES_DIFFER: &str = "LMB0234";
pub(crate) const UNDECLARED: &str = "LMB0201";
pub(crate) const DATASET: &str = "LMB0209";
pub(crate) const CYCLE: &str = "LMB0235";
pub(crate) const CLAIMS: &str = "LMB0236";
pub(crate) const WRONG_KIND: &str = "LMB0237";
pub(crate) const NOT_DIFFERENTIABLE: &str = "LMB0238";
pub(crate) const NO_SUCH_GROUP: &str = "LMB0239";
pub(crate) const NOT_DETERMINISTIC: &str = "LMB0240";
pub(crate) const NO_TEACHER: &str = "LMB0241";
pub(crate) const LEFT_UNBOUND: &str = "LMB0242";
pub(crate) const TOKENIZERS: &str = "LMB0212";
pub(crate) const TOKENIZER: &str = "LMB0243";
pub(crate) const FEW_TOKENS: &str = "LMB0245";
pub(crate) const CACHE_STALE: &str = "LMB0244";
pub(crate) const SCENARIO: &str = "LMB0250";
pub(crate) const SMALL_BUFFER: &str = "LMB0251";

pub(crate) const CACHE_UNREADABLE: &str = "LMB0520";

pub(crate) const ABI: &str = "LMB0301";
pub(crate) const FILE_MISSING: &str = "LMB0302";
pub(crate) const NOT_A_PLUGIN: &str = "LMB0303";
pub(crate) const MANIFEST_DISAGREES: &str = "LMB0304";
pub(crate) const NOT_LOCKED: &str = "LMB0305";
pub(crate) const CHANGED: &str = "LMB0306";
pub(crate) const UNSAFE_PLACE: &str = "LMB0307";
pub(crate) const OPEN_FAILED: &str = "LMB0308";
pub(crate) const SHADOWED: &str = "LMB0309";
pub(crate) const BAD_LOCK: &str = "LMB0310";
pub(crate) const INIT_FAILED: &str = "LMB0311";
pub(crate) const STAGING: &str = "LMB0312";
pub(crate) const NEEDS_INTERFACE: &str = "LMB0313";
pub(crate) const PIN_UNMET: &str = "LMB0314";
pub(crate) const UNKNOWN_PLUGIN: &str = "LMB0315";
pub(crate) const INPUT_MISSING: &str = "LMB0316";
pub(crate) const UNLOCKED_ALLOWED: &str = "LMB0317";
pub(crate) const INPUT_CHANGED: &str = "LMB0318";

pub(crate) const NO_DEVICE: &str = "LMB0801";

pub(crate) const PLUGIN_FAILED: &str = "LMB0401";
pub(crate) const PLUGIN_BROKE_CONTRACT: &str = "LMB0402";
pub(crate) const PLUGIN_PANICKED: &str = "LMB0403";
pub(crate) const PLUGIN_REFUSED_SETTING: &str = "LMB0404";
pub(crate) const PLUGIN_OUT_OF_MEMORY: &str = "LMB0405";
pub(crate) const PLUGIN_CANCELLED: &str = "LMB0406";
pub(crate) const PLUGIN_BAD_DATA: &str = "LMB0407";
pub(crate) const PLUGIN_NOT_FOUND: &str = "LMB0408";
pub(crate) const PLUGIN_DEVICE: &str = "LMB0409";
pub(crate) const PLUGIN_IO: &str = "LMB0410";
pub(crate) const PLUGIN_NOT_FINITE: &str = "LMB0411";
