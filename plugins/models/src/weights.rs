//! Reads a model folder as Hugging Face lays it out: `config.json` and `model.safetensors`, whole or in shards.
//!
//! Refuses missing, surplus and misshaped tensors, other dtypes than f32, f16, bf16 and f64, shard names that leave
//! the folder, and files whose header and length disagree. Invariant: nothing is allocated before the length of the file
//! shows that its bytes exist; no input makes this code panic.

mod safetensors;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde_json::{Map, Value};

use crate::architecture::{Architecture, Stored, from_config};
use crate::error::ModelError;
use crate::params::{ParamSpec, Params};
use safetensors::Reader;

/// Longest `config.json` and index that are read, 64 MiB; the largest published ones have about 10.
const MAX_JSON: u64 = 64 << 20;

/// A model folder that cannot be read; every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file's bytes are not what its kind asks for.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor's entry or bytes are wrong.
    #[error("{}: tensor `{tensor}` {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The model has tensors that the folder lacks.
    #[error("{}: missing {}", path.display(), list(names))]
    Missing {
        /// The file that should hold them.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// The folder has tensors that the model lacks.
    #[error("{}: the model has no {}", path.display(), list(names))]
    Surplus {
        /// The file that holds them, or the index.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// `config.json` describes no model of this crate.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ModelError,
    },
}

impl WeightsError {
    /// The file at fault.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::Malformed { path, .. }
            | Self::Tensor { path, .. }
            | Self::Missing { path, .. }
            | Self::Surplus { path, .. }
            | Self::Config { path, .. } => path,
        }
    }
}

/// The first eight names, quoted, and how many more.
fn list(names: &[String]) -> String {
    let mut text =
        names.iter().take(8).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > 8 {
        text.push_str(&format!(" and {} more", names.len() - 8));
    }
    text
}

/// A folder whose `config.json` was read; no weight has been.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    config: Map<String, Value>,
}

impl Folder {
    /// Reads `config.json` of the folder `path`.
    ///
    /// # Errors
    /// [`WeightsError::Io`]; [`WeightsError::Malformed`] when it is no JSON object.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let config = read_json(&path.join("config.json"))?;
        Ok(Self { path: path.to_owned(), config })
    }

    /// All of `config.json`, unknown fields included.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// `model_type` of `config.json`.
    pub fn model_type(&self) -> Option<&str> {
        self.config.get("model_type").and_then(Value::as_str)
    }

    /// Reads the folder as one of another class, e.g. `BertModel`: the first of `architectures`.
    pub fn set_class(&mut self, class: &str) {
        self.config.insert("architectures".to_owned(), serde_json::json!([class]));
    }

    /// The architecture that `config.json` describes.
    ///
    /// # Errors
    /// [`WeightsError::Config`].
    pub fn architecture(&self) -> Result<Box<dyn Architecture>, WeightsError> {
        from_config(&self.config)
            .map_err(|source| WeightsError::Config { path: self.path.join("config.json"), source })
    }

    /// Compares names and shapes of the folder's tensors with the parameters of `architecture`. Reads the headers of
    /// its files only.
    ///
    /// # Errors
    /// All of [`WeightsError`].
    pub fn check(&self, architecture: &dyn Architecture) -> Result<(), WeightsError> {
        self.wanted(architecture).map(|_| ())
    }

    /// The parameters of `architecture` as `dtype` on `device`: from `model.safetensors`, else from the shards that
    /// `model.safetensors.index.json` lists.
    ///
    /// `progress` is called after each tensor with the number read; it stops the reading by `false`, and the
    /// result is then `None`.
    ///
    /// # Errors
    /// All of [`WeightsError`].
    pub fn params(
        &self,
        architecture: &dyn Architecture,
        dtype: DType,
        device: &Device,
        mut progress: impl FnMut(usize) -> bool,
    ) -> Result<Option<Params>, WeightsError> {
        let (mut files, wanted) = self.wanted(architecture)?;
        let mut params = Params::default();
        for (done, (spec, stored)) in wanted.iter().enumerate() {
            params.insert(
                &spec.name,
                files.reader(stored)?.tensor(stored, &spec.shape, dtype, device)?,
            );
            if !progress(done + 1) {
                return Ok(None);
            }
        }
        Ok(Some(params))
    }

    /// The open files, and each parameter with the name of its tensor.
    fn wanted(
        &self,
        architecture: &dyn Architecture,
    ) -> Result<(Files, Vec<(ParamSpec, String)>), WeightsError> {
        let specs = architecture.params().map_err(|source| WeightsError::Config {
            path: self.path.join("config.json"),
            source,
        })?;
        let mut files = self.files()?;
        let stored = architecture.stored();
        let known: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let mut places: BTreeMap<String, String> = BTreeMap::new();
        let mut surplus = Vec::new();
        for name in files.names.keys() {
            match stored(name) {
                Stored::Skipped => {}
                Stored::Param(param) if known.contains(param.as_str()) => {
                    places.insert(param, name.clone());
                }
                _ => surplus.push(name.clone()),
            }
        }
        let is_missing = |spec: &&ParamSpec| !places.contains_key(&spec.name);
        let missing: Vec<String> =
            specs.iter().filter(is_missing).map(|spec| spec.name.clone()).collect();
        if !missing.is_empty() {
            return Err(WeightsError::Missing { path: files.listing, names: missing });
        }
        if !surplus.is_empty() {
            return Err(WeightsError::Surplus { path: files.listing, names: surplus });
        }
        let mut wanted = Vec::with_capacity(specs.len());
        for spec in specs {
            let name = places.remove(&spec.name).unwrap_or_else(|| spec.name.clone());
            files.reader(&name)?.check(&name, &spec.shape)?;
            wanted.push((spec, name));
        }
        Ok((files, wanted))
    }

    fn files(&self) -> Result<Files, WeightsError> {
        let whole = self.path.join("model.safetensors");
        let index = self.path.join("model.safetensors.index.json");
        if whole.exists() || !index.exists() {
            let reader = Reader::open(&whole)?;
            let names = reader.names().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Files { listing: whole, readers: vec![reader], names });
        }
        let shards = read_index(&index)?;
        let mut readers = Vec::new();
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut names = BTreeMap::new();
        for (name, shard) in &shards {
            let place = match places.get(shard.as_str()) {
                Some(&place) => place,
                None => {
                    readers.push(Reader::open(&self.path.join(shard))?);
                    places.insert(shard, readers.len() - 1);
                    readers.len() - 1
                }
            };
            names.insert(name.clone(), place);
        }
        Ok(Files { listing: index, readers, names })
    }
}

