//! `std::io` over the host's reader and writer, and small helpers to write a state that checks itself when read.
//!
//! Both sides may move fewer bytes than asked (limbeck.h); a cut or foreign state is an error, never a panic.

use crate::{Error, Result};
use limbeck_abi as abi;
use std::io::{self, Read, Write};

/// The host's writer as [`Write`].
pub struct HostWriter<'a>(&'a abi::Writer);

impl<'a> HostWriter<'a> {
    /// # Safety
    /// R5: `raw` lives for `'a`.
    pub(crate) unsafe fn from_abi(raw: *const abi::Writer) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid_argument("the writer is NULL"));
        }
        // SAFETY: the caller's promise.
        Ok(Self(unsafe { &*raw }))
    }
}

impl Write for HostWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: [step], inside the call; the bytes are borrowed.
        let moved =
            unsafe { (self.0.write)(self.0.this, bytes.as_ptr().cast(), bytes.len() as u64) };
        usize::try_from(moved).map_err(|_| io::Error::other("the host cannot write the state"))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The host's reader as [`Read`].
pub struct HostReader<'a>(&'a abi::Reader);

impl<'a> HostReader<'a> {
    /// # Safety
    /// R5: `raw` lives for `'a`.
    pub(crate) unsafe fn from_abi(raw: *const abi::Reader) -> Result<Self> {
        if raw.is_null() {
            return Err(Error::invalid_argument("the reader is NULL"));
        }
        // SAFETY: the caller's promise.
        Ok(Self(unsafe { &*raw }))
    }
}

impl Read for HostReader<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // SAFETY: [step], inside the call; the buffer is ours.
        let moved =
            unsafe { (self.0.read)(self.0.this, bytes.as_mut_ptr().cast(), bytes.len() as u64) };
        match usize::try_from(moved) {
            Ok(moved) if moved <= bytes.len() => Ok(moved),
            _ => Err(io::Error::other("the host cannot read the state")),
        }
    }
}

/// Writes a state: fields in order, then a checksum over everything.
pub struct StateWriter<'a> {
    to: &'a mut dyn Write,
    hash: u64,
}

const FNV: u64 = 0xcbf2_9ce4_8422_2325;
const MAGIC: &[u8; 8] = b"LMBSTAT1";
/// Longest single field; guards the allocation when a length is corrupt.
const MAX_BYTES: u64 = 1 << 40;

fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

impl<'a> StateWriter<'a> {
    /// Begins a state of a kind (`limbeck.er`), its version, and a text that must be equal on load (settings).
    ///
    /// # Errors
    /// What the writer says.
    pub fn begin(to: &'a mut dyn Write, kind: &str, version: u64, settings: &str) -> Result<Self> {
        let mut state = Self { to, hash: FNV };
        state.raw(MAGIC)?;
        state.text(kind)?;
        state.u64(version)?;
        state.text(settings)?;
        Ok(state)
    }
    fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash = fnv(self.hash, bytes);
        Ok(self.to.write_all(bytes)?)
    }
    /// A number.
    ///
    /// # Errors
    /// What the writer says.
    pub fn u64(&mut self, value: u64) -> Result<()> {
        self.raw(&value.to_le_bytes())
    }
    /// Bytes with their length.
    ///
    /// # Errors
    /// What the writer says.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.u64(bytes.len() as u64)?;
        self.raw(bytes)
    }
    /// Text with its length.
    ///
    /// # Errors
    /// What the writer says.
    pub fn text(&mut self, text: &str) -> Result<()> {
        self.bytes(text.as_bytes())
    }
    /// The checksum.
    ///
    /// # Errors
    /// What the writer says.
    pub fn finish(self) -> Result<()> {
        let hash = self.hash;
        Ok(self.to.write_all(&hash.to_le_bytes())?)
    }
}

/// Reads what [`StateWriter`] wrote.
pub struct StateReader<'a> {
    from: &'a mut dyn Read,
    hash: u64,
}

impl<'a> StateReader<'a> {
    /// Checks kind, version and settings.
    ///
    /// # Errors
    /// BAD_DATA for anything else than what `begin` wrote.
    pub fn begin(from: &'a mut dyn Read, kind: &str, version: u64, settings: &str) -> Result<Self> {
        let mut state = Self { from, hash: FNV };
        let mut magic = [0; 8];
        state.raw(&mut magic)?;
        if &magic != MAGIC {
            return Err(Error::bad_data("this is no plugin state"));
        }
        let found = state.text()?;
        if found != kind {
            return Err(Error::bad_data(format!("the state is of `{found}`, not `{kind}`")));
        }
        let found = state.u64()?;
        if found != version {
            return Err(Error::bad_data(format!(
                "state version {found}, this plugin reads {version}"
            )));
        }
        let found = state.text()?;
        if found != settings {
            let message =
                format!("the state was written with other settings: {found}, now {settings}");
            return Err(Error::bad_data(message));
        }
        Ok(state)
    }
    fn raw(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.from
            .read_exact(bytes)
            .map_err(|e| Error::bad_data(format!("the state is cut short: {e}")))?;
        self.hash = fnv(self.hash, bytes);
        Ok(())
    }
    /// A number.
    ///
    /// # Errors
    /// BAD_DATA if cut short.
    pub fn u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.raw(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
    /// Bytes.
    ///
    /// # Errors
    /// BAD_DATA if cut short or of an impossible length.
    pub fn bytes(&mut self) -> Result<Vec<u8>> {
        let len = self.u64()?;
        if len > MAX_BYTES {
            return Err(Error::bad_data(format!("a field of {len} bytes in the state")));
        }
        // Grows with what is really there, so a corrupt length allocates little.
        let mut bytes = Vec::new();
        let got = (&mut *self.from).take(len).read_to_end(&mut bytes)?;
        if got as u64 != len {
            return Err(Error::bad_data("the state is cut short"));
        }
        self.hash = fnv(self.hash, &bytes);
        Ok(bytes)
    }
    /// Text.
    ///
    /// # Errors
    /// BAD_DATA if cut short or not UTF-8.
    pub fn text(&mut self) -> Result<String> {
        String::from_utf8(self.bytes()?)
            .map_err(|_| Error::bad_data("text of the state is not UTF-8"))
    }
    /// Compares the checksum.
    ///
    /// # Errors
    /// BAD_DATA if a byte changed.
    pub fn finish(self) -> Result<()> {
        let mut bytes = [0; 8];
        self.from
            .read_exact(&mut bytes)
            .map_err(|e| Error::bad_data(format!("the state is cut short: {e}")))?;
        if u64::from_le_bytes(bytes) != self.hash {
            return Err(Error::bad_data("the state is damaged: checksums differ"));
        }
        let mut more = [0; 1];
        match self.from.read(&mut more)? {
            0 => Ok(()),
            _ => Err(Error::bad_data("the state goes on after its end")),
        }
    }
}
