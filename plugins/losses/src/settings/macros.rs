//! One macro that writes a settings struct with its defaults, and one that adds the softening keys.
//!
//! They exist because serde's `flatten` would accept unknown keys. Every struct they make refuses them,
//! and takes each absent key from `Default`, which is also what the published schema shows.

/// A closed settings struct: `key: type = default`.
macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $( $(#[$attr:meta])* $key:ident: $type:ty = $default:expr, )* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $( $(#[$attr])* pub $key: $type, )*
        }
        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }
    };
}

/// [`settings!`] with temperature, its T² switch, and what to do with infinite rows in front.
macro_rules! softened {
    ($(#[$doc:meta])* $name:ident, temperature $temperature:expr, t2 $t2:expr, { $($rest:tt)* }) => {
        $crate::settings::macros::settings! {
            $(#[$doc])*
            $name {
                /// Divides both sides' logits before the softmax; 1 leaves them unchanged.
                #[schemars(extend("exclusiveMinimum" = 0.0, "maximum" = 1000.0))]
                temperature: f64 = $temperature,
                /// The teacher's own temperature; absent: `temperature`.
                #[schemars(extend("exclusiveMinimum" = 0.0, "maximum" = 1000.0))]
                teacher_temperature: Option<f64> = None,
                /// Multiplies value and gradient by temperature².
                t2: bool = $t2,
                /// What becomes of a row whose loss is not finite.
                non_finite: $crate::settings::NonFinite = $crate::settings::NonFinite::Propagate,
                $($rest)*
            }
        }
        impl $name {
            fn softening(&self) -> Result<$crate::settings::Softening, $crate::settings::BadSetting> {
                $crate::settings::Softening::new(self.temperature, self.teacher_temperature, self.t2)
            }
        }
    };
}

pub(crate) use {settings, softened};