/// Open files and the one that holds each tensor.
struct Files {
    listing: PathBuf,
    readers: Vec<Reader>,
    names: BTreeMap<String, usize>,
}

impl Files {
    /// The file that holds a tensor.
    fn reader(&mut self, name: &str) -> Result<&mut Reader, WeightsError> {
        let reader = self.names.get(name).and_then(|&place| self.readers.get_mut(place));
        reader.ok_or_else(|| WeightsError::Missing {
            path: self.listing.clone(),
            names: vec![name.to_owned()],
        })
    }
}

/// `weight_map` of an index: shard of each tensor, plain file names only.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    let malformed = |problem: String| WeightsError::Malformed { path: path.to_owned(), problem };
    let index = read_json(path)?;
    let map = index
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| malformed("`weight_map` is missing or no object".to_owned()))?;
    map.iter()
        .map(|(name, shard)| {
            let shard = shard
                .as_str()
                .ok_or_else(|| malformed(format!("the shard of tensor `{name}` is no string")))?;
            if !is_plain(shard) {
                let problem =
                    format!("the shard of tensor `{name}` is no plain file name: `{shard}`");
                return Err(malformed(problem));
            }
            Ok((name.clone(), shard.to_owned()))
        })
        .collect()
}

/// Whether a name stays in its folder on every system.
fn is_plain(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.contains(['/', '\\', ':', '\0'])
}

fn read_json(path: &Path) -> Result<Map<String, Value>, WeightsError> {
    let io = |source| WeightsError::Io { path: path.to_owned(), source };
    let malformed = |problem: String| WeightsError::Malformed { path: path.to_owned(), problem };
    let (file, length) = open_regular(path)?;
    if length > MAX_JSON {
        return Err(malformed(format!("{length} bytes, above {MAX_JSON}")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_JSON).read_to_end(&mut bytes).map_err(io)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(malformed("not a JSON object".to_owned())),
        Err(error) => Err(malformed(format!("not valid JSON: {error}"))),
    }
}

/// Opens a file and gives its length; a folder, pipe or device is refused, since reading it may never end.
fn open_regular(path: &Path) -> Result<(File, u64), WeightsError> {
    let io = |source| WeightsError::Io { path: path.to_owned(), source };
    // Before opening: opening a pipe waits for a writer.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        let problem = "not a regular file".to_owned();
        return Err(WeightsError::Malformed { path: path.to_owned(), problem });
    }
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    Ok((file, length))
}
